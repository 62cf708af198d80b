"""The only training loop. It trains a group of models on one stream of batches."""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import tasks
from mobilenet_jax.data import BadExample, Batch, Source, left_out, stream_size, train_batches
from mobilenet_jax.errors import Interrupted, UserError
from mobilenet_jax.runtime import devices, signals
from mobilenet_jax.runtime.pace import progress
from mobilenet_jax.training import distillation, evaluation
from mobilenet_jax.training import inputs as inputs_lib
from mobilenet_jax.training.checks import completed
from mobilenet_jax.training.inputs import Inputs
from mobilenet_jax.training.run import NonFinite, Run

HOSTS_AGREE_EVERY = 10  # steps
EVALUATION_SECONDS = 20  # of an evaluation until a line says how far it is
_PRINT = itertools.repeat(functools.partial(print, flush=True))


def train(config: ml_collections.ConfigDict, workdir: str | Path,
          data: tuple[Source, Source] | None = None, teacher: distillation.Teacher | None = None) -> dict:
  """Trains one model to the end. Continues from the newest checkpoint in `workdir` if there is one.

  Args:
    config: a complete config, see mobilenet_jax/config/schema.py.
    workdir: the run's folder, see storage/run_files.py.
    data: the training and the evaluation source; by default those that config.data names.
    teacher: what the model learns from; by default the teacher that config.distill names. In both cases config.distill
      gives the terms of the loss and their weights.

  Returns:
    The run's row, see storage/run_files.py.

  Raises:
    UserError: on bad input, if the folder belongs to another config, or if a loss is not finite.
    Interrupted: after SIGTERM or SIGINT, once the step is finished and a checkpoint is written. A second signal ends the
      process.
  """
  outcome, = train_group([config], [workdir], data, teacher=teacher)
  if isinstance(outcome, UserError):
    raise outcome
  return outcome


def train_group(configs: list[ml_collections.ConfigDict], workdirs: list[str | Path],
                data: tuple[Source, Source] | None = None,
                says: list[Callable[[str], None]] | None = None,
                teacher: distillation.Teacher | None = None) -> list[dict | UserError]:
  """Trains several models, each in its own folder as `train` does, on one stream of batches.

  Every batch is read, cropped and sent to the devices once, and every model takes a step on it. The trained models and the
  contents of their folders do not depend on each other, except for the times, which are those of the group.

  Args:
    configs: a complete config for each run. All must have the same `stream`. They may differ in the model, the optimiser,
      the durations and, if stream_size is the same, in image_size.
    workdirs: the folder of each run, as in `train`.
    data: as in `train`.
    says: for each run, a function that takes the lines a person should see; by default they are printed.
    teacher: as in `train`; shared by all runs.

  Returns:
    For each run its row, or the error that stopped it. Such an error does not stop the other runs.

  Raises:
    UserError: on bad input, before any model is trained, or on an error in the data.
    Interrupted: as in `train`.
  """
  workdirs = [Path(workdir) for workdir in workdirs]
  configs = completed(configs, workdirs)
  shared = configs[0]
  for config, workdir in zip(configs, workdirs):
    if difference := config_lib.difference(stream(shared), stream(config)):
      raise UserError(f'{workdirs[0]} and {workdir} cannot share a stream of batches: {difference}')
  with contextlib.ExitStack() as stack:  # finishes pending writes, however the loop ends
    runs = []
    for config, workdir, say in zip(configs, workdirs, says or _PRINT):
      runs.append(Run(config, workdir, say))
      stack.callback(runs[-1].close)
    stop = stack.enter_context(signals.stop_wanted())
    active = lambda: [run for run in runs if not run.outcome]
    inputs = _claimed(runs, data, teacher)
    if active():
      _Group(active, shared, stop).train(inputs)
    if active():
      for run in active():
        _or_stop(run, run.pause)
      failed = [(run, run.outcome) for run in runs if isinstance(run.outcome, UserError)]
      for run, error in failed:
        run.folder.note(f'error: {error}')
      if not active():
        raise failed[-1][1]
      when = 'between two steps' if any(run.progress and run.step for run in runs) else 'before the first step'
      raise Interrupted(f'{stop() or "another host was told to stop"}: training stopped {when}; start the same command again '
                        'to continue')
    return [run.outcome for run in runs]


