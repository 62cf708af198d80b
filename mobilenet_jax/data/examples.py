"""Examples: a source is a sequence of them, wherever they are kept."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mobilenet_jax.data import images
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import read_regular

ATTRIBUTES = 'attributes'  # name in a batch: attributes (b, a) in {0, 1}, or -1 if unknown
TEACHER = 'teacher'  # name in a batch: a teacher's outputs (b, d)
UNKNOWN = -1  # the label of an example that has none, as in TFDS
MOST_LABELS = 2**31  # as many as a device's integers can tell apart
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
  targets. It raises OSError or ValueError if example i cannot be read. `ids` has the id of each example, `name(i)` is what a
  person can find it by, and `targets()` the targets of all examples, (n, ...), of the shapes and types `target_shapes`.
  `content` identifies what the ids do not, see fingerprints.py. `files` has the path of each image, and
  `arrays` all images, (n, h, w, 3), or they are None.
  """

  in_memory = True  # its targets

  def __init__(self, images: Sequence, targets: Targets, ids: Sequence[str], content: str = ''):
    """Stores n uint8 images (h, w, 3) of any sizes, or n paths (str) of image files; arrays (n, ...) of targets; and n ids."""
    self._images, self._targets, self.ids = images, {name: _narrow(values) for name, values in targets.items()}, ids
    self.target_shapes = {name: (values.shape[1:], values.dtype) for name, values in self._targets.items()}
    self.content = content
    self.files = images if isinstance(images, list) and all(isinstance(image, str) for image in images) else None
    self.arrays = images if isinstance(images, np.ndarray) else None

  def __len__(self):
    return len(self._images)

  def __getitem__(self, i):
    image = self._images[i]
    if isinstance(image, str):
      image = read_regular(image)
    return image, {name: values[i] for name, values in self._targets.items()}

  def name(self, i):
    image = self._images[i]
    return image if isinstance(image, str) else self.ids[i]

  def targets(self):
    return self._targets


