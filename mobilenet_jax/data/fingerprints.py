"""What identifies a source, so that a change of the data between two starts of a run is noticed."""

import dataclasses
import hashlib

import numpy as np

from mobilenet_jax.data.examples import TEACHER, UNKNOWN, Source

SAMPLE = 1000  # examples whose targets are read if targets are not in memory, spread evenly over the source


def fingerprint(source: Source) -> dict:
  """Returns the number of the examples, and digests of their ids, of their targets and of recorded outputs.

  Targets are identified together with the names of the classes and attributes. If they are not in memory, as in a TFDS
  dataset, those of SAMPLE examples stand for all. Images are not read.
  """
  targets = _targets(source)
  names = {name: values for name, values in source.extra_names.items() if name != TEACHER}
  known = {name: values for name, values in targets.items() if name != TEACHER}
  found = {'count': len(source), 'held_out': source.held_out,
           'ids': digest(source.records.content, *source.ids),
           'targets': digest(repr((source.num_classes, source.class_names, sorted(names.items()))), known)}
  if TEACHER in targets:
    found['outputs'] = digest(repr(source.extra_names.get(TEACHER)), {TEACHER: targets[TEACHER]})
  return found


def some_unlabelled(source: Source) -> bool:
  """Returns whether examples have no label; if targets are not in memory, whether some of SAMPLE examples have none."""
  return bool((_targets(source).get('label', np.zeros(0)) == UNKNOWN).any())


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


def _targets(source):
  """Returns the targets of all examples or, if they are not in memory, of SAMPLE examples that can be read, by name."""
  if source.records.in_memory:
    return dataclasses.replace(source, labelled=False).targets
  found = []
  for i in np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int)):
    try:
      found.append(source.targets_of(int(i)))
    except (OSError, ValueError):
      continue
  return {name: np.stack([np.asarray(targets[name], dtype) for targets in found])
          for name, (_, dtype) in source.target_shapes.items() if found}
