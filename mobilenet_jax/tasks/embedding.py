"""Face embeddings (section 4.7, Table 14): images of the same person are close to each other."""

import jax
import ml_collections
import numpy as np

from mobilenet_jax.data import TEACHER, Pairs, Source, crop_and_flip, draw_pairs, image_names, read_pairs
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.storage.files import expanded
from mobilenet_jax.tasks import losses, verification


class Embedding:
  """Vectors of unit length. The label of an example is the person it shows. The interface is tasks.Task."""

  kind = 'vector'
  main_metric = 'accuracy'
  headlines = {'accuracy': ('accuracy', '.2%'), 'auc': ('AUC', '.4f'), 'distance': ('distance', '.4f')}
  needs_labels = True
  compares_examples = True  # in triplets
  split_by = 'class'  # an evaluation on people seen in training would prove little

  def __init__(self, config: ml_collections.ConfigDict):
    self._config, data = config, config.data
    self.transform = crop_and_flip(data)
    if data.bad_images != 'error':
      raise UserError(f'data.bad_images={data.bad_images}: expected error, as every image named in the pairs is needed')

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """Returns config.embedding.size, and None because the components of a vector have no names."""
    del source
    return self._config.embedding.size, None

  def check(self, source: Source) -> None:
    """Raises UserError if the pairs name images that `source` lacks, or contradict the identities that it has."""
    data = self._config.data
    pairs, people = pairs_of(self._config, source), dict(zip(names := image_names(source), source.labels.tolist()))
    if len(people) < len(names):
      raise UserError(f'data.name={data.name}: {len(names) - len(people)} of {len(names)} images have the same name as another '
                      'but for the suffix; expected each image under its own name')
    if missing := [name for name in dict.fromkeys(pairs.first + pairs.second) if name not in people]:
      raise UserError(f'data.pairs={data.pairs}: {len(missing)} images of the pairs are not in {data.name}, such as '
                      f'{missing[0]}; expected all of them')
    if wrong := [pair for *pair, same in zip(pairs.first, pairs.second, pairs.same)
                 if (people[pair[0]] == people[pair[1]]) != same]:
      raise UserError(f'data.pairs={data.pairs}: {len(wrong)} of {len(pairs.same)} pairs contradict the people of {data.name}, '
                      f'such as {" and ".join(wrong[0])}; expected 1 for images of one person, and 0 for images of two')
    folds = data.held_out_folds or sorted(set(pairs.fold.tolist()))
    for part in (*((f'the folds other than fold {fold}', pairs.fold != fold) for fold in folds),
                 ('the tested folds', np.isin(pairs.fold, folds))):
      if not 0 < pairs.same[part[1]].sum() < part[1].sum():
        raise UserError(f'data.pairs={data.pairs}: {part[0]} have {part[1].sum()} pairs, {pairs.same[part[1]].sum()} of them of '
                        'one person; expected pairs of both kinds, as a threshold is chosen on them')

  def measured_against(self, source: Source) -> str:
    del source
    return 'given pairs' if self._config.data.pairs else 'drawn pairs'

  def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns FaceNet's triplet loss with semi-hard negatives from the batch of all devices: (b, d) -> (b,)."""
    margin = self._config.embedding.margin
    return losses.semi_hard_triplet(losses.unit(outputs), batch['label'], margin, devices.AXIS)

  def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns, if there is a teacher, the squared distance between its unit vector and the model's, in [0, 4]."""
    if TEACHER not in batch:
      return {}
    return {'distance': losses.squared_difference(losses.unit(outputs), losses.unit(batch[TEACHER]))}

  def kept(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the unit vectors, because verification compares images with each other."""
    del batch
    return {'embeddings': losses.unit(outputs)}

  def summary(self, kept: dict[str, np.ndarray], source: Source) -> dict[str, float]:
    """Returns the results of LFW's protocol, see verification.py, on the pairs of `pairs_of`."""
    folds = tuple(self._config.data.held_out_folds) or None
    pairs = pairs_of(self._config, source)
    return verification.evaluate(image_names(source), kept['embeddings'], pairs, folds).summary()

  def prediction(self, outputs: jax.Array) -> jax.Array:
    """Returns unit vectors (b, d)."""
    return losses.unit(outputs)

  def remark(self, evaluation: dict[str, float]) -> str:
    """Returns a line that names the rates that are left out."""
    undefined = [name for name in verification.RATES.values() if 'accuracy' in evaluation and name not in evaluation]
    return f'left out, as there are too few pairs: {", ".join(undefined)}' if undefined else ''

  def details(self, evaluation: dict[str, float]) -> str:
    del evaluation
    return ''


def pairs_of(config: ml_collections.ConfigDict, source: Source) -> Pairs:
  """Returns the pairs in the file data.pairs, or else pairs drawn from the identities of `source`, always the same ones."""
  if config.data.pairs:
    return read_pairs(expanded(config.data.pairs))
  return draw_pairs(image_names(source), [str(label) for label in source.labels], config.embedding.folds,
                    config.embedding.pairs_per_fold, seed=0)
