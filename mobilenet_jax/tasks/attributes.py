"""Attributes: several yes-or-no labels an image (section 4.6, Table 12)."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mobilenet_jax import losses, metrics
from mobilenet_jax.data.examples import ATTRIBUTES, TEACHER
from mobilenet_jax.data.sources import Source
from mobilenet_jax.errors import UserError


class Attributes:
  """Labels in {0, 1}, or -1 where unknown; where the data has none, the teacher's decisions stand for them."""

  main_metric = 'mean_ap'

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """As Classification.outputs: an output an attribute."""
    names = source.extra_names.get(ATTRIBUTES) or source.extra_names.get(TEACHER)
    if not names:
      raise UserError(f'task=attributes: {self._config.data.name} has no attributes; expected a set that has, such as faces or '
                      'celeb_a, or a teacher\'s probabilities with data.recorded')
    return len(names), names

  def prediction(self, logits: jax.Array) -> jax.Array:
    """Probabilities (b, a), each of its own."""
    return jax.nn.sigmoid(logits)

  def loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Cross-entropy in nats against the labels, the mean over the attributes known: (b, a) -> (b,)."""
    labels = _labels(batch)
    return losses.sigmoid_cross_entropy(logits, labels, labels >= 0)

  def metrics(self, logits: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Cross-entropy in nats against the labels and, where there is a teacher, against its probabilities: emulation."""
    values = {'loss': self.loss(logits, batch)}
    if TEACHER in batch:
      values['emulation'] = losses.sigmoid_cross_entropy(logits, jax.nn.sigmoid(batch[TEACHER]))
    return values

  def check(self, source: Source) -> None:
    """Raises UserError where `source` cannot be evaluated on."""

  def kept(self, logits: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {'scores': logits.astype(jnp.float32), 'labels': _labels(batch)}

  def summary(self, kept: dict[str, np.ndarray], source: Source) -> dict[str, float]:
    """Average precision of each attribute over all examples whose label is known, their mean, and the positive examples.

    An attribute without a positive example has none, and is left out of the mean.
    """
    names = self.outputs(source)[1]
    precisions, positives = {}, {}
    for name, scores, labels in zip(names, kept['scores'].T, kept['labels'].T):
      positive = labels[labels >= 0] > 0
      positives[f'{metrics.POSITIVES}{name}'] = int(positive.sum())
      if positive.any():
        precisions[f'{metrics.PRECISION}{name}'] = metrics.average_precision(scores[labels >= 0], positive)
    if not precisions:
      raise UserError(f'task=attributes: no attribute has a positive example among the {len(kept["labels"])} evaluated; '
                      'expected some, or average precision is undefined')
    return {'mean_ap': float(np.mean(list(precisions.values()))), 'attributes_counted': len(precisions), **precisions,
            **positives}


def _labels(batch):
  return batch[ATTRIBUTES] if ATTRIBUTES in batch else (batch[TEACHER] > 0).astype(jnp.int32)
