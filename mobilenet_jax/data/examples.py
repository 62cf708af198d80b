"""Examples: a source is a sequence of them, wherever they are kept."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mobilenet_jax.data import images
from mobilenet_jax.errors import UserError

ATTRIBUTES = 'attributes'  # name in a batch: attributes (b, a) in {0, 1}, or -1 if unknown
TEACHER = 'teacher'  # name in a batch: a teacher's outputs (b, d)
MAX_BYTES_IN_MEMORY = 2**30  # of decoded images
READ = 2**20  # bytes at a time
SAMPLE = 64  # the number of images from whose size it is estimated whether all of them fit into memory

Targets = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # the shape and the type of each target of an example, by its name


class Example(NamedTuple):
  """One example: its id, unique in the dataset; its image, uint8 (h, w, 3); and its targets by name."""

  id: str
  image: np.ndarray
  targets: Targets


class BadExample(UserError):
  """An example that cannot be read or decoded. `name` is that of its file or record, `reason` is what is wrong with it."""

  def __init__(self, name: str, reason: str):
    super().__init__(f'{name}: {reason}; repair or remove it')
    self.name, self.reason = name, reason


class Records(Protocol):
  """Where examples are kept. Image i is an array, uint8 (h, w, 3), or the bytes of an image file."""

  target_shapes: Shapes

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> tuple[np.ndarray | bytes, Targets]:
    """Returns the image and the targets of example i. Raises OSError or ValueError if they cannot be read."""

  def id(self, i: int) -> str:
    """Returns the id of example i."""

  def name(self, i: int) -> str:
    """Returns what a person can find example i by: its file or record."""

  def targets(self) -> Targets:
    """Returns the targets of all examples, arrays (n, ...)."""


class Table:
  """Records whose targets are in memory: images in arrays, or in files."""

  def __init__(self, images: Sequence, targets: Targets, ids: Sequence[str]):
    """Stores n uint8 images (h, w, 3) of any sizes, or n paths (str) of image files; arrays (n, ...) of targets; and n ids."""
    self._images, self._targets, self._ids = images, {name: _narrow(values) for name, values in targets.items()}, ids
    self.target_shapes = {name: (values.shape[1:], values.dtype) for name, values in self._targets.items()}

  def __len__(self):
    return len(self._images)

  def __getitem__(self, i):
    image = self._images[i]
    if isinstance(image, str):
      image = _read_file(image)
    return image, {name: values[i] for name, values in self._targets.items()}

  def id(self, i):
    return self._ids[i]

  def name(self, i):
    return self._images[i] if isinstance(self._images[i], str) else self._ids[i]

  def targets(self):
    return self._targets


@dataclasses.dataclass(frozen=True)
class Source:
  """A sequence of examples: source[i] is an Example, whose image is decoded.

  Attributes:
    records: where the examples are kept.
    num_classes: labels are in [0, num_classes); 0 if a label is a person instead of a class to predict.
    class_names: the names of the classes, ordered by label, or None.
    extra: further targets by name, arrays (n, ...), one row for each example.
    extra_names: the names of the columns of a target, by the name of the target.
    rows: which of the records the examples are, in order, int (n,); None for all.
    upright: whether images are turned as their EXIF orientation says.
  """

  records: Records
  num_classes: int
  class_names: tuple[str, ...] | None = None
  extra: Targets = dataclasses.field(default_factory=dict)
  extra_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  rows: np.ndarray | None = None
  upright: bool = False

  def __len__(self) -> int:
    return len(self.records) if self.rows is None else len(self.rows)

  def __iter__(self) -> Iterator[Example]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, i: int) -> Example:
    """Returns example i.

    Raises:
      BadExample: if it cannot be read or decoded.
    """
    row = self._row(i)
    try:
      image, targets = self.records[row]
      image = images.decode(image, self.upright)
    except (OSError, ValueError) as error:
      raise BadExample(self.records.name(row), getattr(error, 'strerror', None) or str(error)) from error
    return Example(self.records.id(row), image, {**targets, **{name: values[i] for name, values in self.extra.items()}})

  def _row(self, i):
    if not 0 <= i < len(self):
      raise IndexError(f'{i} is not in [0, {len(self)})')
    return i if self.rows is None else int(self.rows[i])

  @functools.cached_property
  def ids(self) -> tuple[str, ...]:
    """Returns the id of each example."""
    return tuple(self.records.id(self._row(i)) for i in range(len(self)))

  @property
  def target_shapes(self) -> Shapes:
    """Returns the shape and the type of each target of an example, by its name in a batch."""
    return {**self.records.target_shapes,
            **{name: (values.shape[1:], _narrow(values).dtype) for name, values in self.extra.items()}}

  @functools.cached_property
  def targets(self) -> Targets:
    """Returns all targets, arrays (n, ...) by name. Reads all examples if their targets are not in memory."""
    rows = slice(None) if self.rows is None else self.rows
    return {**{name: values[rows] for name, values in self.records.targets().items()}, **self.extra}

  @property
  def labels(self) -> np.ndarray:
    """Returns the label of each example, (n,); see `targets`."""
    return self.targets['label']

  def subset(self, indices: np.ndarray) -> 'Source':
    """Returns the examples at `indices`, in that order."""
    rows = np.asarray(indices) if self.rows is None else self.rows[indices]
    return dataclasses.replace(self, rows=rows, extra={name: values[indices] for name, values in self.extra.items()})


def from_arrays(images: Sequence[np.ndarray], labels: np.ndarray, num_classes: int,
                class_names: tuple[str, ...] | None = None, extra: Targets | None = None, ids: Sequence[str] | None = None,
                extra_names: dict[str, tuple[str, ...]] | None = None) -> Source:
  """Returns a source of uint8 images (n, h, w, 3), or n images of any sizes, and labels (n,).

  The other arguments are as in Source. By default, the id of an example is its number.
  """
  records = Table(images, {'label': labels}, ids or [str(i) for i in range(len(images))])
  return Source(records, num_classes, class_names, extra or {}, extra_names or {})


def from_files(paths: Sequence[str], upright: bool, targets: Targets | None = None, ids: Sequence[str] | None = None,
               num_classes: int = 0, class_names: tuple[str, ...] | None = None) -> Source:
  """Returns a source of image files and targets, arrays (n, ...) by name.

  The other arguments are as in Source. By default, the id of an example is its path.
  """
  return Source(Table(paths, targets or {}, ids or paths), num_classes, class_names, upright=upright)


def keep_in_memory(source: Source) -> Source:
  """Returns the same source, which keeps its images once they are decoded if all of them fit into memory.

  This changes the time that reading takes, and nothing else.
  """
  return dataclasses.replace(source, records=_Kept(source.records, lambda image: images.decode(image, source.upright)))


class _Kept:
  """Records that are kept decoded, up to MAX_BYTES_IN_MEMORY and if they are expected to fit."""

  def __init__(self, records: Records, decode: Callable[[np.ndarray | bytes], np.ndarray]):
    self._records, self._decode = records, decode
    self._kept: dict[int, tuple[np.ndarray, Targets]] = {}
    self._bytes, self._full = 0, False
    self.target_shapes, self.id, self.name, self.targets = records.target_shapes, records.id, records.name, records.targets

  def __len__(self):
    return len(self._records)

  def __getitem__(self, i):
    if (found := self._kept.get(i)) is not None:
      return found
    image, targets = self._records[i]
    if self._full or isinstance(image, np.ndarray):
      return image, targets
    found = self._decode(image), targets
    self._kept[i] = found
    self._bytes += found[0].nbytes
    count = len(self._kept)
    if count >= min(SAMPLE, len(self)) and self._bytes / count * len(self) > MAX_BYTES_IN_MEMORY:
      self._full = True
      self._kept.clear()
    return found


def _narrow(values: np.ndarray) -> np.ndarray:
  """Returns integers as int32, the type of a device's integers."""
  return values.astype(np.int32, copy=False) if values.dtype.kind in 'biu' else values


def _read_file(path):
  """Returns the content of a file. With many threads, Python's own file objects spend longer on waiting for each other."""
  file, parts = os.open(path, os.O_RDONLY), []
  try:
    while not parts or len(parts[-1]) == READ:
      parts.append(os.read(file, READ))
  finally:
    os.close(file)
  return parts[0] if len(parts) == 1 else b''.join(parts)
