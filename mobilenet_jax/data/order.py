"""The order of the examples: everything about it follows from the seed, the epoch and the example.

An epoch consists of whole batches. If the batch size does not divide the number of examples, the remainder of the epoch's
order is left out, which is a different one in each epoch.
"""

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import Source
from mobilenet_jax.errors import UserError

_ORDERS, _EXAMPLES = 1, 2  # apart, as SeedSequence does not tell (a, b) from (a, b, 0)


def steps_per_epoch(source: Source, batch_size: int) -> int:
  """Returns the number of whole batches in an epoch; the remaining examples of the epoch are dropped.

  Raises:
    UserError: if there is not even one.
  """
  if len(source) < batch_size:
    raise UserError(f'batch_size={batch_size} is more than the {len(source):,} training examples; use a smaller one')
  return len(source) // batch_size


def epoch_order(source: Source, config: ml_collections.ConfigDict, batch_size: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the indices of an epoch's examples, batch after batch.

  It is a permutation of all examples, or, if data.per_identity is set, of groups of images of one identity. Identities with
  more images then come more often, in other batches.

  Raises:
    UserError: if no identity has enough images for data.per_identity.
  """
  rng = np.random.default_rng((_ORDERS, seed, epoch))
  size = config.per_identity
  if not size:
    return rng.permutation(len(source))
  own = [rng.permutation(np.flatnonzero(source.labels == label)) for label in np.unique(source.labels)]
  groups = [images[k:k + size] for images in own for k in range(0, len(images) - size + 1, size)]
  if not groups:
    raise UserError(f'data.per_identity={size}: none of the {len(own)} identities has that many images; expected people with '
                    'more images, or a smaller number')
  groups = [groups[i] for i in rng.permutation(len(groups))]
  wanted = len(source) // batch_size * batch_size // size
  return np.concatenate([groups[i % len(groups)] for i in range(wanted)])


def generator(seed: int, epoch: int, example: int) -> np.random.Generator:
  """Returns the generator for what is random about an example in an epoch, whatever batch, thread or host it is in."""
  return np.random.default_rng((_EXAMPLES, seed, epoch, example))


def left_out(source: Source, config: ml_collections.ConfigDict) -> str:
  """Returns a line on the identities with too few images for data.per_identity, which are left out; '' if there are none."""
  if not config.per_identity:
    return ''
  counts = np.unique(source.labels, return_counts=True)[1]
  fewer = int((counts < config.per_identity).sum())
  return '' if not fewer else (f'data.per_identity={config.per_identity}: {fewer} of {len(counts)} identities have fewer '
                               'images and are left out of training')
