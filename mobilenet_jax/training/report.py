"""Reports the progress of a run: as printed lines, in metrics.jsonl and in TensorBoard event files."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mobilenet_jax import tasks
from mobilenet_jax.runtime.pace import Pace, duration
from mobilenet_jax.storage.run_files import METRICS_FILE, TENSORBOARD, read_metrics, write_metrics
from mobilenet_jax.training.durations import Durations
from mobilenet_jax.training.state import Progress

FIRST_SECONDS, THEN_SECONDS = 2, 30  # of training until there is a line even if no log is due: the first, and further ones
EVALUATION_COST = 1 / 3  # of an example, by that of a training step: it has no backward pass. A guess, until one is measured


class Report:
  """Writes one row per logging step and per evaluation, and says one line for each.

  If a run continues, the rows after the step from which it continues are removed. If the evaluation of that step is pending,
  the row of that evaluation is removed too.
  """

  def __init__(self, folder: Path, task: tasks.Task, progress: Progress, durations: Durations, batch_size: int,
               eval_examples: int, say: Callable[..., None]):
    """Opens the files.

    Args:
      folder: the run's folder.
      task: see tasks.Task.
      progress: where the run begins or continues.
      durations: what is due when.
      batch_size: the number of examples of a step.
      eval_examples: the number of examples of an evaluation.
      say: takes each line, and with it `step`, `total_steps` and `seconds_left`.
    """
    self._path, self._task, self._durations, self._say = folder / METRICS_FILE, task, durations, say
    self._batch_size = batch_size
    rows, damaged = read_metrics(folder)
    if damaged:
      say(f'{self._path}: {damaged} damaged rows are left out, {len(rows)} are good')
    again = (progress.step, 'eval') if progress.pending else None
    write_metrics(folder, [row for row in rows if row['step'] <= progress.step and (row['step'], row['split']) != again])
    self._tensorboard = _TensorBoard(folder / TENSORBOARD, progress.step + 1)
    self._last_step = progress.step
    self.begin()
    self._step_seconds = 0.0
    self._evaluation_steps = EVALUATION_COST * eval_examples / batch_size  # that take as long as an evaluation

  def begin(self) -> None:
    """Starts the clock, as the first step is about to begin."""
    self._last_time = time.monotonic()
    self._pace = Pace(FIRST_SECONDS, THEN_SECONDS)

  def train(self, step: int, values: dict[str, float]) -> None:
    """Reports the means since the last call, with the speed since then."""
    self._measure(step)
    self._last_step, self._last_time = step, time.monotonic()
    self._write(step, 'train', values, {'images_per_second': self._batch_size / self._step_seconds})
    self._tell(step, self._words(values))

  def pace(self, step: int) -> None:
    """Reports that `step` is done, if nothing has been reported for a while: to a person only, as it depends on the time."""
    if step > self._last_step and self._pace.due():
      self._measure(step)
      self._tell(step, '')

  def _measure(self, step):
    self._step_seconds = (time.monotonic() - self._last_time) / max(step - self._last_step, 1)

  def _tell(self, step, words):
    evaluations = self._durations.evaluations_after(step - 1)  # that of this step has not been made
    left = self._step_seconds * (self._durations.total - step + evaluations * self._evaluation_steps)
    speed = self._batch_size / self._step_seconds
    parts = [f'step {step}/{self._durations.total}', words, f'{speed:.{1 if speed < 10 else 0}f} images/s',
             f'{duration(left)} left']
    self._say('  '.join(filter(None, parts)), step=step, total_steps=self._durations.total, seconds_left=round(left))
    self._pace.reset()

  def evaluation(self, step: int, values: dict[str, float]) -> None:
    """Reports an evaluation; its time does not count as training."""
    self._write(step, 'eval', values)
    if self._step_seconds:
      self._evaluation_steps = (time.monotonic() - self._last_time) / self._step_seconds
    remark = self._task.remark(values)
    self._say(f'step {step}/{self._durations.total}  evaluated on {values["examples"]}: {self._words(values)}'
              + (f'  ({remark})' if remark else ''), step=step, total_steps=self._durations.total)
    self._last_time = time.monotonic()
    self._pace.reset()

  def teacher(self, values: dict[str, float]) -> None:
    """Writes the evaluation of the teacher as that of step 0, in place of one from a start that came to nothing."""
    folder = self._path.parent
    write_metrics(folder, [row for row in read_metrics(folder)[0] if row['split'] != 'teacher'])
    self._write(0, 'teacher', values)

  def close(self) -> None:
    self._tensorboard.close()

  def _words(self, values):
    names = ('objective', 'loss', *self._task.headlines)
    return '  '.join(f'{name} {values[name]:.3f}' for name in names if name in values)

  def _write(self, step, split, values, times=None):
    """Writes a row, and the same values to TensorBoard. `times` differ between runs, so they go to TensorBoard only."""
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, 'split': split, **values}, allow_nan=False) + '\n')
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


def described(outcome: dict | str) -> str:
  """Returns what became of a run, given its row or the reason why it failed."""
  if isinstance(outcome, str):
    return f'failed: {outcome}'
  return f'{tasks.headline(outcome)} in {duration(outcome["seconds"])}'
