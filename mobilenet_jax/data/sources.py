"""Loads datasets by name.

    fabrics, faces  the embedded datasets (data/drawn/), drawn on first use
    <name>          any TFDS dataset with images and with labels, attributes or identities; it must have been prepared
    folder:/path    /path/<class>/<image>, of which a tenth is held out; or /path/<split>/<class>/<image>; or images and
                    a /path/labels.csv (columns file and label; for evaluation, not for training); or images alone,
                    for which a teacher provides all targets
    npz:/path.npz   the arrays train_images, train_labels, test_images, test_labels
"""

import zipfile

import ml_collections
import numpy as np

from mobilenet_jax.data import folders, recorded, tfds_sets
from mobilenet_jax.data.examples import Source, from_images
from mobilenet_jax.errors import UserError


def load(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source that `config`, the `data` section of a config, names.

  Raises:
    UserError: if there is no such dataset, split or folder, or it holds no images or is not prepared.
  """
  kind, _, path = config.name.partition(':')
  if config.pairs and kind != 'folder':
    raise UserError(f'data.pairs={config.pairs}: expected data.name=folder:/path, a folder with the images of the pairs')
  if kind == 'npz':
    both = tuple(_from_npz(path, split) for split in (config.train_split, config.eval_split))
  elif kind == 'folder':
    both = folders.load(path, config)
  else:
    both = tfds_sets.load(config)
  if config.recorded and not tfds_sets.is_feature(config.recorded):
    both = tuple(recorded.join(source, config) for source in both)
  return both


def load_whole(config: ml_collections.ConfigDict) -> Source:
  """Returns the examples of `config.name` to evaluate on: its eval_split, or all examples of a folder without splits."""
  kind, _, path = config.name.partition(':')
  if kind == 'folder':
    return folders.load_whole(path, config)
  return _from_npz(path, config.eval_split) if kind == 'npz' else tfds_sets.load_whole(config)


def _from_npz(path, split):
  try:
    with np.load(path) as arrays:
      images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
      all_labels = [arrays[name] for name in arrays.files if name.endswith('_labels')]
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(f'data.name=npz:{path}: not a readable .npz file ({error})') from error
  except KeyError as error:
    raise UserError(f'data.name=npz:{path}: {error}; expected the arrays {split}_images (n, h, w, 3) uint8 '
                    f'and {split}_labels (n,)') from error
  if (images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]
      or labels.dtype.kind not in 'iu' or not labels.size):
    raise UserError(f'data.name=npz:{path}: {split}_images is {images.dtype} {images.shape}, {split}_labels '
                    f'{labels.dtype} {labels.shape}; expected uint8 (n, h, w, 3) and integers (n,)')
  return from_images(images, labels, max(int(part.max()) for part in all_labels) + 1,
                     ids=[f'{split}/{i}' for i in range(len(images))])
