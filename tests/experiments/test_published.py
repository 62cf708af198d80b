"""Figures 4 and 5 from published weights, drawn as a user does."""

import csv
import shutil
import tarfile

import pytest
from conftest import SHARED, experiment


@pytest.mark.skipif(not SHARED.exists(), reason=f'the published graphs and images are not here: {SHARED}')
@pytest.mark.parametrize('expected', (
    {'mobilenet_0.25_128': 754}, pytest.param({'mobilenet_0.25_224': 858, 'mobilenet_0.25_128': 754}, marks=pytest.mark.slow)))
def test_top1_is_that_of_tensorflow(expected, tmp_path, monkeypatch):
  """754 and 858 of the 1,300 images are right, as when TensorFlow runs the same graphs, see tests/trained/test_paths.py."""
  (tmp_path / 'cache').mkdir()
  for name in expected:
    shutil.copy(SHARED / 'mobilenet_v1_slim' / f'{name.replace("mobilenet_", "mobilenet_v1_")}_frozen.pb', tmp_path / 'cache')
  with tarfile.open(SHARED / 'imagenet_val1300.tar') as archive:
    archive.extractall(tmp_path, filter='data')
  monkeypatch.setenv('MOBILENET_JAX_CACHE', str(tmp_path / 'cache'))
  done = experiment('published', f'--data=folder:{tmp_path}/imagenet_val1300', f'--out={tmp_path}/out')
  assert done.returncode == 0 and done.stderr == '', done.stderr
  with (tmp_path / 'out' / 'results.csv').open() as file:
    rows = {row['name']: row for row in csv.DictReader(file)}
  assert list(rows) == list(expected)
  for name, right in expected.items():
    assert rows[name]['eval_examples'] == '1300'
    assert abs(1300 * float(rows[name]['top1']) - right) <= 1
  assert {'results.csv', 'figure4.png', 'figure4.svg', 'figure5.png', 'figure5.svg'} == {
      path.name for path in (tmp_path / 'out').iterdir()}


def test_an_empty_cache_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setenv('MOBILENET_JAX_CACHE', str(tmp_path))
  done = experiment('published', '--data=imagenet2012', f'--out={tmp_path}/out')
  assert done.returncode == 1 and done.stderr.count('\n') == 1
  assert 'none of the 16 published models is there; fetch them with --download' in done.stderr
  assert not (tmp_path / 'out').exists()
