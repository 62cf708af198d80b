import importlib.util

import jax
import pytest
from conftest import experiment

from experiments import benchmark
from experiments import benchmark_implementations as implementations
from mobilenet_jax.models import MobileNet


@pytest.mark.slow
def test_a_case_gives_a_row_for_ours_and_for_each_peer(tmp_path):
  peer = 'mobilenet_jax grouped'
  rows = benchmark.measure([peer], (0.25, 32), 'inference', 2, 'float32', turns=1)
  assert [row['implementation'] for row in rows] == [implementations.OURS, peer]
  for row in rows:
    assert tuple(row) == benchmark.COLUMNS and row['model'] == 'mobilenet_0.25_32' and row['batch'] == 2
    assert row['ms_per_image'] > 0 and row['peak_mb'] > 10 and row['ratio'] > 0
  benchmark.write_csv(rows, tmp_path / 'benchmark.csv')
  benchmark.save_chart(rows, tmp_path)
  lines = (tmp_path / 'benchmark.csv').read_text().splitlines()
  assert lines[0] == ','.join(benchmark.COLUMNS) and len(lines) == 3
  assert (tmp_path / 'benchmark.png').stat().st_size > 0


@pytest.mark.slow
def test_a_peer_that_fails_is_named_and_left_out(capsys):
  rows = benchmark.measure(['no such peer'], (0.25, 32), 'inference', 1, 'float32', turns=1)
  assert [row['implementation'] for row in rows] == [implementations.OURS]
  assert "no such peer failed, left out: KeyError: 'no such peer'" in capsys.readouterr().out


def test_an_unknown_peer_is_one_line():
  result = experiment('benchmark', '--peers=Caffe')
  assert result.returncode == 1 and result.stderr.startswith('error: --peers: Caffe; expected some of mobilenet_jax,')


@pytest.mark.skipif(not importlib.util.find_spec('torch'), reason='PyTorch is not installed')
def test_the_pytorch_peer_has_our_parameters():
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
  ours = jax.eval_shape(lambda x: MobileNet(1000, 0.5).init(jax.random.key(0), x, train=False), image)
  theirs = implementations._torch_mobilenet(0.5)
  assert sum(p.numel() for p in theirs.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(ours['params']))
