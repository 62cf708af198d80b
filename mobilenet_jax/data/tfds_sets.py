"""TFDS datasets, and the embedded datasets, which are TFDS builders. Only this file reads through TFDS."""

import contextlib
import dataclasses
import functools
import io
import operator
import os
import sys

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import ATTRIBUTES, TEACHER, ArraySource, Extra
from mobilenet_jax.errors import UserError

EMBEDDED = ('fabrics', 'faces')
FEATURE = 'feature:'  # precedes the name of a feature in data.recorded
MAX_BYTES_IN_MEMORY = 2**30  # of decoded images; constant, as images in memory and in streams are resized differently


@dataclasses.dataclass(frozen=True)
class StreamSource:
  """Encoded examples that TFDS reads one after another, made by `stream`. The other fields are as in ArraySource."""

  builder: object  # tfds.core.DatasetBuilder
  split: str
  num_classes: int
  class_names: tuple[str, ...] | None
  extra_names: dict[str, tuple[str, ...]]
  teacher_feature: str = ''  # the feature of the examples that holds a teacher's outputs
  only: tuple[str, ...] | None = None  # the ids of the examples that `subset` kept; None means all
  extra: Extra = dataclasses.field(default_factory=dict)  # one row for each of `ids`, besides the targets in the examples

  @property
  def num_examples(self) -> int:
    return self.builder.info.splits[self.split].num_examples if self.only is None else len(self.only)

  @functools.cached_property
  def ids(self) -> tuple[str, ...]:
    """Returns the TFDS ids of the examples, file by file: '<file>__<number in the file>', see ReadConfig.add_tfds_id."""
    if self.only is not None:
      return self.only
    return tuple(f'{file.basename()}__{file.skip + i}'
                 for file in self.builder.info.splits[self.split].file_instructions for i in range(file.take))

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """Returns the label of each of `ids`, (n,). This reads all examples, but decodes no image."""
    labels = self.examples(None, 0).map(lambda x: x['label'])
    return np.array(list(labels.as_numpy_iterator()), np.int32)

  def subset(self, indices: np.ndarray) -> 'StreamSource':
    """Returns the examples whose ids are at `indices` in `ids`."""
    return dataclasses.replace(self, only=tuple(self.ids[i] for i in indices),
                               extra={name: values[indices] for name, values in self.extra.items()})

  @property
  def target_shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns the shape and the type of each target of an example, by its name in a batch."""
    shapes = {'label': ((), np.int32), **{name: (values.shape[1:], values.dtype) for name, values in self.extra.items()}}
    if ATTRIBUTES in self.extra_names:
      shapes[ATTRIBUTES] = (len(self.extra_names[ATTRIBUTES]),), np.int32
    if self.teacher_feature:
      shapes[TEACHER] = self.builder.info.features[self.teacher_feature].shape, np.float32
    return shapes

  def without_damaged(self) -> tuple['StreamSource', list[str]]:
    """Returns a source of the examples that can be read, and the ids of the rest. Reads all examples.

    The records after a damaged one in the same file cannot be read either.

    Raises:
      UserError: if `split` is not a whole split.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds
    if not isinstance(self.split, str) or self.split not in self.builder.info.splits.keys():
      raise UserError(f'{self.builder.name}: a record of {self.split} is damaged; prepare the dataset again')
    lost, parts, first = [], [], 0
    for file in self.builder.info.splits[self.split].file_instructions:
      good = 0
      try:
        for _ in tf.data.TFRecordDataset(file.filename):
          good += 1
      except tf.errors.DataLossError:
        pass
      lost += [f'{file.basename()}__{i}' for i in range(good, file.take)]
      parts.append(tfds.core.ReadInstruction(self.split, from_=first, to=first + good, unit='abs'))
      first += file.take
    known, left_out = set(self.ids), set(lost)
    kept = self.subset(np.flatnonzero([name not in left_out for name in self.ids]))
    return (dataclasses.replace(kept, split=functools.reduce(operator.add, parts)),
            [name for name in lost if name in known])

  def examples(self, shuffle_seed: int | None, shuffle_buffer: int):
    """Returns a tf.data.Dataset of {'image': encoded bytes, 'id': str} and the targets.

    The seed determines the order; without a seed, it is the order of `ids`.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds
    interleave = {} if shuffle_seed is not None else {'interleave_cycle_length': 1}  # one file after another
    dataset = self.builder.as_dataset(
        split=self.split, shuffle_files=shuffle_seed is not None, decoders={'image': tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(shuffle_seed=shuffle_seed, add_tfds_id=True, try_autocache=False, **interleave))
    dataset = dataset.map(lambda x: {'image': x['image'], 'id': x['tfds_id'],
                                     **_targets(self.builder, x, self.teacher_feature)},
                          num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if self.teacher_feature:
      dataset = dataset.map(lambda x: {**x, TEACHER: tf.cast(x[TEACHER], tf.float32)})
    if self.only is not None or self.extra:
      keys = tf.lookup.KeyValueTensorInitializer(tf.constant(self.ids), tf.range(len(self.ids)))
      rows = tf.lookup.StaticHashTable(keys, default_value=-1)
      extra = {name: tf.constant(values) for name, values in self.extra.items()}
      dataset = dataset.filter(lambda x: rows[x['id']] >= 0).map(
          lambda x: {**x, **{name: values[rows[x['id']]] for name, values in extra.items()}},
          num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if shuffle_seed is not None:
      buffer = min(shuffle_buffer, self.num_examples)
      dataset = dataset.shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)
    return dataset


def load(config: ml_collections.ConfigDict) -> tuple:
  builder = _builder(config)
  return tuple(_split(builder, split, config.recorded) for split in (config.train_split, config.eval_split))


def load_whole(config: ml_collections.ConfigDict):
  return _split(_builder(config), config.eval_split, recorded='')


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
  except (ValueError, AssertionError) as error:  # a name that TFDS cannot parse, or an unknown configuration
    raise UserError(f'data.name={config.name}: {str(error).splitlines()[0]}') from error
  if not builder.is_prepared():
    where = f' --data_dir={config.data_dir}' if config.data_dir else ''
    raise UserError(f'data.name={config.name}: not prepared in {builder.data_path.parent}; prepare it once with: '
                    f'tfds build {config.name}{where}')
  features = builder.info.features
  if 'image' not in features or not {'label', 'attributes', 'identity'} & set(features):
    raise UserError(f'data.name={config.name}: the features are {sorted(features)}; expected an image and a label, '
                    'attributes or an identity')
  return builder


def _embedded_builder(name, data_dir):
  from mobilenet_jax.data.drawn import faces, fabrics
  kind = {'fabrics': fabrics.Fabrics, 'faces': faces.Faces}[name]
  builder = kind(data_dir=data_dir, file_format='array_record')  # read without TensorFlow
  if not builder.is_prepared():
    print(f'drawing the embedded dataset into {builder.data_path}; this takes half a minute and happens only once', flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports a download
      builder.download_and_prepare()
  return builder


def _split(builder, split: str, recorded: str = '') -> ArraySource | StreamSource:
  """Returns the examples of a split, in memory if they fit and all images have the same shape, else as a stream.

  In memory, a split in the array_record format needs no TensorFlow.
  """
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError) as error:
    raise UserError(f'{builder.name} has no split {split!r}; it has {", ".join(builder.info.splits)}') from error
  shape = builder.info.features['image'].shape
  teacher_feature = recorded.removeprefix(FEATURE) if is_feature(recorded) else ''
  source = stream(builder, split, teacher_feature)
  if None in shape or shape[-1] != 3 or count * np.prod(shape) > MAX_BYTES_IN_MEMORY:
    return source
  if builder.info.file_format.value == 'array_record':  # random access, and no TensorFlow
    examples = builder.as_data_source(split)
  else:
    import tensorflow_datasets as tfds
    examples = tfds.as_numpy(builder.as_dataset(split=split))
  images, rows = np.empty((count, *shape), np.uint8), []
  try:
    for i, example in enumerate(examples):
      images[i] = example['image']
      rows.append(_targets(builder, example, teacher_feature))
  except damage_errors():
    return source  # the reader of the stream names the record or leaves it out
  extra = {name: np.array([row[name] for row in rows], np.float32 if name == TEACHER else np.int32) for name in rows[0]}
  return ArraySource(images, extra.pop('label'), source.num_classes, source.class_names, extra,
                     tuple(f'{split}/{i}' for i in range(count)), source.extra_names)


def stream(builder, split: str, teacher_feature: str = '') -> StreamSource:
  """Returns the examples of a split as a stream; `teacher_feature` holds a teacher's outputs, and is '' if there are none."""
  features = dict(builder.info.features)
  if teacher_feature and len(getattr(features.get(teacher_feature), 'shape', ())) != 1:
    raise UserError(f'data.recorded={FEATURE}{teacher_feature}: {builder.name} has the features {", ".join(features)}; '
                    'expected a feature of shape (d,) with logits or embeddings')
  label = features.get('label')
  names = getattr(label, 'names', None)
  named = names and names != [str(i) for i in range(len(names))]
  attributes = {ATTRIBUTES: tuple(sorted(features['attributes']))} if 'attributes' in features else {}
  # A label that is a person instead of a class to predict has no num_classes.
  return StreamSource(builder, split, getattr(label, 'num_classes', 0), tuple(names) if named else None, attributes,
                      teacher_feature)


