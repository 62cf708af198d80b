"""Inference with batch norm folded into the convolutions, so that only one bias per channel remains."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mobilenet_jax.models import lowerings
from mobilenet_jax.models.layers import ACTIVATIONS, at_least_float32, scale_and_offset
from mobilenet_jax.models.mobilenet import MobileNet


class Layer(NamedTuple):
  """A convolution with batch norm folded in. It is followed by an activation that clips to [0, cap]."""

  kind: str  # 'conv' 3x3, 'depthwise' 3x3 or 'pointwise' 1x1
  stride: int
  padding: str  # 'same' or 'keras', see lowerings.padding_of
  kernel: jax.Array  # (k, k, in, out), or (3, 3, 1, c) for a depthwise convolution
  bias: jax.Array  # (out,)
  cap: float


def can_fold(model) -> bool:
  """Returns whether `model` is a MobileNet, the only network whose layers this module knows."""
  return isinstance(model, MobileNet) and type(model).__call__ is MobileNet.__call__


def folded_layers(model: MobileNet, variables) -> list[Layer]:
  """Returns the convolutions of a MobileNet in order, in float32, with the running statistics folded into them."""
  params, stats = variables['params'], variables['batch_stats']
  layers = [('conv', 'conv', 2)]  # name, kind, stride
  for i, (stride, _) in enumerate(model.body, start=1):
    if model.separable:
      layers += [(f'conv_dw_{i}', 'depthwise', stride), (f'conv_pw_{i}', 'pointwise', 1)]
    else:
      layers.append((f'conv_{i}', 'conv', stride))

  def folded(name, kind, stride):
    factor, bias = scale_and_offset(**params[f'{name}_bn'], **stats[f'{name}_bn'], epsilon=model.batch_norm_epsilon)
    padding = model.padding if kind == 'depthwise' else 'same'
    kernel = params[name]['kernel'] * factor  # the last axis is the output channels
    return Layer(kind, stride, padding, kernel, bias, ACTIVATIONS[model.activation])

  return [folded(*layer) for layer in layers]


def fold(model, variables, as_convolutions: bool = False) -> tuple[Callable, dict]:
  """Folds batch norm into the convolutions if `can_fold`, and leaves any other network unchanged.

  Args:
    model: any network, see models/__init__.py.
    variables: the {'params', 'batch_stats'} of the network.
    as_convolutions: express the 1x1 convolutions of a MobileNet as convolutions instead of matrix products, which
      converters do not recognise as convolutions.

  Returns:
    A function predict(weights, images) and its weights. The function equals model.apply(variables, images, train=False)
    up to rounding and should be jitted.
  """
  if not can_fold(model):
    return lambda variables, images: model.apply(variables, images, train=False), variables
  layers = folded_layers(model, variables)
  convolve = {
      'conv': lambda x, kernel, layer: lowerings.conv(x, kernel, layer.stride, model.lowering),
      'depthwise': lambda x, kernel, layer: lowerings.depthwise(x, kernel, layer.stride, model.lowering, layer.padding),
      'pointwise': lambda x, kernel, layer: (
          lowerings.convolve(x, kernel, layer.stride) if as_convolutions else lowerings.pointwise(x, kernel[0, 0])),
  }

  def predict(weights, images: jax.Array) -> jax.Array:
    x = images.astype(model.dtype)  # (b, h, w, 3) in [-1, 1]
    for layer, (kernel, bias) in zip(layers, weights['body'], strict=True):
      x = convolve[layer.kind](x, kernel, layer) + bias
      x = jnp.clip(x, 0, layer.cap)
    x = at_least_float32(x).mean((1, 2))  # (b, c)
    if model.num_classes:
      kernel, bias = weights['classifier']
      x = x @ kernel + bias
    return x

  weights = {'body': [(layer.kernel.astype(model.dtype), layer.bias.astype(model.dtype)) for layer in layers]}
  if model.num_classes:
    classifier = variables['params']['classifier']
    weights['classifier'] = classifier['kernel'], classifier['bias']
  return predict, weights
