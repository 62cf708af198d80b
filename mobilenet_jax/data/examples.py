"""Examples: a source is a sequence of them, wherever they are kept."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mobilenet_jax.data import images
from mobilenet_jax.errors import UserError

ATTRIBUTES = 'attributes'  # name in a batch: attributes (b, a) in {0, 1}, or -1 if unknown
TEACHER = 'teacher'  # name in a batch: a teacher's outputs (b, d)
MAX_BYTES_IN_MEMORY = 2**30  # of decoded images
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
    super().__init__(f'{name}: {reason}')
    self.name, self.reason = name, reason


class Table:
  """Records whose targets are in memory: images in arrays, or in files.

  Like all records, they have a length, and records[i] is an image, uint8 (h, w, 3) or the bytes of an image file, and its
  targets. It raises OSError or ValueError if example i cannot be read. `id(i)` is the id of the example, `name(i)` what a
  person can find it by, and `targets()` the targets of all examples, (n, ...), of the shapes and types `target_shapes`.
  """

  def __init__(self, images: Sequence, targets: Targets, ids: Sequence[str]):
    """Stores n uint8 images (h, w, 3) of any sizes, or n paths (str) of image files; arrays (n, ...) of targets; and n ids."""
    self._images, self._targets, self._ids = images, {name: _narrow(values) for name, values in targets.items()}, ids
    self.target_shapes = {name: (values.shape[1:], values.dtype) for name, values in self._targets.items()}

  def __len__(self):
    return len(self._images)

  def __getitem__(self, i):
    image = self._images[i]
    if isinstance(image, str):
      with open(image, 'rb', buffering=0) as file:
        image = file.read()
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
    memory: what is kept of the records once it is decoded; see keep_in_memory.
  """

  records: Table  # or what behaves like it
  num_classes: int
  class_names: tuple[str, ...] | None = None
  extra: Targets = dataclasses.field(default_factory=dict)
  extra_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  rows: np.ndarray | None = None
  upright: bool = False
  memory: dict | None = None

  def __len__(self) -> int:
    return len(self.records) if self.rows is None else len(self.rows)

  def __getitem__(self, i: int) -> Example:
    """Returns example i.

    Raises:
      BadExample: if it cannot be read or decoded.
    """
    row = self._row(i)
    try:
      image, targets = (self.memory or {}).get(row) or self.records[row]
      decoded = images.decode(image, self.upright)
    except (OSError, ValueError) as error:
      raise BadExample(self.records.name(row), getattr(error, 'strerror', None) or str(error)) from error
    if self.memory is not None and decoded is not image:
      self.memory.keep(row, decoded, targets)
    return Example(self.records.id(row), decoded, {**targets, **{name: values[i] for name, values in self.extra.items()}})

  def _row(self, i):
    if not 0 <= i < len(self):  # which also ends an iteration
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
    rows = (np.arange(len(self)) if self.rows is None else self.rows)[indices]
    return dataclasses.replace(self, rows=rows, extra={name: values[indices] for name, values in self.extra.items()})


def from_images(images: Sequence[np.ndarray | str], labels: np.ndarray, num_classes: int,
                class_names: tuple[str, ...] | None = None, extra: Targets | None = None, ids: Sequence[str] | None = None,
                extra_names: dict[str, tuple[str, ...]] | None = None, upright: bool = False) -> Source:
  """Returns a source of n images, each uint8 (h, w, 3) or the path of an image file, and labels (n,).

  The other arguments are as in Source. By default, the id of an example is '<folder>/<file>', or the number of an array.
  """
  assert len(images) == len(labels), (len(images), len(labels))
  if ids is None:
    ids = ['/'.join(image.split('/')[-2:]) if isinstance(image, str) else str(i) for i, image in enumerate(images)]
  records = Table(images, {'label': np.asarray(labels)}, ids)
  return Source(records, num_classes, class_names, extra or {}, extra_names or {}, upright=upright)


def keep_in_memory(source: Source) -> Source:
  """Returns the same source, which keeps its images once they are decoded if all of them fit into memory.

  This changes the time that reading takes, and nothing else.
  """
  return dataclasses.replace(source, memory=_Memory(len(source)))


class _Memory(dict):
  """Decoded images and targets by row, until MAX_BYTES_IN_MEMORY are expected not to suffice for all `rows` of them."""

  def __init__(self, rows: int):
    self._rows, self._bytes, self._full = rows, 0, False

  def keep(self, row, image, targets):
    if not self._full:
      self[row] = image, targets
      self._bytes += image.nbytes
      count = len(self)  # once, as other threads keep images too
      if count >= min(SAMPLE, self._rows) and self._bytes / count * self._rows > MAX_BYTES_IN_MEMORY:
        self._full = True
        self.clear()


def _narrow(values: np.ndarray) -> np.ndarray:
  """Returns integers as int32, the type of a device's integers."""
  return values.astype(np.int32, copy=False) if values.dtype.kind in 'biu' else values
