"""Distillation: training a student on the outputs of a teacher (sections 4.6 and 4.7).

Distillation is a loss: the terms of config.distill are added to the task's own loss, each with its weight. A teacher is a
trained model that runs beside the student in the same step, outputs that were recorded beforehand (data/recorded.py), or
any JAX function.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mobilenet_jax import tasks, trained
from mobilenet_jax.data import TEACHER, Source, known_targets, normalize
from mobilenet_jax.errors import UserError, few
from mobilenet_jax.models import PROJECTION

SMALLEST = 1e-7  # because a probability of 0 would give a logit of minus infinity
SUM_TOLERANCE = 0.01  # of the probabilities of classes, which may be rounded
LOOKED_AT = 100  # examples by which a feature of probabilities is told from one of logits


@dataclasses.dataclass(frozen=True)
class Teacher:
  """What a student learns from.

  Attributes:
    function: maps (variables, uint8 images (b, h, w, 3)) to (outputs (b, d), intermediate features by name). The outputs are
      logits or embeddings.
    variables: passed to every step unchanged.
    labels: the names of the outputs; None if they have no names.
    image_size: (height, width) to which `function` itself resizes its images; None if it takes them as they are, of
      data.stream_size or else data.image_size.
  """

  function: Callable[[Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
  variables: Any = dataclasses.field(default_factory=dict)
  labels: tuple[str, ...] | None = None
  image_size: tuple[int, int] | None = None


def load_teacher(config: ml_collections.ConfigDict) -> Teacher | None:
  """Returns the teacher that config.distill.model names; None if it names none."""
  if not config.distill.model:
    return None
  model = trained.load(config.distill.model)

  def function(variables, images):
    features = {}
    images = normalize(images, model.config.data.image_size)
    return model.module.apply(variables, images, train=False, features=features), features

  return Teacher(function, jax.tree.map(jnp.asarray, model.variables), model.labels, tuple(model.config.data.image_size))


def named(source: Source, teacher: Teacher) -> Source:
  """Returns `source` with the names of the teacher's outputs added, if the teacher has names."""
  return dataclasses.replace(source, extra_names={TEACHER: teacher.labels, **source.extra_names}) if teacher.labels else source


def select(teacher: Teacher, num_outputs: int, names: tuple[str, ...] | None, image_shape: tuple[int, ...]) -> Teacher:
  """Returns a teacher whose outputs are those of the student, in the student's order.

  Outputs are matched by name if both teacher and student have names.

  Args:
    teacher: the teacher to select from.
    num_outputs, names: number and names of the student's outputs.
    image_shape: shape of a batch of images.

  Raises:
    UserError: if the outputs of the two do not match in number or meaning.
  """
  shape = jax.ShapeDtypeStruct(image_shape, jnp.uint8)
  given = jax.eval_shape(teacher.function, teacher.variables, shape)[0].shape
  if len(given) != 2 or given[0] != image_shape[0]:
    raise UserError(f'the teacher returns outputs of shape {given} for {image_shape[0]} images; expected (images, outputs)')
  order = match(names, num_outputs, teacher.labels, given[1], 'the teacher')

  def function(variables, images):
    outputs, features = teacher.function(variables, images)
    return outputs[:, order], features

  return dataclasses.replace(teacher, function=function, labels=names)


def match(names, count, teacher_names, teacher_count, who: str) -> np.ndarray:
  """Returns, for each output of the student, the index of the teacher's output that stands for it."""
  if names and teacher_names:
    ours, theirs = map(trained.class_keys, (names, teacher_names))
    if missing := [name for name in ours if name not in theirs]:
      raise UserError(f'{who} has {len(theirs)} outputs ({few(theirs)}) and lacks {len(missing)} of the student\'s '
                      f'{len(ours)} ({few(missing)}); expected the same classes or attributes')
    return np.array([theirs.index(name) for name in ours])
  if count != teacher_count:
    raise UserError(f'{who} has {teacher_count} outputs, the student {count}; expected equal numbers (embedding.size sets '
                    'those of an embedding, model.num_classes those of a classifier)')
  return np.arange(count)


