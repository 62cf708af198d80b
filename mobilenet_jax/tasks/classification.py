"""Image classification (sections 4.1 and 4.2, Tables 4 to 9)."""

import flax.linen as nn
import jax
import ml_collections

from mobilenet_jax import losses, metrics, models


class Classification:
  """One label an image."""

  main_metric = 'top1'

  def __init__(self, config: ml_collections.ConfigDict, num_classes: int):
    self._config = config
    self._num_classes = num_classes

  def model(self, batch_norm_axis: str | None = None) -> nn.Module:
    return models.create(self._config.model, self._num_classes, batch_norm_axis)

  def loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """What training minimises, one value an example (b,): cross-entropy in nats."""
    return losses.softmax_cross_entropy(logits, batch['label'], self._config.label_smoothing)

  def metrics(self, logits: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Per-example values (b,) to average: loss in nats, without smoothing; top-1 and top-5 in {0, 1}."""
    return {
        'loss': losses.softmax_cross_entropy(logits, batch['label']),
        'top1': metrics.in_top_k(logits, batch['label'], 1),
        'top5': metrics.in_top_k(logits, batch['label'], 5),
    }
