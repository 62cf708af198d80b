"""Inference with batch norm folded into the convolutions: nothing is left of it but a bias a channel."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mobilenet_jax.models import lowerings
from mobilenet_jax.models.layers import ACTIVATIONS, scale_and_offset
from mobilenet_jax.models.mobilenet import MobileNet


class Layer(NamedTuple):
  """A convolution with batch norm folded into it; the activation follows."""

  kind: str  # 'conv' 3x3, 'depthwise' 3x3 or 'pointwise' 1x1
  stride: int
  kernel: jax.Array  # (k, k, in, out); of a depthwise one (3, 3, 1, c)
  bias: jax.Array  # (out,)


def folded_layers(model: MobileNet, variables) -> list[Layer]:
  """The convolutions of a network in their order, float32, the running statistics folded into them."""
  params, stats = variables['params'], variables['batch_stats']
  layers = [('conv', 'conv', 2)]  # name, kind, stride
  for i, (stride, _) in enumerate(model.body, start=1):
    if model.separable:
      layers += [(f'conv_dw_{i}', 'depthwise', stride), (f'conv_pw_{i}', 'pointwise', 1)]
    else:
      layers.append((f'conv_{i}', 'conv', stride))

  def folded(name, kind, stride):
    factor, bias = scale_and_offset(**params[f'{name}_bn'], **stats[f'{name}_bn'], epsilon=model.batch_norm_epsilon)
    return Layer(kind, stride, params[name]['kernel'] * factor, bias)  # the kernel's last axis is the output's

  return [folded(*layer) for layer in layers]


def fold(model: MobileNet, variables, as_convolutions: bool = False) -> tuple[Callable, dict]:
  """The network with batch norm folded.

  Args:
    model: any MobileNet.
    variables: {'params', 'batch_stats'} of it.
    as_convolutions: write 1x1 convolutions as such, not as matrix products, which converters do not take for one.

  Returns:
    predict(weights, images), which gives what model.apply(variables, images, train=False) gives, up to rounding,
    and is to be jitted; and its weights.
  """
  layers = folded_layers(model, variables)
  convolve = {
      'conv': lambda x, kernel, stride: lowerings.conv(x, kernel, stride, model.lowering),
      'depthwise': lambda x, kernel, stride: lowerings.depthwise(x, kernel, stride, model.lowering, model.padding),
      'pointwise': lambda x, kernel, stride: (
          lowerings.convolve(x, kernel, stride) if as_convolutions else lowerings.pointwise(x, kernel[0, 0])),
  }

  def predict(weights, images: jax.Array) -> jax.Array:
    x = images.astype(model.dtype)  # (b, h, w, 3) in [-1, 1]
    for layer, (kernel, bias) in zip(layers, weights['body'], strict=True):
      x = convolve[layer.kind](x, kernel, layer.stride) + bias
      x = jnp.clip(x, 0, ACTIVATIONS[model.activation])
    x = x.mean((1, 2))  # (b, c)
    if model.num_classes:
      kernel, bias = weights['classifier']
      x = x @ kernel + bias
    return x.astype(jnp.float32)

  weights = {'body': [(layer.kernel.astype(model.dtype), layer.bias.astype(model.dtype)) for layer in layers]}
  if model.num_classes:
    classifier = variables['params']['classifier']
    weights['classifier'] = tuple(classifier[name].astype(model.dtype) for name in ('kernel', 'bias'))
  return predict, weights
