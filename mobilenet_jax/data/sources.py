"""Where examples are: arrays in memory, or anything that TFDS reads. The only file that knows TFDS.

    fabrics         the embedded dataset (data/fabrics.py), drawn on first use
    <name>          any TFDS name that has an image and a label, prepared before
    folder:/path    /path/<class>/<image>, of which a tenth is held out, or /path/<split>/<class>/<image>, or images
                    and a /path/labels.csv (columns file and label; to evaluate on, not to train)
    npz:/path.npz   arrays train_images, train_labels, test_images, test_labels; needs no TensorFlow
"""

import contextlib
import csv
import dataclasses
import io
import os
import tempfile
from pathlib import Path

import ml_collections
import numpy as np

from mobilenet_jax.errors import UserError

IMAGE_FILES = ('.jpg', '.jpeg', '.png')  # what tfds.ImageFolder reads
LABELS_FILE = 'labels.csv'
HELD_OUT = 0.1  # of a folder without splits
MAX_BYTES_IN_MEMORY = 2**30  # of decoded images; a constant, since both ways resize in their own way
SAMPLE = 64  # images whose size tells whether all would fit


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """Examples in memory: images uint8 (n, h, w, 3), or n of their own sizes; labels int32 (n,) in [0, num_classes)."""

  images: np.ndarray | list[np.ndarray]
  labels: np.ndarray
  num_classes: int
  class_names: tuple[str, ...] | None = None  # in the order of their labels

  @property
  def num_examples(self) -> int:
    return len(self.images)


