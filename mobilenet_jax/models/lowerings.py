"""Lowerings: several ways of expressing the convolutions of a MobileNet in XLA, with the same results.

'grouped' is `lax.conv_general_dilated`. It is the reference, and the libraries of accelerators are made for it. XLA's CPU
backend is several times faster with other forms: 'shifted' products for a depthwise convolution, a loop over tiles that
stay in cache for its filter gradient, and a matrix product over 'patches' for a convolution with few input channels.
Figures in comments are milliseconds on two cores of an AMD EPYC, with JAX 0.10.2 and batch size 8.
"""

import functools
import math
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

LOWERINGS = ('auto', 'grouped', 'shifted')
WINDOW = 3
SMALL_IMAGE = 16  # pixels; on images up to this size, XLA's CPU backend is slow at windows of more than one pixel

# Size of the tiles of the depthwise filter gradient, chosen so that they stay in the second-level cache: the rows that are
# summed into one, and the floats in such a row. 8 or 14 rows are no faster and take longer to compile.
TILE_ROWS = 4
TILE_FLOATS = 4096


def resolve(lowering: str) -> str:
  """Resolves 'auto' to 'shifted' on CPU and to 'grouped' elsewhere; returns the other lowerings unchanged.

  On CPU, 'shifted' is the faster one for each of the 16 models, in inference and in training (`python -m
  experiments.benchmark --grid`), so the size does not matter. On GPU and TPU neither has been measured, so the reference
  is used.
  """
  if lowering != 'auto':
    return lowering
  return 'shifted' if jax.default_backend() == 'cpu' else 'grouped'


def padding_of(size: int, stride: int, padding: str = 'same', window: int = WINDOW) -> tuple[int, int]:
  """Returns the number of padding rows before and after `size` rows.

  'same' is TensorFlow's padding: it gives ceil(size / stride) outputs, and an odd row goes after. 'keras' is the padding
  of keras.applications.MobileNet before a depthwise convolution with stride 2: no row goes before, so that an odd size
  gives one output fewer. The two agree at even sizes, and thus at every size in the paper.
  """
  if padding == 'keras' and stride == 2:
    return 0, 1 - size % 2
  total = (math.ceil(size / stride) - 1) * stride + window - size
  return total // 2, total - total // 2


def conv(x: jax.Array, kernel: jax.Array, stride: int, lowering: str) -> jax.Array:
  """Convolves with a window of any size and "same" padding: (b, h, w, c), (k, k, c, f) -> (b, ceil(h/s), ceil(w/s), f)."""
  _, height, width, channels = x.shape
  window = kernel.shape[0]
  # First layer, forward + filter gradient: 8 + 8 as a convolution, 4 + 3 as a product over patches. Small image, most of
  # which a window covers: 33 and 2.3 in the same order (forward and both gradients, 32 images of 2x2x192 with 3x3x384).
  few, small = channels <= 4 and window == WINDOW, height * width <= SMALL_IMAGE
  if resolve(lowering) == 'grouped' or not (few or small):
    return convolve(x, kernel, stride)
  patches = jnp.concatenate(_taps(_pad(x, stride, window=window), stride, window), axis=-1)  # (b, h/s, w/s, k k c)
  return pointwise(patches, kernel.reshape(-1, kernel.shape[-1]))


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, lowering: str, padding: str = 'same') -> jax.Array:
  """Applies one 3x3 filter per channel: (b, h, w, c), (3, 3, 1, c) -> (b, h/s, w/s, c), rounded up with "same" padding."""
  if resolve(lowering) == 'grouped':
    return convolve(x, kernel, stride, x.shape[-1], padding)
  return _shifted(_pad(x, stride, padding), kernel, stride)


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes a 1x1 convolution as a matrix product: (b, h, w, c) and (c, f) -> (b, h, w, f)."""
  return jnp.dot(x, kernel)


def _pointwise_backward(residuals, g):
  x, kernel = residuals
  rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])  # (b h w, c), (b h w, f)
  # XLA's CPU backend multiplies this form directly; for autodiff's form it first writes a transposed copy of g.
  return jnp.dot(g, kernel.T), (g_rows.T @ rows).T


pointwise.defvjp(lambda x, kernel: (jnp.dot(x, kernel), (x, kernel)), _pointwise_backward)


def max_pool(x: jax.Array, stride: int, lowering: str) -> jax.Array:
  """Returns the maximum of each 3x3 window, with "same" padding: (b, h, w, c) -> (b, ceil(h/s), ceil(w/s), c)."""
  if resolve(lowering) == 'grouped':
    return nn.max_pool(x, (WINDOW, WINDOW), (stride, stride), 'SAME')
  # Forward and gradient for 32 images of 32x32x64: 41 with XLA's own pooling, 4 when shifted. Equal maxima share the gradient.
  return functools.reduce(jnp.maximum, _taps(_pad(x, stride, fill=-jnp.inf), stride))


def mean_pool(x: jax.Array, lowering: str) -> jax.Array:
  """Returns the mean of each 3x3 window, with zeros beyond the border: (b, h, w, c) -> (b, h, w, c)."""
  if resolve(lowering) == 'grouped':
    return nn.avg_pool(x, (WINDOW, WINDOW), padding='SAME')
  return _sum(_taps(_pad(x, 1), 1)) / WINDOW**2


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1, padding: str = 'same') -> jax.Array:
  """Calls XLA's own convolution, for a window of any size and any number of groups: (b, h, w, c) and (k, k, c / groups, f)."""
  pads = [padding_of(size, stride, padding, kernel.shape[0]) for size in x.shape[1:3]]
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


