"""Metrics as sums and counts: merged by adding, so that a mean over any set of batches is exact."""

import jax
import jax.numpy as jnp
import numpy as np

COUNT = 'count'


def sums(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
  """Sums per-example values (b,) over the examples where mask (b,) is 1, and counts those."""
  # where, not a product: a masked example may hold anything.
  totals = {name: jnp.where(mask > 0, value, 0).sum() for name, value in values.items()}
  return {**totals, COUNT: mask.sum()}


def in_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """1 where the label's logit is among the k largest, else 0: logits (b, classes), labels (b,) -> (b,).

  Ties count against the label, so that a constant output scores no better than chance allows; NaN never counts.
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  rivals = (logits >= own).sum(axis=-1) - 1
  return ((rivals < k) & jnp.isfinite(own[:, 0])).astype(jnp.float32)


class Mean:
  """Adds up sums and counts on the host, in float64."""

  def __init__(self):
    self._totals: dict[str, float] = {}

  def add(self, totals: dict[str, jax.Array]) -> None:
    for name, value in totals.items():
      self._totals[name] = self._totals.get(name, 0.0) + float(np.float64(value))

  @property
  def count(self) -> int:
    return round(self._totals.get(COUNT, 0))

  def compute(self) -> dict[str, float]:
    """The means over every example added; NaN before any."""
    return {name: total / self.count if self.count else float('nan')
            for name, total in self._totals.items() if name != COUNT}


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
  """Area under the curve of precision against recall, exactly: (n,) scores, (n,) bool; NaN without a positive.

  The sum over thresholds of precision times the recall that is gained there; examples of equal score are taken
  together, as scikit-learn's average_precision_score has it.
  """
  positive = np.asarray(positive, bool)
  if not positive.any():
    return float('nan')
  order = np.argsort(-np.asarray(scores, np.float64), kind='stable')
  last_of_equals = np.append(np.diff(np.asarray(scores)[order]) != 0, True)
  true_positives = np.cumsum(positive[order])[last_of_equals]
  precision = true_positives / (np.flatnonzero(last_of_equals) + 1)
  return float((np.diff(true_positives, prepend=0) * precision).sum() / positive.sum())