@dataclasses.dataclass(frozen=True)
class StreamSource:
  """Encoded examples that TFDS reads one after another; `first` to `last` of `split`."""

  builder: object  # tfds.core.DatasetBuilder
  split: str
  first: int
  last: int

  @property
  def num_examples(self) -> int:
    return self.last - self.first

  @property
  def num_classes(self) -> int:
    return self.builder.info.features['label'].num_classes

  @property
  def class_names(self) -> tuple[str, ...] | None:
    return _class_names(self.builder)

  def examples(self, shuffle_seed: int | None, shuffle_buffer: int):
    """A tf.data.Dataset of {'image': encoded bytes, 'label': int64, 'id': str}; the order follows from the seed."""
    import tensorflow as tf
    import tensorflow_datasets as tfds
    is_folder = isinstance(self.builder, tfds.folder_dataset.ImageFolder)
    dataset = self.builder.as_dataset(
        split=self.split, shuffle_files=shuffle_seed is not None and not is_folder,
        decoders={'image': tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(shuffle_seed=shuffle_seed, add_tfds_id=True, try_autocache=False))
    if is_folder:  # in an order of its own, always the same, so that a range of it is a fair sample
      dataset = dataset.skip(self.first).take(self.num_examples)
    if shuffle_seed is not None:
      buffer = min(shuffle_buffer, self.num_examples)
      dataset = dataset.shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)
    name = 'image/filename' if is_folder else 'tfds_id'
    return dataset.map(
        lambda x: {'image': x['image'], 'label': x['label'], 'id': x[name]},
        num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


@dataclasses.dataclass(frozen=True)
class FileSource:
  """Image files of one folder, whose labels stand in its labels.csv; in the order of that file."""

  paths: list[str]
  labels: np.ndarray  # int32
  num_classes: int
  class_names: tuple[str, ...] | None

  @property
  def num_examples(self) -> int:
    return len(self.paths)

  def examples(self, shuffle_seed: int | None, shuffle_buffer: int):
    """As StreamSource.examples."""
    import tensorflow as tf
    dataset = tf.data.Dataset.from_tensor_slices((self.paths, self.labels.astype(np.int64)))
    if shuffle_seed is not None:  # all of it: these are names, not images
      dataset = dataset.shuffle(self.num_examples, seed=shuffle_seed, reshuffle_each_iteration=False)
    return dataset.map(lambda path, label: {'image': tf.io.read_file(path), 'label': label, 'id': path},
                       num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


Source = ArraySource | StreamSource | FileSource


def load(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """The training and the evaluation source that `config` (the part `data` of a whole config) names.

  Raises:
    UserError: where there is no such dataset, split or folder, or it holds no images, or is not prepared.
  """
  kind, _, path = config.name.partition(':')
  if kind == 'npz':
    return tuple(_from_npz(path, split) for split in (config.train_split, config.eval_split))
  if kind == 'folder':
    return _from_folder(path, config)
  builder = _tfds_builder(config)
  return tuple(_from_tfds(builder, split) for split in (config.train_split, config.eval_split))


def load_whole(config: ml_collections.ConfigDict) -> Source:
  """The examples of `config.name` to evaluate on: eval_split, or of a folder without splits all of them."""
  kind, _, path = config.name.partition(':')
  if kind != 'folder':
    return load(config)[1]
  root = _existing_folder(path)
  if (root / LABELS_FILE).exists():
    return _from_labels_file(root)
  if (root / config.eval_split).is_dir():
    _check_classes(root / config.eval_split, minimum=1)
    return _image_folder(root, config.eval_split)
  _check_classes(root, minimum=1)
  return _unsplit(root)


def num_classes(config: ml_collections.ConfigDict) -> int:
  return load(config)[0].num_classes


def _from_npz(path: str, split: str) -> ArraySource:
  try:
    with np.load(path) as arrays:
      images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
      all_labels = [arrays[name] for name in arrays.files if name.endswith('_labels')]
  except (OSError, ValueError) as error:
    raise UserError(f'data.name=npz:{path}: no readable .npz file there ({error})') from error
  except KeyError as error:
    raise UserError(f'data.name=npz:{path}: {error}; expected the arrays {split}_images (n, h, w, 3) uint8 '
                    f'and {split}_labels (n,)') from error
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
    raise UserError(f'data.name=npz:{path}: {split}_images is {images.dtype} {images.shape}, {split}_labels '
                    f'{labels.shape}; expected uint8 (n, h, w, 3) and (n,)')
  return ArraySource(images, labels.astype(np.int32), max(int(part.max()) for part in all_labels) + 1)


def _from_folder(path: str, config: ml_collections.ConfigDict) -> tuple[StreamSource, StreamSource]:
  root = _existing_folder(path)
  splits = (config.train_split, config.eval_split)
  has_splits = all((root / split).is_dir() for split in splits)
  for parent in [root / split for split in splits] if has_splits else [root]:
    _check_classes(parent)

  if has_splits:
    return tuple(_image_folder(root, split) for split in splits)
  whole = _unsplit(root)
  held_out = round(whole.num_examples * HELD_OUT)
  return dataclasses.replace(whole, first=held_out), dataclasses.replace(whole, last=held_out)


def _existing_folder(path: str) -> Path:
  root = Path(path).expanduser().resolve()
  if not root.is_dir():
    raise UserError(f'data.name=folder:{path}: there is no such folder')
  return root


def _image_folder(root: Path, split: str) -> StreamSource:
  import tensorflow_datasets as tfds
  builder = tfds.folder_dataset.ImageFolder(str(root))
  return StreamSource(builder, split, 0, builder.info.splits[split].num_examples)


def _unsplit(root: Path) -> StreamSource:
  parent = Path(tempfile.mkdtemp())  # ImageFolder wants a folder of splits: one that holds just this one
  (parent / 'all').symlink_to(root)
  return _image_folder(parent, 'all')


def _from_labels_file(root: Path) -> FileSource:
  path = root / LABELS_FILE
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  if not rows or not {'file', 'label'} <= set(rows[0]):
    raise UserError(f'{path}: expected a line file,label and below it a line an image')
  found = {file.name: file for file in root.rglob('*') if file.suffix.lower() in IMAGE_FILES}
  files = [root / row['file'] if (root / row['file']).exists() else found.get(row['file']) for row in rows]
  if missing := [row['file'] for row, file in zip(rows, files) if file is None]:
    raise UserError(f'{path}: {len(missing)} of its {len(rows)} images are not in {root}, such as {missing[0]}')
  labels = [row['label'] for row in rows]
  names = None if all(label.isdecimal() for label in labels) else tuple(sorted(set(labels)))
  numbers = [names.index(label) if names else int(label) for label in labels]
  return FileSource([str(file) for file in files], np.array(numbers, np.int32), max(numbers) + 1, names)


def keep_in_memory(source: Source) -> Source:
  """The same examples decoded once, where they fit and all of them can be; apart from `load`, which only looks."""
  if isinstance(source, ArraySource):
    return source
  import tensorflow as tf

  def decode(example):
    return tf.io.decode_image(example['image'], channels=3, expand_animations=False), example['label']

  images, labels, size = [], [], 0
  examples = source.examples(None, 0).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  try:
    for image, label in examples.as_numpy_iterator():
      images.append(image)
      labels.append(label)
      size += image.nbytes
      if len(images) >= SAMPLE and size / len(images) * source.num_examples > MAX_BYTES_IN_MEMORY:
        return source
  except tf.errors.InvalidArgumentError:  # the pipeline names the image, or skips it
    return source
  return ArraySource(images, np.array(labels, np.int32), source.num_classes, source.class_names)


def _check_classes(folder: Path, minimum: int = 2) -> None:
  classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
  if len(classes) < minimum:
    raise UserError(f'{folder}: {len(classes)} sub-folders; expected one a class, at least {minimum}')
  for entry in classes:
    if not any(name.lower().endswith(IMAGE_FILES) for name in os.listdir(entry)):
      raise UserError(f'{entry}: no images in this class folder ({" ".join(IMAGE_FILES)}); add some or remove it; '
                      'if it is a split, name yours as in --config.data.eval_split=val')


def _tfds_builder(config: ml_collections.ConfigDict):
  import tensorflow_datasets as tfds
  tfds.disable_progress_bar()
  data_dir = os.path.expanduser(config.data_dir) or None
  if config.name == 'fabrics':
    from mobilenet_jax.data import fabrics
    builder = fabrics.Fabrics(data_dir=data_dir, file_format='array_record')  # read without TensorFlow
    if not builder.is_prepared():
      print(f'drawing the embedded dataset into {builder.data_path}: half a minute, once', flush=True)
      with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download
        builder.download_and_prepare()
    return builder
  try:
    builder = tfds.builder(config.name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(f'data.name={config.name}: TFDS has no such dataset; expected fabrics, a TFDS name such as '
                    'cifar10, folder:/path or npz:/path') from error
  except (ValueError, AssertionError) as error:  # a name TFDS cannot parse, or an unknown configuration of it
    raise UserError(f'data.name={config.name}: {str(error).splitlines()[0]}') from error
  if not builder.is_prepared():
    where = f' --data_dir={config.data_dir}' if config.data_dir else ''
    raise UserError(f'data.name={config.name}: not prepared in {builder.data_path.parent}; prepare it once with: '
                    f'tfds build {config.name}{where}')
  if not {'image', 'label'} <= set(builder.info.features):
    raise UserError(f'data.name={config.name} has the features {sorted(builder.info.features)}; '
                    'expected an image and a label among them')
  return builder


def _from_tfds(builder, split: str) -> Source:
  """In memory where they fit, else as a stream; without TensorFlow where every image has the same shape."""
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError) as error:
    raise UserError(f'{builder.name} has no split {split!r}; it has {", ".join(builder.info.splits)}') from error
  features = builder.info.features
  shape = features['image'].shape
  if None in shape or shape[-1] != 3 or count * np.prod(shape) > MAX_BYTES_IN_MEMORY:
    return StreamSource(builder, split, 0, count)
  if builder.info.file_format.value == 'array_record':  # random access, and no TensorFlow
    examples = builder.as_data_source(split)
  else:
    import tensorflow_datasets as tfds
    examples = tfds.as_numpy(builder.as_dataset(split=split))
  images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
  for i, example in enumerate(examples):
    images[i], labels[i] = example['image'], example['label']
  return ArraySource(images, labels, features['label'].num_classes, _class_names(builder))


def _class_names(builder) -> tuple[str, ...] | None:
  names = builder.info.features['label'].names
  return None if names == [str(i) for i in range(len(names))] else tuple(names)
