"""Splits: what is held out of a set that has none, and whether the classes of two splits are the same."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import Source
from mobilenet_jax.errors import UserError

HELD_OUT = 0.1  # the fraction of a set without splits that is held out for evaluation
FEW = 3  # names that a line shows
# What the split to evaluate on is called where it has not the name that a config gives it, the first that there is.
EVALUATION_SPLITS = ('validation', 'val', 'valid', 'test')


def evaluation_split(splits: Iterable[str], config: ml_collections.ConfigDict) -> str | None:
  """Returns the split to evaluate on: the one that `config`, the `data` section of a config, names, or else one of the usual."""
  return next((name for name in (config.eval_split, *EVALUATION_SPLITS) if name in splits), None)


def said(sources: Iterable[Source], config: ml_collections.ConfigDict, split: str) -> tuple[Source, ...]:
  """Returns the sources, with a remark if `split`, on which models are evaluated, is not the one that the config names."""
  remarks = () if split == config.eval_split else (f'evaluating on the split {split}, as there is no {config.eval_split}',)
  return tuple(dataclasses.replace(source, remarks=(*source.remarks, *remarks)) for source in sources)


def hold_out(source: Source, config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Divides a set into a part to train on and a part to evaluate on: a tenth of its images or, by data.split_by, classes.

  A hash of the id of an image, or of the name of a class, decides, so that images that are added or removed move no others.
  Only in a set so small that one of the parts would be empty does it take its nearest example from the other.

  Raises:
    UserError: if there is only one image or class.
  """
  by_class = config.split_by == 'class' and source.class_names is not None
  keys = [source.class_names[label] for label in source.labels] if by_class else source.ids
  what = 'classes' if by_class else 'images'
  if len(set(keys)) < 2:
    raise UserError(f'data.name={config.name}: has {len(set(keys))} {"class" if by_class else "image"}; expected at least two, '
                    'one of which is held out for evaluation')
  out = held_out(keys)
  by = f'held out by a hash of the names of its {what}'
  parts = tuple(dataclasses.replace(source.subset(np.flatnonzero(part)), held_out=True) for part in (~out, out))
  remarks = [f'{len(parts[1]):,} of {len(source):,} images are {by}'
             + (', as they have no classes' if config.split_by == 'class' and not by_class else '')]
  if not by_class and source.class_names:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    lost = [f'{name} ({count})' for name, count, left in zip(
        source.class_names, counts, np.bincount(parts[0].labels, minlength=source.num_classes)) if count and not left]
    if lost:
      remarks.append(f'held out with all of their images, and not trained on: {few(lost)}')
  return tuple(dataclasses.replace(part, remarks=(*part.remarks, *remarks)) for part in parts)


def held_out(keys: Sequence[str]) -> np.ndarray:
  """Returns which of the `keys` (n,) are held out, bool (n,); equal keys are together. At least one is, and one is not."""
  places = {key: int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8]) / 2**64 for key in keys}
  order = sorted(places, key=places.get)
  out = {key for key in order if places[key] < HELD_OUT} or {order[0]}
  if len(out) == len(order):
    out.remove(order[-1])
  return np.array([key in out for key in keys])


def checked(train: Source, evaluation: Source, config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the two splits of a set, whose labels are in memory, with remarks on classes that only one of them has.

  Raises:
    UserError: if examples to evaluate on are of a class that is not trained on, unless the classes are people.
  """
  labels = (dataclasses.replace(source, labelled=False).labels for source in (train, evaluation))
  known, asked = (set(part[part >= 0].tolist()) for part in labels)
  name = lambda label: train.class_names[label] if train.class_names else f'class {label}'
  missing, unseen = sorted(asked - known), sorted(known - asked)
  remarks = []
  if config.split_by != 'class' and train.num_classes:
    if missing:
      raise UserError(f'data.name={config.name}: {len(missing)} of the {len(asked)} classes to evaluate on '
                      f'have no example to train on: {few([name(label) for label in missing])}; expected the classes of '
                      f'data.train_split={config.train_split}, or data.split_by=class if classes are people')
    if unseen:
      remarks.append(f'{len(unseen)} of the {len(known)} classes have no example to evaluate on: '
                     + few([name(label) for label in unseen]))
  return tuple(dataclasses.replace(source, remarks=(*source.remarks, *remarks)) for source in (train, evaluation))


def few(names: Sequence[str]) -> str:
  """Returns the first names, followed by dots if there are more."""
  return ', '.join(names[:FEW]) + (', ...' if len(names) > FEW else '')
