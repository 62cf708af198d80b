"""Losses with one value per example, so that the caller can apply a mask and compute an exact mean."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """Returns the cross-entropy in nats: logits (b, classes), integer labels (b,) -> (b,).

  With smoothing e, the target is (1 - e) on the label plus e / classes on every class (Szegedy et al., 2016).
  """
  targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array, known: jax.Array | float = 1.0) -> jax.Array:
  """Returns the mean cross-entropy in nats of independent yes-or-no outputs: (b, a), targets in [0, 1] (b, a) -> (b,).

  Against a teacher's probabilities, this is the emulation quality of section 4.6 (Table 12).

  Args:
    logits, targets: one per output.
    known: 1 if a target is known, else 0. The loss of an example without known targets is 0.
  """
  losses = optax.sigmoid_binary_cross_entropy(logits, targets) * known
  return losses.sum(-1) / jnp.maximum(jnp.broadcast_to(known, logits.shape).sum(-1), 1)


def softened_cross_entropy(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
  """Returns T^2 times the cross-entropy between the softmaxes at temperature T, in nats: twice (b, classes) -> (b,).

  The factor T^2 preserves the size of the gradient as T grows (Hinton, Vinyals and Dean, 2015, section 2.1).
  """
  targets = jax.nn.softmax(teacher_logits / temperature)
  return temperature**2 * optax.softmax_cross_entropy(logits / temperature, targets)


def squared_difference(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns the squared Euclidean distances between the examples of two batches: twice (b, ...) -> (b,)."""
  return jnp.square(x - y).reshape(len(x), -1).sum(-1)


def unit(x: jax.Array) -> jax.Array:
  """Returns x / |x| along the last axis. Value and gradient are finite at 0."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def semi_hard_triplet(embeddings: jax.Array, identities: jax.Array, margin: float,
                      axis_name: str | None = None) -> jax.Array:
  """Returns FaceNet's triplet loss with negatives chosen within the batch: (b, d) of unit length, (b,) -> (b,).

  If `axis_name` is given, positives and negatives come from all devices.

  For each pair of an anchor and a positive (another example of the same identity), the negative is semi-hard: the nearest
  one that is farther from the anchor than the positive. If there is none, it is the farthest negative of all. The loss of
  the pair is max(0, d(anchor, positive) - d(anchor, negative) + margin), where d is the squared distance. The loss of an
  example is the mean over its positives, or 0 if it has none (Schroff, Kalenichenko and Philbin, 2015, section 3.2).
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
  # Without any negative in the batch, there are no triplets.
  counted = positive & jnp.isfinite(negative)
  losses = jnp.where(counted, jnp.maximum(distances - jnp.where(counted, negative, 0) + margin, 0), 0)
  return losses.sum(-1) / jnp.maximum(counted.sum(-1), 1)