def selected(source: Source, task: tasks.Task, num_outputs: int, names: tuple[str, ...] | None) -> Source:
  """Returns a source whose recorded outputs are those of the student, in the student's order; see `select`.

  Probabilities become logits: of classes by the logarithm, whose softmax they are, of attributes by the inverse of the sigmoid.

  Raises:
    UserError: if the outputs do not match, or are of another kind than the task's.
  """
  shapes = source.target_shapes
  if TEACHER not in shapes:
    return source
  theirs, (count,) = source.extra_names.get(TEACHER), shapes[TEACHER][0]
  order = match(names, num_outputs, theirs, count, 'data.recorded')
  extra_names, remarks = source.extra_names, source.remarks
  if theirs and names:
    extra_names = {**extra_names, TEACHER: names}
  elif names and task.kind != 'vector':
    remarks = (*remarks, f'the recorded outputs have no names and are taken to be those of the student, in its order '
               f'({few(names)})')
  extra = dict(source.extra)
  if TEACHER in extra:
    extra[TEACHER] = _as_logits(extra[TEACHER], source.outputs_kind, task.kind)
  elif task.kind in ('classes', 'attributes'):  # a feature of the examples, whose kind nothing says
    some = known_targets(source, most=LOOKED_AT, sample=LOOKED_AT)[0][TEACHER]
    if some.size and some.min() >= 0 and some.max() <= 1:
      raise UserError('data.recorded: the outputs in the feature are all in [0, 1], as probabilities are; expected logits')
  return dataclasses.replace(source, extra=extra, outputs_kind='', extra_names=extra_names, remarks=remarks,
                             columns={**source.columns, TEACHER: order})


def _as_logits(outputs, kind, task_kind):
  """Returns outputs (n, d) of data/recorded.py as logits, or as they are if they are embeddings."""
  expected = ('logits', 'probs', '') if task_kind in ('classes', 'attributes') else ('embeddings', 'logits', '')
  if kind not in expected:
    raise UserError(f'data.recorded: has {kind}; this task needs {" or ".join(filter(None, expected))}')
  if kind != 'probs':
    return outputs
  probs = np.clip(outputs.astype(np.float64), SMALLEST, 1 - SMALLEST)
  if task_kind == 'classes':
    sums = outputs.sum(-1)
    if len(wrong := np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)):
      raise UserError(f'data.recorded: the probs of {len(wrong)} of {len(sums)} examples do not sum to 1, such as '
                      f'{sums[wrong[0]]:.3g}; expected the probabilities of classes')
    return np.log(probs).astype(np.float32)
  return (np.log(probs) - np.log1p(-probs)).astype(np.float32)


def feature_names(config: ml_collections.ConfigDict) -> tuple[str, str] | None:
  """Returns the names of the student's and the teacher's feature in distill.features; None if no features are compared."""
  if not config.distill.features_weight:
    return None
  student, _, teacher = config.distill.features.partition(':')
  return student, teacher or student


def init_projection(rng: jax.Array, config: ml_collections.ConfigDict, model: nn.Module, teacher: Teacher,
                    image_shape: tuple[int, ...]) -> dict:
  """Returns {PROJECTION: {'kernel': (student's channels, teacher's channels)}}; {} if no features are compared.

  Raises:
    UserError: if the student or the teacher has no such feature.
  """
  names = feature_names(config)
  if names is None:
    return {}
  theirs = {}
  if teacher:
    images = jax.ShapeDtypeStruct(image_shape, jnp.uint8)
    _, theirs = jax.eval_shape(teacher.function, teacher.variables, images)

  def features():
    found = {}
    model.init(jax.random.key(0), jnp.zeros((1, *config.data.image_size, 3)), train=False, features=found)
    return found

  channels, ranks = [], []
  for name, found, who in zip(names, (jax.eval_shape(features), theirs), ('student', 'teacher')):
    if name not in found:
      raise UserError(f'distill.features={config.distill.features}: the {who} has no feature {name}; available: '
                      + (', '.join(found) or 'none, because recorded outputs have no features'))
    channels.append(found[name].shape[-1])
    ranks.append(found[name].ndim)
  if ranks[0] != ranks[1]:
    raise UserError(f'distill.features={config.distill.features}: one feature is pooled, the other is a map; expected two '
                    'maps, or pooled:pooled')
  return {PROJECTION: {'kernel': nn.initializers.lecun_normal()(rng, tuple(channels))}}


