"""Examples in memory or in files: images, and for each image a label and other numbers by name."""

import dataclasses
from pathlib import Path

import numpy as np

ATTRIBUTES = 'attributes'  # name in a batch: attributes (b, a) in {0, 1}, or -1 if unknown
TEACHER = 'teacher'  # name in a batch: a teacher's outputs (b, d)
Extra = dict[str, np.ndarray]  # arrays (n, ...) by these names


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """Examples in memory: uint8 images (n, h, w, 3), or n images of any sizes; int32 labels (n,) in [0, num_classes)."""

  images: np.ndarray | list[np.ndarray]
  labels: np.ndarray
  num_classes: int
  class_names: tuple[str, ...] | None = None  # ordered by label
  extra: Extra = dataclasses.field(default_factory=dict)
  ids: tuple[str, ...] | None = None  # the name of each example
  extra_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # names of the columns of `extra`

  @property
  def num_examples(self) -> int:
    return len(self.images)

  @property
  def targets(self) -> Extra:
    """Returns everything except the images, by its name in a batch."""
    return {'label': self.labels, **self.extra}

  def subset(self, indices: np.ndarray) -> 'ArraySource':
    """Returns the examples at `indices`, in that order."""
    images = self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices]
    return dataclasses.replace(self, images=images, ids=self.ids and tuple(self.ids[i] for i in indices),
                               **_targets_at(self, indices))


@dataclasses.dataclass(frozen=True)
class FileSource:
  """Examples in image files. The other fields are as in ArraySource."""

  images: list[str]  # paths
  labels: np.ndarray
  num_classes: int
  class_names: tuple[str, ...] | None = None
  extra: Extra = dataclasses.field(default_factory=dict)
  extra_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  @property
  def num_examples(self) -> int:
    return len(self.images)

  @property
  def ids(self) -> tuple[str, ...]:
    """Returns the name of each example, '<folder>/<file>'."""
    return tuple('/'.join(Path(path).parts[-2:]) for path in self.images)

  @property
  def targets(self) -> Extra:
    return {'label': self.labels, **self.extra}

  def subset(self, indices: np.ndarray) -> 'FileSource':
    """Returns the examples at `indices`, in that order."""
    return dataclasses.replace(self, images=[self.images[i] for i in indices], **_targets_at(self, indices))

  def examples(self, shuffle_seed: int | None, shuffle_buffer: int):
    """Returns a tf.data.Dataset of {'image': encoded bytes, 'id': path} and all targets, in an order set by the seed."""
    del shuffle_buffer  # these are names instead of images, so all of them are shuffled
    order = np.arange(self.num_examples)
    if shuffle_seed is not None:
      order = np.random.default_rng(shuffle_seed).permutation(order)
    return self.in_order(order)

  def in_order(self, order: np.ndarray):
    """Returns the same as `examples`, for the examples at the indices `order`."""
    import tensorflow as tf
    paths = [self.images[i] for i in order]
    targets = {name: values[order] for name, values in self.targets.items()}
    return tf.data.Dataset.from_tensor_slices((paths, targets)).map(
        lambda path, targets: {'image': tf.io.read_file(path), 'id': path, **targets},
        num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _targets_at(source, indices):
  return {'labels': source.labels[indices], 'extra': {name: values[indices] for name, values in source.extra.items()}}
