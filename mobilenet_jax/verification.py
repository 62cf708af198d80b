"""Face verification by the protocol of LFW: are the two faces of a pair of one person? Imports no JAX.

Labeled Faces in the Wild, Huang et al. 2007: http://vis-www.cs.umass.edu/lfw. A pair is accepted as of one person where
the squared Euclidean distance of its two unit embeddings, in [0, 4], is below a threshold.
"""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.files import write_whole

# As in davidsandberg/facenet, src/lfw.py: the published figures of LFW are of thresholds as coarse as these.
THRESHOLDS = np.arange(0, 4, 0.01)
FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
ROC_COLUMNS = ('far', 'val', 'threshold', 'accuracy')


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


@dataclasses.dataclass(frozen=True)
class Roc:
  """The corners of a curve from (0, 0) to (1, 1), each (points,), all ascending; `threshold` ends with infinity."""
  far: np.ndarray
  val: np.ndarray
  threshold: np.ndarray


@dataclasses.dataclass(frozen=True)
class ValidationRate:
  """VAL, the share of same pairs accepted, at the largest threshold that accepts at most `far` of the different ones.

  Attributes:
    far: the target, in (0, 1).
    val: in [0, 1]; NaN, as is the threshold, where `false_accepts` is 0: so few pairs do not resolve such a rate.
    threshold: a squared distance.
    false_accepts: how many different pairs the target lets through, at most: floor(far * different).
    different: how many different pairs there are.
  """
  far: float
  val: float
  threshold: float
  false_accepts: int
  different: int


@dataclasses.dataclass(frozen=True)
class Verification:
  """What `evaluate` finds.

  Attributes:
    accuracy: mean of `accuracies`.
    accuracy_std: their standard deviation over the folds, of the population (np.std), as the FaceNet code above prints
      it. LFW's own tables have the standard error of the mean: this divided by sqrt(folds - 1).
    folds: the folds tested.
    accuracies, thresholds: (folds,), each fold's own.
    validation: VAL at each of FAR_TARGETS, over all pairs of the folds tested; so are the three below.
    auc: area under the ROC curve, in [0, 1].
    equal_error_rate: in [0, 1].
    roc: the curve.
  """
  accuracy: float
  accuracy_std: float
  folds: tuple[int, ...]
  accuracies: np.ndarray
  thresholds: np.ndarray
  validation: tuple[ValidationRate, ...]
  auc: float
  equal_error_rate: float
  roc: Roc

  def summary(self) -> dict[str, float]:
    """The numbers by name, without the curve; a VAL that so few pairs do not resolve is left out."""
    rates = {f'val_at_{rate.far:g}': rate.val for rate in self.validation if rate.false_accepts}
    return {'accuracy': self.accuracy, 'accuracy_std': self.accuracy_std, 'auc': self.auc,
            'equal_error_rate': self.equal_error_rate, **rates}


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


def evaluate(names: Sequence[str], embeddings: np.ndarray, pairs: Pairs,
             test_folds: Iterable[int] | None = None) -> Verification:
  """Accuracy with a threshold chosen on the other folds, VAL at FAR, AUC, equal error rate and the ROC curve.

  Args:
    names: of the images, as in `pairs`; there may be more of them.
    embeddings: (names, features), of any length: they are brought to length 1.
    pairs: at least two folds of them.
    test_folds: the folds whose pairs count, where a model was trained on people of the others; all if None. The
      threshold of each is chosen on all folds but itself, whether they are tested or not.

  Raises:
    UserError: where an image has no embedding or no usable one, there is no such fold, or only one kind of pair.
  """
  folds = tuple(sorted(set(pairs.fold.tolist() if test_folds is None else test_folds)))
  if not folds or set(folds) - set(pairs.fold.tolist()):
    raise UserError(f'test_folds={folds}: expected some of {sorted(set(pairs.fold.tolist()))}')
  distances = squared_distances(names, embeddings, pairs)
  accuracies, thresholds = fold_accuracies(distances, pairs, folds)
  tested = np.isin(pairs.fold, folds)
  distances, same = distances[tested], pairs.same[tested]
  curve = roc(distances, same)
  return Verification(float(accuracies.mean()), float(accuracies.std()), folds, accuracies, thresholds,
                      tuple(validation_rate(distances, same, far) for far in FAR_TARGETS),
                      auc(distances, same), equal_error_rate(curve), curve)


