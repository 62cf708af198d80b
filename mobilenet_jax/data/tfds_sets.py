"""Datasets of TFDS, and the embedded ones, which are TFDS builders. The only file that knows TFDS."""

import contextlib
import dataclasses
import io
import os

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import ArraySource
from mobilenet_jax.errors import UserError

EMBEDDED = ('fabrics', 'faces')
MAX_BYTES_IN_MEMORY = 2**30  # of decoded images; a constant, since both ways resize in their own way


@dataclasses.dataclass(frozen=True)
class StreamSource:
  """Encoded examples that TFDS reads one after another."""

  builder: object  # tfds.core.DatasetBuilder
  split: str

  @property
  def num_examples(self) -> int:
    return self.builder.info.splits[self.split].num_examples

  @property
  def num_classes(self) -> int:
    return _num_classes(self.builder)

  @property
  def class_names(self) -> tuple[str, ...] | None:
    return _class_names(self.builder)

  @property
  def extra_names(self) -> dict[str, tuple[str, ...]]:
    return _extra_names(self.builder)

  def examples(self, shuffle_seed: int | None, shuffle_buffer: int):
    """A tf.data.Dataset of {'image': encoded bytes, 'id': str} and the targets; the order follows from the seed."""
    import tensorflow as tf
    import tensorflow_datasets as tfds
    dataset = self.builder.as_dataset(
        split=self.split, shuffle_files=shuffle_seed is not None, decoders={'image': tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(shuffle_seed=shuffle_seed, add_tfds_id=True, try_autocache=False))
    if shuffle_seed is not None:
      buffer = min(shuffle_buffer, self.num_examples)
      dataset = dataset.shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)
    return dataset.map(lambda x: {'image': x['image'], 'id': x['tfds_id'], **_targets(self.builder, x)},
                       num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def load(config: ml_collections.ConfigDict) -> tuple:
  builder = _builder(config)
  return tuple(_split(builder, split) for split in (config.train_split, config.eval_split))


def load_whole(config: ml_collections.ConfigDict):
  return _split(_builder(config), config.eval_split)


def _builder(config: ml_collections.ConfigDict):
  import tensorflow_datasets as tfds
  tfds.disable_progress_bar()
  data_dir = os.path.expanduser(config.data_dir) or None
  if config.name in EMBEDDED:
    return _embedded_builder(config.name, data_dir)
  try:
    builder = tfds.builder(config.name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(f'data.name={config.name}: TFDS has no such dataset; expected {", ".join(EMBEDDED)}, a TFDS name '
                    'such as cifar10, folder:/path or npz:/path') from error
  except (ValueError, AssertionError) as error:  # a name TFDS cannot parse, or an unknown configuration of it
    raise UserError(f'data.name={config.name}: {str(error).splitlines()[0]}') from error
  if not builder.is_prepared():
    where = f' --data_dir={config.data_dir}' if config.data_dir else ''
    raise UserError(f'data.name={config.name}: not prepared in {builder.data_path.parent}; prepare it once with: '
                    f'tfds build {config.name}{where}')
  features = builder.info.features
  if 'image' not in features or not {'label', 'attributes', 'identity'} & set(features):
    raise UserError(f'data.name={config.name} has the features {sorted(features)}; expected an image, and a label, '
                    'attributes or an identity among them')
  return builder


def _embedded_builder(name, data_dir):
  from mobilenet_jax.data import faces, fabrics
  kind = {'fabrics': fabrics.Fabrics, 'faces': faces.Faces}[name]
  builder = kind(data_dir=data_dir, file_format='array_record')  # read without TensorFlow
  if not builder.is_prepared():
    print(f'drawing the embedded dataset into {builder.data_path}: half a minute, once', flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download
      builder.download_and_prepare()
  return builder


def _split(builder, split: str) -> ArraySource | StreamSource:
  """In memory where they fit, else as a stream; without TensorFlow where every image has the same shape."""
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError) as error:
    raise UserError(f'{builder.name} has no split {split!r}; it has {", ".join(builder.info.splits)}') from error
  shape = builder.info.features['image'].shape
  if None in shape or shape[-1] != 3 or count * np.prod(shape) > MAX_BYTES_IN_MEMORY:
    return StreamSource(builder, split)
  if builder.info.file_format.value == 'array_record':  # random access, and no TensorFlow
    examples = builder.as_data_source(split)
  else:
    import tensorflow_datasets as tfds
    examples = tfds.as_numpy(builder.as_dataset(split=split))
  images, rows = np.empty((count, *shape), np.uint8), []
  for i, example in enumerate(examples):
    images[i] = example['image']
    rows.append(_targets(builder, example))
  extra = {name: np.array([row[name] for row in rows], np.int32) for name in rows[0]}
  return ArraySource(images, extra.pop('label'), _num_classes(builder), _class_names(builder), extra,
                     tuple(f'{split}/{i}' for i in range(count)), _extra_names(builder))


def _targets(builder, example) -> dict:
  """Label and attributes of an example, by their names in a batch; NumPy values or TensorFlow's alike.

  The label of a face is its identity, which celeb_a keeps one level down.
  """
  features, targets = builder.info.features, {}
  if 'label' in features:
    targets['label'] = example['label']
    if not hasattr(features['label'], 'num_classes'):  # lfw's is a name
      import tensorflow as tf
      targets['label'] = tf.strings.to_hash_bucket_fast(example['label'], 2**31 - 1)
  elif 'identity' in features:
    identity = example['identity']
    targets['label'] = identity['Identity_No'] if isinstance(identity, dict) else identity
  else:
    targets['label'] = 0
  if 'attributes' in features:
    targets['attributes'] = [example['attributes'][name] for name in _extra_names(builder)['attributes']]
  return targets


def _extra_names(builder) -> dict[str, tuple[str, ...]]:
  features = builder.info.features
  return {'attributes': tuple(sorted(features['attributes']))} if 'attributes' in features else {}


def _num_classes(builder) -> int:
  """0 where the label is no class to predict but a person."""
  features = builder.info.features
  return getattr(features['label'], 'num_classes', 0) if 'label' in features else 0


def _class_names(builder) -> tuple[str, ...] | None:
  features = builder.info.features
  names = getattr(features['label'], 'names', None) if 'label' in features else None
  return None if not names or names == [str(i) for i in range(len(names))] else tuple(names)
