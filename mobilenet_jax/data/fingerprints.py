"""What identifies a source, so that a change of the data between two starts of a run is noticed."""

import dataclasses
import filecmp
import hashlib
import os

import numpy as np

from mobilenet_jax.data.examples import TEACHER, Source

FEW_ENOUGH = 10_000  # examples whose targets are read at a start though they are not in memory
SAMPLE = 1000  # examples whose targets stand for all if there are more, spread evenly over the source


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


def common(source: Source, other: Source) -> int:
  """Returns how many examples of `source` are in `other`, too.

  Of files, these are the same files, also by other paths, and copies: files of the same id and content. Other examples are the
  same if id and set are.
  """
  files, others = source.files, other.files
  if not files or not others:
    same_set = not files and not others and source.records.content == other.records.content
    return len(set(source.ids).intersection(other.ids)) if same_set else 0
  known, by_id = set(map(os.path.realpath, others)), dict(zip(other.ids, others))
  return sum(os.path.realpath(file) in known or id in by_id and _are_equal(file, by_id[id])
             for id, file in zip(source.ids, files))


def _are_equal(file, other):
  try:
    return filecmp.cmp(file, other, shallow=False)
  except OSError:  # one of them cannot be read
    return False


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
