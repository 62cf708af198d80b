"""Pairs of face images, and how they are drawn from identities; pairs_file.py reads files of pairs.

Labeled Faces in the Wild, Huang et al., 2007: http://vis-www.cs.umass.edu/lfw.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from mobilenet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pairs:
  """n pairs of images.

  Attributes:
    first, second: the names of the two images of each pair, '<person>/<person>_0001' in LFW.
    same: bool (n,), whether both images show the same person.
    fold: int (n,), the fold of each pair, counted from 0.
  """
  first: tuple[str, ...]
  second: tuple[str, ...]
  same: np.ndarray
  fold: np.ndarray


def draw_pairs(names: Sequence[str], identities: Sequence[str], folds: int, per_fold: int, seed: int) -> Pairs:
  """Draws pairs in the same way as LFW: all people are equally likely, however many images they have.

  Each person is in only one fold, no pair occurs twice, and the order of the images makes no difference. A person with
  one image appears only in pairs of two people.

  Args:
    names: the name of each image, (n,).
    identities: the person in each image, (n,).
    folds: the number of folds, at least 2.
    per_fold: the number of pairs in each fold, half of which show one person.
    seed: the same seed gives the same pairs.

  Raises:
    UserError: if there are too few people or images.
  """
  assert len(names) == len(identities), (len(names), len(identities))
  if folds < 2:
    raise UserError(f"folds={folds}: expected at least 2, as a fold's threshold is chosen on the others")
  if per_fold < 2 or per_fold % 2:
    raise UserError(f'per_fold={per_fold}: expected an even number, as half of the pairs show one person and half two')
  if len(set(names)) < len(names):
    raise UserError(f'{len(names) - len(set(names))} of {len(names)} images have the same name as another; expected each '
                    'image once, under its own name')

  _, person, counts = np.unique(np.asarray(identities), return_inverse=True, return_counts=True)
  images = np.lexsort((np.asarray(names), person))  # (n,), with the images of each person next to each other
  start = np.cumsum(counts) - counts
  rng = np.random.default_rng(seed)
  people = rng.permutation(len(counts))
  # People with several images are dealt first, so that all folds get some.
  people = people[np.argsort(counts[people] == 1, kind='stable')]

  def of_one(among, size):
    whose = rng.choice(among, size)
    i, j = _two(rng, counts[whose])
    return start[whose] + i, start[whose] + j

  def of_two(among, size):
    whose = among[np.array(_two(rng, np.full(size, len(among))))]  # (2, size)
    return start[whose] + rng.integers(counts[whose])

  draws = []
  for fold in range(folds):
    members = people[fold::folds]
    several = members[counts[members] > 1]
    total, squares = counts[members].sum(), (counts[members]**2).sum()
    draws += [((squares - total) // 2, 'of one person', fold, of_one, several),
              ((total**2 - squares) // 2, 'of two people', fold, of_two, members)]
  wanted = per_fold // 2
  available, kind, fold, *_ = min(draws, key=lambda kind: kind[0])
  if available < wanted:
    raise UserError(f'fold {fold} of {folds} has {len(people[fold::folds])} people with {available} pairs {kind}; '
                    f'expected {wanted}; use data with more people, or fewer embedding.folds'
                    + (f', or embedding.pairs_per_fold={2 * available} at most' if available else ''))
  first, second = [], []
  for _, _, _, draw, among in draws:
    for i, j in _distinct(functools.partial(draw, among), wanted):
      first.append(names[images[i]])
      second.append(names[images[j]])
  index = np.arange(folds * per_fold)
  return Pairs(tuple(first), tuple(second), index % per_fold < wanted, index // per_fold)


def _two(rng, counts):
  """Draws two different numbers below each of `counts` (n,), which are at least 2: (n,), (n,)."""
  i, j = rng.integers(counts), rng.integers(counts - 1)
  return i, j + (j >= i)


def _distinct(draw: Callable, wanted: int) -> list[tuple[int, int]]:
  """Returns the first `wanted` distinct pairs from draw(size) -> (size,), (size,), ignoring the order within a pair."""
  found = {}
  while len(found) < wanted:
    for pair in zip(*(np.asarray(side).tolist() for side in draw(wanted))):
      found.setdefault(frozenset(pair), pair)
  return list(found.values())[:wanted]
