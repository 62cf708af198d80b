"""Pairs of images of faces: LFW's pairs.txt, and pairs drawn from identities.

Labeled Faces in the Wild, Huang et al., 2007: http://vis-www.cs.umass.edu/lfw.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pairs:
  """n pairs of images.

  Attributes:
    first, second: the names of each pair's images, '<person>/<person>_0001' in LFW.
    same: bool (n,), whether both are of one person.
    fold: int (n,), from 0.
  """
  first: tuple[str, ...]
  second: tuple[str, ...]
  same: np.ndarray
  fold: np.ndarray


def read_pairs(path: Path) -> Pairs:
  """Reads LFW's pairs.txt: 'folds count', then for each fold `count` lines 'person i j' of one person's images i and j,
  then `count` lines 'person i person j' of two people.

  Raises:
    UserError: where the file is not there or a line, which it names, is not as it should be.
  """
  try:
    lines = path.read_text(encoding='utf-8').rstrip().split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; expected LFW's pairs.txt") from error
  header = lines[0].split()
  if len(header) != 2 or not all(number.isdecimal() and int(number) for number in header):
    raise UserError(f"{path}, line 1: {lines[0]!r}: expected the number of folds and of each fold's pairs of a kind, "
                    "such as '10 300'")
  folds, count = map(int, header)
  if len(lines) != 1 + folds * 2 * count:
    raise UserError(f'{path}: {len(lines)} lines; expected {1 + folds * 2 * count}, one and {folds} folds of twice '
                    f'{count}, as its first line has it')

  same = np.arange(folds * 2 * count) % (2 * count) < count
  pairs = [_read_pair(line, is_same, f'{path}, line {i}')
           for i, (line, is_same) in enumerate(zip(lines[1:], same), start=2)]
  first, second = zip(*pairs)
  return Pairs(first, second, same, np.arange(len(same)) // (2 * count))


def _read_pair(line, is_same, where):
  match line.split():
    case (person, i, j) if is_same:
      other = person
    case (person, i, other, j) if not is_same and person != other:
      pass
    case _:
      expected = "two images of one person, 'person i j'" if is_same else "those of two people, 'person i person j'"
      raise UserError(f'{where}: {line!r}: expected {expected}')
  if not (i.isdecimal() and j.isdecimal()) or (person, int(i)) == (other, int(j)):
    raise UserError(f'{where}: {line!r}: expected the numbers of two images, such as 1 and 4')
  return f'{person}/{person}_{int(i):04d}', f'{other}/{other}_{int(j):04d}'


def draw_pairs(names: Sequence[str], identities: Sequence[str], folds: int, per_fold: int, seed: int) -> Pairs:
  """Draws pairs as those of LFW were: people are as likely as each other, however many images they have.

  Each person is in one fold only, no pair comes twice, and the order of the images makes no difference. A person of
  one image is in different pairs only.

  Args:
    names: of the images, (n,).
    identities: whose they are, (n,).
    folds: at least 2.
    per_fold: how many pairs a fold has, half of them of one person.
    seed: the same pairs come out of the same seed.

  Raises:
    UserError: where there are too few people or images for that.
  """
  assert len(names) == len(identities), (len(names), len(identities))
  if folds < 2:
    raise UserError(f"folds={folds}: expected at least 2, as a fold's threshold is chosen on the others")
  if per_fold < 2 or per_fold % 2:
    raise UserError(f'per_fold={per_fold}: expected an even number, as half are of one person and half of two')
  if len(set(names)) < len(names):
    raise UserError(f'{len(names) - len(set(names))} of {len(names)} images have the name of another; expected names '
                    'that differ; give each image once')

  _, person, counts = np.unique(np.asarray(identities), return_inverse=True, return_counts=True)
  images = np.lexsort((np.asarray(names), person))  # (n,), each person's beside each other
  start = np.cumsum(counts) - counts
  rng = np.random.default_rng(seed)
  people = rng.permutation(len(counts))
  people = people[np.argsort(counts[people] == 1, kind='stable')]  # dealt first, so that all folds get some

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
                    f'expected {wanted}; give more images or fewer folds'
                    + (f', or per_fold={2 * available} at most' if available else ''))
  first, second = [], []
  for _, _, _, draw, among in draws:
    for i, j in _distinct(functools.partial(draw, among), wanted):
      first.append(names[images[i]])
      second.append(names[images[j]])
  index = np.arange(folds * per_fold)
  return Pairs(tuple(first), tuple(second), index % per_fold < wanted, index // per_fold)


def _two(rng, counts):
  """Two different numbers below each of counts (n,), which are at least 2: (n,), (n,)."""
  i, j = rng.integers(counts), rng.integers(counts - 1)
  return i, j + (j >= i)


def _distinct(draw: Callable, wanted: int) -> list[tuple[int, int]]:
  """The first `wanted` different pairs, in either order, of those that draw(size) -> (size,), (size,) gives."""
  found = {}
  while len(found) < wanted:
    for pair in zip(*(np.asarray(side).tolist() for side in draw(wanted))):
      found.setdefault(frozenset(pair), pair)
  return list(found.values())[:wanted]