def damage_errors() -> tuple[type[Exception], ...]:
  """Returns the errors that reading a damaged file raises: for a corrupt record, and for a file truncated between two."""
  if 'tensorflow' not in sys.modules:
    return ()
  import tensorflow as tf
  return tf.errors.DataLossError, tf.errors.FailedPreconditionError


def is_feature(recorded: str) -> bool:
  """Returns whether data.recorded names a feature of the examples instead of a file."""
  return recorded.startswith(FEATURE)


def _targets(builder, example, teacher_feature) -> dict:
  """Returns the targets of an example by their names in a batch; the values may be NumPy arrays or TensorFlow tensors.

  The label of a face is its identity, which celeb_a stores one level deeper.
  """
  features, targets = builder.info.features, {}
  if 'label' in features:
    targets['label'] = example['label']
    if not hasattr(features['label'], 'num_classes'):  # in lfw it is a name
      import tensorflow as tf
      targets['label'] = tf.strings.to_hash_bucket_fast(example['label'], 2**31 - 1)
  elif 'identity' in features:
    identity = example['identity']
    targets['label'] = identity['Identity_No'] if isinstance(identity, dict) else identity
  else:
    targets['label'] = 0
  if 'attributes' in features:
    targets[ATTRIBUTES] = [example['attributes'][name] for name in sorted(features['attributes'])]
  if teacher_feature:
    targets[TEACHER] = example[teacher_feature]
  return targets
