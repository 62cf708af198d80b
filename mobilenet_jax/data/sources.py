"""Loads datasets by name.

    fabrics, faces  the embedded datasets (data/drawn/), drawn on first use
    <name>          any TFDS dataset with images and with labels, attributes or identities; it must have been prepared
    folder:/path    images in folders by class or person, with splits or without, or with a labels.csv; see folders.py
    hf:/path        a Hugging Face dataset on disk; see hugging_face.py
    npz:/path.npz   the arrays train_images, train_labels, test_images, test_labels and, if classes have names, class_names
"""

import dataclasses

import ml_collections
import numpy as np

from mobilenet_jax.data import folders, hugging_face, npz, recorded, tfds_sets
from mobilenet_jax.data.examples import Source, from_images
from mobilenet_jax.errors import UserError


def load(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source that `config`, the `data` section of a config, names.

  Both have the same numbers for the same classes. Their `remarks` are the same, too. An empty split_by means 'image'.

  Raises:
    UserError: if there is no such dataset, split or folder, or it holds no images or is not prepared.
  """
  kind, path = _kind_and_path(config.name)
  if config.pairs and kind != 'folder':
    raise UserError(f'data.pairs={config.pairs}: expected data.name=folder:/path, a folder with the images of the pairs')
  if kind == 'npz':
    both = tuple(_from_npz(path, split) for split in (config.train_split, config.eval_split))
  elif kind == 'folder':
    both = folders.load(path, config)
  elif kind == 'hf':
    both = hugging_face.load(path, config)
  else:
    both = tfds_sets.load(config)
  if config.recorded and not tfds_sets.is_feature(config.recorded):
    both = recorded.join(both, config)
  remarks = tuple(dict.fromkeys((*both[0].remarks, *both[1].remarks)))
  return tuple(dataclasses.replace(source, remarks=remarks) for source in both)


def load_whole(config: ml_collections.ConfigDict, split: str = '') -> Source:
  """Returns the examples of `config.name` to evaluate on: its eval_split, or all examples of a folder without splits.

  Args:
    config: the `data` section of a config.
    split: a split that there must be, in place of eval_split.

  Raises:
    UserError: as in `load`.
  """
  kind, path = _kind_and_path(config.name)
  if kind == 'folder':
    return folders.load_whole(path, config, split)
  if kind == 'hf':
    return hugging_face.load_whole(path, config, split)
  if kind == 'npz':
    return _from_npz(path, split or config.eval_split)
  return tfds_sets.load_whole(config, split or config.eval_split)


def _kind_and_path(name):
  kind, colon, path = name.partition(':')
  if colon and kind in ('folder', 'hf', 'npz') and not path.strip():
    raise UserError(f'data.name={name}: expected a path, as in {kind}:/path')
  return kind, path


def _from_npz(path, split):
  with npz.opened(path, f'data.name=npz:{path}') as arrays:
    if missing := [name for name in (f'{split}_images', f'{split}_labels') if name not in arrays]:
      raise UserError(f'data.name=npz:{path}: has the arrays {", ".join(arrays.files)}, not {" and ".join(missing)}; expected '
                      f'{split}_images (n, h, w, 3) uint8 and {split}_labels (n,), or the name of another split')
    images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
    all_labels = [arrays[name] for name in arrays.files
                  if name.endswith('_labels') and name.removesuffix('labels') + 'images' in arrays.files]
    names = arrays['class_names'] if 'class_names' in arrays else None
    sums = {name.filename: name.CRC for name in arrays.zip.infolist()}
  if (images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]
      or labels.dtype.kind not in 'iu' or not labels.size):
    raise UserError(f'data.name=npz:{path}: {split}_images is {images.dtype} {images.shape}, {split}_labels '
                    f'{labels.dtype} {labels.shape}; expected uint8 (n, h, w, 3) and integers (n,)')
  if names is not None and (names.ndim != 1 or names.dtype.kind != 'U' or len(set(names.tolist())) < len(names)):
    raise UserError(f'data.name=npz:{path}: class_names is {names.dtype} {names.shape}; expected a different text for each '
                    'class')
  classes = len(names) if names is not None else 1 + max(int(part.max()) for part in all_labels if part.size)
  return from_images(images, labels, classes, None if names is None else tuple(names.tolist()),
                     ids=[f'{split}/{i}' for i in range(len(images))], content=str(sums.get(f'{split}_images.npy')))
