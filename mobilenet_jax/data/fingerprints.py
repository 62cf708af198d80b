"""What identifies a source, so that a change of the data between two starts of a run is noticed."""

import contextlib
import dataclasses
import hashlib
import os
import stat
from typing import NamedTuple

import numpy as np

from mobilenet_jax.data.examples import TEACHER, Source

FEW_ENOUGH = 10_000  # examples whose targets are read at a start though they are not in memory
SAMPLE = 1000  # examples whose targets stand for all if there are more, spread evenly over the source
START = 4096  # bytes of a file, which tell most images of equal size apart


def fingerprint(source: Source, targets: dict[str, np.ndarray]) -> dict:
  """Returns the number of the examples, and digests of their ids, of their targets and of recorded outputs.

  `targets` are those of `known_targets`. They are identified together with the names of the classes and attributes. Images are
  not read.
  """
  names = {name: values for name, values in source.extra_names.items() if name != TEACHER}
  known = {name: values for name, values in targets.items() if name != TEACHER}
  found = {'count': len(source), 'held_out': source.held_out,
           'ids': ids_digest(source),
           'targets': digest(repr((source.num_classes, source.class_names, sorted(names.items()))), known)}
  if TEACHER in targets:
    found['outputs'] = digest(repr(source.extra_names.get(TEACHER)), {TEACHER: targets[TEACHER]})
  return found


def ids_digest(source: Source) -> str:
  """Returns a digest of which examples a source has, in order, without their targets."""
  return digest(source.records.content, *source.ids)


def common(source: Source, other: Source) -> int | None:
  """Returns how many examples of `source` are in `other`, too; None if the two cannot be compared.

  - Images in files are the same if they are one file, by any path, or have the same bytes. One that cannot be read is the same
    as no other.
  - Images in arrays, as in an npz, are the same if their pixels are.
  - Other examples, such as those of TFDS, are the same if their ids are, but only those of one set can be compared.
  """
  if source.files and other.files:
    return _common_files(source.files, other.files)
  if source.arrays is not None and other.arrays is not None:
    known = {digest({'image': image}) for image in other.arrays}
    return sum(digest({'image': image}) in known for image in source.arrays)
  if source.records.content and source.records.content == other.records.content:
    return len(set(source.ids).intersection(other.ids))
  return None


class _File(NamedTuple):
  path: str
  size: int
  number: tuple[int, int]  # of its device, and on it; all paths of a file have the same one


def _common_files(paths, others):
  """A training set may have millions of files: only those of equal size are opened, and only those that begin alike read."""
  files, others = list(_files(paths)), list(_files(others))
  known = {file.number for file in others}
  rest = [file for file in files if file.number not in known]
  found = len(files) - len(rest)
  for trait in (lambda file: file.size, lambda file: _content(file.path, START), lambda file: _content(file.path)):
    rest, others = ([(trait(file), file) for file in each] for each in (rest, others))
    shared = {value for value, _ in rest}.intersection(value for value, _ in others) - {None}
    rest, others = ([file for value, file in each if value in shared] for each in (rest, others))
  return found + len(rest)


def _files(paths):
  for path in paths:
    with contextlib.suppress(OSError):
      found = os.stat(path)
      if stat.S_ISREG(found.st_mode):
        yield _File(path, found.st_size, (found.st_dev, found.st_ino))


def _content(path, most=-1):
  """Returns a digest of a file, or of its first bytes; None if it cannot be read."""
  try:
    with open(path, 'rb') as file:
      return hashlib.sha256(file.read(most)).digest()
  except OSError:
    return None


def digest(*parts: str | dict[str, np.ndarray]) -> str:
  """Returns a digest of texts and of arrays by name, whose order makes no difference."""
  total = hashlib.sha256()
  for part in parts:
    if isinstance(part, str):
      total.update(part.encode(errors='surrogateescape') + b'\0')
    else:
      for name, values in sorted(part.items()):
        total.update(f'{name} {values.dtype} {values.shape}'.encode())
        total.update(np.ascontiguousarray(values))
  return total.hexdigest()[:16]


def known_targets(source: Source, most: int = FEW_ENOUGH, sample: int = SAMPLE) -> tuple[dict[str, np.ndarray], bool]:
  """Returns targets by name, (n, ...), unchecked, and whether they are those of all examples.

  If targets are not in memory, as in a TFDS dataset, and there are more than `most` examples, they are those of `sample`
  examples. Examples that cannot be read are left out.
  """
  if source.records.in_memory:
    return dataclasses.replace(source, labelled=False).targets, True
  found, count = [], len(source) if len(source) <= most else sample
  for i in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
    try:
      found.append(source.targets_of(int(i)))
    except (OSError, ValueError):
      continue
  shapes = source.target_shapes
  return {name: np.array([targets[name] for targets in found], dtype).reshape(-1, *shape)
          for name, (shape, dtype) in shapes.items()}, len(found) == len(source)
