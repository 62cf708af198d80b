"""Inference with batch norm folded into the convolutions: nothing is left of it but a bias a channel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mobilenet_jax.models import lowerings
from mobilenet_jax.models.layers import ACTIVATIONS, scale_and_offset
from mobilenet_jax.models.mobilenet import MobileNet


def fold(model: MobileNet, variables, as_convolutions: bool = False) -> tuple[Callable, dict]:
  """Folds the running statistics into the kernels, in float32.

  Args:
    model: any MobileNet.
    variables: {'params', 'batch_stats'} of it.
    as_convolutions: write 1x1 convolutions as such, not as matrix products, which converters do not take for one.

  Returns:
    predict(weights, images), which gives what model.apply(variables, images, train=False) gives, up to rounding,
    and is to be jitted; and its weights.
  """
  params, stats = variables['params'], variables['batch_stats']

  def folded(name):
    factor, bias = scale_and_offset(**params[f'{name}_bn'], **stats[f'{name}_bn'], epsilon=model.batch_norm_epsilon)
    kernel = params[name]['kernel']
    # A depthwise kernel is (3, 3, 1, c), any other (h, w, in, out): the last axis is the output's either way.
    return (kernel * factor).astype(model.dtype), bias.astype(model.dtype)

  layers = [('conv', 'conv', 2)]  # name, kind, stride
  for i, (stride, _) in enumerate(model.body, start=1):
    if model.separable:
      layers += [(f'conv_dw_{i}', 'depthwise', stride), (f'conv_pw_{i}', 'pointwise', 1)]
    else:
      layers.append((f'conv_{i}', 'conv', stride))
  convolve = {
      'conv': lambda x, kernel, stride: lowerings.conv(x, kernel, stride, model.lowering),
      'depthwise': lambda x, kernel, stride: lowerings.depthwise(x, kernel, stride, model.lowering, model.padding),
      'pointwise': lambda x, kernel, stride: (
          lowerings.convolve(x, kernel, stride) if as_convolutions else lowerings.pointwise(x, kernel[0, 0])),
  }

  def predict(weights, images: jax.Array) -> jax.Array:
    x = images.astype(model.dtype)  # (b, h, w, 3) in [-1, 1]
    for (_, kind, stride), (kernel, bias) in zip(layers, weights['body'], strict=True):
      x = jnp.clip(convolve[kind](x, kernel, stride) + bias, 0, ACTIVATIONS[model.activation])
    x = x.mean((1, 2))  # (b, c)
    if model.num_classes:
      kernel, bias = weights['classifier']
      x = x @ kernel + bias
    return x.astype(jnp.float32)

  weights = {'body': [folded(name) for name, _, _ in layers]}
  if model.num_classes:
    weights['classifier'] = tuple(params['classifier'][name].astype(model.dtype) for name in ('kernel', 'bias'))
  return predict, weights
