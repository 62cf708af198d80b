"""Face verification by the protocol of LFW: do the two faces of a pair belong to the same person?

Labeled Faces in the Wild, Huang et al. 2007: http://vis-www.cs.umass.edu/lfw. A pair is accepted as the same person if
the squared Euclidean distance between its two unit embeddings, in [0, 4], is below a threshold.
"""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mobilenet_jax.data import Pairs
from mobilenet_jax.errors import UserError, few
from mobilenet_jax.storage.files import write_whole
from mobilenet_jax.tasks.metrics import check_finite

# As in davidsandberg/facenet, src/lfw.py: the published figures for LFW use thresholds as coarse as these.
THRESHOLDS = np.arange(0, 4, 0.01)
FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
RATES = {far: f'val_at_{far:g}' for far in FAR_TARGETS}  # the name of VAL at each of them
ROC_COLUMNS = ('far', 'val', 'threshold', 'accuracy')


@dataclasses.dataclass(frozen=True)
class Roc:
  """The corners of a ROC curve from (0, 0) to (1, 1): arrays (points,), all ascending; `threshold` ends with infinity."""
  far: np.ndarray
  val: np.ndarray
  threshold: np.ndarray


@dataclasses.dataclass(frozen=True)
class ValidationRate:
  """VAL, the fraction of same pairs accepted, at the largest threshold that accepts at most `far` of the different pairs.

  A same pair shows one person, and a different pair shows two.

  Attributes:
    far: the target false accept rate, in (0, 1).
    val: in [0, 1]. If `false_accepts` is 0, there are too few pairs to resolve the rate; val and threshold are then NaN.
    threshold: a squared distance.
    false_accepts: the largest number of different pairs that the target allows to be accepted: floor(far * different).
    different: the number of different pairs.
  """
  far: float
  val: float
  threshold: float
  false_accepts: int
  different: int


@dataclasses.dataclass(frozen=True)
class Verification:
  """The results of `evaluate`.

  Attributes:
    accuracy: mean of `accuracies`.
    accuracy_std: population standard deviation of `accuracies` (np.std), as the FaceNet code above prints it. LFW's own
      tables give the standard error of the mean: this value divided by sqrt(folds - 1).
    folds: the tested folds.
    accuracies, thresholds: (folds,), one for each fold.
    validation: VAL at each of FAR_TARGETS. It is computed over all pairs of the tested folds, like the next three.
    auc: area under the ROC curve, in [0, 1].
    equal_error_rate: in [0, 1].
    roc: the ROC curve.
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
    """Returns the numbers by name, without the curve. A VAL is left out if there are too few pairs to resolve it."""
    rates = {RATES[rate.far]: rate.val for rate in self.validation if rate.false_accepts}
    return {'accuracy': self.accuracy, 'accuracy_std': self.accuracy_std, 'auc': self.auc,
            'equal_error_rate': self.equal_error_rate, **rates}


def evaluate(names: Sequence[str], embeddings: np.ndarray, pairs: Pairs,
             test_folds: Iterable[int] | None = None) -> Verification:
  """Computes accuracy with thresholds chosen on the other folds, VAL at FAR, AUC, equal error rate and the ROC curve.

  Args:
    names: names of the images, as in `pairs`; there may be more than the pairs need.
    embeddings: (names, features), of any length; they are normalised to length 1.
    pairs: pairs in at least two folds.
    test_folds: the folds to test, if the model was trained on people of the other folds; None means all. The threshold
      of each fold is chosen on all other folds, whether these are tested or not.

  Raises:
    UserError: if an image has no embedding or an unusable one, there is no such fold, or there is only one kind of pair.
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
  """Returns the squared Euclidean distance between the normalised embeddings of each pair: (n,) float64 in [0, 4]."""
  assert embeddings.ndim == 2 and len(names) == len(embeddings), (len(names), embeddings.shape)
  index = {str(name): i for i, name in enumerate(names)}
  if len(index) < len(names):
    raise UserError(f'{len(names) - len(index)} of {len(names)} embeddings have the same name as another; expected one '
                    'embedding per image')
  wanted = dict.fromkeys(pairs.first + pairs.second)
  if missing := [name for name in wanted if name not in index]:
    given = f'have names such as {next(iter(index))!r}' if index else 'are empty'
    raise UserError(f'{len(missing)} of the {len(wanted)} images of the pairs have no embedding: {few(missing)}; the '
                    f'embeddings {given}; expected one for every image, under its name in the pairs')
  embeddings = np.asarray(embeddings, np.float64)
  with np.errstate(divide='ignore', invalid='ignore'):  # checked next
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  if bad := [name for name in wanted if not np.isfinite(unit[index[name]]).all()]:
    raise UserError(f'{len(bad)} of the {len(wanted)} embeddings hold NaN or infinity, or are all zeros: {few(bad)}; '
                    'expected finite, non-zero embeddings; check the model and its input')
  first, second = ([index[name] for name in side] for side in (pairs.first, pairs.second))
  distances = np.empty(len(first))
  for at in range(0, len(first), 65536):  # in parts, to bound the memory
    part = slice(at, at + 65536)
    distances[part] = ((unit[first[part]] - unit[second[part]])**2).sum(axis=1)
  return distances


