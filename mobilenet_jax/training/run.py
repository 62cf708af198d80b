"""One model in training: its compiled steps, and when it logs, evaluates, goes back and ends.

run_folder.py writes its files, state.py defines what a step changes, and loop.py calls it.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks, trained
from mobilenet_jax.data import TEACHER, Source, blank_batch, steps_per_epoch, stream_size
from mobilenet_jax.errors import UserError, counted
from mobilenet_jax.runtime import devices, environment
from mobilenet_jax.storage.run_files import CHECKPOINTS
from mobilenet_jax.training import distillation, optimizer
from mobilenet_jax.training.checks import check_freezes, compared
from mobilenet_jax.training.durations import Durations, too_short_for
from mobilenet_jax.training.evaluation import Evaluated, make_eval_step, make_teacher_step
from mobilenet_jax.training.run_folder import RunFolder
from mobilenet_jax.training.state import Progress, TrainState, init_state
from mobilenet_jax.training.step import FINITE, make_train_step

MAX_SKIPPED = 10  # batches that nonfinite_loss='skip' leaves out; more are no accident
STEPS_AHEAD = 4  # how far the host may be ahead of the device; more steps would only keep more batches in memory


class NonFinite(Exception):
  """A loss, a metric or an update that is NaN or infinite. `what` says which, in words."""

  def __init__(self, step: int, what: str):
    super().__init__(f'{what} at step {step}')
    self.step = step


class Run:
  """One model in training.

  Attributes:
    config: the run's config.
    folder: the run's folder.
    outcome: the run's row once it has finished, the error that stopped it, or None.
    durations: what is due when, once the run has started.
    progress: how far the run is.
  """

  def __init__(self, config: ml_collections.ConfigDict, workdir: Path, say: Callable[[str], None]):
    """Checks the devices and takes the folder. Nothing is built yet.

    Args:
      config: the run's config, from checks.completed.
      workdir: the run's folder, see loop.train.
      say: takes each line that a person should see.

    Raises:
      UserError: if the devices do not divide a batch, or as in RunFolder.
    """
    self.config = config
    devices.check_divisible('batch_size', config.batch_size, config.accumulate_steps)
    devices.check_divisible('eval_batch_size', config.eval_batch_size)
    self.folder = RunFolder(workdir, config, say)
    self.outcome = self.folder.row
    self.progress = self._first_progress = None

  @property
  def step(self) -> int:
    """The number of steps done."""
    return self.progress.step

  @property
  def at_end(self) -> bool:
    """Whether all steps are done."""
    return self.step == self.durations.total

  def start(self, train_source: Source, eval_source: Source, teacher: distillation.Teacher | None = None) -> None:
    """Builds the model and its state, and compiles its steps. Restores the newest checkpoint if there is one.

    Args:
      train_source, eval_source: the examples to train on, and to evaluate on.
      teacher: the teacher to learn from, unless its outputs are recorded in the batches.

    Raises:
      UserError: if the config does not fit the data.
    """
    config = self.config
    task = self._task = tasks.create(config)
    num_outputs, self._labels = task.outputs(train_source)
    self._measured_against = task.measured_against(eval_source)
    per_epoch = steps_per_epoch(train_source, config.batch_size)
    self.durations, self._eval_examples = Durations.of(config, per_epoch), len(eval_source)

    model = self._model = models.create(config.model, num_outputs, devices.AXIS)
    teacher = self._choose_outputs(teacher, num_outputs, eval_source)
    for remark in too_short_for(config, per_epoch):
      self.folder.say(remark)
    self._schedule = optimizer.learning_rate(config, per_epoch)
    tx = optimizer.create(config.optim, self._schedule, config.init.freeze_body)
    state = devices.run_once(lambda rng: init_state(rng, model, tx, config, teacher), jax.random.key(config.seed))
    check_freezes(config, state.batch_stats)

    self.folder.open_checkpoints(task.main_metric)
    restored = self.folder.restored(state)
    if config.init.model and not restored:
      state = self._start_from(config.init, train_source, state)
    if config.nonfinite_loss == 'skip' and not restored:
      self._first_progress = Progress(0, jax.device_get(state))  # to go back to
    self._go_on_from(restored or Progress(0, state))

    self._rng = jax.random.key(config.seed + 1)
    blank = lambda size: devices.split(blank_batch(config.data, train_source, size))
    train_step = devices.pmap_step(make_train_step(model, task, tx, config, teacher, train_source.labelled))
    train_args = self.progress.state, blank(config.batch_size), self._rng, self._teacher_variables
    self._train_step = train_step.lower(*train_args).compile()
    eval_step = devices.pmap_evaluation(make_eval_step(model, task, config.data.image_size, teacher=teacher))
    eval_args = self._variables(), blank(config.eval_batch_size), self._teacher_variables
    self._eval_step = eval_step.lower(*eval_args).compile()

    self._open_report()
    self._started = None  # time of the first step
    if self.step:
      self.folder.note(f'continuing at step {self.step}')

  def _choose_outputs(self, teacher: distillation.Teacher | None, num_outputs: int, eval_source: Source):
    """Returns the teacher with the outputs of the student alone, and notes what is to be reported of it."""
    self._teacher_variables, self._left_out = {}, ''
    if teacher:
      if teacher.labels and len(teacher.labels) > num_outputs:
        self._left_out = f', with {num_outputs} of its {len(teacher.labels):,} outputs'
      teacher = distillation.select(teacher, num_outputs, self._labels, (1, *stream_size(self.config.data), 3))
      self._teacher_variables = teacher.variables
      self._say_sizes(teacher.image_size)
    taught = teacher is not None or TEACHER in eval_source.target_shapes
    self._teacher_name = taught and (self.config.distill.model or self.config.data.recorded or 'given in Python')
    # The teacher's decisions equal its outputs by definition.
    measured = taught and self._measured_against != tasks.DECISIONS
    self._teacher_step = devices.pmap_evaluation(make_teacher_step(self._task, teacher)) if measured else None
    return teacher

  def _say_sizes(self, teachers: tuple[int, int] | None) -> None:
    stream, own = stream_size(self.config.data), tuple(self.config.data.image_size)
    if stream != own:
      whose = ", the teacher's size," if stream == teachers else ''
      self.folder.say('images are cropped at {}x{}{} and resized to {}x{} on the device'.format(*stream, whose, *own))

  def _open_report(self):
    self.folder.open_report(self._task, self.progress, self.durations, self._eval_examples)

  def _start_from(self, init: ml_collections.ConfigDict, source: Source, state: TrainState) -> TrainState:
    """Returns the state before the first step, with the weights of another model."""
    origin = trained.load(init.model)
    variables = origin.variables_for(source, self.config.model, like=state.variables(), keep_head=init.keep_head)
    theirs, ours = (tuple(config.data.image_size) for config in (origin.config, self.config))
    sizes = f', trained on {theirs[0]}x{theirs[1]} images (here {ours[0]}x{ours[1]})' if theirs != ours else ''
    same, other = compared(self.config.model, origin.config.model)
    rows = variables['params'][models.CLASSIFIER]['bias'].size
    part = '' if rows == origin.num_classes else f'{rows} of the {origin.num_classes:,} outputs of '
    head = f'with {part}its classifier' if init.keep_head else 'with a new classifier'
    start = f'starting from {init.model}{sizes}{same and f", with its {same}"}, {head}'
    self.folder.say('; '.join(filter(None, (start, init.freeze_body and 'the body is frozen', other))))
    return state.start_with(variables)

  def _go_on_from(self, progress: Progress) -> None:
    if self.progress:  # when going back, the lost time counts, and batches that were left out stay left out
      progress.seconds = self.progress.seconds
      progress.skipped = sorted({*self.progress.skipped, *progress.skipped})
    progress.state = devices.replicate(progress.state)
    self.progress = progress

  def train(self, batch: dict[str, jax.Array]) -> None:
    """Starts the next step on the devices. `batch` is already split over them."""
    if not self._started:  # other runs of the group have been compiled by now, too
      self._started = time.monotonic()
      self.folder.report_begin()
    now = self.progress
    if now.step + 1 in now.skipped:
      now.step += 1
      return
    now.state, sums = self._train_step(now.state, batch, self._rng, self._teacher_variables)
    now.step += 1
    now.window.append(sums)
    if len(now.window) > STEPS_AHEAD:
      jax.block_until_ready(now.window[-STEPS_AHEAD])
      self.folder.report_pace(now.step - STEPS_AHEAD + 1)

  def due(self, what: str) -> bool:
    """Returns whether `what`, which is 'log', 'eval' or 'checkpoint', is due after the step just done."""
    return self.durations.due(what, self.step)

  def log(self) -> None:
    """Reports the means since the last log.

    Raises:
      NonFinite: if a loss, a metric or an update is not finite. It names the first such step.
    """
    mean, window = tasks.metrics.Mean(), self._finite_window()
    # Steps before a stop may be those of an earlier version, which did not sum all that this one does.
    names = set.intersection(*map(set, window)) - {FINITE} if window else set()
    for sums in window:
      mean.add({name: value for name, value in sums.items() if name in names})
    self.progress.window = []
    if mean.count:  # 0 if every batch was left out
      rate = float(self._schedule(self.progress.updates() - 1))
      self.folder.report_training(self.step, {**mean.compute(), 'learning_rate': rate})

  def _finite_window(self) -> list[dict[str, float]]:
    window = jax.device_get(self.progress.window)
    for step, sums in zip(self.progress.steps_in_window(), window):
      if bad := [name for name, value in sums.items() if not math.isfinite(value)]:
        name = next((name for name in ('objective', 'loss') if name in bad), bad[0])
        raise NonFinite(step, f'the {"loss" if name == "objective" else name} is {sums[name]}')
      if not sums[FINITE]:
        raise NonFinite(step, 'the update is not finite')
    return window

  def go_back(self, error: NonFinite, batch: dict[str, np.ndarray]) -> None:
    """Handles a loss that is not finite as config.nonfinite_loss says, and saves the batch for inspection.

    Raises:
      UserError: if training stops, or if too many batches have been left out.
    """
    path = self.folder.keep_batch(error.step, batch)
    advice = 'try a smaller optim.learning_rate or a longer optim.warmup in a new --workdir'
    if self.config.nonfinite_loss == 'stop':
      raise UserError(f'{error}: training stopped, the last checkpoint is from an earlier step, the batch is in {path}; '
                      f'{advice}, or set --config.nonfinite_loss=skip')
    if len(self.progress.skipped) == MAX_SKIPPED:
      raise UserError(f'{error}: training stopped, because {MAX_SKIPPED} batches have been left out before; {advice}')
    self.progress.skipped.append(error.step)
    self._go_on_from(self.folder.restored(self.progress.state) or Progress(0, self._first_progress.state))
    self._open_report()
    self.folder.note(f'{error}: going back to step {self.step}, the batch is left out and kept in {path}')

  def evaluated(self) -> Evaluated:
    """Returns the model in its present state, for evaluation."""
    return Evaluated(self._task, self._eval_step, self._variables(), self._teacher_variables)

  def teacher(self) -> Evaluated | None:
    """Returns the teacher of a run that has done no step, for evaluation; None if nothing can be measured of it."""
    if self.step or not self._teacher_step:
      return None
    return Evaluated(self._task, self._teacher_step, {}, self._teacher_variables)

  def report_teacher(self, evaluation: dict[str, float] | UserError) -> None:
    """Reports the evaluation of the teacher. Raises UserError if its outputs cannot be evaluated."""
    name = f'the teacher {self._teacher_name}{self._left_out}'
    if isinstance(evaluation, UserError):
      raise UserError(f'{name}: {evaluation}') from evaluation
    self.folder.report_teacher(evaluation)
    self.folder.say(f'{name}: {tasks.headline(evaluation)} on {counted(evaluation["examples"], "example")}')

  def _variables(self):
    variables = self.progress.state.variables()
    params = {name: value for name, value in variables['params'].items() if name != models.PROJECTION}
    return {**variables, 'params': params}

  def keep(self, evaluation: dict[str, float] | UserError) -> None:
    """Reports the evaluation of the step just done. Writes a checkpoint if one is due, and the row after the last step."""
    self._check_evaluation(evaluation)
    self.folder.report_evaluation(self.step, evaluation)
    self.progress.pending = False
    if self.due('checkpoint'):
      self._save(evaluation)
    if self.at_end:
      self.finish(evaluation)

  def _check_evaluation(self, evaluation):
    if isinstance(evaluation, UserError):
      raise UserError(f'evaluation at step {self.step}: {evaluation}') from evaluation

  def _save(self, evaluation: dict[str, float] | None, window: list = ()) -> None:
    now = self.progress
    notes = {'seconds': self._seconds(), 'skipped': now.skipped, 'pending': now.pending, 'extended': now.extended,
             'window': list(window), **trained.notes(self.config, self._labels)}
    self.folder.save(now.step, now.state, evaluation, notes)

  def pause(self) -> None:
    """Writes a checkpoint of the step just done, evaluated or not, and closes the run."""
    if not self.progress or not self.step:
      self.close()
      self.folder.note('stopped before the first step')
      return
    try:
      window = [{name: float(value) for name, value in sums.items()} for sums in self._finite_window()]
      self._save(None, window)
    except NonFinite as error:  # it will occur again after the last checkpoint
      self.folder.note(f'{error}')
    self.close()
    self.folder.note(f'stopped at step {self.step}; when started again, it continues from {self.folder.path / CHECKPOINTS}')

  def finish(self, evaluation: dict[str, float] | UserError) -> None:
    """Writes the run's row."""
    self._check_evaluation(evaluation)
    config = self.config
    cost = models.measure(self._model, (*config.data.image_size, 3), train=False)
    row = {
        'name': config_lib.model_name(config), 'model': config.model.name,
        'width_multiplier': config.model.get('width_multiplier', 1.0),
        'height': config.data.image_size[0], 'width': config.data.image_size[1],
        'mult_adds': cost.mult_adds, 'params': cost.trainable,
        **{name: value for name, value in evaluation.items() if name != 'examples' and '/' not in name},
        'measured_against': self._measured_against,
        **({'teacher': self._teacher_name} if self._teacher_name and distillation.is_soft(config) else {}),
        'eval_examples': evaluation['examples'],
        'examples_seen': self.durations.total * config.batch_size,
        'seconds': round(self._seconds(), 1),
        'dataset': config.data.name, 'seed': config.seed, 'commit': environment.commit(), 'device': devices.device_name(),
        **({'extended': '; '.join(self.progress.extended)} if self.progress.extended else {}),
    }
    self.folder.finish(row)
    self._release()
    self.outcome = row

  def close(self) -> None:
    """Finishes pending writes, and releases the state and the folder. May be called more than once."""
    try:
      self.folder.close()
    finally:
      self._release()

  def _release(self):
    """Frees the memory of the state."""
    if self.progress:
      self.progress.state, self.progress.window, self._first_progress = None, [], None

  def _seconds(self):
    return self.progress.seconds + (time.monotonic() - self._started if self._started else 0)