def squared_distances(names: Sequence[str], embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
  """Squared Euclidean distance of each pair's embeddings, brought to length 1: (n,) float64 in [0, 4]."""
  assert embeddings.ndim == 2 and len(names) == len(embeddings), (len(names), embeddings.shape)
  index = {str(name): i for i, name in enumerate(names)}
  if len(index) < len(names):
    raise UserError(f'{len(names) - len(index)} of {len(names)} embeddings have the name of another; give one an image')
  wanted = dict.fromkeys(pairs.first + pairs.second)
  if missing := [name for name in wanted if name not in index]:
    given = f'such as {next(iter(index))!r}' if index else 'none'
    raise UserError(f'{len(missing)} of the {len(wanted)} images of the pairs have no embedding: {_few(missing)}; the '
                    f'names given are {given}; embed them all, under the names of the pairs')
  embeddings = np.asarray(embeddings, np.float64)
  with np.errstate(divide='ignore', invalid='ignore'):  # checked next
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  if bad := [name for name in wanted if not np.isfinite(unit[index[name]]).all()]:
    raise UserError(f'{len(bad)} of the {len(wanted)} embeddings hold NaN or infinity, or are all zeros: {_few(bad)}; '
                    'expected finite ones; check the model and its input')
  first, second = ([index[name] for name in side] for side in (pairs.first, pairs.second))
  distances = np.empty(len(first))
  for at in range(0, len(first), 65536):  # bounds the memory
    part = slice(at, at + 65536)
    distances[part] = ((unit[first[part]] - unit[second[part]])**2).sum(axis=1)
  return distances


def _few(names):
  return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def fold_accuracies(distances: np.ndarray, pairs: Pairs, folds: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
  """The share of each fold's pairs that are told right, and the threshold for it: (folds,), (folds,).

  The threshold is that of THRESHOLDS which tells most pairs of all other folds right, the smallest if several do.
  """
  accuracies, thresholds = [], []
  for fold in folds:
    own = pairs.fold == fold
    same, different = _kinds(distances[~own], pairs.same[~own], f'the folds other than fold {fold}')
    right = _below(same, THRESHOLDS) - _below(different, THRESHOLDS)  # and a constant
    threshold = THRESHOLDS[np.argmax(right)]
    accuracies.append(np.mean((distances[own] < threshold) == pairs.same[own]))
    thresholds.append(threshold)
  return np.array(accuracies), np.array(thresholds)


def roc(distances: np.ndarray, same: np.ndarray) -> Roc:
  """(FAR, VAL) at every threshold that tells two distances apart, without the points within a level or upright line."""
  same, different = _kinds(distances, same, 'the set')
  thresholds = np.append(np.unique(distances), np.inf)
  far, val = _below(different, thresholds), _below(same, thresholds)
  within = [(np.diff(count)[:-1] == 0) & (np.diff(count)[1:] == 0) for count in (far, val)]
  corners = np.concatenate([[True], ~(within[0] | within[1]), [True]])
  return Roc(far[corners] / len(different), val[corners] / len(same), thresholds[corners])


def validation_rate(distances: np.ndarray, same: np.ndarray, far: float) -> ValidationRate:
  """VAL at a false accept rate, over all pairs at once as in FaceNet (Schroff et al. 2015), section 4."""
  assert 0 < far < 1, far
  same, different = _kinds(distances, same, 'the set')
  count = len(different)
  accepted = int(np.searchsorted(np.arange(count + 1) / count, far, side='right')) - 1  # far * count may round up
  if not accepted:
    return ValidationRate(far, float('nan'), float('nan'), 0, count)
  threshold = different[accepted]  # the first that must not be accepted
  return ValidationRate(far, float(_below(same, threshold) / len(same)), float(threshold), accepted, count)


def auc(distances: np.ndarray, same: np.ndarray) -> float:
  """The share of all (same, different) couples of pairs in which the same one is nearer; a tie counts half."""
  same, different = _kinds(distances, same, 'the set')
  nearer_or_tied = len(different) - np.searchsorted(different, same, side='left')
  nearer = len(different) - np.searchsorted(different, same, side='right')
  return float((nearer + nearer_or_tied).sum() / (2 * len(same) * len(different)))


def equal_error_rate(curve: Roc) -> float:
  """The FAR that is equal to 1 - VAL, on straight lines between the points of the curve."""
  return float(np.interp(0, curve.far + curve.val - 1, curve.far))


def write_roc(path: Path, result: Verification) -> None:
  """Writes the curve as a CSV file of ROC_COLUMNS for experiments/roc.py; `accuracy` is the same in every row."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(ROC_COLUMNS)
  for point in zip(*(column.tolist() for column in (result.roc.far, result.roc.val, result.roc.threshold))):
    writer.writerow((*point, result.accuracy))
  write_whole(path, text.getvalue())


def _below(ascending, thresholds):
  """How many of `ascending` are below each threshold."""
  return np.searchsorted(ascending, thresholds, side='left')


def _kinds(distances, same, where):
  """The distances of same and of different pairs, each ascending."""
  kinds = np.sort(distances[same]), np.sort(distances[~same])
  for kind, name in zip(kinds, ('the same person', 'different people')):
    if not len(kind):
      raise UserError(f'no pair of {name} among the {len(same)} of {where}; both kinds are needed to tell them apart')
  return kinds
