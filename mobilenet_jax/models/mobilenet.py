"""MobileNet, and the two networks that the paper compares it with in Tables 4 and 5."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from mobilenet_jax.config import number, one_of, setting
from mobilenet_jax.models import layers
from mobilenet_jax.models.layers import BatchNorm, Conv, DepthwiseConv, PointwiseConv

# Table 1 after the first convolution: (stride, output channels) of each depthwise separable block.
# The paper prints stride 2 for the last block, with a 7x7 input and a 7x7 output: a misprint for 1.
BODY = (
    (1, 64),
    (2, 128), (1, 128),
    (2, 256), (1, 256),
    (2, 512), (1, 512), (1, 512), (1, 512), (1, 512), (1, 512),
    (2, 1024), (1, 1024),
)
SHALLOW_BODY = BODY[:6] + BODY[11:]  # Table 5: "the 5 layers of separable filters" at 14x14x512 removed


def scale_channels(channels: int, width_multiplier: float) -> int:
  """Returns the channels for a width multiplier, rounded as in the published models: down, and at least 8."""
  return max(int(channels * width_multiplier), 8)


class MobileNet(nn.Module):
  """MobileNet (Table 1).

  Attributes:
    num_classes: width of the classifier; 0 leaves it out and returns the pooled features.
    batch_norm_axis: name of a mapped axis over which to synchronise batch statistics, or None.
    dtype: dtype of the computation; parameters are float32.

  The other attributes are fields of a config; their comments are below.
  """

  num_classes: int
  width_multiplier: float = setting(1.0, 'alpha of section 3.3', number(above=0, at_most=16))
  activation: str = layers.activation('relu6')
  dropout_rate: float = layers.dropout_rate(0.001)
  batch_norm_decay: float = layers.batch_norm_decay(0.9997)
  batch_norm_epsilon: float = layers.batch_norm_epsilon(1e-3)
  freeze_batch_stats: bool = layers.freeze_batch_stats()
  batch_norm_axis: str | None = None
  padding: str = setting('same', "of the depthwise convolutions: 'same', as in TF-slim, or 'keras'; see lowerings.py",
                         one_of('same', 'keras'), of_weights=True)
  dtype: jnp.dtype = jnp.float32
  lowering: str = layers.lowering()

  body = BODY  # (stride, channels) of each block; not a field, because a recipe selects a network by its name
  separable = True

  @nn.compact
  def __call__(self, images, *, train: bool, features: dict | None = None):
    """Runs the network.

    Args:
      images: (b, h, w, 3) in [-1, 1]; h and w at least 32.
      train: use and update batch statistics, and apply dropout (which needs an rng named 'dropout').
      features: if given, a dict that is filled with the output of every block by name: 'conv', then 'block_1' to
        'block_13', then 'pooled'.

    Returns:
      Logits, float32 (b, num_classes).
    """
    width = functools.partial(scale_channels, width_multiplier=self.width_multiplier)
    norm = functools.partial(
        BatchNorm, self.activation, self.freeze_batch_stats or not train, self.batch_norm_decay,
        self.batch_norm_epsilon, self.batch_norm_axis, self.dtype)
    conv = functools.partial(Conv, lowering=self.lowering, dtype=self.dtype)
    depthwise_conv = functools.partial(DepthwiseConv, padding=self.padding, lowering=self.lowering, dtype=self.dtype)
    features = {} if features is None else features

    x = conv(width(32), 2, name='conv')(images)  # (b, h/2, w/2, 32a)
    x = features['conv'] = norm(name='conv_bn')(x)
    for i, (stride, channels) in enumerate(self.body, start=1):
      if self.separable:
        x = depthwise_conv(stride, name=f'conv_dw_{i}')(x)
        x = norm(name=f'conv_dw_{i}_bn')(x)
        x = PointwiseConv(width(channels), self.dtype, name=f'conv_pw_{i}')(x)
        x = norm(name=f'conv_pw_{i}_bn')(x)
      else:
        x = conv(width(channels), stride, name=f'conv_{i}')(x)
        x = norm(name=f'conv_{i}_bn')(x)
      features[f'block_{i}'] = x

    return layers.head(x, self.num_classes, self.dropout_rate, train, features)  # from (b, h/32, w/32, 1024a)


class ConvMobileNet(MobileNet):
  """MobileNet with full 3x3 convolutions in place of the depthwise separable blocks (Table 4)."""

  separable = False


class ShallowMobileNet(MobileNet):
  """MobileNet without the five blocks of 14x14x512 (Table 5)."""

  body = SHALLOW_BODY