def fold_accuracies(distances: np.ndarray, pairs: Pairs, folds: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns, for each fold, the fraction of its pairs that are classified correctly, and the threshold: (folds,), (folds,).

  The threshold is the one in THRESHOLDS that classifies the most pairs of all other folds correctly; the smallest, if
  several do.
  """
  accuracies, thresholds = [], []
  check_finite(distances, 'distances')
  for fold in folds:
    own = pairs.fold == fold
    same, different = _kinds(distances[~own], pairs.same[~own], f'the folds other than fold {fold}')
    right = _below(same, THRESHOLDS) - _below(different, THRESHOLDS)  # up to a constant
    threshold = THRESHOLDS[np.argmax(right)]
    accuracies.append(np.mean((distances[own] < threshold) == pairs.same[own]))
    thresholds.append(threshold)
  return np.array(accuracies), np.array(thresholds)


def roc(distances: np.ndarray, same: np.ndarray) -> Roc:
  """Returns (FAR, VAL) at every threshold that separates two distances.

  Points inside a horizontal or vertical segment of the curve are left out.
  """
  same, different = _kinds(distances, same, 'the set')
  thresholds = np.append(np.unique(distances), np.inf)
  far, val = _below(different, thresholds), _below(same, thresholds)
  within = [(np.diff(count)[:-1] == 0) & (np.diff(count)[1:] == 0) for count in (far, val)]
  corners = np.concatenate([[True], ~(within[0] | within[1]), [True]])
  return Roc(far[corners] / len(different), val[corners] / len(same), thresholds[corners])


def validation_rate(distances: np.ndarray, same: np.ndarray, far: float) -> ValidationRate:
  """Returns VAL at a false accept rate, over all pairs at once, as in FaceNet (Schroff et al. 2015), section 4."""
  assert 0 < far < 1, far
  same, different = _kinds(distances, same, 'the set')
  count = len(different)
  accepted = int(np.searchsorted(np.arange(count + 1) / count, far, side='right')) - 1  # far * count may round up
  if not accepted:
    return ValidationRate(far, float('nan'), float('nan'), 0, count)
  threshold = different[accepted]  # the first distance that must not be accepted
  return ValidationRate(far, float(_below(same, threshold) / len(same)), float(threshold), accepted, count)


def auc(distances: np.ndarray, same: np.ndarray) -> float:
  """Returns the fraction of all (same, different) couples of pairs in which the same pair is nearer; a tie counts half."""
  same, different = _kinds(distances, same, 'the set')
  nearer_or_tied = len(different) - np.searchsorted(different, same, side='left')
  nearer = len(different) - np.searchsorted(different, same, side='right')
  return float((nearer + nearer_or_tied).sum() / (2 * len(same) * len(different)))


def equal_error_rate(curve: Roc) -> float:
  """Returns the FAR that equals 1 - VAL, by linear interpolation between the points of the curve."""
  return float(np.interp(0, curve.far + curve.val - 1, curve.far))


def write_roc(path: Path, result: Verification) -> None:
  """Writes the curve as a CSV file with ROC_COLUMNS, for experiments/roc.py; `accuracy` is the same in every row."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(ROC_COLUMNS)
  for point in zip(*(column.tolist() for column in (result.roc.far, result.roc.val, result.roc.threshold))):
    writer.writerow((*point, result.accuracy))
  write_whole(path, text.getvalue())


def _below(ascending, thresholds):
  """Returns how many values of `ascending` are below each threshold."""
  return np.searchsorted(ascending, thresholds, side='left')


def _kinds(distances, same, where):
  """Returns the distances of the same pairs and of the different pairs, each in ascending order."""
  check_finite(distances, 'distances')
  kinds = np.sort(distances[same]), np.sort(distances[~same])
  for kind, name in zip(kinds, ('the same person', 'different people')):
    if not len(kind):
      raise UserError(f'no pair of {name} among the {len(same)} pairs of {where}; expected pairs of both kinds')
  return kinds
