"""Where examples are, by name.

    fabrics, faces  the embedded datasets (data/drawn/), drawn on first use
    <name>          any TFDS name that has an image and a label, attributes or an identity, prepared before
    folder:/path    /path/<class>/<image>, of which a tenth is held out, or /path/<split>/<class>/<image>, or images
                    and a /path/labels.csv (columns file and label; to evaluate on, not to train), or images alone, of
                    which a teacher says what there is to know
    npz:/path.npz   arrays train_images, train_labels, test_images, test_labels; needs no TensorFlow
"""

import zipfile

import ml_collections
import numpy as np

from mobilenet_jax.data import folders, recorded, tfds_sets
from mobilenet_jax.data.examples import ArraySource, FileSource
from mobilenet_jax.data.tfds_sets import MAX_BYTES_IN_MEMORY, StreamSource
from mobilenet_jax.errors import UserError

SAMPLE = 64  # images whose size tells whether all would fit

Source = ArraySource | FileSource | StreamSource


def load(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """The training and the evaluation source that `config` (the part `data` of a whole config) names.

  Raises:
    UserError: where there is no such dataset, split or folder, or it holds no images, or is not prepared.
  """
  kind, _, path = config.name.partition(':')
  if config.pairs and kind != 'folder':
    raise UserError(f'data.pairs={config.pairs}: expected data.name=folder:/path, whose images the pairs name')
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
  """The examples of `config.name` to evaluate on: eval_split, or of a folder without splits all of them."""
  kind, _, path = config.name.partition(':')
  if kind == 'folder':
    return folders.load_whole(path, config)
  return _from_npz(path, config.eval_split) if kind == 'npz' else tfds_sets.load_whole(config)


def _from_npz(path: str, split: str) -> ArraySource:
  try:
    with np.load(path) as arrays:
      images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
      all_labels = [arrays[name] for name in arrays.files if name.endswith('_labels')]
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(f'data.name=npz:{path}: no readable .npz file there ({error})') from error
  except KeyError as error:
    raise UserError(f'data.name=npz:{path}: {error}; expected the arrays {split}_images (n, h, w, 3) uint8 '
                    f'and {split}_labels (n,)') from error
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
    raise UserError(f'data.name=npz:{path}: {split}_images is {images.dtype} {images.shape}, {split}_labels '
                    f'{labels.shape}; expected uint8 (n, h, w, 3) and (n,)')
  return ArraySource(images, labels.astype(np.int32), max(int(part.max()) for part in all_labels) + 1)


def keep_in_memory(source: Source) -> Source:
  """The same examples decoded once, where they fit and all of them can be; apart from `load`, which only looks."""
  if isinstance(source, ArraySource):
    return source
  import tensorflow as tf

  def decode(example):
    image = tf.io.decode_image(example.pop('image'), channels=3, expand_animations=False)
    return image, example

  images, rows, size = [], [], 0
  examples = source.examples(None, 0).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  try:
    for image, row in examples.as_numpy_iterator():
      images.append(image)
      rows.append(row)
      size += image.nbytes
      if len(images) >= SAMPLE and size / len(images) * source.num_examples > MAX_BYTES_IN_MEMORY:
        return source
  except (tf.errors.InvalidArgumentError, *tfds_sets.damage_errors()):  # the pipeline names the image, or skips it
    return source
  extra = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != 'id'}
  return ArraySource(images, extra.pop('label').astype(np.int32), source.num_classes, source.class_names, extra,
                     source.ids, source.extra_names)