def add_outputs(batch: dict[str, jax.Array], teacher: Teacher | None, variables) -> tuple[dict, dict]:
  """Returns the batch with the outputs of a teacher that runs beside the student, and the teacher's features.

  Without such a teacher the batch is unchanged and the features are {}.
  """
  if teacher is None:
    return batch, {}
  outputs, features = jax.lax.stop_gradient(teacher.function(variables, batch['image']))
  return {**batch, TEACHER: outputs}, features


def loss(config: ml_collections.ConfigDict, task, outputs: jax.Array, features: dict[str, jax.Array], params: dict,
         batch: dict[str, jax.Array], teacher_features: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the terms of the loss that training minimises, each with its weight: by name, one value per example (b,).

  The loss is their sum. They are the terms of config.distill whose weight is not 0, such as 'softmax' for softmax_weight;
  'hard' is the task's own loss.

  Args:
    config: a complete config.
    task: see tasks.Task.
    outputs, features: the student's outputs and features.
    params: the student's parameters, including its projection.
    batch: a batch, which includes the teacher's outputs if there is a teacher.
    teacher_features: the teacher's features, by name.
  """
  weights, terms = config.distill, {}
  if weights.hard_weight:
    terms['hard'] = weights.hard_weight * task.loss(outputs, batch)
  if weights.sigmoid_weight:
    terms['sigmoid'] = weights.sigmoid_weight * tasks.losses.sigmoid_cross_entropy(outputs, jax.nn.sigmoid(batch[TEACHER]))
  if weights.softmax_weight:
    difference = tasks.losses.softened_cross_entropy(outputs, batch[TEACHER], weights.temperature)
    terms['softmax'] = weights.softmax_weight * difference
  if weights.embedding_weight:
    terms['embedding'] = weights.embedding_weight * tasks.losses.squared_difference(outputs, batch[TEACHER])
  if weights.unit_embedding_weight:
    difference = tasks.losses.squared_difference(tasks.losses.unit(outputs), tasks.losses.unit(batch[TEACHER]))
    terms['unit_embedding'] = weights.unit_embedding_weight * difference
  if weights.features_weight:
    student, teacher = feature_names(config)
    ours, theirs = features[student] @ params[PROJECTION]['kernel'], teacher_features[teacher]
    theirs = jax.image.resize(theirs, (*theirs.shape[:1], *ours.shape[1:-1], theirs.shape[-1]), 'linear')
    # The mean over positions and channels, so that the weight does not depend on the feature's size.
    terms['features'] = weights.features_weight * tasks.losses.squared_difference(ours, theirs) / ours[0].size
  return terms


def is_soft(config: ml_collections.ConfigDict) -> bool:
  """Returns whether the student learns from anything besides the labels."""
  return any(config.distill[name] for name in config.distill if name.endswith('_weight') and name != 'hard_weight')


def check(config: ml_collections.ConfigDict, live: bool, is_recorded: bool) -> None:
  """Checks that the terms of config.distill fit the teacher.

  Args:
    config: a complete config.
    live: whether a teacher runs beside the student.
    is_recorded: whether the batches include a teacher's outputs.

  Raises:
    UserError: if a term needs a teacher and there is none, if there are two teachers, or if all weights are 0.
  """
  terms = [name for name in config.distill if name.endswith('_weight') and config.distill[name]]
  soft = [name for name in terms if name != 'hard_weight']
  if soft and not (live or is_recorded):
    raise UserError(f'distill.{soft[0]}={config.distill[soft[0]]}: there is no teacher; name one with distill.model, or '
                    'recorded outputs with data.recorded')
  if not terms:
    raise UserError('distill: all weights are 0, so there is nothing to learn; set one, such as distill.hard_weight=1')
  if live and is_recorded:
    raise UserError(f'data.recorded={config.data.recorded}: there is a second teacher; expected only one of the two')
