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


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array, known: jax.Array | float = 1.0) -> jax.Array:
  """Cross-entropy in nats of independent yes-or-no outputs, their mean: (b, a) and targets in [0, 1] (b, a) -> (b,).

  Against a teacher's probabilities it is the emulation quality of section 4.6 (Table 12).

  Args:
    logits, targets: of each output.
    known: 1 where a target is known, else 0; an example of which none is known counts 0.
  """
  losses = optax.sigmoid_binary_cross_entropy(logits, targets) * known
  return losses.sum(-1) / jnp.maximum(jnp.broadcast_to(known, logits.shape).sum(-1), 1)


def softened_cross_entropy(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
  """T^2 x the cross-entropy of both softmaxes at temperature T, in nats: (b, classes) twice -> (b,).

  T^2 keeps the gradient's size as T grows (Hinton, Vinyals and Dean, 2015, section 2.1).
  """
  targets = jax.nn.softmax(teacher_logits / temperature)
  return temperature**2 * optax.softmax_cross_entropy(logits / temperature, targets)


def squared_difference(x: jax.Array, y: jax.Array) -> jax.Array:
  """The squared Euclidean distance of two batches: (b, ...) twice -> (b,)."""
  return jnp.square(x - y).reshape(len(x), -1).sum(-1)


def unit(x: jax.Array) -> jax.Array:
  """x / |x| along the last axis; finite, with a finite gradient, at 0."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def semi_hard_triplet(embeddings: jax.Array, identities: jax.Array, margin: float,
                      axis_name: str | None = None) -> jax.Array:
  """FaceNet's triplet loss with its negatives chosen inside the batch: (b, d) of unit length, (b,) -> (b,).

  With `axis_name`, positives and negatives are those of all devices.

  Every pair of an anchor and a positive (another example of its identity) takes the nearest negative that is farther
  from the anchor than the positive is: semi-hard; or, where there is none, the farthest negative of all. The pair's
  loss is max(0, d(anchor, positive) - d(anchor, negative) + margin), d a squared distance; an example's is the mean over
  its positives, 0 where it has none (Schroff, Kalenichenko and Philbin, 2015, section 3.2).
  """
  others, their_identities, first = embeddings, identities, 0
  if axis_name:
    others, their_identities = jax.lax.all_gather((embeddings, identities), axis_name, tiled=True)
    first = jax.lax.axis_index(axis_name) * len(embeddings)
  distances = jnp.maximum(2 - 2 * embeddings @ others.T, 0)  # (b, n)
  same = identities[:, None] == their_identities[None]
  itself = first + jnp.arange(len(embeddings))[:, None] == jnp.arange(len(others))[None]
  positive = same & ~itself
  farthest = jnp.where(same, -jnp.inf, distances).max(-1)  # (b,)
  farther = ~same[:, None] & (distances[:, None] > distances[:, :, None])  # (anchor, positive, negative)
  semi_hard = jnp.where(farther, distances[:, None], jnp.inf).min(-1)  # (b, n)
  negative = jnp.where(jnp.isfinite(semi_hard), semi_hard, farthest[:, None])
  # Without any negative in the batch there is nothing to tell apart.
  counted = positive & jnp.isfinite(negative)
  losses = jnp.where(counted, jnp.maximum(distances - jnp.where(counted, negative, 0) + margin, 0), 0)
  return losses.sum(-1) / jnp.maximum(counted.sum(-1), 1)
