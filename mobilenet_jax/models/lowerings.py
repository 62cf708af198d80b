"""How the convolutions of a MobileNet are asked of XLA: the same sums, written several ways.

'grouped' is `lax.conv_general_dilated`, the reference and what accelerators' libraries are made for. XLA's CPU
backend runs a depthwise convolution several times faster as 'shifted' products, its filter gradient as a loop
over tiles that stay in cache, and a convolution of few input channels as a matrix product over 'patches'.
Figures in comments: milliseconds on two cores of an AMD EPYC, JAX 0.10.2, batch 8.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

LOWERINGS = ('auto', 'grouped', 'shifted')
WINDOW = 3

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


def conv(x: jax.Array, kernel: jax.Array, stride: int, lowering: str) -> jax.Array:
  """A 3x3 convolution with "SAME" padding as TensorFlow's: (b, h, w, c) -> (b, ceil(h/s), ceil(w/s), f)."""
  if resolve(lowering) == 'grouped' or x.shape[-1] > 4:
    return _convolve(x, kernel, stride, groups=1)
  # The first layer, forward and filter gradient: 8 + 8 as a convolution, 4 + 3 as patches and a product.
  height, width = _out_size(x, stride)
  taps = [_tap(_pad(x, stride), *position, height, width, stride) for position in _POSITIONS]
  patches = jnp.concatenate(taps, axis=-1)  # (b, h/s, w/s, 9c)
  return pointwise(patches, kernel.reshape(-1, kernel.shape[-1]))


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, lowering: str) -> jax.Array:
  """One 3x3 filter a channel, "SAME": (b, h, w, c) and (3, 3, 1, c) -> (b, ceil(h/s), ceil(w/s), c)."""
  if resolve(lowering) == 'grouped':
    return _convolve(x, kernel, stride, groups=x.shape[-1])
  return _shifted(x, kernel, stride)


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


def _convolve(x, kernel, stride, groups):
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


# The depthwise convolution, shifted.

_POSITIONS = tuple((row, column) for row in range(WINDOW) for column in range(WINDOW))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x, kernel, stride):
  return _shifted_sum(x, kernel, stride)


def _shifted_sum(x, kernel, stride):
  """The sum over the nine taps of shifted, strided slices times their weight."""
  height, width = _out_size(x, stride)
  padded = _pad(x, stride)
  return sum(_tap(padded, row, column, height, width, stride) * kernel[row, column, 0] for row, column in _POSITIONS)


def _shifted_backward(stride, residuals, g):
  x, kernel = residuals
  if stride == 1:  # what autodiff gives as well, with nine pads in place of one
    dx = _shifted_sum(g, kernel[::-1, ::-1], stride)
  else:
    dx, = jax.vjp(lambda x: _shifted_sum(x, kernel, stride), x)[1](g)
  return dx, _filter_gradient(x, g, stride).astype(kernel.dtype)


_shifted.defvjp(lambda x, kernel, stride: (_shifted_sum(x, kernel, stride), (x, kernel)), _shifted_backward)


def _filter_gradient(x, g, stride):
  """For each tap, the sum over batch and positions of its view of x times g, tile by tile: (3, 3, 1, c).

  Autodiff's nine reductions read x and g nine times from memory, and copy the slices to do so: 14 for 56x56x128,
  against 6 here. A tile is some rows of one image, or of a few where they are small; the three taps of a column
  are one product. It is carried from one round to the next: sliced where it is used, its indices would keep the
  loops from being vectorised.
  """
  batch, height, width, channels = g.shape
  padded = _pad(x, stride)
  rows = _largest_divisor(height, TILE_ROWS)
  images = _largest_divisor(batch, max(TILE_FLOATS // (width * channels), 1))
  bands = height // rows  # of an image

  def tile(i):
    image, row = i // bands * images, i % bands * rows
    window = (images, (rows - 1) * stride + WINDOW, *padded.shape[2:])
    return (lax.dynamic_slice(padded, (image, row * stride, 0, 0), window),
            lax.dynamic_slice(g, (image, row, 0, 0), (images, rows, width, channels)))

  def add_tile(i, carry):
    totals, (x_tile, g_tile) = carry
    seen = lambda k, column: x_tile[:, k * stride:k * stride + WINDOW, column:column + (width - 1) * stride + 1:stride]
    totals = [sum((seen(k, column) * g_tile[:, k:k + 1] for k in range(rows)), total)  # (images, 3, width, c)
              for column, total in enumerate(totals)]
    return totals, tile(i + 1)  # past the end it is clamped, and not used

  zeros = jnp.zeros((images, WINDOW, width, channels), jnp.float32)
  totals, _ = lax.fori_loop(0, batch // images * bands, add_tile, ([zeros] * WINDOW, tile(0)))
  return jnp.stack([total.sum((0, 2)) for total in totals], axis=1)[:, :, None]  # (3, 3, 1, c)


def _tap(padded, row, column, height, width, stride):
  """What one tap of the window sees of the padded input: (b, height, width, c)."""
  batch, _, _, channels = padded.shape
  end = (batch, row + (height - 1) * stride + 1, column + (width - 1) * stride + 1, channels)
  return lax.slice(padded, (0, row, column, 0), end, (1, stride, stride, 1))


def _pad(x, stride):
  """TensorFlow's "SAME" padding."""
  totals = [max((out - 1) * stride + WINDOW - size, 0) for size, out in zip(x.shape[1:3], _out_size(x, stride))]
  return jnp.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)))


def _out_size(x, stride):
  return tuple(math.ceil(size / stride) for size in x.shape[1:3])


def _largest_divisor(number, limit):
  return max(n for n in range(1, min(number, limit) + 1) if number % n == 0)