def _claimed(runs: list[Run], data, teacher) -> Inputs | None:
  """Loads the inputs of the runs, and checks that they are those with which runs were begun. None if all runs have ended."""
  config = runs[0].config
  names = [*([] if data else [config.data.name]), *([f'the teacher {config.distill.model}'] if config.distill.model else [])]
  for run in runs:
    if names and not run.outcome:
      run.folder.note(f'reading {" and ".join(names)}')
  try:
    inputs = inputs_lib.load_inputs(config, data, teacher)
  except UserError as error:
    if not all(run.outcome for run in runs):
      raise
    for run in runs:
      run.folder.note(f'finished before; whether its data is still the same cannot be checked: {error}')
    return None
  weights = inputs_lib.starting_weights(run.config for run in runs)
  for run in runs:
    def claim():
      inputs_lib.check_inputs(run.config, inputs)
      run.folder.claim({**inputs.digests, **weights[run.config.init.model]})

    _or_stop(run, claim)
  return inputs


class _Group:
  """Several runs that train together."""

  def __init__(self, active: Callable[[], list[Run]], config: ml_collections.ConfigDict, stop: Callable[[], str]):
    """Stores the arguments; nothing is loaded yet.

    Args:
      active: returns the runs that are not done.
      config: a complete config that holds for everything the runs share.
      stop: a function from signals.stop_wanted.
    """
    self._active, self._config, self._wanted = active, config, stop
    self._bad_images = set()

  def _stop(self, step: int = 0) -> bool:
    """Returns whether a stop is wanted. Several hosts agree on it every few steps, so that all stop after the same step."""
    if devices.host_count() == 1:
      return bool(self._wanted())
    return step % HOSTS_AGREE_EVERY == 0 and devices.over_hosts(bool(self._wanted())) > 0

  def train(self, inputs: Inputs) -> None:
    """Trains until no run is active or a stop is wanted."""
    shared, active = self._config, self._active
    train_source, self._eval_source, teacher = inputs.train, inputs.evaluation, inputs.teacher
    task = tasks.create(shared)
    self._transform = task.transform
    if teacher:
      teacher = dataclasses.replace(teacher, variables=devices.replicate(teacher.variables))
    counts = f'{shared.data.name}: {len(train_source):,} examples to train on, {len(self._eval_source):,} to evaluate on'
    if train_source.num_classes:
      counts += f', {train_source.num_classes:,} {"people" if task.kind == "vector" else "classes"}'
    remarks = (counts, *train_source.remarks, left_out(train_source, shared.data))
    for remark in filter(None, remarks):
      self._say(remark)
    self._train_source = train_source
    self._start(active(), teacher)
    stopped = self._stop()
    if not stopped:
      self._evaluate_teacher()
      # After an interruption, some runs may have stopped before an evaluation, and others may lack only their row.
      self._evaluate([run for run in active() if run.progress.pending], Run.keep)
      self._evaluate([run for run in active() if run.at_end], Run.finish)
      stopped = self._stop()
    while active() and not stopped:
      stopped = self._train_from(min(run.step for run in active()))  # some runs may be further than others

  def _start(self, runs: list[Run], teacher: distillation.Teacher | None) -> None:
    """Starts the runs, unless a stop is wanted first."""
    alone, said = devices.host_count() == 1, []

    def start(numbered):
      number, run = numbered
      if alone and self._wanted():
        return
      run.folder.note('compiling' + (f' model {number} of {len(runs)}' if len(runs) > 1 else ''))
      _or_stop(run, lambda: run.start(self._train_source, self._eval_source, teacher))

    def say_once_that_it_stops():
      if self._wanted() and not said:
        said.append(True)
        self._say(f'{self._wanted()}: stopping after this compilation')

    devices.at_once(start, list(enumerate(runs, start=1)), say_once_that_it_stops)

  def _say(self, text: str) -> None:
    for run in self._active():
      run.folder.note(text)

  def _train_from(self, step: int) -> bool:
    """Trains on the batches from `step` on, until all runs are done, one has gone back, or a stop is wanted.

    Returns:
      Whether a stop is wanted.
    """
    with contextlib.closing(self._batches(step)) as batches:
      for step, batch in enumerate(devices.split_ahead(batches), start=step + 1):
        stepping = [run for run in self._active() if run.step < step]
        for run in stepping:
          run.train(batch)
        for run in stepping:
          if run.due('log') or run.due('eval') or run.due('checkpoint'):
            self._log(run)
        due = [run for run in stepping if not run.outcome and run.step == step and (run.due('eval') or run.due('checkpoint'))]
        for run in due:
          run.progress.pending = True
        self._evaluate(due, Run.keep)
        if self._stop(step):
          return True
        if not self._active() or any(run.step < step for run in self._active()):
          return False
    return True  # a stop was wanted while the data stalled

  def _log(self, run: Run) -> None:
    try:
      run.log()
    except NonFinite as error:
      with contextlib.closing(self._batches(error.step - 1)) as batches:
        batch = next(batches, None)
      if batch:  # None if a stop was wanted first
        _or_stop(run, lambda: run.go_back(error, batch))

  def _evaluate(self, runs: list[Run], then: Callable[[Run, dict | UserError], None]) -> None:
    """Evaluates runs together and calls then(run, evaluation) for each, unless a stop is wanted first."""
    for run, found in zip(runs, self._evaluations([run.evaluated() for run in runs])):
      _or_stop(run, lambda: then(run, found))

  def _evaluate_teacher(self) -> None:
    """Evaluates the teacher once for all runs that are about to begin, if there is one, unless a stop is wanted first."""
    students = {run: teacher for run in self._active() if (teacher := run.teacher())}
    for found in self._evaluations(list(students.values())[:1]):
      for run in students:
        _or_stop(run, lambda: run.report_teacher(found))

  def _evaluations(self, models: list[evaluation.Evaluated]) -> list[dict | UserError]:
    """Returns what evaluation.evaluate does; [] if a stop is wanted first."""
    if not models or self._stop():
      return []
    on_progress = progress('evaluating', len(self._eval_source), EVALUATION_SECONDS, self._say)
    return evaluation.evaluate(models, self._eval_source, self._config, self._on_bad_image, self._on_stall, self._stop,
                               on_progress)

  def _batches(self, step: int) -> Iterator[Batch]:
    config = self._config
    return train_batches(self._train_source, config.data, config.batch_size, _data_seed(config), step, self._on_bad_image,
                         self._on_stall, self._stop, self._transform)

  def _on_stall(self, seconds: float) -> None:
    self._say(f'{self._config.data.name} has given no batch for {seconds:.0f} s: still waiting')

  def _on_bad_image(self, error: BadExample) -> None:
    name = error.name
    if name in self._bad_images:
      return
    self._bad_images.add(name)
    limit = self._config.data.max_bad_images
    if len(self._bad_images) > limit:
      raise UserError(f'{name}: {error.reason}; {limit} images before it cannot be read either; repair them, or raise '
                      f'--config.data.max_bad_images={limit}')
    self._say(f'skipping {name}: {error.reason} ({len(self._bad_images)} skipped so far)')


def _or_stop(run: Run, action: Callable[[], None]) -> None:
  """Calls `action`. If it fails, only this run stops."""
  try:
    action()
  except UserError as error:
    run.close()
    run.outcome = error


def stream(config: ml_collections.ConfigDict) -> str:
  """Returns everything that the batches of a run depend on, as JSON."""
  data = {**config.data, 'image_size': stream_size(config.data), 'seed': _data_seed(config)}
  del data['stream_size']
  sizes = {name: config[name] for name in ('batch_size', 'eval_batch_size')}
  outputs = {'teacher': config.distill.model, 'task': config.task, 'embedding': {'size': config.embedding.size}}
  return json.dumps({'data': data, **sizes, **outputs}, indent=2, sort_keys=True, allow_nan=False)


def _data_seed(config):
  return config.seed if config.data.seed < 0 else config.data.seed
