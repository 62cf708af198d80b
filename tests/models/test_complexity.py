"""Tests counts against the paper's Tables 2 to 7, and against exact counts worked out by hand from section 3's formulas."""

import functools

import flax.linen as nn
import pytest

from mobilenet_jax import models
from mobilenet_jax.models.layers import DepthwiseConv, PointwiseConv
from mobilenet_jax.models.mobilenet import ConvMobileNet, MobileNet, ShallowMobileNet

EXACT = {  # Mult-Adds at 224, 192, 160, 128; trainable parameters; batch-norm statistics
    1.0: ((568_740_352, 418_121_728, 290_675_200, 186_400_768), 4_231_976, 21_888),
    0.75: ((325_400_448, 239_273_472, 166_396_800, 106_770_432), 2_585_560, 16_416),
    0.5: ((149_497_088, 109_970_432, 76_524_800, 49_160_192), 1_331_592, 10_944),
    0.25: ((41_030_272, 30_212_608, 21_059_200, 13_570_048), 470_072, 5_472),
}


@functools.cache
def measure(size=224, network=MobileNet, **options):
  return models.measure(network(1000, **options), (size, size, 3), train=False)


@pytest.mark.parametrize('alpha', EXACT)
@pytest.mark.parametrize('index, size', enumerate((224, 192, 160, 128)))
def test_exact_counts(alpha, index, size):
  mult_adds, trainable, batch_stats = EXACT[alpha]
  result = measure(size, width_multiplier=alpha)
  assert (result.mult_adds, result.trainable, result.batch_stats) == (mult_adds[index], trainable, batch_stats)


@pytest.mark.parametrize('alpha, size, millions', [  # Tables 6 and 7 as printed
    (1.0, 224, (569, 4.2)), (0.75, 224, (325, 2.6)), (0.5, 224, (149, 1.3)), (0.25, 224, (41, 0.5)),
    (1.0, 192, (418, 4.2)), (1.0, 160, (290, 4.2)), (1.0, 128, (186, 4.2))])
def test_tables_6_and_7(alpha, size, millions):
  result = measure(size, width_multiplier=alpha)
  # 290.7 M is printed as 290: truncated, where the others are rounded.
  assert abs(result.mult_adds / 1e6 - millions[0]) < 0.75
  assert round(result.trainable / 1e6, 1) == millions[1]


def test_table_2():
  result = measure()
  assert result.params == 4_209_088
  shares = {kind: tuple(round(share, 2) for share in pair) for kind, pair in result.shares().items()}
  assert shares == {
      'conv 1x1': (94.86, 74.59),
      'conv dw 3x3': (3.06, 1.06),
      'conv 3x3': (1.91, 0.02),  # printed as 1.19 %, with which the column sums to 99.29 %: digits transposed
      'fully connected': (0.18, 24.33),
  }


class Separable(nn.Module):
  features: int
  lowering: str = 'auto'

  @nn.compact
  def __call__(self, x):
    return PointwiseConv(self.features)(DepthwiseConv(lowering=self.lowering)(x))


@pytest.mark.parametrize('layer, size, channels, mult_adds, params', [
    (nn.Conv(512, (3, 3), use_bias=False), 14, 512, '462', '2.36'),
    (Separable(512), 14, 512, '52.3', '0.27'),
    (Separable(384), 14, 384, '29.6', '0.15'),
    (Separable(384), 10, 384, '15.1', '0.15')])
def test_table_3(layer, size, channels, mult_adds, params):
  result = models.measure(layer, (size, size, channels))
  decimals = len(mult_adds.partition('.')[2])
  assert f'{result.mult_adds / 1e6:.{decimals}f}' == mult_adds
  assert f'{result.params / 1e6:.2f}' == params


def test_table_4_conv_mobilenet():
  result = measure(network=ConvMobileNet)
  classifier = result.layers[-1]
  assert round((result.mult_adds - classifier.mult_adds) / 1e6) == 4866  # the paper leaves the classifier out
  assert round(result.params / 1e6, 1) == 29.3


def test_table_5_shallow_mobilenet():
  result = measure(network=ShallowMobileNet)
  assert (round(result.mult_adds / 1e6), round(result.trainable / 1e6, 1)) == (307, 2.9)


def test_count_follows_the_formula_of_section_3_1():
  size, channels, features = 14, 24, 40
  result = models.measure(Separable(features), (size, size, channels))
  assert result.mult_adds == 3 * 3 * channels * size**2 + channels * features * size**2
