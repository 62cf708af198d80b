"""A run: one model, its state, its steps and its folder."""

import contextlib
import json
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from mobilenet_jax import complexity, distill, metrics, models, optim, parallel, results, tasks, trained
from mobilenet_jax import config as config_lib
from mobilenet_jax.checkpoint import Checkpoints
from mobilenet_jax.data import pipeline, preprocessing
from mobilenet_jax.data.examples import TEACHER
from mobilenet_jax.data.sources import Source
from mobilenet_jax.errors import UserError
from mobilenet_jax.evaluate import Evaluated, make_eval_step
from mobilenet_jax.files import CHECKPOINTS, lock, whole_file, write_whole
from mobilenet_jax.report import Report
from mobilenet_jax.train_step import FINITE, TrainState, init_state, make_train_step

MAX_SKIPPED = 10  # batches, under nonfinite_loss='skip': more are no accident
# What a run may be started again with another value of: it says what to do about faults, and leaves no trace otherwise.
WITHOUT_TRACE = ('nonfinite_loss', 'data.bad_images', 'data.max_bad_images', 'data.stall_seconds')
STEPS_AHEAD = 4  # that the host may be ahead of the device: more would only keep their batches in memory


class NonFinite(Exception):
  """A loss or an update that is NaN or infinite."""

  def __init__(self, step: int, loss: float):
    what = 'the update is not finite' if math.isfinite(loss) else f'the loss is {loss}'
    super().__init__(f'{what} at step {step}')
    self.step = step


