"""How the convolutions of a MobileNet are asked of XLA: the same sums, written several ways.

'grouped' is `lax.conv_general_dilated`, the reference and what accelerators' libraries are made for. XLA's CPU
backend runs a depthwise convolution several times faster as 'shifted' products, its filter gradient as a loop
over tiles that stay in cache, and a convolution of few input channels as a matrix product over 'patches'.
Figures in comments: milliseconds on two cores of an AMD EPYC, JAX 0.10.2, batch 8.
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
SMALL_IMAGE = 16  # pixels, up to which XLA's CPU backend is slow at convolutions of more than one

# Of the tiles of the depthwise filter gradient, such that they stay in the second-level cache: rows summed into one,
# and floats of such a row. 8 or 14 rows are no faster and take longer to compile.
TILE_ROWS = 4
TILE_FLOATS = 4096


def resolve(lowering: str) -> str:
  """What 'auto' means here: 'shifted' on CPU, 'grouped' elsewhere.

  On CPU shifted is the faster one for each of the 16 models, in inference and in training (`python -m
  experiments.benchmark --grid`), so size does not matter. On GPU and TPU unmeasured, so the reference.
  """
  if lowering != 'auto':
    return lowering
  return 'shifted' if jax.default_backend() == 'cpu' else 'grouped'


def padding_of(size: int, stride: int, padding: str = 'same', window: int = WINDOW) -> tuple[int, int]:
  """Rows before and after `size` rows.

  'same' is TensorFlow's: ceil(size / stride) outputs, the odd row after. 'keras' is what keras.applications.MobileNet
  does before a depthwise convolution of stride 2: nothing before, so that an odd size gives one output less. At even
  sizes they agree, so at every size of the paper.
  """
  if padding == 'keras' and stride == 2:
    return 0, 1 - size % 2
  total = (math.ceil(size / stride) - 1) * stride + window - size
  return total // 2, total - total // 2


def conv(x: jax.Array, kernel: jax.Array, stride: int, lowering: str) -> jax.Array:
  """A convolution of any window, "same" padding: (b, h, w, c), (k, k, c, f) -> (b, ceil(h/s), ceil(w/s), f)."""
  _, height, width, channels = x.shape
  window = kernel.shape[0]
  # The first layer, forward and filter gradient: 8 + 8 as a convolution, 4 + 3 as patches and a product. Where a window
  # sees most of a small image: 33 and 2.3 (forward and both gradients of 32 images 2x2x192 with 3x3x384).
  few, small = channels <= 4 and window == WINDOW, height * width <= SMALL_IMAGE
  if resolve(lowering) == 'grouped' or not (few or small):
    return convolve(x, kernel, stride)
  patches = jnp.concatenate(_taps(_pad(x, stride, window=window), stride, window), axis=-1)  # (b, h/s, w/s, k k c)
  return pointwise(patches, kernel.reshape(-1, kernel.shape[-1]))


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, lowering: str, padding: str = 'same') -> jax.Array:
  """One 3x3 filter a channel: (b, h, w, c) and (3, 3, 1, c) -> (b, h/s, w/s, c), rounded up under "same" padding."""
  if resolve(lowering) == 'grouped':
    return convolve(x, kernel, stride, x.shape[-1], padding)
  return _shifted(_pad(x, stride, padding), kernel, stride)


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution as the matrix product that it is: (b, h, w, c) and (c, f) -> (b, h, w, f)."""
  return jnp.dot(x, kernel)


def _pointwise_backward(residuals, g):
  x, kernel = residuals
  rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])  # (b h w, c), (b h w, f)
  # In this form XLA's CPU backend multiplies as it is; in autodiff's it writes a transposed copy of g first.
  return jnp.dot(g, kernel.T), (g_rows.T @ rows).T


pointwise.defvjp(lambda x, kernel: (jnp.dot(x, kernel), (x, kernel)), _pointwise_backward)


def max_pool(x: jax.Array, stride: int, lowering: str) -> jax.Array:
  """The largest of each 3x3 window, "same" padding: (b, h, w, c) -> (b, ceil(h/s), ceil(w/s), c)."""
  if resolve(lowering) == 'grouped':
    return nn.max_pool(x, (WINDOW, WINDOW), (stride, stride), 'SAME')
  # With its gradient, 32 images 32x32x64: 41 as XLA's own, 4 as shifted; the gradient of equal ones is shared.
  return functools.reduce(jnp.maximum, _taps(_pad(x, stride, fill=-jnp.inf), stride))


def mean_pool(x: jax.Array, lowering: str) -> jax.Array:
  """The mean of each 3x3 window, beyond the border 0: (b, h, w, c) -> (b, h, w, c)."""
  if resolve(lowering) == 'grouped':
    return nn.avg_pool(x, (WINDOW, WINDOW), padding='SAME')
  return _sum(_taps(_pad(x, 1), 1)) / WINDOW**2


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1, padding: str = 'same') -> jax.Array:
  """XLA's own convolution of any window and any number of groups: (b, h, w, c) and (k, k, c / groups, f)."""
  pads = [padding_of(size, stride, padding, kernel.shape[0]) for size in x.shape[1:3]]
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


