"""What a person sees of a run: a progress line, metrics.jsonl and TensorBoard event files."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mobilenet_jax import metrics
from mobilenet_jax.files import write_whole

METRICS_FILE = 'metrics.jsonl'
HEADLINES = {
    'top1': ('top-1', '.2%'), 'top5': ('top-5', '.2%'),  # classification
    'mean_ap': ('mean AP', '.2%'), 'emulation': ('emulation', '.4f'),  # attributes
    'accuracy': ('accuracy', '.2%'), 'auc': ('AUC', '.4f'), 'distance': ('distance', '.4f'),  # embeddings
}


class Report:
  """Writes one row a logging step, and says a line.

  A run continued at a step forgets the rows after it, and, where the step's evaluation is pending, that.
  """

  def __init__(self, folder: Path, start_step: int, pending: bool, total_steps: int, batch_size: int,
               say: Callable[[str], None]):
    self._path = folder / METRICS_FILE
    self._total_steps, self._batch_size, self._say = total_steps, batch_size, say
    rows, damaged = _read(folder)
    if damaged:
      say(f'{self._path}: {damaged} damaged rows are left out, {len(rows)} are good')
    again = (start_step, 'eval') if pending else None
    rows = [row for row in rows if row['step'] <= start_step and (row['step'], row['split']) != again]
    write_whole(self._path, ''.join(json.dumps(row) + '\n' for row in rows))
    self._tensorboard = _TensorBoard(folder / 'tensorboard', start_step + 1)
    self._last_step, self._last_time = start_step, time.monotonic()

  def train(self, step: int, values: dict[str, float]) -> None:
    """Reports means since the last call, with the speed since then."""
    now = time.monotonic()
    seconds_per_step = (now - self._last_time) / max(step - self._last_step, 1)
    self._last_step, self._last_time = step, now
    speed = self._batch_size / seconds_per_step
    self._write(step, 'train', values, {'images_per_second': speed})
    left = duration((self._total_steps - step) * seconds_per_step)
    self._say(f'step {step}/{self._total_steps}  {_words(values)}  {speed:.0f} images/s  {left} left')

  def evaluation(self, step: int, values: dict[str, float]) -> None:
    """Reports an evaluation; its time does not count as training."""
    self._write(step, 'eval', values)
    undefined = [name for name, (_, positives) in by_attribute(values).items() if not positives]
    left_out = f'  (left out, without a positive example: {", ".join(undefined)})' if undefined else ''
    self._say(f'step {step}/{self._total_steps}  evaluated on {values["examples"]}: {_words(values)}{left_out}')
    self._last_time = time.monotonic()

  def close(self) -> None:
    self._tensorboard.close()

  def _write(self, step, split, values, times=None):
    """A row, and the same for TensorBoard, which alone has `times`: of them no two runs agree."""
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, 'split': split, **values}) + '\n')
    self._tensorboard.write(step, {**{f'{split}/{name}': value for name, value in values.items()}, **(times or {})})


class _TensorBoard:
  """Its event file, written by who calls: tensorboardX's thread dies of a full disk, and the run would wait for it."""

  def __init__(self, folder: Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    self._writer = EventsWriter(str(folder / 'events'))
    # Of a run that continues, TensorBoard forgets what it had written of this step and later ones.
    self._writer.write_event(Event(step=purge_step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes all of a step at once, for each call waits for the disk."""
    for name, value in values.items():
      self._writer.write_event(Event(step=step, wall_time=time.time(), summary=summary.scalar(name, value)))
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def read(folder: Path) -> list[dict]:
  """The rows of a run's metrics.jsonl that can be read; none where it has none."""
  return _read(folder)[0]


def _read(folder):
  """Rows, and how many lines are none, but for a last one: the process was killed while it wrote that."""
  path = folder / METRICS_FILE
  lines = path.read_bytes().splitlines() if path.exists() else []
  rows, damaged = [], 0
  for i, line in enumerate(lines):
    try:
      row = json.loads(line)
      row['step'], row['split']
      rows.append(row)
    except (ValueError, TypeError, KeyError):
      damaged += i < len(lines) - 1
  return rows, damaged


def duration(seconds: float) -> str:
  """Like 4:05, or 1:02:03."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def headline(values: dict[str, float]) -> str:
  """The metrics that a person looks for first, like 'top-1 72.10%, top-5 90.33%'."""
  found = {name: HEADLINES[name] for name in HEADLINES if name in values}
  return ', '.join(f'{title} {values[name]:{form}}' for name, (title, form) in found.items())


def described(outcome: dict | str) -> str:
  """What has become of a run: of its row, or what it failed of."""
  if isinstance(outcome, str):
    return f'failed: {outcome}'
  return f'{headline(outcome)} in {duration(outcome["seconds"])}'


def by_attribute(values: dict[str, float]) -> dict[str, tuple[float | None, int]]:
  """Of an evaluation of attributes: each one's average precision, None where it has no positive example, and those."""
  counts = {name.removeprefix(metrics.POSITIVES): count for name, count in values.items()
            if name.startswith(metrics.POSITIVES)}
  return {name: (values.get(metrics.PRECISION + name), count) for name, count in counts.items()}


def attribute_table(values: dict[str, float]) -> str:
  """`by_attribute` as lines, '' for another task."""
  return ''.join(f'  {name:24} {"undefined" if precision is None else format(precision, ".2%"):>10}  {count:,} positive\n'
                 for name, (precision, count) in by_attribute(values).items())


def _words(values: dict[str, float]) -> str:
  return '  '.join(f'{name} {values[name]:.3f}' for name in ('objective', 'loss', *HEADLINES) if name in values)
