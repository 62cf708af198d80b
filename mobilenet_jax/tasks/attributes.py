"""Attributes: several yes-or-no labels per image (section 4.6, Table 12)."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mobilenet_jax.data import ATTRIBUTES, TEACHER, Source, crop_and_flip
from mobilenet_jax.errors import UserError
from mobilenet_jax.tasks import losses, metrics

DECISIONS = "the teacher's decisions"  # what is learned and measured against where there are no labels
PRECISION, POSITIVES = 'ap/', 'positives/'  # prefixes: average precision, positive examples


class Attributes:
  """Several labels per image in {0, 1}, or -1 if unknown. Data without labels is evaluated against the teacher's decisions.

  The interface is tasks.Task.
  """

  kind = 'attributes'
  main_metric = 'mean_ap'
  headlines = {'mean_ap': ('mean AP', '.2%'), 'emulation': ('emulation', '.4f')}
  needs_labels = False  # the label of an example is a class or a person, if there is one
  compares_examples = False
  split_by = 'image'

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config
    self.transform = crop_and_flip(config.data)

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """Returns the number and the names of the attributes: those of the data, or else those of the teacher."""
    names = source.extra_names.get(ATTRIBUTES) or source.extra_names.get(TEACHER)
    if not names:
      raise UserError('task=attributes: the data has no attributes; expected a dataset with attributes, such as faces or '
                      'celeb_a, or the probabilities of a teacher in data.recorded')
    return len(names), names

  def check(self, source: Source) -> None:
    """Raises UserError if there is nothing to measure against."""
    if ATTRIBUTES not in source.target_shapes and TEACHER not in source.extra_names:
      raise UserError('task=attributes: the examples to evaluate on have no attributes, and there is no teacher; expected one '
                      'of the two')

  def measured_against(self, source: Source) -> str:
    return 'labels' if ATTRIBUTES in source.target_shapes else DECISIONS

  def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the cross-entropy in nats, averaged over the known attributes: logits (b, a) -> (b,)."""
    labels = _labels(batch)
    return losses.sigmoid_cross_entropy(outputs, labels, labels >= 0)

  def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the loss and, if there is a teacher, `emulation`: the cross-entropy in nats against its probabilities."""
    values = {'loss': self.loss(outputs, batch)}
    if TEACHER in batch:
      values['emulation'] = losses.sigmoid_cross_entropy(outputs, jax.nn.sigmoid(batch[TEACHER]))
    return values

  def kept(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns scores and labels, (b, a) each, because average precision ranks all examples."""
    return {'scores': outputs.astype(jnp.float32), 'labels': _labels(batch)}

  def summary(self, kept: dict[str, np.ndarray], source: Source) -> dict[str, float]:
    """Returns the average precision of each attribute over the examples with a known label, their mean, and counts.

    An attribute without a positive example has no average precision and is left out of the mean.
    """
    names = self.outputs(source)[1]
    precisions, positives = {}, {}
    for name, scores, labels in zip(names, kept['scores'].T, kept['labels'].T):
      positive = labels[labels >= 0] > 0
      positives[f'{POSITIVES}{name}'] = int(positive.sum())
      if positive.any():
        precisions[f'{PRECISION}{name}'] = metrics.average_precision(scores[labels >= 0], positive)
    if not precisions:
      raise UserError(f'task=attributes: no attribute has a positive example among the {len(kept["labels"])} evaluated '
                      'examples; expected at least one, as average precision is undefined without')
    return {'mean_ap': float(np.mean(list(precisions.values()))), 'attributes_counted': len(precisions), **precisions,
            **positives}

  def prediction(self, outputs: jax.Array) -> jax.Array:
    """Returns the probability of each attribute: logits (b, a) -> (b, a)."""
    return jax.nn.sigmoid(outputs)

  def remark(self, evaluation: dict[str, float]) -> str:
    """Returns a line that names the attributes left out of the mean."""
    undefined = [name for name, (_, positives) in by_attribute(evaluation).items() if not positives]
    return f'left out, without a positive example: {", ".join(undefined)}' if undefined else ''

  def details(self, evaluation: dict[str, float]) -> str:
    """Returns one line per attribute."""
    return ''.join(
        f'  {name:24} {"undefined" if precision is None else format(precision, ".2%"):>10}  {count:,} positive\n'
        for name, (precision, count) in by_attribute(evaluation).items())


def by_attribute(evaluation: dict[str, float]) -> dict[str, tuple[float | None, int]]:
  """Returns each attribute's average precision, or None without a positive example, and its number of positive examples."""
  counts = {name.removeprefix(POSITIVES): count for name, count in evaluation.items() if name.startswith(POSITIVES)}
  return {name: (evaluation.get(PRECISION + name), count) for name, count in counts.items()}


def _labels(batch):
  return batch[ATTRIBUTES] if ATTRIBUTES in batch else (batch[TEACHER] > 0).astype(jnp.int32)
