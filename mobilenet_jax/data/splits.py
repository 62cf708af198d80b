"""Splits: which one is which, what is held out of a set that has none, and whether two splits have the same classes."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Sequence

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import Source
from mobilenet_jax.errors import UserError, few

HELD_OUT = 0.1  # the fraction of a set without splits that is held out for evaluation
# The usual names of the split to evaluate on. If a config gives one of them that there is not, another one takes its place.
EVALUATION = ('validation', 'val', 'valid', 'test')


def evaluation_split(splits: Collection[str], config: ml_collections.ConfigDict,
                     unlabelled: Collection[str] = ()) -> str | None:
  """Returns the split to evaluate on, or None.

  Args:
    splits: the names of the splits that there are.
    config: the `data` section of a config, whose eval_split is taken if it is there.
    unlabelled: those of the splits that have no labels, in place of which another one is taken.
  """
  usual = EVALUATION if config.eval_split in EVALUATION else ()
  there = [name for name in (config.eval_split, *usual) if name in splits]
  return next((name for name in there if name not in unlabelled), there[0] if there else None)


def both(splits: Collection[str], config: ml_collections.ConfigDict, where: str, advice: str = '',
         unlabelled: Collection[str] = ()) -> tuple[str, str]:
  """Returns the split to train on and the one to evaluate on.

  Raises:
    UserError: if one of them is missing. It says `where`, names the splits, and ends with the `advice`.
  """
  names = config.train_split, evaluation_split(splits, config, unlabelled)
  for field, name in zip(('train_split', 'eval_split'), names):
    if name not in splits:
      raise UserError(f'{where}: has the splits {", ".join(splits)}, not {config[field]}; name one with '
                      f'--config.data.{field}{advice}')
  return names


def with_remarks(sources: Sequence[Source], config: ml_collections.ConfigDict, split: str, splits: Collection[str],
                 other: str = '') -> tuple[Source, ...]:
  """Returns the sources, with remarks on how they were chosen.

  Args:
    sources: the sources.
    config: the `data` section of a config.
    split: the split on which models are evaluated, which may be another one than the config names.
    splits: the names of the splits that there are.
    other: what belongs to no split that is used, as text.
  """
  why = f'{config.eval_split} has no labels' if config.eval_split in splits else f'there is no {config.eval_split}'
  remarks = [] if split == config.eval_split else [f'evaluating on the split {split}, as {why}']
  if other:
    remarks.append(f'not used, beside the splits: {other}')
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
  if len(set(keys)) < 2:
    raise UserError(f'data.name={config.name}: has {len(set(keys))} {"class" if by_class else "image"}; expected at least two, '
                    'one of which is held out for evaluation')
  out = held_out(keys)
  parts = tuple(dataclasses.replace(source.subset(np.flatnonzero(part)), held_out=True) for part in (~out, out))
  why = ', as it has no classes' if config.split_by == 'class' and not by_class else ''
  remarks = [f'{len(parts[1]):,} of {len(source):,} images are held out, by a hash of the names of the '
             f'{"classes" if by_class else "images"}{why}']
  if not by_class and source.class_names:
    counts, left = (np.bincount(part.labels, minlength=len(source.class_names)) for part in (source, parts[0]))
    lost = [f'{name} ({count})' for name, count, rest in zip(source.class_names, counts, left) if count and not rest]
    if lost:
      remarks.append(f'held out with all of their images, and not trained on: {few(lost)}')
  return tuple(dataclasses.replace(part, remarks=(*part.remarks, *remarks)) for part in parts)


def held_out(keys: Sequence[str]) -> np.ndarray:
  """Returns which of the `keys` (n,) are held out, bool (n,); equal keys are together. At least one is, and one is not."""
  places = {key: int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8]) / 2**64 for key in set(keys)}
  out = {key for key, place in places.items() if place < HELD_OUT} or {min(places, key=places.get)}
  if len(out) == len(places):
    out.remove(max(places, key=places.get))
  return np.array([key in out for key in keys])


def with_classes_checked(train: Source, evaluation: Source, config: ml_collections.ConfigDict, trained: np.ndarray,
                         evaluated: np.ndarray) -> tuple[Source, Source]:
  """Returns the two splits of a set of classes, with a remark on classes without examples to evaluate on.

  Args:
    train, evaluation: the splits.
    config: the `data` section of a config.
    trained, evaluated: the labels of each split.

  Raises:
    UserError: if a class to evaluate on has no example to train on. If a part of the set is held out, or only a part of
      a split is trained on, as in 'train[:100]', there is a remark instead.
  """
  name = lambda label: train.class_names[label] if label < len(train.class_names or ()) else f'class {label}'
  known, asked = set(trained.tolist()), set(evaluated.tolist())
  missing, unseen = ([name(label) for label in sorted(labels)] for labels in (asked - known, known - asked))
  remarks = []
  if missing and not train.held_out:
    said = f'{len(missing)} of the {len(asked)} classes to evaluate on have no example to train on: {few(missing)}'
    if '[' not in config.train_split:
      raise UserError(f'data.name={config.name}: {said}; expected the classes of data.train_split={config.train_split}')
    remarks.append(said)
  if none := train.num_classes - len(known | asked):
    remarks.append(f'{none} of the {train.num_classes} classes have no example at all')
  if unseen:
    remarks.append(f'{len(unseen)} of the {len(known)} classes have no example to evaluate on: {few(unseen)}')
  return tuple(dataclasses.replace(source, remarks=(*source.remarks, *remarks)) for source in (train, evaluation))