@dataclasses.dataclass(frozen=True)
class Source:
  """A sequence of examples: source[i] is an Example, whose image is decoded.

  Attributes:
    records: where the examples are kept.
    num_classes: labels are in [0, num_classes), or UNKNOWN; 0 if a label is a person instead of a class to predict.
    class_names: the names of the classes or people, ordered by label, or None.
    extra: further targets by name, arrays (n, ...), one row for each example.
    extra_names: the names of the columns of a target, by the name of the target.
    columns: which columns of a target the examples have, in order, int (d,), by the name of the target; all by default.
    rows: which of the records the examples are, in order, int (n,); None for all.
    upright: whether images are turned as their EXIF orientation says.
    memory: what is kept of the records once it is decoded; see keep_in_memory.
    labelled: whether a label must be known. If not, UNKNOWN is accepted, too.
    held_out: whether this is a part of a set that has no splits of its own, of which a tenth is held out.
    outputs_kind: what a teacher's outputs are: 'logits', 'probs' or 'embeddings'; '' if there are none, or it is not known.
    remarks: lines on the examples that a person should see, such as how many there are and what is left out.
  """

  records: Table  # or what behaves like it
  num_classes: int
  class_names: tuple[str, ...] | None = None
  extra: Targets = dataclasses.field(default_factory=dict)
  extra_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  rows: np.ndarray | None = None
  upright: bool = False
  memory: dict | None = None
  labelled: bool = True
  held_out: bool = False
  outputs_kind: str = ''
  remarks: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.records) if self.rows is None else len(self.rows)

  def __getitem__(self, i: int) -> Example:
    """Returns example i.

    Raises:
      BadExample: if it cannot be read or decoded.
      UserError: if its label is not one.
    """
    row = self._row(i)
    try:
      image, targets = (self.memory or {}).get(row) or self.records[row]
      decoded = images.decode(image, self.upright)
    except (OSError, ValueError) as error:
      raise BadExample(self.records.name(row), getattr(error, 'strerror', None) or str(error)) from error
    if self.memory is not None and decoded is not image:
      self.memory.keep(row, decoded, targets)
    targets = self._whole(targets, i)
    if ATTRIBUTES in targets or not 0 <= targets['label'] < (self.num_classes or MOST_LABELS):  # else it takes time in vain
      self._check(targets, lambda _: self.records.name(row))
    return Example(self.records.ids[row], decoded, targets)

  def _row(self, i):
    if not 0 <= i < len(self):  # which also ends an iteration
      raise IndexError(f'{i} is not in [0, {len(self)})')
    return i if self.rows is None else int(self.rows[i])

  @property
  def files(self) -> list[str] | None:
    """Returns the path of each example; None if the examples are no files of their own."""
    files = self.records.files
    return files if files is None or self.rows is None else [files[row] for row in self.rows]

  @property
  def arrays(self) -> np.ndarray | None:
    """Returns all images, uint8 (n, h, w, 3); None if they are not kept in one array."""
    arrays = self.records.arrays
    return arrays if arrays is None or self.rows is None else arrays[self.rows]

  @functools.cached_property
  def ids(self) -> tuple[str, ...]:
    """Returns the id of each example."""
    ids = self.records.ids
    return tuple(ids) if self.rows is None else tuple(ids[row] for row in self.rows)

  def targets_of(self, i: int) -> Targets:
    """Returns the targets of example i, unchecked. Raises OSError or ValueError if it cannot be read."""
    return self._whole(self.records[self._row(i)][1], i)

  def _whole(self, targets, i):
    """Returns the targets that the records have for the examples `i`, an index or a slice, with those of `extra`."""
    whole = {**targets, **{name: values[i] for name, values in self.extra.items()}}
    return {**whole, **{name: whole[name][..., columns] for name, columns in self.columns.items()}}

  @property
  def target_shapes(self) -> Shapes:
    """Returns the shape and the type of each target of an example, by its name in a batch."""
    shapes = {**self.records.target_shapes,
              **{name: (values.shape[1:], _narrow(values).dtype) for name, values in self.extra.items()}}
    return {**shapes, **{name: (columns.shape, shapes[name][1]) for name, columns in self.columns.items()}}

  @functools.cached_property
  def targets(self) -> Targets:
    """Returns all targets, arrays (n, ...) by name. Reads all examples if their targets are not in memory.

    Raises:
      UserError: if a label is not one; the error names an example.
    """
    rows = slice(None) if self.rows is None else self.rows
    targets = self._whole({name: values[rows] for name, values in self.records.targets().items()}, slice(None))
    self._check(targets, lambda i: self.records.name(self._row(i)))
    return targets

  def _check(self, targets, name):
    _check(targets, self.num_classes, self.labelled, self.extra_names.get(ATTRIBUTES), name)

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
                extra_names: dict[str, tuple[str, ...]] | None = None, upright: bool = False, content: str = '') -> Source:
  """Returns a source of n images, each uint8 (h, w, 3) or the path of an image file, and labels (n,).

  The other arguments are as in Source and Table. By default, the id of an example is '<folder>/<file>', or the number of an
  array.

  Raises:
    UserError: if a label is neither UNKNOWN nor one of the classes, or there are not as many labels as images.
  """
  labels = np.asarray(labels)
  if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
    raise UserError(f'labels: {labels.dtype} {labels.shape}; expected integers ({len(images)},), one for each image')
  if class_names and num_classes and len(class_names) != num_classes:
    raise UserError(f'{len(class_names)} names of {num_classes} classes; expected one for each')
  if ids is None:
    ids = ['/'.join(image.split('/')[-2:]) if isinstance(image, str) else str(i) for i, image in enumerate(images)]
  extra, extra_names = extra or {}, extra_names or {}
  records = Table(images, {'label': labels}, ids, content)
  _check({'label': labels, **extra}, num_classes, False, extra_names.get(ATTRIBUTES), records.name)
  return Source(records, num_classes, class_names, extra, extra_names, upright=upright)


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


def _check(targets, num_classes, labelled, attribute_names, name):
  """Checks the targets of one example, or those of several, (n, ...), of which name(i) is the name of the i-th.

  Raises:
    UserError: if a label or an attribute has a value without meaning; it names the example.
  """
  labels = np.atleast_1d(targets['label'])
  fine = (labels >= 0) & (labels < (num_classes or MOST_LABELS))
  if not labelled:
    fine |= labels == UNKNOWN
  if not fine.all():
    at = int(np.argmin(fine))
    what = 'there is no label (-1)' if labels[at] == UNKNOWN else f'the label is {labels[at]}'
    expected = f'one of {num_classes} classes, 0 to {num_classes - 1}' if num_classes else 'a class or a person'
    raise UserError(f'{name(at)}: {what}; expected {expected}')
  attributes = np.atleast_2d(targets.get(ATTRIBUTES, 0))
  wrong = (attributes != 0) & (attributes != 1) & (attributes != UNKNOWN)
  if wrong.any():
    at, column = np.argwhere(wrong)[0]
    column_name = attribute_names[column] if attribute_names else column
    raise UserError(f'{name(at)}: the attribute {column_name} is {attributes[at, column]}; expected 0, 1, or -1 if it is not '
                    'known')


def _narrow(values: np.ndarray) -> np.ndarray:
  """Returns integers as int32, the type of a device's integers."""
  return values.astype(np.int32, copy=False) if values.dtype.kind in 'biu' else values
