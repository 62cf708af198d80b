"""FaceNet's NN2: judging by its size, it is the FaceNet that section 4.7 distils from (Table 14).

In this file, Table 2 is the one in the FaceNet paper: Schroff, Kalenichenko and Philbin, 2015, arXiv 1503.03832.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mobilenet_jax.models import layers, lowerings
from mobilenet_jax.models.layers import BatchNorm, Conv, PointwiseConv

# Table 2: #1x1, (#3x3 reduce, #3x3), (#5x5 reduce, #5x5), pool, its projection (p), stride. 0 and None stand for "none".
INCEPTIONS = {
    '2': (0, (64, 192), None, None, 0, 1),
    '3a': (64, (96, 128), (16, 32), 'max', 32, 1),
    '3b': (64, (96, 128), (32, 64), 'l2', 64, 1),
    '3c': (0, (128, 256), (32, 64), 'max', 0, 2),
    '4a': (256, (96, 192), (32, 64), 'l2', 128, 1),
    '4b': (224, (112, 224), (32, 64), 'l2', 128, 1),
    '4c': (192, (128, 256), (32, 64), 'l2', 128, 1),
    '4d': (160, (144, 288), (32, 64), 'l2', 128, 1),
    '4e': (0, (160, 256), (64, 128), 'max', 0, 2),
    '5a': (384, (192, 384), (48, 128), 'l2', 128, 1),
    '5b': (384, (192, 384), (48, 128), 'max', 128, 1),
}


def l2_pool(x, lowering: str = 'auto', epsilon: float = 1e-12):
  """Returns the root mean square of each 3x3 window, with zeros beyond the border: (b, h, w, c) -> (b, h, w, c).

  This is a third of Table 2's L2 norm; the batch norm that follows removes the factor. Epsilon is added under the root
  to give a gradient at 0.
  """
  squares = jnp.square(layers.at_least_float32(x))
  return jnp.sqrt(lowerings.mean_pool(squares, lowering) + epsilon).astype(x.dtype)


def conv_bn(x, features: int, window: int, stride: int = 1, *, name: str, norm: Callable, lowering: str,
            dtype: jnp.dtype):
  """Applies convolution, batch norm and activation, as the layers `name` and `name`_bn of the calling module.

  (b, h, w, c) -> (b, ceil(h/s), ceil(w/s), features), with "same" padding.
  """
  if window == 1:
    x = PointwiseConv(features, dtype, name=name)(x)
  else:
    x = Conv(features, stride, window, lowering, dtype, name=name)(x)
  return norm(name=f'{name}_bn')(x)


class Inception(nn.Module):
  """Parallel branches, concatenated: (b, h, w, c) -> (b, ceil(h/s), ceil(w/s), sum of the branches).

  Attributes:
    conv: `conv_bn` with its options bound.
    ones: channels of the 1x1 convolution.
    threes: channels of the 1x1 convolution before the 3x3 convolution, and of the 3x3 convolution.
    fives: the same for 5x5.
    pool: 'max' or 'l2', over 3x3 windows.
    projection: channels of the 1x1 convolution after the pool; 0 passes on all channels of the pool.
    stride: stride of the 3x3 and 5x5 convolutions and of a max pool.
    lowering: see models/lowerings.py.
  """

  conv: Callable
  ones: int
  threes: tuple[int, int]
  fives: tuple[int, int] | None
  pool: str | None
  projection: int
  stride: int
  lowering: str

  @nn.compact
  def __call__(self, x):
    branches = []
    if self.ones:
      branches.append(self.conv(x, self.ones, 1, name='conv_1x1'))
    for window, channels in ((3, self.threes), (5, self.fives)):
      if channels:
        reduced = self.conv(x, channels[0], 1, name=f'conv_{window}x{window}_reduce')
        branches.append(self.conv(reduced, channels[1], window, self.stride, name=f'conv_{window}x{window}'))
    if self.pool:
      pooled = l2_pool(x, self.lowering) if self.pool == 'l2' else lowerings.max_pool(x, self.stride, self.lowering)
      branches.append(self.conv(pooled, self.projection, 1, name='conv_pool') if self.projection else pooled)
    return jnp.concatenate(branches, axis=-1)


class NN2(nn.Module):
  """FaceNet's NN2 (Table 2), the Inception network with 7.5 M parameters and 1.6 B Mult-Adds at 224x224.

  Batch norm follows every convolution and replaces its bias. It therefore also replaces the two local response
  normalisations ("norm"), as in davidsandberg/facenet. The task applies the L2 normalisation of the embedding.

  Attributes:
    num_classes: width of the last layer, 128 in the paper; 0 leaves it out and returns the pooled features.
    batch_norm_axis: name of a mapped axis over which to synchronise batch statistics, or None.

  The other attributes are fields of a config; see layers.py for their comments.
  """

  num_classes: int
  activation: str = layers.activation('relu')
  dropout_rate: float = layers.dropout_rate(0.0)
  batch_norm_decay: float = layers.batch_norm_decay(0.9997)
  batch_norm_epsilon: float = layers.batch_norm_epsilon(1e-3)
  freeze_batch_stats: bool = layers.freeze_batch_stats()
  batch_norm_axis: str | None = None
  lowering: str = layers.lowering()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images, *, train: bool, features: dict | None = None):
    """Runs the network.

    Args:
      images: (b, h, w, 3) in [-1, 1]; h and w at least 32, and 224 in the paper.
      train: use and update batch statistics, and apply dropout (which needs an rng named 'dropout' if the rate is above 0).
      features: if given, a dict that is filled with the output of every block by name: 'conv1', then 'inception_2' to
        'inception_5b', then 'pooled'.

    Returns:
      The outputs of the last layer, not normalised, float32 (b, num_classes).
    """
    norm = functools.partial(
        BatchNorm, self.activation, self.freeze_batch_stats or not train, self.batch_norm_decay,
        self.batch_norm_epsilon, self.batch_norm_axis, self.dtype)
    conv = functools.partial(conv_bn, norm=norm, lowering=self.lowering, dtype=self.dtype)
    features = {} if features is None else features

    x = features['conv1'] = conv(images, 64, 7, 2, name='conv1')  # (b, h/2, w/2, 64)
    x = lowerings.max_pool(x, 2, self.lowering)  # (b, h/4, w/4, 64)
    for name, row in INCEPTIONS.items():
      x = features[f'inception_{name}'] = Inception(conv, *row, self.lowering, name=f'inception_{name}')(x)
      if name == '2':
        x = lowerings.max_pool(x, 2, self.lowering)  # (b, h/8, w/8, 192)

    return layers.head(x, self.num_classes, self.dropout_rate, train, features)  # from (b, h/32, w/32, 1024)
