"""TFDS datasets, and the embedded datasets, which are TFDS builders. Only this file reads through TFDS."""

import contextlib
import functools
import hashlib
import io
import re
from pathlib import Path

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import ATTRIBUTES, TEACHER, UNKNOWN, Source
from mobilenet_jax.data.tfrecords import TFRecords
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded

EMBEDDED = ('fabrics', 'faces')
FEATURE = 'feature:'  # precedes the name of a feature in data.recorded
INDEX_CACHE = Path('~/.cache/mobilenet_jax/index')  # where the records begin, see tfrecords.py


def load(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source; `config` is the `data` section of a config."""
  builder = _builder(config)
  return tuple(source(builder, split, config.recorded) for split in (config.train_split, config.eval_split))


def load_whole(config: ml_collections.ConfigDict, split: str) -> Source:
  return source(_builder(config), split)


def source(builder, split: str, recorded: str = '') -> Source:
  """Returns the examples of a split, such as 'train[:10%]', of a prepared builder. `recorded` is as data.recorded.

  Raises:
    UserError: if there is no such split or feature, or a file is missing.
  """
  features = builder.info.features
  teacher = recorded.removeprefix(FEATURE) if is_feature(recorded) else ''
  extra_names = {ATTRIBUTES: tuple(sorted(features['attributes']))} if 'attributes' in features else {}
  if teacher and (columns := _columns(builder, teacher)):
    extra_names[TEACHER] = columns
  label = dict(features).get('label', dict(features).get('identity'))
  if hasattr(label, 'keys'):  # a dict of features, in celeb_a
    label = label['Identity_No']
  if label is not None and (label.shape or np.dtype(label.np_dtype).kind not in 'iuSUO'):
    raise UserError(f'{builder.name}: the feature label has the shape {label.shape} and the type {label.np_dtype}; expected '
                    'a class, or the number or name of a person')
  names = getattr(label, 'names', None)
  named = names and names != [str(i) for i in range(len(names))]
  records = _Records(builder, split, teacher)
  if label is not None and np.dtype(label.np_dtype).kind in 'SUO':  # in lfw it is the name of a person
    people, labels = np.unique(records.targets()['label'].astype(str), return_inverse=True)
    known = people != ''
    labels = np.where(known, np.cumsum(known) - 1, UNKNOWN)[labels].astype(np.int32)
    return Source(records, 0, tuple(people[known].tolist()), {'label': labels}, extra_names)
  # A label that is a person instead of a class to predict has no num_classes.
  return Source(records, getattr(label, 'num_classes', None) or 0, tuple(names) if named else None, {}, extra_names)


def _columns(builder, teacher) -> tuple[str, ...] | None:
  """Returns the names of the outputs in a feature, which is a dict of numbers; None if it is a vector, without names."""
  features = dict(builder.info.features)
  feature = features.get(teacher)
  is_number = lambda feature: feature.shape == () and np.dtype(feature.np_dtype).kind in 'iuf'
  if hasattr(feature, 'keys') and all(map(is_number, feature.values())):
    return tuple(sorted(feature))
  if len(getattr(feature, 'shape', ()) or ()) != 1 or None in feature.shape:
    raise UserError(f'data.recorded={FEATURE}{teacher}: {builder.name} has the features {", ".join(features)}; expected a '
                    'feature of shape (d,) with logits or embeddings, or a dict of numbers by the names of the outputs')
  return None


def is_feature(recorded: str) -> bool:
  """Returns whether data.recorded names a feature of the examples instead of a file."""
  return recorded.startswith(FEATURE)


class _Records:
  """The records of a split; see examples.Table. An example has the id '<split>/<number>', counted in the whole split."""

  in_memory, files, arrays = False, None, None

  def __init__(self, builder, split, teacher):
    import tensorflow_datasets as tfds
    splits = builder.info.splits
    try:
      self._parts = splits[split].file_instructions
    except (KeyError, ValueError) as error:
      raise UserError(f'{builder.name} has no split {split!r}; it has {", ".join(splits)}') from error
    if min((part.take for part in self._parts), default=0) < 1:
      raise UserError(f'{builder.name}: the split {split!r} has no examples')
    self._features, self._teacher = builder.info.features, teacher
    self.content = builder.info.full_name  # with its version
    self._ends = np.cumsum([part.take for part in self._parts])
    self._decoders = {'image': tfds.decode.SkipDecoding()}
    # By file: the name of its split, and the number of its first example in it.
    self._first = {str(file): (name, int(first)) for name in splits for file, first in zip(
        splits[name].filepaths, np.cumsum([0, *splits[name].shard_lengths]))}
    for part in self._parts:
      if not Path(part.filename).is_file():
        raise UserError(f'{part.filename}: No such file or directory; prepare the dataset again')
    if builder.info.file_format.value == 'array_record':
      records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
      self._raw = lambda i: records[i]
    else:
      files = [Path(part.filename) for part in self._parts]
      index = f'{builder.name}-{hashlib.sha256(repr(files).encode()).hexdigest()[:16]}.npz'
      records = TFRecords(files, INDEX_CACHE.expanduser() / index, f'{builder.name}/{split}')
      self._raw = lambda i: records.read(*self._place(i))
    self.target_shapes = {'label': ((), np.dtype(np.int32))}
    if 'attributes' in self._features:
      self.target_shapes[ATTRIBUTES] = (len(self._features['attributes']),), np.dtype(np.int32)
    if teacher:
      columns = _columns(builder, teacher)
      self.target_shapes[TEACHER] = (len(columns),) if columns else self._features[teacher].shape, np.dtype(np.float32)

  def __len__(self):
    return int(self._ends[-1])

  def __getitem__(self, i):
    try:
      if not (record := self._raw(i)):
        raise ValueError('the file is damaged or cut off')
      example = self._features.deserialize_example_np(record, decoders=self._decoders)
    except Exception as error:  # array_record and protobuf raise errors of their own
      if isinstance(error, (OSError, ValueError)):
        raise
      raise ValueError(f'damaged ({" ".join(str(error).split())[:100]})') from error
    return example['image'], self._targets(example)

  def _place(self, i):
    """Returns the file of example i, and its number in it."""
    file = int(np.searchsorted(self._ends, i, 'right'))
    part = self._parts[file]
    return file, int(i - self._ends[file] + part.take + part.skip)

  @functools.cached_property
  def ids(self):
    ids = []
    for part in self._parts:
      split, first = self._first[str(part.filename)]
      ids += [f'{split}/{number}' for number in range(first + part.skip, first + part.skip + part.take)]
    return ids

  def name(self, i):
    file, number = self._place(i)
    return f'{self._parts[file].filename}, record {number}'

  def targets(self):
    return self._all_targets

  @functools.cached_property
  def _all_targets(self):
    print(f'reading all {len(self):,} examples for their targets', flush=True)
    rows = []
    for i in range(len(self)):
      try:
        rows.append(self[i][1])
      except (OSError, ValueError) as error:
        raise UserError(f'{self.name(i)}: {error}; all examples are needed here: prepare the dataset again') from error
    return {name: np.array([row[name] for row in rows]) for name in self.target_shapes}

  def _targets(self, example):
    """Returns the targets of an example. The label of a face is its identity, which celeb_a stores one level deeper."""
    label = example.get('label', example.get('identity', UNKNOWN))
    targets = {'label': label['Identity_No'] if isinstance(label, dict) else label}
    if 'attributes' in self._features:
      targets[ATTRIBUTES] = np.array([example['attributes'][name] for name in sorted(self._features['attributes'])], np.int64)
    if self._teacher:
      outputs = example[self._teacher]
      outputs = [outputs[name] for name in sorted(outputs)] if isinstance(outputs, dict) else outputs
      targets[TEACHER] = np.asarray(outputs, np.float32)
      if not np.isfinite(targets[TEACHER]).all():
        raise ValueError(f'the feature {self._teacher} has values that are not finite')
    return targets


def _builder(config: ml_collections.ConfigDict):
  import tensorflow_datasets as tfds
  tfds.disable_progress_bar()
  data_dir = str(expanded(config.data_dir)) if config.data_dir else None
  if config.name in EMBEDDED:
    return _embedded_builder(config.name, data_dir)
  try:
    builder = tfds.builder(config.name, data_dir=data_dir)
  except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
    bare = re.split('[:/]', config.name)[0]
    known = bare in tfds.list_builders()  # if so, the version or the configuration is unknown
    why = str(error).splitlines()[0] if known else (
        f'TFDS has no such dataset; expected {", ".join(EMBEDDED)}, a TFDS name such as cifar10, folder:/path, npz:/path or '
        'hf:/path')
    raise UserError(f'data.name={config.name}: {why}{"" if known else _suggestion(config.name)}') from error
  if not builder.is_prepared():
    where = f' --data_dir={config.data_dir}' if config.data_dir else ''
    raise UserError(f'data.name={config.name}: not prepared in {builder.data_path.parent}; prepare it once with: '
                    f'tfds build {config.name}{where}')
  features = builder.info.features
  has_image = 'image' in features and features['image'].np_dtype in (np.uint8, np.uint16)
  if not has_image or not {'label', 'attributes', 'identity'} & set(features):
    raise UserError(f'data.name={config.name}: the features are {sorted(features)}; expected an image of 8 or 16 bits and a '
                    'label, attributes or an identity')
  return builder


def _suggestion(name) -> str:
  """Returns what a name that is no dataset may stand for, if it looks like a path; else ''."""
  path = expanded(name.partition(':')[2] or name)
  kind = 'folder' if path.is_dir() else {'.npz': 'npz'}.get(path.suffix) if path.exists() else None
  return f'; did you mean {kind}:{path}?' if kind else ''


def _embedded_builder(name, data_dir):
  from mobilenet_jax.data.drawn import faces, fabrics
  kind = {'fabrics': fabrics.Fabrics, 'faces': faces.Faces}[name]
  builder = kind(data_dir=data_dir, file_format='array_record')  # read without TensorFlow
  if not builder.is_prepared():
    print(f'drawing the embedded dataset into {builder.data_path}; this takes half a minute and happens only once', flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports a download
      builder.download_and_prepare()
  return builder
