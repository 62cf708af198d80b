"""The experiments of Tables 12 and 14 end to end, with a recorded teacher, a few people and a few steps."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def people(tmp_path_factory):
  """A folder of thirty people with four images each, recorded probabilities and embeddings, and pairs in two folds."""
  pytest.importorskip('tensorflow')
  root, rng = tmp_path_factory.mktemp('people'), np.random.default_rng(0)
  names, lines = [], ['2\t5']
  for i in range(30):
    (root / 'images' / f'p{i:02}').mkdir(parents=True)
    for k in range(1, 5):
      name = f'p{i:02}/p{i:02}_{k:04}.jpg'
      Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(root / 'images' / name)
      names.append(name)
  for fold in (0, 10):
    lines += [f'p{i:02}\t1\t2' for i in range(fold, fold + 5)]
    lines += [f'p{i:02}\t1\tp{i + 5:02}\t1' for i in range(fold, fold + 5)]
  (root / 'pairs.txt').write_text('\n'.join(lines) + '\n')
  np.savez(root / 'probs.npz', names=names, probs=rng.uniform(size=(120, 3)), attributes=('hat', 'beard', 'scarf'))
  np.savez(root / 'embeddings.npz', names=names, embeddings=np.repeat(rng.normal(size=(30, 128)), 4, 0).astype(np.float32))
  return root


def run(module, people, *args):
  return subprocess.run([sys.executable, '-m', f'experiments.{module}', f'--data=folder:{people}/images', '--res=56',
                         '--widths', '0.25', *map(str, args), '--set', 'train_for=2 steps', 'batch_size=8'],
                        cwd=ROOT, capture_output=True, text=True, env=os.environ)


def test_table_12(people, tmp_path):
  done = run('table12', people, '--sizes', '32', f'--recorded={people}/probs.npz', f'--out={tmp_path}')
  assert done.returncode == 0, done.stderr
  with (tmp_path / 'table12.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(row['name'], row['targets']) for row in rows] == [('mobilenet_0.25_32', 'teacher'), ('mobilenet_0.25_32', 'labels')]
  assert [row['paper_mean_ap'] for row in rows] == ['0.864'] * 2  # 32 is 4/7 of 56
  assert all(0 < float(row['mean_ap']) <= 1 and 0 < float(row['emulation']) < 2 for row in rows)
  with (tmp_path / 'table12_attributes.csv').open() as file:
    attributes = list(csv.DictReader(file))
  assert [row['attribute'] for row in attributes] == ['hat', 'beard', 'scarf']
  precisions = [float(row['mobilenet_0.25_32, labels']) for row in attributes]
  assert np.mean(precisions) == pytest.approx(float(rows[1]['mean_ap']))

  with np.load(people / 'probs.npz') as file:
    np.savez(people / 'probs.npz', **{**file, 'probs': 1 - file['probs']})
  again = run('table12', people, '--sizes', '32', f'--recorded={people}/probs.npz', f'--out={tmp_path}')
  assert again.returncode == 1 and 'now there are other recorded outputs of the examples to train on' in again.stderr


def test_table_14(people, tmp_path):
  """The teacher's embeddings are those of the people, so it is right about all pairs. Each fold is held out in turn."""
  done = run('table14', people, '--sizes', '32', f'--recorded={people}/embeddings.npz', f'--pairs={people}/pairs.txt',
             f'--out={tmp_path}')
  assert done.returncode == 0, done.stderr
  with (tmp_path / 'table14.csv').open() as file:
    teacher, student = csv.DictReader(file)
  assert (teacher['name'], teacher['accuracy'], teacher['auc']) == ('the teacher, recorded', '1.0', '1.0')
  assert student['name'] == 'mobilenet_0.25_32' and 0 <= float(student['auc']) <= 1
  assert {path.name for path in tmp_path.glob('*/students/mobilenet_*')} == {'mobilenet_0.25_32'}
  assert {'fold0', 'fold1', 'table14_roc_1.png', 'roc_teacher_recorded_0.csv', 'roc_mobilenet_0.25_32_1.csv'} <= {
      path.name for path in tmp_path.iterdir()}
