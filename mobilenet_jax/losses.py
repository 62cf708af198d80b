"""Losses: one value an example, so that a mask and an exact mean are the caller's."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """Cross-entropy in nats: logits (b, classes), integer labels (b,) -> (b,).

  With smoothing e the target is (1 - e) on the label plus e / classes on every class (Szegedy et al., 2016).
  """
  targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
  return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
