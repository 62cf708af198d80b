"""Metrics as sums and counts, which are merged by adding, so that the mean over any set of batches is exact."""

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax.errors import UserError

COUNT = 'count'


def sums(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
  """Returns the sums of per-example values (b,) over the examples whose mask (b,) is 1, and the count of these examples."""
  # `where` instead of a product, because a masked example may hold any value.
  totals = {name: jnp.where(mask > 0, value, 0).sum() for name, value in values.items()}
  return {**totals, COUNT: mask.sum()}


def in_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """Returns 1 if the label's logit is among the k largest, else 0: logits (b, classes), labels (b,) -> (b,).

  Ties count against the label, so that a constant output is never right. Neither is a row with a NaN.
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  rivals = (logits >= own).sum(axis=-1) - 1
  ranked = jnp.isfinite(own[:, 0]) & ~jnp.isnan(logits).any(axis=-1)
  return ((rivals < k) & ranked).astype(jnp.float32)


class Mean:
  """An accumulator of sums and counts on the host, in float64."""

  def __init__(self):
    self._totals: dict[str, float] = {}

  def add(self, totals: dict[str, jax.Array]) -> None:
    for name, value in totals.items():
      self._totals[name] = self._totals.get(name, 0.0) + float(np.float64(value))

  @property
  def count(self) -> int:
    return round(self._totals.get(COUNT, 0))

  def compute(self) -> dict[str, float]:
    """Returns the means over all examples added so far, or NaN if there are none."""
    return {name: total / self.count if self.count else float('nan')
            for name, total in self._totals.items() if name != COUNT}


def check_finite(values: np.ndarray, what: str) -> np.ndarray:
  """Returns the values. Raises UserError if some are NaN or infinite, as what cannot be ranked cannot be measured."""
  if count := np.count_nonzero(~np.isfinite(values)):
    raise UserError(f'{count:,} of {values.size:,} {what} are not finite; expected those of a trained model')
  return values


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
  """Returns the exact area under the precision-recall curve: (n,) scores, (n,) bool; NaN without a positive.

  This is the sum over thresholds of the precision times the gain in recall. Examples with equal scores are taken
  together, as in scikit-learn's average_precision_score.

  Raises:
    UserError: if a score is not finite.
  """
  scores, positive = check_finite(np.asarray(scores, np.float64), 'scores'), np.asarray(positive, bool)
  if not positive.any():
    return float('nan')
  order = np.argsort(-scores, kind='stable')
  last_of_equals = np.append(np.diff(scores[order]) != 0, True)
  true_positives = np.cumsum(positive[order])[last_of_equals]
  precision = true_positives / (np.flatnonzero(last_of_equals) + 1)
  return float((np.diff(true_positives, prepend=0) * precision).sum() / positive.sum())
