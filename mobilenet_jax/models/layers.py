"""Layers of the depthwise separable block (section 3.1 of the paper)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mobilenet_jax.config import Field, number, one_of, setting
from mobilenet_jax.models import lowerings

# As in TF-slim's mobilenet_v1, all convolutions are initialised from a truncated normal with this standard deviation.
conv_init = nn.initializers.truncated_normal(stddev=0.09)

ACTIVATIONS = {'relu': jnp.inf, 'relu6': 6.0}  # the upper bound of each

# What a recipe gives in place of a network's fields `dtype` and `batch_norm_axis`.
DTYPE = Field('float32', 'of the computation: float32, bfloat16 or, with JAX_ENABLE_X64=1, float64; parameters are float32 or '
              'more', one_of('float32', 'bfloat16', 'float64'))
SYNC_BATCH_NORM = Field(False, 'batch statistics over all devices instead of one')


# Fields that networks share.
def activation(default: str):
  return setting(default, "'relu6', as in the TF-slim release, or 'relu', as in the paper", one_of(*ACTIVATIONS),
                 of_weights=True)


def dropout_rate(default: float):
  return setting(default, 'of the dropout before the classifier', number(at_least=0, below=1))


def batch_norm_decay(default: float):
  return setting(default, 'of the running statistics', number(at_least=0, below=1))


def batch_norm_epsilon(default: float):
  return setting(default, 'added to the variance', number(above=0), of_weights=True)


def freeze_batch_stats():
  return setting(False, 'normalise with the running statistics in training too, and do not update them')


def lowering():
  return setting('auto', 'how convolutions are expressed in XLA: grouped, shifted or auto; see lowerings.py',
                 one_of(*lowerings.LOWERINGS))


class Conv(nn.Module):
  """A full convolution with "same" padding, as in TensorFlow: (b, h, w, c) -> (b, ceil(h/s), ceil(w/s), features)."""

  features: int
  stride: int = 1
  window: int = 3
  lowering: str = 'auto'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', conv_init, (self.window, self.window, x.shape[-1], self.features))
    return lowerings.conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.lowering)


class DepthwiseConv(nn.Module):
  """One 3x3 filter per channel: (b, h, w, c) -> (b, h/s, w/s, c), rounded up with "same" padding.

  Attributes:
    stride: stride of both axes, 1 or 2.
    lowering: how the convolution is expressed in XLA: 'grouped', 'shifted' or 'auto', see lowerings.py. Parameters,
      outputs and gradients are the same for all.
    padding: 'same' or 'keras', see lowerings.padding_of.
  """

  stride: int = 1
  lowering: str = 'auto'
  padding: str = 'same'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', conv_init, (3, 3, 1, x.shape[-1]))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return lowerings.depthwise(x, kernel, self.stride, self.lowering, self.padding)


class PointwiseConv(nn.Module):
  """A 1x1 convolution: (b, h, w, c) -> (b, h, w, features)."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', conv_init, (1, 1, x.shape[-1], self.features))
    return lowerings.pointwise(x.astype(self.dtype), kernel[0, 0].astype(self.dtype))


def head(x, num_classes: int, dropout_rate: float, train: bool, features: dict):
  """Applies a network's last layers: the mean over positions, dropout, and the layer 'classifier' of the calling module.

  (b, h, w, c) -> (b, num_classes), or the pooled features (b, c) if num_classes is 0; float32 in any case. In bfloat16, whose
  significand has 8 bits, the two largest of 1,000 logits would often be equal.
  """
  x = features['pooled'] = at_least_float32(x).mean((1, 2))  # (b, c)
  if not num_classes:
    return x
  x = nn.Dropout(dropout_rate, deterministic=not train)(x)
  return nn.Dense(num_classes, kernel_init=conv_init, param_dtype=x.dtype, name='classifier')(x)


