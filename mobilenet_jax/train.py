"""The only training loop: a group of models, on one stream of batches."""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import distill, parallel, tasks
from mobilenet_jax.data import pipeline, preprocessing, sources
from mobilenet_jax.errors import UserError
from mobilenet_jax.evaluate import evaluate
from mobilenet_jax.run import Run


_PRINT = itertools.repeat(functools.partial(print, flush=True))


def train(config: ml_collections.ConfigDict, workdir: str | Path,
          data: tuple[sources.Source, sources.Source] | None = None, teacher: distill.Teacher | None = None) -> dict:
  """Trains to the end, from the newest checkpoint in `workdir` where there is one.

  Args:
    config: a whole config, see mobilenet_jax/config.py.
    workdir: the run's folder: config.json, metrics.jsonl, tensorboard/, checkpoints/ and, once finished,
      result.json.
    data: training and evaluation source; by default those that config.data names.
    teacher: what to learn from; by default what config.distill names. Its terms and weights are those of config.distill.

  Returns:
    The run's row, see results.py.

  Raises:
    UserError: on bad input, a folder that belongs to another config, or a loss that is not finite.
  """
  outcome, = train_group([config], [workdir], data, teacher=teacher)
  if isinstance(outcome, UserError):
    raise outcome
  return outcome


def train_group(configs: list[ml_collections.ConfigDict], workdirs: list[str | Path],
                data: tuple[sources.Source, sources.Source] | None = None,
                says: list[Callable[[str], None]] | None = None,
                teacher: distill.Teacher | None = None) -> list[dict | UserError]:
  """Trains each config in its folder as `train` does, all of them on one stream of batches.

  Every batch is read, cropped and sent to the devices once, and every model takes its step on it. What a model
  becomes and what its folder holds do not depend on the others, but for times: they are those of the group.

  Args:
    configs: a whole config each. All of one `stream`, so what may differ is the model, the optimiser, the
      durations, and image_size where stream_size is the same.
    workdirs: each run's folder, as in `train`.
    data: as in `train`.
    says: for each run, what takes the lines that a person should see; by default they are printed.
    teacher: as in `train`; one for all.

  Returns:
    For each run its row, or the error that stopped it: the others went on.

  Raises:
    UserError: on bad input, before any is trained, or on an error of the data.
  """
  shared = configs[0]
  for config, workdir in zip(configs, workdirs):
    if difference := config_lib.difference(stream(shared), stream(config)):
      raise UserError(f'{workdirs[0]} and {workdir} cannot share a stream of batches: {difference}')
  runs = [Run(config, Path(workdir), say) for config, workdir, say in zip(configs, workdirs, says or _PRINT)]
  active = lambda: [run for run in runs if not run.outcome]
  if not active():
    return [run.outcome for run in runs]

  train_source, eval_source = data or map(sources.keep_in_memory, sources.load(shared.data))
  teacher = teacher or distill.load_teacher(shared)
  if teacher:
    train_source, eval_source = (distill.named(source, teacher) for source in (train_source, eval_source))
  tasks.create(shared).check(eval_source)
  if shared.data.recorded:
    outputs = tasks.create(shared).outputs(train_source)
    train_source, eval_source = (distill.selected(source, *outputs) for source in (train_source, eval_source))
  if teacher:
    teacher = dataclasses.replace(teacher, variables=parallel.replicate(teacher.variables))
  if fewer := pipeline.left_out(train_source, shared.data):
    for run in active():
      run.note(fewer)
  with contextlib.ExitStack() as stack:  # whatever ends the loop, what is being written is finished
    for run in runs:
      stack.callback(run.close)
    parallel.at_once(lambda run: _or_stop(run, lambda: run.start(train_source, teacher)), active())
    skipped = set()

    def on_bad_image(name):
      if name not in skipped:
        skipped.add(name)
        for run in active():
          run.note(f'skipping {name}: it cannot be decoded ({len(skipped)} skipped so far)')

    def evaluated(runs):
      return zip(runs, evaluate([run.evaluated() for run in runs], eval_source, shared, on_bad_image))

    # Of a group that was interrupted, some had got further than others, and some had ended but for their row.
    step = min((run.step for run in active()), default=0)
    if ended := [run for run in active() if run.step == run.total_steps]:
      for run, evaluation in evaluated(ended):
        _or_stop(run, lambda: run.finish(evaluation))
    batches = stack.enter_context(contextlib.closing(pipeline.train_batches(
        train_source, shared.data, shared.batch_size, shared.seed, step, on_bad_image)))
    ahead = parallel.split_ahead(batches)
    while active():
      batch = next(ahead)
      step += 1
      stepping = [run for run in active() if run.step < step]
      for run in stepping:
        run.train(batch)
      for run in stepping:
        if run.due('log') or run.due('eval') or run.due('checkpoint'):
          _or_stop(run, run.log)
      if due := [run for run in stepping if not run.outcome and (run.due('eval') or run.due('checkpoint'))]:
        for run, evaluation in evaluated(due):
          _or_stop(run, lambda: run.keep(evaluation))
  return [run.outcome for run in runs]


def _or_stop(run: Run, action: Callable[[], None]) -> None:
  """Does something with a run; where it fails, this run stops, and no other."""
  try:
    action()
  except UserError as error:
    run.close()
    run.outcome = error


def stream(config: ml_collections.ConfigDict) -> str:
  """What the batches of a run depend on, as JSON."""
  data = {**config.data, 'image_size': preprocessing.stream_size(config.data)}
  del data['stream_size']
  sizes = {name: config[name] for name in ('seed', 'batch_size', 'eval_batch_size')}
  outputs = {'teacher': config.distill.model, 'task': config.task, 'embedding.size': config.embedding.size}
  return json.dumps({'data': data, **sizes, **outputs}, indent=2, sort_keys=True)