# The depthwise convolution, shifted. The parts below take padded inputs, so that nothing is padded twice:
# (b, p, q, c) with p = (h/s - 1) s + 3. They are jitted so that blocks of one shape are traced once.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _shifted(padded, kernel, stride):
  """The sum over the nine taps of shifted, strided slices times their weight: (b, h/s, w/s, c)."""
  return _sum(tap * weight for tap, weight in zip(_taps(padded, stride), _weights(kernel).values()))


@functools.partial(jax.jit, static_argnums=0)
def _shifted_backward(stride, residuals, g):
  padded, kernel = residuals
  reach = (WINDOW - 1) // stride
  g = jnp.pad(g, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
  return _input_gradient(g, kernel, stride), _filter_gradient(padded, g, stride).astype(kernel.dtype)


_shifted.defvjp(lambda padded, kernel, stride: (_shifted(padded, kernel, stride), (padded, kernel)), _shifted_backward)


def _input_gradient(g, kernel, stride):
  """Shifted sums of the padded g, one for each place that an input has among `stride` neighbours: (b, p, q, c)."""
  batch, height, width, channels = g.shape
  reach, weights = (WINDOW - 1) // stride, _weights(kernel)
  height, width = height - reach, width - reach

  def given(row, column):  # by this tap, to the inputs at (row, column) modulo the stride
    top, left = reach - row // stride, reach - column // stride
    return lax.slice(g, (0, top, left, 0), (batch, top + height, left + width, channels)) * weights[row, column]

  places = [[_sum(given(row, column) for row in range(i, WINDOW, stride) for column in range(j, WINDOW, stride))
             for j in range(stride)] for i in range(stride)]
  dx = jnp.stack([jnp.stack(row, axis=3) for row in places], axis=2)  # (b, h/s + reach, s, w/s + reach, s, c)
  dx = dx.reshape(batch, height * stride, width * stride, channels)
  end = ((size - reach - 1) * stride + WINDOW for size in (height, width))
  return lax.slice(dx, (0, 0, 0, 0), (batch, *end, channels))


def _filter_gradient(padded, g, stride):
  """For each tap, the sum over batch and positions of its view of the input times g, tile by tile: (3, 3, 1, c).

  Autodiff's nine reductions read both nine times from memory, and copy the slices to do so: 14 for 56x56x128,
  against 6 here. A tile is some rows of one image, or of a few where they are small. It is carried from one round
  to the next: sliced where it is used, its indices would keep the loops from being vectorised.
  """
  reach = (WINDOW - 1) // stride
  batch, channels = g.shape[0], g.shape[-1]
  height, width = (size - 2 * reach for size in g.shape[1:3])
  rows = _largest_divisor(height, TILE_ROWS)
  images = _largest_divisor(batch, max(TILE_FLOATS // (width * channels), 1))
  bands = height // rows  # of an image
  x_window = (images, (rows - 1) * stride + WINDOW, *padded.shape[2:])
  g_window = (images, rows, width, channels)

  def add_tile(i, carry):
    total, x_tile, g_tile = carry

    def products(k, column):  # of row k of g and the three rows that it saw: (images, 3, w, c)
      end = (images, k * stride + WINDOW, column + (width - 1) * stride + 1, channels)
      seen = lax.slice(x_tile, (0, k * stride, column, 0), end, (1, 1, stride, 1))
      return seen * lax.slice_in_dim(g_tile, k, k + 1, axis=1)

    total += jnp.stack([_sum(products(k, column) for k in range(rows)) for column in range(WINDOW)])
    image, row = lax.div(i, bands) * images, lax.rem(i, bands) * rows
    cut = functools.partial(lax.dynamic_slice, allow_negative_indices=False)
    return (total, cut(padded, (image, row * stride, 0, 0), x_window),
            cut(g, (image, row + reach, reach, 0), g_window))

  # The first round adds nothing and fetches the first tile; what the last one fetches is not used.
  start = (jnp.zeros((WINDOW, images, WINDOW, width, channels)),  # by column, then row, of the window
           jnp.zeros(x_window, padded.dtype), jnp.zeros(g_window, g.dtype))
  total, *_ = lax.fori_loop(0, batch // images * bands + 1, add_tile, start)
  return total.sum((1, 3)).swapaxes(0, 1)[:, :, None]


def _positions(window=WINDOW):
  return tuple((row, column) for row in range(window) for column in range(window))


def _taps(padded, stride, window=WINDOW):
  """What each tap of the window sees of the padded input: k k times (b, h/s, w/s, c)."""
  batch, height, width, channels = padded.shape
  return [lax.slice(padded, (0, row, column, 0),
                    (batch, height - window + row + 1, width - window + column + 1, channels), (1, stride, stride, 1))
          for row, column in _positions(window)]


def _weights(kernel):
  """Of each tap: (1, 1, 1, c)."""
  return dict(zip(_positions(), lax.split(kernel.reshape(WINDOW * WINDOW, 1, 1, -1), [1] * WINDOW * WINDOW)))


def _sum(terms):
  return functools.reduce(operator.add, terms)  # Python's own would add them to 0


def _pad(x, stride, padding='same', window=WINDOW, fill=0):
  pads = [padding_of(size, stride, padding, window) for size in x.shape[1:3]]
  return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)


def _largest_divisor(number, limit):
  return max(n for n in range(1, min(number, limit) + 1) if number % n == 0)