class Run:
  """One model in training.

  Attributes:
    config: the run's config.
    outcome: its row once it is finished, the error that stopped it, or None.
    step: steps done.
    total_steps: steps to do.
  """

  def __init__(self, config: ml_collections.ConfigDict, workdir: Path, say: Callable[[str], None]):
    """Checks the config and claims the folder; nothing is built yet.

    Args:
      config: a whole config.
      workdir: the run's folder, see train.train.
      say: takes each line that a person should see.

    Raises:
      UserError: on a bad config, or a folder that belongs to another config, or has another process in it.
    """
    config_lib.validate(config)
    parallel.check_divisible('batch_size', config.batch_size, config.accumulate_steps)
    parallel.check_divisible('eval_batch_size', config.eval_batch_size)
    self.config, self.workdir = config, workdir
    self._first = parallel.is_first_host()  # of several hosts it alone writes and speaks
    self._say = say if self._first else lambda text: None
    self._open = []  # what close() closes
    self._lock = None
    self.outcome = parallel.on_first_host(self._claim)
    if not self.outcome and (workdir / results.RESULT_FILE).exists():
      self.note(f'{workdir / results.RESULT_FILE}: damaged; evaluating again')

  def _claim(self):
    self.workdir.mkdir(parents=True, exist_ok=True)
    self._lock = lock(self.workdir)
    try:
      claim_folder(self.workdir, self.config)
    except UserError:
      self._lock.close()
      raise
    return results.read(self.workdir)

  def start(self, train_source: Source, teacher: distill.Teacher | None = None) -> None:
    """Builds the model and its state, from the newest checkpoint where there is one, and compiles its steps.

    Args:
      train_source: what it will be trained on.
      teacher: what it learns from, unless that is recorded in the batches.

    Raises:
      UserError: where config and data do not fit.
    """
    config = self.config
    task = tasks.create(config)
    num_outputs, self._labels = task.outputs(train_source)
    distill.check(config, teacher is not None, TEACHER in pipeline.target_shapes(train_source))
    per_epoch = pipeline.steps_per_epoch(train_source, config.batch_size)
    steps = lambda duration, field: config_lib.steps(duration, field, per_epoch, config.batch_size)
    self.total_steps = steps(config.train_for, 'train_for')
    self._every = {name: steps(config[f'{name}_every'], f'{name}_every') for name in ('log', 'eval', 'checkpoint')}

    self._model = models.create(config.model, num_outputs, parallel.AXIS)
    if teacher:
      shape = (1, *preprocessing.stream_size(config.data), 3)
      teacher = distill.select(teacher, num_outputs, self._labels, shape)
    self._teacher_variables = teacher.variables if teacher else {}
    self._schedule = optim.learning_rate(config.optim, steps(config.optim.warmup, 'optim.warmup'),
                                         steps(config.optim.decay_every, 'optim.decay_every'))
    tx = optim.create(config.optim, self._schedule, config.init.freeze_body)
    state = parallel.run_once(lambda rng: init_state(rng, self._model, tx, config, teacher), jax.random.key(config.seed))

    if self._first:
      self._checkpoints = Checkpoints(self.workdir / CHECKPOINTS, task.main_metric, self.note)
      self._open.append(self._checkpoints)
    restored = self._restored(state)
    if config.init.model and not restored:
      state = self._start_from(config.init, train_source, state)
    self._first_state = jax.device_get(state) if config.nonfinite_loss == 'skip' and not restored else None
    self._skipped = []  # steps whose batch is left out
    self._go_on_from(restored or (0, state, {}))
    self._rng = jax.random.key(config.seed + 1)
    blank = lambda size: parallel.split(pipeline.blank_batch(config.data, train_source, size))
    train_step = parallel.pmap_step(make_train_step(self._model, task, tx, config, teacher))
    train_args = self._state, blank(config.batch_size), self._rng, self._teacher_variables
    self._train_step = train_step.lower(*train_args).compile()
    eval_step = make_eval_step(self._model, task, config.data.image_size, teacher=teacher)
    self._task, eval_args = task, (self._variables(), blank(config.eval_batch_size), self._teacher_variables)
    self._eval_step = parallel.pmap_evaluation(eval_step).lower(*eval_args).compile()
    self._open_report()  # whose clock runs from here on
    self._started = None  # when the first step was
    if self.step:
      self.note(f'continuing at step {self.step}')

  def _go_on_from(self, restored: tuple[int, TrainState, dict]) -> None:
    """Takes up a state: its step, itself and what was noted beside it."""
    self.step, state, notes = restored
    self._state = parallel.replicate(state)
    self._window = notes.get('window', [])  # sums on the device since the last log: reading one would wait for its step
    self.pending = notes.get('pending', False)  # an evaluation that was due when training stopped
    self._seconds_before = notes.get('seconds', 0.0)
    self._skipped = sorted({*self._skipped, *notes.get('skipped', [])})

  def _open_report(self) -> None:
    if self._first:
      self._report = Report(self.workdir, self.step, self.pending, self.total_steps, self.config.batch_size, self._say)
      self._open.append(self._report)

  def _restored(self, like: TrainState) -> tuple[int, TrainState, dict] | None:
    return parallel.on_first_host(lambda: self._checkpoints.restore(like))

  def _save(self, metrics: dict[str, float] | None, **notes) -> None:
    notes = {'seconds': self._seconds(), 'skipped': self._skipped, **trained.notes(self.config, self._labels), **notes}
    parallel.on_first_host(lambda: self._checkpoints.save(self.step, self._state, metrics, notes))

  def _start_from(self, init: ml_collections.ConfigDict, source: Source, state: TrainState) -> TrainState:
    """The state before the first step with the weights of another model."""
    origin = trained.load(init.model)
    variables = origin.variables_for(source, like=state.variables(), keep_head=init.keep_head)
    head = 'its classifier too' if init.keep_head else 'with a new classifier'
    self.note(f'starting from {init.model}, {head}{"; the body is frozen" if init.freeze_body else ""}')
    return state.start_with(variables)

  def note(self, text: str) -> None:
    """Tells a person something."""
    self._say(text)

  def train(self, batch: dict[str, jax.Array]) -> None:
    """Starts the next step on the devices; the batch split."""
    self._started = self._started or time.monotonic()
    if self.step + 1 in self._skipped:
      self.step += 1
      return
    self._state, sums = self._train_step(self._state, batch, self._rng, self._teacher_variables)
    self.step += 1
    self._window.append(sums)
    if len(self._window) > STEPS_AHEAD:
      jax.block_until_ready(self._window[-STEPS_AHEAD])

  def due(self, what: str) -> bool:
    """Whether 'log', 'eval' or 'checkpoint' comes after the step just done."""
    return self.step == self.total_steps or bool(self._every[what] and self.step % self._every[what] == 0)

  def log(self) -> None:
    """Reports the means since the last log.

    Raises:
      NonFinite: naming the first step.
    """
    mean = metrics.Mean()
    for sums in self._finite_window():
      mean.add({name: value for name, value in sums.items() if name != FINITE})
    self._window = []
    if self._first and mean.count:  # else all batches were left out
      self._report.train(self.step, {**mean.compute(), 'learning_rate': float(self._schedule(self._updates() - 1))})

  def _updates(self) -> int:
    return self.step - sum(step <= self.step for step in self._skipped)

  def _finite_window(self) -> list[dict[str, float]]:
    window = jax.device_get(self._window)
    done = [step for step in range(self.step, 0, -1) if step not in self._skipped][:len(window)][::-1]
    for step, sums in zip(done, window):
      loss = sums['objective' if 'objective' in sums else 'loss']
      if not (math.isfinite(loss) and sums[FINITE]):
        raise NonFinite(step, loss)
    return window

  def go_back(self, error: NonFinite, batch: dict[str, np.ndarray]) -> None:
    """Deals with a loss that is not finite as config.nonfinite_loss says; its batch is kept for inspection.

    Raises:
      UserError: where training stops; or there are too many such batches to go on.
    """
    path = self.workdir / f'nonfinite_loss_step_{error.step}.npz'
    if self._first:
      with whole_file(path) as file:
        np.savez(file, **batch)
    if self.config.nonfinite_loss == 'stop':
      raise UserError(f'{error}: training stopped, the last checkpoint is from before, the batch is in {path}; try a smaller '
                      'optim.learning_rate or a longer optim.warmup in a new --workdir, or --config.nonfinite_loss=skip')
    if len(self._skipped) == MAX_SKIPPED:
      raise UserError(f'{error}: training stopped, for {MAX_SKIPPED} batches had been left out before; try a smaller '
                      'optim.learning_rate or a longer optim.warmup in a new --workdir')
    self._skipped.append(error.step)
    if self._first:
      self._open.remove(self._report)
      self._report.close()
    self._go_on_from(self._restored(self._state) or (0, self._first_state, {}))
    self._open_report()
    self.note(f'{error}: going back to step {self.step}, the batch is left out and kept in {path}')

  def evaluated(self) -> Evaluated:
    """What to evaluate."""
    return Evaluated(self._task, self._eval_step, self._variables(), self._teacher_variables)

  def _variables(self):
    variables = self._state.variables()
    params = {name: value for name, value in variables['params'].items() if name != optim.PROJECTION}
    return {**variables, 'params': params}

  def keep(self, evaluation: dict[str, float] | UserError) -> None:
    """Reports an evaluation of the step just done, writes the checkpoint that is due, and at the end the row."""
    if isinstance(evaluation, UserError):
      raise evaluation
    if self._first:
      self._report.evaluation(self.step, evaluation)
    self.pending = False
    if self.due('checkpoint'):
      self._save(evaluation)
    if self.step == self.total_steps:
      self.finish(evaluation)

  def pause(self) -> None:
    """Writes a checkpoint of the step just done, evaluated or not, and ends."""
    try:
      window = [{name: float(value) for name, value in sums.items()} for sums in self._finite_window()]
      if self.step:
        self._save(None, window=window, pending=self.pending)
    except NonFinite as error:  # which will come up again, from the last checkpoint on
      self.note(f'{error}')
    self.close()
    self.note(f'stopped at step {self.step}; started again, it continues from {self.workdir / CHECKPOINTS}')

  def finish(self, evaluation: dict[str, float] | UserError) -> None:
    """Writes the run's row."""
    if isinstance(evaluation, UserError):
      raise evaluation
    config = self.config
    cost = complexity.measure(self._model, (*config.data.image_size, 3), train=False)
    row = {
        'name': config_lib.model_name(config), 'model': config.model.name,
        'width_multiplier': config.model.width_multiplier,
        'height': config.data.image_size[0], 'width': config.data.image_size[1],
        'mult_adds': cost.mult_adds, 'params': cost.trainable,
        **{name: value for name, value in evaluation.items() if name != 'examples' and '/' not in name},
        'eval_examples': evaluation['examples'], 'examples_seen': self.total_steps * config.batch_size,
        'seconds': round(self._seconds(), 1),
        'dataset': config.data.name, 'seed': config.seed, 'commit': commit(), 'device': parallel.device_name(),
    }
    self._settle()
    if self._first:
      results.write(self.workdir, row)
    self.outcome = row

  def close(self) -> None:
    """Finishes what is being written, and lets go of the state and the folder; may be called again."""
    try:
      self._settle()
    finally:
      if self._lock:
        self._lock.close()

  def _settle(self):
    with contextlib.ExitStack() as closing:  # all of them, whatever one of them says
      for part in self._open:
        closing.callback(part.close)
      self._open = []
    self._state = self._window = self._first_state = None

  def _seconds(self):
    return self._seconds_before + (time.monotonic() - self._started if self._started else 0)


def claim_folder(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Writes config.json into a new run folder, or checks that the one there says the same.

  Raises:
    UserError: naming the differences.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path, text = workdir / 'config.json', config_lib.to_json(config)
  if not path.exists():
    write_whole(path, text)
    return
  try:
    claimed = config_lib.from_dict(json.loads(path.read_bytes()))
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f'{path}: damaged; remove it to go on with the config given') from error
  given = config_lib.flat(config)
  before = config_lib.changed(claimed, {name: given[name] for name in WITHOUT_TRACE})
  if difference := config_lib.difference(config_lib.to_json(before), text):
    raise UserError(f'{workdir} belongs to another config (- there, + given: {difference}); '
                    'give another --workdir, or the config that is there')
  if config_lib.to_json(claimed) != text:
    write_whole(path, text)


def commit() -> str:
  """The short commit of the code, '-dirty' where it was changed; 'unknown' outside of git."""
  command = ['git', 'describe', '--always', '--dirty', '--exclude=*']
  try:
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
