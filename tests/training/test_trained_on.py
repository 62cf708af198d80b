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
from mobilenet_jax.data import fingerprints
from mobilenet_jax.data.drawn import fabrics
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.storage import run_files
from mobilenet_jax.training import checked, load_inputs, own_data, trained_on
from mobilenet_jax.training.inputs import NOT_KNOWN


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
  train, evaluation = own_data(run, run.config)
  with monkeypatch.context() as patch:
    patch.setattr(data, 'load', lambda config: pytest.fail('loaded again'))
    assert trained_on(run, evaluation, run.config, train) == (0, '')
  (tmp_path / 'link').symlink_to(images)
  shutil.copytree(images, tmp_path / 'copy')
  shutil.copytree(images, tmp_path / 'larger')
  shutil.copy(images / min(known), tmp_path / 'larger' / 'a' / 'new.png')
  monkeypatch.chdir(tmp_path)
  for name in (images, 'images', tmp_path / 'link', tmp_path / 'copy', tmp_path / 'larger'):
    count, remark = counted(run, f'folder:{name}')
    more = int(name == tmp_path / 'larger')
    assert count == trained_ones + more and f'{count} of the {40 + more} examples to' in remark
  # A smaller part, under other names, one of them twice, and one that cannot be read.
  other = tmp_path / 'part' / 'z'
  other.mkdir(parents=True)
  ids = sorted(known)
  for name, id in (('1.png', ids[0]), ('2.png', ids[1]), ('3.png', ids[1])):
    shutil.copy(images / id, other / name)
  (other / '4.png').symlink_to('nowhere')
  assert counted(run, f'folder:{tmp_path}/part')[0] == 3
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
  assert count is None and remark == f'{NOT_KNOWN}: its training data has changed or cannot be read'
  run.origin = 'mobilenet_1.0_224'
  assert counted(run, f'folder:{tmp_path}/elsewhere') == (None, '')


def test_files_that_differ_only_in_one_byte(tmp_path, monkeypatch):
  """Files of other sizes are not opened, and only those that begin alike are read to their ends."""
  start, opened = bytes(fingerprints.START), []
  content = {'mine/0': start + b'0', 'mine/1': start + b'1', 'mine/2': b'2' + start, 'mine/3': b'3',
             'other/0': start + b'0', 'other/1': start + b'x', 'other/2': b'y' + start, 'other/3': b'of another size'}
  for name, value in content.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(value)
  source, other = (data.from_images([str(tmp_path / name) for name in content if name.startswith(part)], np.zeros(4, int), 1)
                   for part in ('mine', 'other'))
  read = fingerprints._content
  monkeypatch.setattr(fingerprints, '_content', lambda path, *most: opened.append((path[-1], *most)) or read(path, *most))
  assert data.common(source, other) == 1
  starts = sorted([*'012', *'012'])
  assert sorted(opened) == sorted([(name, fingerprints.START) for name in starts] + [(name,) for name in '0011'])
  opened.clear()
  assert data.common(source, source) == 4 and not opened


def test_a_part_of_a_split_that_was_trained_on(images, tmp_path):
  for split, classes in (('train', 'ab'), ('test', 'cd')):
    for name, own in zip('ab', classes):
      shutil.copytree(images / own, tmp_path / 'set' / split / name)
  run = run_on(tmp_path, f'folder:{tmp_path}/set')
  assert counted(run, f'folder:{tmp_path}/set', 'train')[0] == 20 == counted(run, f'folder:{tmp_path}/set/train')[0]
  assert counted(run, f'folder:{tmp_path}/set', 'test') == (0, '')
  shutil.copytree(tmp_path / 'set' / 'train', tmp_path / 'copy')  # where 'train/a/0.png' is 'a/0.png'
  shutil.copy(images / 'c' / '2.png', tmp_path / 'copy' / 'a' / 'other.png')
  assert counted(run, f'folder:{tmp_path}/copy')[0] == 20


