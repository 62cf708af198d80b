"""How many of the examples that a run is evaluated on it was trained on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import assert_one_line, command, random_images, tiny_config
from PIL import Image

from mobilenet_jax import config as config_lib
from mobilenet_jax import data, models, trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import run_files
from mobilenet_jax.training import checked, load_inputs, own_evaluation, trained_on


@pytest.fixture
def images(tmp_path):
  """Returns a folder of 40 different images of four classes, without splits."""
  for i, example in enumerate(random_images(40)):
    path = tmp_path / 'images' / 'abcd'[i % 4] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(example.image).save(path)
  return tmp_path / 'images'


def run_on(tmp_path, name, *given, **changes):
  """Makes what an evaluation needs of a run: its config, and the digests of its inputs."""
  config = checked(tiny_config(**{'data.name': name, **changes}))
  (tmp_path / 'run').mkdir(exist_ok=True)
  run_files.write_inputs(tmp_path / 'run', load_inputs(config, *given).digests)
  return SimpleNamespace(origin=str(tmp_path / 'run'), config=config)


def counted(run, name, split=''):
  """Returns the number, and the remark, for `evaluate --data=name --split=split`."""
  config = config_lib.changed(run.config, {'data.name': name, **({'data.eval_split': split} if split else {})})
  return trained_on(run, data.load_whole(config.data, split), config)


def test_the_same_images_by_any_path(images, tmp_path, monkeypatch):
  run = run_on(tmp_path, f'folder:{images}')
  known = set(data.load(run.config.data)[0].ids)
  trained_ones = len(known)
  assert 30 < trained_ones < 40
  assert trained_on(run, own_evaluation(run, run.config), run.config) == (0, '')
  (tmp_path / 'link').symlink_to(images)
  shutil.copytree(images, tmp_path / 'copy')
  shutil.copytree(images, tmp_path / 'larger')
  shutil.copy(images / 'a' / '0.png', tmp_path / 'larger' / 'a' / 'new.png')
  monkeypatch.chdir(tmp_path)
  for name in (images, 'images', tmp_path / 'link', tmp_path / 'copy', tmp_path / 'larger'):
    count, remark = counted(run, f'folder:{name}')
    assert count == trained_ones and f'{count} of the 4{int(name == tmp_path / "larger")} examples to' in remark
  # Other images under the same names are none of them.
  for path in (tmp_path / 'copy').rglob('*.png'):
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
  assert counted(run, f'folder:{tmp_path}/copy') == (0, '')


def test_data_that_is_gone(images, tmp_path):
  run = run_on(tmp_path, f'folder:{images}')
  trained_ones = len(data.load(run.config.data)[0])
  images.rename(tmp_path / 'elsewhere')
  count, remark = counted(run, f'folder:{tmp_path}/elsewhere')
  assert count == trained_ones and 'were trained on, by their names' in remark
  Path(data.load(config_lib.changed(run.config, {'data.name': f'folder:{tmp_path}/elsewhere'}).data)[0].files[0]).unlink()
  count, remark = counted(run, f'folder:{tmp_path}/elsewhere')
  assert count is None and 'whether it was trained on these examples is not known' in remark
  run.origin = 'mobilenet_1.0_224'
  assert counted(run, f'folder:{tmp_path}/elsewhere') == (None, '')


def test_a_part_of_a_split_that_was_trained_on(images, tmp_path):
  for split, classes in (('train', 'ab'), ('test', 'ab')):
    for name in classes:
      shutil.copytree(images / name, tmp_path / 'set' / split / name)
  run = run_on(tmp_path, f'folder:{tmp_path}/set')
  assert counted(run, f'folder:{tmp_path}/set', 'train')[0] == 20 == counted(run, f'folder:{tmp_path}/set/train')[0]
  assert counted(run, f'folder:{tmp_path}/set', 'test') == (0, '')


def test_sets_of_which_an_example_is_a_number(tmp_path):
  """Numbers of one set say nothing of another one."""
  source = random_images(12)
  pictures = np.stack([example.image for example in source])
  for name, train in (('one', pictures), ('other', 255 - pictures)):
    np.savez(tmp_path / f'{name}.npz', train_images=train, train_labels=source.labels, test_images=pictures,
             test_labels=source.labels)
  run = run_on(tmp_path, f'npz:{tmp_path}/one.npz')
  assert counted(run, f'npz:{tmp_path}/one.npz', 'train')[0] == 12
  assert counted(run, f'npz:{tmp_path}/one.npz', 'test') == counted(run, f'npz:{tmp_path}/other.npz', 'train') == (0, '')


def test_parts_of_an_embedded_set(tmp_path):
  run = run_on(tmp_path, 'fabrics', **{'data.train_split': 'train[:50]', 'data.eval_split': 'test[:20]'})
  assert counted(run, 'fabrics', 'train[40:100]')[0] == 10
  assert counted(run, 'fabrics', 'test[:20]') == (0, '')


def test_data_that_was_given_in_python(tmp_path):
  run = run_on(tmp_path, 'nothing', (random_images(8), random_images(4)))
  with pytest.raises(UserError, match='run: was trained on data that was given in Python, .*; name the data to evaluate on'):
    own_evaluation(run, run.config)


def test_the_command_says_it(images, tiny_model, tmp_path):
  run = run_on(tmp_path, f'folder:{images}')
  module = models.create(run.config.model, 4)
  variables = models.variables_of(module.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False))
  trained.TrainedModel(run.config, variables, tuple('abcd'), 'x').save(tmp_path / 'model')
  shutil.copy(tmp_path / 'run' / run_files.INPUTS_FILE, tmp_path / 'model')
  done = command('evaluate', tmp_path / 'model', f'--data=folder:{images}', '--json', '--batch=8')
  count = len(data.load(run.config.data)[0])
  assert json.loads(done.stdout)['trained_on'] == count and json.loads(done.stdout)['examples'] == 40
  assert done.stderr == (f'{count} of the 40 examples to evaluate on were trained on: the result says little about other '
                         'examples\n')
  run_files.write_inputs(tmp_path / 'model', {'given': 'in Python'})
  assert_one_line(command('evaluate', tmp_path / 'model'), 'was trained on data that was given in Python')
