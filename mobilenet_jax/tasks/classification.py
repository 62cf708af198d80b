"""Image classification (sections 4.1 and 4.2, Tables 4 to 9)."""

import jax
import ml_collections

from mobilenet_jax.data import Source, crop_and_flip
from mobilenet_jax.errors import UserError
from mobilenet_jax.tasks import losses, metrics


class Classification:
  """One label per image. The interface is tasks.Task."""

  kind = 'classes'
  main_metric = 'top1'
  headlines = {'top1': ('top-1', '.2%'), 'top5': ('top-5', '.2%')}
  needs_labels = True
  compares_examples = False
  split_by = 'image'

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config
    if config.data.split_by == 'class':
      raise UserError('data.split_by=class: the classes that are held out would be asked for and never trained on; expected '
                      'image for task=classification')
    if config.data.pairs:
      raise UserError(f'data.pairs={config.data.pairs}: the people in the pairs would not be trained on; expected task=embedding')
    self.transform = crop_and_flip(config.data)

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """Returns the number of classes, from model.num_classes or else from the data, and their names."""
    given = self._config.model.num_classes
    if given and given < source.num_classes:
      raise UserError(f'model.num_classes={given}: {self._config.data.name} has {source.num_classes} classes; '
                      'expected at least as many, or 0 to take the number from the data')
    if source.num_classes < 2:
      raise UserError(f'data.name={self._config.data.name}: the data has no class labels; expected at least two classes, '
                      'or task=attributes or task=embedding')
    number = given or source.num_classes
    return number, source.class_names if number == source.num_classes else None

  def check(self, source: Source) -> None:
    """Accepts any source."""

  def measured_against(self, source: Source) -> str:
    del source
    return 'labels'

  def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the cross-entropy in nats, with label smoothing: logits (b, classes) -> (b,)."""
    return losses.softmax_cross_entropy(outputs, batch['label'], self._config.label_smoothing)

  def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the loss in nats, without smoothing, and top-1 and top-5 in {0, 1}."""
    return {
        'loss': losses.softmax_cross_entropy(outputs, batch['label']),
        'top1': metrics.in_top_k(outputs, batch['label'], 1),
        'top5': metrics.in_top_k(outputs, batch['label'], 5),
    }

  def kept(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns nothing: every metric is a mean over examples."""
    del outputs, batch
    return {}

  def summary(self, kept: dict, source: Source) -> dict[str, float]:
    """Returns nothing, like `kept`."""
    del kept, source
    return {}

  def prediction(self, outputs: jax.Array) -> jax.Array:
    """Returns the probabilities of the classes: logits (b, classes) -> (b, classes)."""
    return jax.nn.softmax(outputs)

  def remark(self, evaluation: dict[str, float]) -> str:
    del evaluation
    return ''

  def details(self, evaluation: dict[str, float]) -> str:
    del evaluation
    return ''