def at_least_float32(x: jax.Array) -> jax.Array:
  """Returns x in float32, or as it is in a dtype of more bits."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class BatchNorm(nn.Module):
  """Batch norm over (b, h, w) of each channel, followed by an activation.

  Parameters and statistics have the same names and meaning as in flax.linen.BatchNorm; statistics are float32. The
  gradient is written by hand (`_normalize`), because autodiff's reads the activations about twice as often.

  Attributes:
    activation: 'relu' or 'relu6'.
    use_running_average: normalise with the running statistics instead of the batch's, and do not update them.
    momentum: momentum of the running statistics.
    epsilon: added to the variance.
    axis_name: a mapped axis over which to compute the batch's statistics, or None.
  """

  activation: str
  use_running_average: bool
  momentum: float
  epsilon: float
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    x, cap = x.astype(self.dtype), ACTIVATIONS[self.activation]
    if self.use_running_average:
      factor, offset = scale_and_offset(scale, bias, mean.value, var.value, self.epsilon)
      return jnp.clip(x * factor + offset, 0, cap).astype(self.dtype)
    if self.is_initializing():
      return x
    y, batch_mean, batch_var = _normalize(x, scale, bias, self.epsilon, cap, self.axis_name)
    mean.value += (1 - self.momentum) * (batch_mean - mean.value)
    var.value += (1 - self.momentum) * (batch_var - var.value)
    return y


def scale_and_offset(scale, bias, mean, var, epsilon):
  """Returns the factor and the offset, each (c,), with which batch norm is x * factor + offset."""
  factor = scale * lax.rsqrt(var + epsilon)
  return factor, bias - mean * factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalize(x, scale, bias, epsilon, cap, axis_name):
  """Returns clip(batch norm of x, 0, cap), and the batch's mean and biased variance, which carry no gradient."""
  return _normalize_forward(x, scale, bias, epsilon, cap, axis_name)[0]


def _normalize_forward(x, scale, bias, epsilon, cap, axis_name):
  x32 = at_least_float32(x)
  moments = x32.mean((0, 1, 2)), (x32 * x32).mean((0, 1, 2))
  mean, square = lax.pmean(moments, axis_name) if axis_name else moments
  var = jnp.maximum(square - mean * mean, 0)
  factor, offset = scale_and_offset(scale, bias, mean, var, epsilon)
  y = jnp.clip(x32 * factor + offset, 0, cap).astype(x.dtype)
  return (y, mean, var), (x, scale, bias, mean, var)


def _normalize_backward(epsilon, cap, axis_name, residuals, cotangents):
  """Returns the gradients of x, scale and bias.

  With n positions, x^ = (x - mean) / deviation, and g set to 0 where the activation clips, they are

    dbias = sum(g);  dscale = sum(g x^);  dx = scale / deviation * (g - dbias / n - x^ dscale / n)

  (Ioffe and Szegedy, 2015, section 3). dx is computed in the form factor g + slope x + constant.
  """
  x, scale, bias, mean, var = residuals
  x32, g = at_least_float32(x), at_least_float32(cotangents[0])
  factor, offset = scale_and_offset(scale, bias, mean, var, epsilon)
  z = x32 * factor + offset
  g = jnp.where((z > 0) & (z < cap), g, 0)
  rdeviation = lax.rsqrt(var + epsilon)
  dbias = g.sum((0, 1, 2))
  dscale = ((g * x32).sum((0, 1, 2)) - mean * dbias) * rdeviation
  mean_g, mean_gx = dbias, dscale
  if axis_name:  # all devices share the statistics, but each returns only its own part of dscale and dbias
    mean_g, mean_gx = lax.pmean((dbias, dscale), axis_name)
  positions = x.size // x.shape[-1]
  slope = -factor * rdeviation * mean_gx / positions
  dx = factor * g + slope * x32 - (factor * mean_g / positions + slope * mean)
  return dx.astype(x.dtype), dscale, dbias


_normalize.defvjp(_normalize_forward, _normalize_backward)