# The shifted depthwise convolution. The functions below take padded inputs (b, p, q, c) with p = (h/s - 1) s + 3, so that
# nothing is padded twice. They are jitted so that blocks of the same shape are traced only once.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _shifted(padded, kernel, stride):
  """Returns the sum over the nine taps of shifted, strided slices times the tap's weight: (b, h/s, w/s, c)."""
  return _sum(tap * weight for tap, weight in zip(_taps(padded, stride), _weights(kernel).values()))


@functools.partial(jax.jit, static_argnums=0)
def _shifted_backward(stride, residuals, g):
  padded, kernel = residuals
  reach = (WINDOW - 1) // stride
  g = jnp.pad(g, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
  return _input_gradient(g, kernel, stride), _filter_gradient(padded, g, stride).astype(kernel.dtype)


_shifted.defvjp(lambda padded, kernel, stride: (_shifted(padded, kernel, stride), (padded, kernel)), _shifted_backward)


def _input_gradient(g, kernel, stride):
  """Returns shifted sums of the padded g, one for each position of an input modulo the stride: (b, p, q, c)."""
  batch, height, width, channels = g.shape
  reach, weights = (WINDOW - 1) // stride, _weights(kernel)
  height, width = height - reach, width - reach

  def given(row, column):  # what this tap contributes to the inputs at (row, column) modulo the stride
    top, left = reach - row // stride, reach - column // stride
    return lax.slice(g, (0, top, left, 0), (batch, top + height, left + width, channels)) * weights[row, column]

  places = [[_sum(given(row, column) for row in range(i, WINDOW, stride) for column in range(j, WINDOW, stride))
             for j in range(stride)] for i in range(stride)]
  dx = jnp.stack([jnp.stack(row, axis=3) for row in places], axis=2)  # (b, h/s + reach, s, w/s + reach, s, c)
  dx = dx.reshape(batch, height * stride, width * stride, channels)
  end = ((size - reach - 1) * stride + WINDOW for size in (height, width))
  return lax.slice(dx, (0, 0, 0, 0), (batch, *end, channels))


def _filter_gradient(padded, g, stride):
  """Returns, for each tap, the sum over batch and positions of the input that it sees times g: (3, 3, 1, c).

  The sum is computed tile by tile. Autodiff's nine reductions read both arrays nine times from memory, and copy the slices
  to do so: 14 for 56x56x128, against 6 here. A tile is some rows of one image, or of a few images if they are small. Each
  iteration fetches the tile for the next one: if a tile were sliced where it is used, its indices would keep the loops from
  being vectorised.
  """
  reach = (WINDOW - 1) // stride
  batch, channels = g.shape[0], g.shape[-1]
  height, width = (size - 2 * reach for size in g.shape[1:3])
  rows = _largest_divisor(height, TILE_ROWS)
  images = _largest_divisor(batch, max(TILE_FLOATS // (width * channels), 1))
  bands = height // rows  # per image
  x_window = (images, (rows - 1) * stride + WINDOW, *padded.shape[2:])
  g_window = (images, rows, width, channels)

  def add_tile(i, carry):
    total, x_tile, g_tile = carry

    def products(k, column):  # row k of g times the three input rows that it saw: (images, 3, w, c)
      end = (images, k * stride + WINDOW, column + (width - 1) * stride + 1, channels)
      seen = lax.slice(x_tile, (0, k * stride, column, 0), end, (1, 1, stride, 1))
      return seen * lax.slice_in_dim(g_tile, k, k + 1, axis=1)

    total += jnp.stack([_sum(products(k, column) for k in range(rows)) for column in range(WINDOW)])
    image, row = lax.div(i, bands) * images, lax.rem(i, bands) * rows
    cut = functools.partial(lax.dynamic_slice, allow_negative_indices=False)
    return (total, cut(padded, (image, row * stride, 0, 0), x_window),
            cut(g, (image, row + reach, reach, 0), g_window))

  # The first iteration adds zeros and fetches the first tile; the tile that the last iteration fetches is not used.
  start = (jnp.zeros((WINDOW, images, WINDOW, width, channels)),  # axes 0 and 2: column and row of the window
           jnp.zeros(x_window, padded.dtype), jnp.zeros(g_window, g.dtype))
  total, *_ = lax.fori_loop(0, batch // images * bands + 1, add_tile, start)
  return total.sum((1, 3)).swapaxes(0, 1)[:, :, None]


def _positions(window=WINDOW):
  return tuple((row, column) for row in range(window) for column in range(window))


def _taps(padded, stride, window=WINDOW):
  """Returns what each tap of the window sees of the padded input: k k arrays (b, h/s, w/s, c)."""
  batch, height, width, channels = padded.shape
  return [lax.slice(padded, (0, row, column, 0),
                    (batch, height - window + row + 1, width - window + column + 1, channels), (1, stride, stride, 1))
          for row, column in _positions(window)]


def _weights(kernel):
  """Returns the weight of each tap, (1, 1, 1, c), by its position."""
  return dict(zip(_positions(), lax.split(kernel.reshape(WINDOW * WINDOW, 1, 1, -1), [1] * WINDOW * WINDOW)))


def _sum(terms):
  return functools.reduce(operator.add, terms)  # Python's own sum would add them to 0


def _pad(x, stride, padding='same', window=WINDOW, fill=0):
  pads = [padding_of(size, stride, padding, window) for size in x.shape[1:3]]
  return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)


def _largest_divisor(number, limit):
  return max(n for n in range(1, min(number, limit) + 1) if number % n == 0)
