"""Image classification (sections 4.1 and 4.2, Tables 4 to 9)."""

import jax
import ml_collections

from mobilenet_jax import losses, metrics
from mobilenet_jax.data.sources import Source
from mobilenet_jax.errors import UserError


class Classification:
  """One label an image."""

  main_metric = 'top1'

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """How many outputs the model has, and their names: the classes of the data it is trained on.

    Raises:
      UserError: where config and data do not fit.
    """
    given = self._config.model.num_classes
    if given and given < source.num_classes:
      raise UserError(f'model.num_classes={given}: {self._config.data.name} has {source.num_classes}; '
                      'expected at least as many, or 0 to take the number from the data')
    if source.num_classes < 2:
      raise UserError(f'data.name={self._config.data.name}: has no labels that are classes; expected at least two, or '
                      'task=attributes or embedding')
    number = given or source.num_classes
    return number, source.class_names if number == source.num_classes else None

  def prediction(self, logits: jax.Array) -> jax.Array:
    """Probabilities (b, classes)."""
    return jax.nn.softmax(logits)

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

  def check(self, source: Source) -> None:
    """Raises UserError where `source` cannot be evaluated on."""

  def kept(self, logits: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Per-example values (b, ...) that `summary` wants of a whole evaluation."""
    del logits, batch
    return {}

  def summary(self, kept: dict, source: Source) -> dict[str, float]:
    """Metrics that are no means over examples."""
    del kept, source
    return {}
