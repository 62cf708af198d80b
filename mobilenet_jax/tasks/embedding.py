"""Face embeddings (section 4.7, Table 14): images of a person are near each other."""

from pathlib import Path

import jax
import ml_collections
import numpy as np

from mobilenet_jax import losses, parallel, verification
from mobilenet_jax.data.examples import TEACHER
from mobilenet_jax.data.folders import IMAGE_FILES
from mobilenet_jax.data.sources import Source
from mobilenet_jax.errors import UserError


class Embedding:
  """Vectors of unit length; the label of an example is its person."""

  main_metric = 'accuracy'

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """As Classification.outputs: as many as config.embedding.size."""
    del source
    return self._config.embedding.size, None

  def prediction(self, outputs: jax.Array) -> jax.Array:
    """Unit vectors (b, d)."""
    return losses.unit(outputs)

  def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """FaceNet's triplet loss with semi-hard negatives of the batch on all devices, one value an anchor: (b, d) -> (b,)."""
    margin = self._config.embedding.margin
    return losses.semi_hard_triplet(losses.unit(outputs), batch['label'], margin, parallel.AXIS)

  def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Where there is a teacher, the squared distance of its unit vector and ours, in [0, 4]."""
    if TEACHER not in batch:
      return {}
    return {'distance': losses.squared_difference(losses.unit(outputs), losses.unit(batch[TEACHER]))}

  def check(self, source: Source) -> None:
    """Raises UserError where `source` cannot be verified on: before any training, not after it."""
    pairs, names = pairs_of(self._config, source), set(image_names(source))
    if missing := [name for name in dict.fromkeys(pairs.first + pairs.second) if name not in names]:
      raise UserError(f'data.pairs={self._config.data.pairs}: {len(missing)} images of the pairs are not in '
                      f'{self._config.data.name}, such as {missing[0]}')

  def kept(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    del batch
    return {'embeddings': losses.unit(outputs)}

  def summary(self, kept: dict[str, np.ndarray], source: Source) -> dict[str, float]:
    """Verification by LFW's protocol, see verification.py, on the pairs of data.pairs, else on pairs drawn."""
    folds = tuple(self._config.data.held_out_folds) or None
    pairs = pairs_of(self._config, source)
    return verification.evaluate(image_names(source), kept['embeddings'], pairs, folds).summary()


def image_names(source: Source) -> list[str]:
  """What pairs call the examples: '<person>/<person>_0001', without a suffix; a number where they have no names."""
  if source.ids is None:
    return [str(i) for i in range(source.num_examples)]
  return [name.rpartition('.')[0] if name.lower().endswith(IMAGE_FILES) else name for name in source.ids]


def pairs_of(config: ml_collections.ConfigDict, source: Source) -> verification.Pairs:
  """Those that data.pairs names, else drawn from the identities of `source`, always the same."""
  if config.data.pairs:
    return verification.read_pairs(Path(config.data.pairs).expanduser())
  return verification.draw_pairs(image_names(source), [str(label) for label in source.labels], config.embedding.folds,
                                 config.embedding.pairs_per_fold, seed=0)
