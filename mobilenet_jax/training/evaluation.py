"""Evaluation. It counts every example exactly once."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mobilenet_jax import tasks
from mobilenet_jax.data import TEACHER, BadExample, Source, eval_batches, normalize
from mobilenet_jax.errors import UserError, counted
from mobilenet_jax.runtime import devices
from mobilenet_jax.trained import TrainedModel
from mobilenet_jax.training import distillation

NOT_FINITE = 'not finite'  # among the sums of a step: how many examples have outputs or metrics that are not


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """A model to evaluate.

  Attributes:
    task: see tasks.Task.
    step: a step from make_eval_step, compiled or mapped with pmap_evaluation.
    variables: {'params', 'batch_stats'}.
    teacher_variables: the variables of the teacher whose outputs are compared; {} without a teacher.
  """

  task: object
  step: Callable
  variables: dict
  teacher_variables: dict = dataclasses.field(default_factory=dict)


def make_eval_step(model, task, image_size: tuple[int, int], outputs: np.ndarray | None = None,
                   teacher: distillation.Teacher | None = None) -> Callable:
  """Returns a step that evaluates one batch, for one device.

  The step maps ({'params', 'batch_stats'}, batch, teacher's variables) to (sums and counts over all devices, the values
  that `task` keeps).

  Args:
    model: the network.
    task: see tasks.Task.
    image_size: height and width of the network's input.
    outputs: the output that stands for each class, attribute or number of the data, see TrainedModel.outputs_of; by default
      the one of the same index.
    teacher: a teacher whose outputs are added to the batch, or None.
  """
  def eval_step(variables, batch, teacher_variables):
    if outputs is not None and task.kind == 'classes':
      batch = {**batch, 'label': jnp.asarray(outputs)[batch['label']]}
    batch, _ = distillation.add_outputs(batch, teacher, teacher_variables)
    found = model.apply(variables, normalize(batch['image'], image_size), train=False)
    if outputs is not None and task.kind != 'classes':
      found = found[:, outputs]
    return _measured(task, found, batch)

  return eval_step


def make_teacher_step(task, teacher: distillation.Teacher | None) -> Callable:
  """Returns a step like that of `make_eval_step` which evaluates the teacher by itself, as if there were no teacher.

  Args:
    task: see tasks.Task.
    teacher: the teacher, from distillation.select; None if its outputs are recorded in the batches.
  """
  def teacher_step(variables, batch, teacher_variables):
    del variables
    batch, _ = distillation.add_outputs(batch, teacher, teacher_variables)
    alone = {name: values for name, values in batch.items() if name != TEACHER}
    return _measured(task, batch[TEACHER], alone)

  return teacher_step


def _measured(task, outputs, batch):
  """Returns the sums over all devices, with the count of examples that are not finite, and the values that the task keeps."""
  values = task.metrics(outputs, batch)
  finite = [jnp.isfinite(value).reshape(len(outputs), -1).all(1) for value in (outputs, *values.values())]
  values[NOT_FINITE] = ~jnp.stack(finite).all(0)
  return jax.lax.psum(tasks.metrics.sums(values, batch['mask']), devices.AXIS), task.kept(outputs, batch)


def evaluate(models: Sequence[Evaluated], source: Source, config: ml_collections.ConfigDict,
             on_bad_image: Callable[[BadExample], None],
             on_stall: Callable[[float], None] = lambda seconds: None,
             stop: Callable[[], bool] = lambda: False,
             on_progress: Callable[[int], None] = lambda count: None) -> list[dict[str, float] | UserError]:
  """Returns the task's metrics of each model over all of `source`, which is read once.

  Args:
    models: the models to evaluate.
    source: the examples to evaluate on.
    config: a complete config; its `data` and eval_batch_size hold for all models.
    on_bad_image, on_stall: see data.train_batches.
    stop: returns whether a stop is wanted. If it is, the evaluation is abandoned.
    on_progress: called after each batch with the number of examples that have been evaluated.

  Returns:
    For each model a dict of the means, the task's summary, and 'examples', the number of examples counted. All examples
    are counted, except images that cannot be decoded if data.bad_images is 'skip'. If a model's outputs are not finite or
    cannot be summarised, or no example is counted, its dict is replaced by the error. After a stop, [].
  """
  means, kept = [tasks.metrics.Mean() for _ in models], [[] for _ in models]
  skipped = []

  def skip(error):
    skipped.append(error)
    on_bad_image(error)

  batches = eval_batches(source, config.data, config.eval_batch_size, skip, on_stall=on_stall, stop=stop,
                         transform=models[0].task.transform)
  for number, batch in enumerate(devices.split_ahead(batches), start=1):
    if stop():
      return []
    results = [model.step(model.variables, batch, model.teacher_variables) for model in models]
    is_real = devices.join(batch['mask']) > 0 if any(values for _, values in results) else None
    for mean, rows, (sums, values) in zip(means, kept, results):
      mean.add(sums)
      rows.append({name: part[is_real] for name, part in devices.join(values).items()})
    on_progress(min(number * config.eval_batch_size, len(source)))
  if stop():
    return []
  said = devices.over_hosts(len(skipped))  # each host knows those in its own part
  for mean in means:
    assert 0 <= len(source) - mean.count <= said, (mean.count, said, len(source))
  evaluations = []
  for model, mean, rows in zip(models, means, kept):
    whole = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}
    try:
      evaluations.append(_finite({**_means(mean), **model.task.summary(whole, source), 'examples': mean.count}))
    except UserError as error:
      evaluations.append(error)
  return evaluations


def _finite(evaluation):
  if bad := [name for name, value in evaluation.items() if not np.isfinite(value)]:
    raise UserError(f'the {bad[0]} over all examples is {evaluation[bad[0]]}, as float32 cannot hold the sum; expected a '
                    'trained model')
  return evaluation


def _means(mean) -> dict[str, float]:
  if not mean.count:
    raise UserError('none of the examples to evaluate on can be read; repair them, or evaluate on others')
  means = mean.compute()
  if bad := round(means.pop(NOT_FINITE, 0) * mean.count):
    raise UserError(f'the outputs for {bad:,} of {counted(mean.count, "example")}, or what is measured of them, are not '
                    'finite; expected a trained model')
  return means


def evaluate_trained(models: Sequence[TrainedModel], source: Source, config: ml_collections.ConfigDict,
                     on_bad_image: Callable[[BadExample], None],
                     on_progress: Callable[[int], None] = lambda count: None) -> list[dict[str, float]]:
  """Evaluates trained models that have the same preprocessing. Their outputs are matched with the names that `source` has.

  See `evaluate` for the arguments and the metrics.

  Raises:
    UserError: if the models do not fit the data, or if a model's outputs cannot be summarised.
  """
  evaluated, task = [], models[0].task
  source = dataclasses.replace(source, labelled=task.needs_labels)
  outputs = (models[0].num_classes, models[0].labels) if task.kind == 'classes' else task.outputs(source)
  source = distillation.selected(source, task, *outputs)
  task.check(source)
  for model in models:
    step = make_eval_step(model.module, model.task, model.config.data.image_size, model.outputs_of(source))
    evaluated.append(Evaluated(model.task, devices.pmap_evaluation(step), model.variables))
  evaluations = evaluate(evaluated, source, config, on_bad_image, on_progress=on_progress)
  for model, evaluation in zip(models, evaluations):
    if isinstance(evaluation, UserError):
      raise UserError(f'{model.described_origin}: {evaluation}') from evaluation
  return evaluations
