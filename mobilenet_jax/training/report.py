"""Reports the progress of a run: as printed lines, in metrics.jsonl and in TensorBoard event files."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mobilenet_jax import tasks
from mobilenet_jax.storage.run_files import METRICS_FILE, TENSORBOARD, read_metrics, write_metrics
from mobilenet_jax.training.state import Progress


class Report:
  """Writes one row per logging step and per evaluation, and prints one line for each.

  If a run continues, the rows after the step from which it continues are removed. If the evaluation of that step is pending,
  the row of that evaluation is removed too.
  """

  def __init__(self, folder: Path, task: tasks.Task, progress: Progress, total_steps: int, batch_size: int,
               say: Callable[[str], None]):
    self._path, self._task = folder / METRICS_FILE, task
    self._total_steps, self._batch_size, self._say = total_steps, batch_size, say
    rows, damaged = read_metrics(folder)
    if damaged:
      say(f'{self._path}: {damaged} damaged rows are left out, {len(rows)} are good')
    again = (progress.step, 'eval') if progress.pending else None
    write_metrics(folder, [row for row in rows if row['step'] <= progress.step and (row['step'], row['split']) != again])
    self._tensorboard = _TensorBoard(folder / TENSORBOARD, progress.step + 1)
    self._last_step, self._last_time = progress.step, time.monotonic()

  def train(self, step: int, values: dict[str, float]) -> None:
    """Reports the means since the last call, with the speed since then."""
    now = time.monotonic()
    seconds_per_step = (now - self._last_time) / max(step - self._last_step, 1)
    self._last_step, self._last_time = step, now
    speed = self._batch_size / seconds_per_step
    self._write(step, 'train', values, {'images_per_second': speed})
    left = duration((self._total_steps - step) * seconds_per_step)
    self._say(f'step {step}/{self._total_steps}  {self._words(values)}  {speed:.0f} images/s  {left} left')

  def evaluation(self, step: int, values: dict[str, float]) -> None:
    """Reports an evaluation; its time does not count as training."""
    self._write(step, 'eval', values)
    remark = self._task.remark(values)
    self._say(f'step {step}/{self._total_steps}  evaluated on {values["examples"]}: {self._words(values)}'
              + (f'  ({remark})' if remark else ''))
    self._last_time = time.monotonic()

  def close(self) -> None:
    self._tensorboard.close()

  def _words(self, values):
    names = ('objective', 'loss', *self._task.headlines)
    return '  '.join(f'{name} {values[name]:.3f}' for name in names if name in values)

  def _write(self, step, split, values, times=None):
    """Writes a row, and the same values to TensorBoard. `times` differ between runs, so they go to TensorBoard only."""
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, 'split': split, **values}) + '\n')
    self._tensorboard.write(step, {**{f'{split}/{name}': value for name, value in values.items()}, **(times or {})})


class _TensorBoard:
  """The TensorBoard event file of a run.

  It is written in the calling thread. tensorboardX's own thread dies if the disk is full, and the run would wait for it.
  """

  def __init__(self, folder: Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    self._writer = EventsWriter(str(folder / 'events'))
    # If a run continues, TensorBoard drops what was written about this step and later ones.
    self._writer.write_event(Event(step=purge_step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes all values of a step at once, because each call waits for the disk."""
    for name, value in values.items():
      self._writer.write_event(Event(step=step, wall_time=time.time(), summary=summary.scalar(name, value)))
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def duration(seconds: float) -> str:
  """Returns seconds as text, like 4:05 or 1:02:03."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def described(outcome: dict | str) -> str:
  """Returns what became of a run, given its row or the reason why it failed."""
  if isinstance(outcome, str):
    return f'failed: {outcome}'
  return f'{tasks.headline(outcome)} in {duration(outcome["seconds"])}'