def test_arrays_are_compared_by_their_pixels(tmp_path):
  """Their ids are numbers, which say nothing of another file or split."""
  source = random_images(12)
  pictures = np.stack([example.image for example in source])
  for name, train in (('one', pictures), ('other', 255 - pictures), ('part', pictures[5:][::-1]), ('flat', pictures[:, ::2])):
    np.savez(tmp_path / f'{name}.npz', train_images=train, train_labels=source.labels[:len(train)], test_images=pictures,
             test_labels=source.labels)
  run = run_on(tmp_path, f'npz:{tmp_path}/one.npz')
  assert counted(run, f'npz:{tmp_path}/one.npz', 'train')[0] == 12
  assert counted(run, f'npz:{tmp_path}/one.npz', 'test')[0] == 12
  assert counted(run, f'npz:{tmp_path}/part.npz', 'train')[0] == 7
  assert counted(run, f'npz:{tmp_path}/other.npz', 'train') == counted(run, f'npz:{tmp_path}/flat.npz', 'train') == (0, '')


def test_data_of_another_kind_or_set_cannot_be_compared(images, tmp_path):
  run = run_on(tmp_path, f'folder:{images}')
  pictures = np.stack([example.image for example in data.load(run.config.data)[0]])  # the very ones
  np.savez(tmp_path / 'same.npz', train_images=pictures, train_labels=np.zeros(len(pictures), int))
  count, remark = counted(run, f'npz:{tmp_path}/same.npz', 'train')
  assert count is None and remark.startswith(f'{NOT_KNOWN}: they cannot be compared with its training data')
  set_of = lambda content: data.from_images(list(pictures), np.zeros(len(pictures), int), 1, content=content)
  assert data.common(set_of('one'), set_of('one')) == len(pictures)
  assert data.common(set_of('one'), set_of('other')) is None is data.common(set_of(''), set_of(''))


def test_parts_of_an_embedded_set(tmp_path, monkeypatch):
  monkeypatch.setattr(fabrics, 'NUM_EXAMPLES', {'train': 120, 'test': 30})  # which are drawn more quickly
  run = run_on(tmp_path, 'fabrics', **{'data.train_split': 'train[:50]', 'data.eval_split': 'test[:20]',
                                       'data.data_dir': str(tmp_path)})
  assert counted(run, 'fabrics', 'train[40:100]')[0] == 10
  assert counted(run, 'fabrics', 'test[:20]') == (0, '')


def test_data_that_was_given_in_python(tmp_path):
  run = run_on(tmp_path, 'nothing', (random_images(8), random_images(4)))
  with pytest.raises(UserError, match='run: was trained on data that was given in Python, .*; name the data to evaluate on'):
    own_data(run, run.config)


@pytest.mark.parametrize('text', ('{', '{"examples to train on": "text"}', '{}', '[]'))
def test_damaged_digests(text, images, tmp_path):
  run = run_on(tmp_path, f'folder:{images}')
  (tmp_path / 'run' / run_files.INPUTS_FILE).write_text(text)
  count, remark = counted(run, f'folder:{images}')
  assert count is None and remark.startswith(NOT_KNOWN)


def test_the_command_says_it(images, tiny_model, tmp_path):
  run = run_on(tmp_path, f'folder:{images}')
  module = models.create(run.config.model, 4)
  init = lambda key: models.variables_of(module.init(key, np.zeros((1, 32, 32, 3), np.float32), train=False))
  variables = devices.run_once(init, jax.random.key(0))
  trained.TrainedModel(run.config, variables, tuple('abcd'), 'x').save(tmp_path / 'model')
  shutil.copy(tmp_path / 'run' / run_files.INPUTS_FILE, tmp_path / 'model')
  done = command('evaluate', tmp_path / 'model', f'--data=folder:{images}', '--json', '--batch=8')
  count = len(data.load(run.config.data)[0])
  assert json.loads(done.stdout)['trained_on'] == count and json.loads(done.stdout)['examples'] == 40
  assert done.stderr == (f'{count} of the 40 examples to evaluate on were trained on: the result says little about other '
                         'examples\n')
  run_files.write_inputs(tmp_path / 'model', {'given': 'in Python'})
  assert_one_line(command('evaluate', tmp_path / 'model'), 'was trained on data that was given in Python')
