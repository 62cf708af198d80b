"""The folder of a run, as the run itself reads and writes it.

If there are several hosts, only the first one reads, writes and prints. The others receive what it has read.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from mobilenet_jax import models
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.storage import run_files
from mobilenet_jax.storage.checkpoints import Checkpoints
from mobilenet_jax.storage.files import lock, whole_file
from mobilenet_jax.tasks import Task
from mobilenet_jax.training import inputs
from mobilenet_jax.training.durations import Durations
from mobilenet_jax.training.report import Report
from mobilenet_jax.training.state import Progress, TrainState


class RunFolder:
  """The folder of one run, held by this process until `close`.

  Attributes:
    path: the folder.
    row: the run's row if it had finished before, else None.
  """

  def __init__(self, path: Path, config: ml_collections.ConfigDict, say: Callable[[str], None]):
    """Takes the folder's lock, and checks that it is new or belongs to the config.

    Args:
      path: the folder; it is created if it is missing.
      config: the run's config, see checks.checked.
      say: takes each line that a person should see.

    Raises:
      UserError: if the folder belongs to another config, or another process works in it.
    """
    self.path, self._config = path, config
    self._is_first = devices.is_first_host()
    self._say, self._progress = say, {}
    self._lock = self._checkpoints = self._report = None
    self._claim, row = devices.on_first_host(self._examine)
    self.row = None if self._claim.longer else row
    if not row and (path / run_files.RESULT_FILE).exists():
      self.note(f'{path / run_files.RESULT_FILE}: damaged; evaluating again')

  def _examine(self):
    self.path.mkdir(parents=True, exist_ok=True)
    self._lock = lock(self.path)
    try:
      found = run_files.examine(self.path, self._config, models.defaults(self._config.model.name))
    except UserError:
      self._lock.close()
      raise
    return found, run_files.read_row(self.path)

  def claim(self, inputs_now: dict) -> None:
    """Writes the config and the digests of the run's inputs. Once the run has begun, checks that these are the same.

    Raises:
      UserError: if they differ; it says in what, and nothing is written.
    """
    devices.on_first_host(lambda: self._write_claim(inputs_now))

  def _write_claim(self, now):
    if different := inputs.difference(self.path, now):
      raise UserError(different)
    run_files.claim(self.path, self._config, self._claim.longer)
    if self._claim.change:
      self.note(self._claim.change)
    if not run_files.has_begun(self.path):
      run_files.write_inputs(self.path, now)
    elif not run_files.read_inputs(self.path):
      self.note('begun by an earlier version of this code, which did not record its data: whether it is the same is not known')

  def say(self, text: str) -> None:
    """Passes a line to a person."""
    if self._is_first:
      self._say(text)

  def note(self, text: str, **progress: int) -> None:
    """Passes a line to a person, and writes it with the progress of the run where `sweep status` finds it."""
    if self._is_first:
      self._progress = {**self._progress, **progress}
      run_files.write_progress(self.path, {**self._progress, 'doing': text})
    self.say(text)

  def open_checkpoints(self, metric: str) -> None:
    """Opens the checkpoints. The best checkpoint is the one with the highest value of `metric`."""
    if self._is_first:
      self._checkpoints = Checkpoints(self.path / run_files.CHECKPOINTS, metric, self.note)

  def restored(self, like: TrainState) -> Progress | None:
    """Returns the progress in the newest intact checkpoint, on all hosts; None if there is no checkpoint."""
    found = devices.on_first_host(lambda: self._checkpoints.restore(like))
    if not found:
      return None
    progress, before = Progress.restored(*found), found[2]['config']['train_for']
    if before != self._config.train_for:
      progress.extended.append(f'{before} at step {progress.step}')
    return progress

  def save(self, step: int, state: TrainState, evaluation: dict[str, float] | None, notes: dict) -> None:
    """Writes a checkpoint in the background. `evaluation` is None if this step has not been evaluated."""
    devices.on_first_host(lambda: self._checkpoints.save(step, state, evaluation, notes))

  def open_report(self, task: Task, progress: Progress, durations: Durations, eval_examples: int) -> None:
    """Opens the metrics, to continue after `progress`, and starts measuring the training speed."""
    if self._is_first:
      if self._report:
        self._report.close()
      self._report = Report(self.path, task, progress, durations, self._config.batch_size, eval_examples, self.note)

  def report_training(self, step: int, means: dict[str, float]) -> None:
    if self._is_first:
      self._report.train(step, means)

  def report_begin(self) -> None:
    if self._is_first:
      self._report.begin()

  def report_pace(self, step: int) -> None:
    if self._is_first:
      self._report.pace(step)

  def report_evaluation(self, step: int, evaluation: dict[str, float]) -> None:
    if self._is_first:
      self._report.evaluation(step, evaluation)

  def report_teacher(self, evaluation: dict[str, float]) -> None:
    if self._is_first:
      self._report.teacher(evaluation)

  def keep_batch(self, step: int, batch: dict[str, np.ndarray]) -> Path:
    """Writes a batch for inspection and returns its path."""
    path = self.path / f'nonfinite_loss_step_{step}.npz'
    if self._is_first:
      with whole_file(path) as file:
        np.savez(file, **jax.device_get(batch))
    return path

  def finish(self, row: dict) -> None:
    """Writes the run's row after everything else is on disk."""
    self.close_files()
    if self._is_first:
      run_files.write_row(self.path, row)

  def close_files(self) -> None:
    """Finishes pending writes."""
    with contextlib.ExitStack() as closing:  # closes both, even if the first raises an error
      for part in (self._checkpoints, self._report):
        if part:
          closing.callback(part.close)
      self._checkpoints = self._report = None

  def close(self) -> None:
    """Finishes pending writes and releases the folder. May be called more than once."""
    try:
      self.close_files()
    finally:
      if self._lock:
        self._lock.close()
