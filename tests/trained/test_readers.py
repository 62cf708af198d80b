"""Tests the files of weights that people have: their names, sizes and archives, and what is refused."""

import io
import json
import tarfile

import jax
import numpy as np
import pytest
from conftest import SHARED, assert_one_line, command, random_images, tiny_config
from published_files import graph_of, random_variables, slim_arrays, write_checkpoint

from mobilenet_jax import trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.trained.published import readers, weights
from mobilenet_jax.training import train


@pytest.fixture(scope='module')
def variables():
  return random_variables(3, 0.25)


def assert_equal(model, variables):
  jax.tree.map(np.testing.assert_array_equal, model.variables, variables)


def write_archive(path, files):
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(f'./{name}')
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path


@pytest.mark.parametrize('name, size', (
    ('mobilenet_v1_0.25_128.ckpt', 128), ('mobilenet_v1_1.0_224_2017_06_14.tar.gz', 224), ('mobilenet_v1_0.50_96.ckpt-7', 96),
    ('mobilenet_2_5_160_tf_no_top.h5', 160), ('vww_96.ckpt', None), ('run_224.h5', None), ('model.ckpt-128', None),
    ('mobilenet_v1_0.25.ckpt', None), ('mobilenet_v2_1.0_224.ckpt', None), ('mobilenet_v1_1.0_1024.ckpt', None)))
def test_only_names_of_tf_slim_and_keras_say_a_size(name, size):
  assert readers.size_in(name) == (size and (size, size))


@pytest.mark.parametrize('folder', ('plain', 'w[lr=1e-3]*?\\x'))
def test_a_training_checkpoint_is_read_by_each_of_its_names(folder, variables, tmp_path):
  (tmp_path / 'plain').mkdir()
  write_checkpoint(tmp_path / 'plain' / 'model.ckpt-12345', slim_arrays(variables))
  (tmp_path / 'plain').rename(tmp_path / folder)
  prefix = tmp_path / folder / 'model.ckpt-12345'
  for name in ('', '.index', '.data-00000-of-00001'):
    model = trained.load(f'{prefix}{name}', image_size=96)
    assert model.config.data.image_size == (96, 96)
    assert_equal(model, variables)
  with pytest.raises(UserError, match='model.ckpt-6: there is no such file'):
    trained.load(tmp_path / folder / 'model.ckpt-6')


def test_an_image_size_that_is_not_said_must_be_given(variables, tmp_path):
  write_checkpoint(tmp_path / 'vww_96.ckpt', slim_arrays(variables))
  path = tmp_path / 'vww_96.ckpt'
  with pytest.raises(UserError, match='neither the file nor its name says the image size; give --image-size=SIZE'):
    trained.load(path)
  assert_one_line(command('import', path, f'--out={tmp_path / "out"}'), 'import the file first: mobilenet_jax import FILE')
  with pytest.raises(UserError, match='import the file first'):
    train(tiny_config(**{'init.model': str(path)}), tmp_path / 'run', (random_images(8), random_images(8)))
  assert_one_line(command('complexity', path, '--image-size=9x6x'), '--image-size=9x6x: expected a number of pixels')
  done = command('complexity', path, '--image-size=96x64', '--json')
  assert json.loads(done.stdout)['model'] == 'mobilenet_0.25_96x64', done.stderr
  done = command('import', path, '--image-size=96', f'--out={tmp_path / "out"}')
  assert done.returncode == 0 and trained.load(tmp_path / 'out').config.data.image_size == (96, 96), done.stderr
  with pytest.raises(UserError, match='out: its image size is 96x96, not 128x128'):
    trained.load(tmp_path / 'out', image_size=128)
  with pytest.raises(UserError, match='image size 16: expected .*at least 32'):
    trained.load(path, image_size=16)
  with pytest.raises(UserError, match='no folder of a run, so it has no checkpoint best'):
    trained.load(path, checkpoint='best')


def test_archives(variables, tmp_path):
  """An archive with only a frozen graph is read; the size is that of the graph, or else of the checkpoint's name."""
  arrays = slim_arrays(variables)
  write_checkpoint(tmp_path / 'model', arrays)
  parts = {path.suffix if path.suffix == '.index' else '.data-00000-of-00001': path.read_bytes()
           for path in tmp_path.glob('model.*')}
  checkpoint = lambda name: {name + suffix: content for suffix, content in parts.items()}
  graph = {'a_frozen.pb': graph_of(arrays, 160), 'saved_model.pb': b'another kind'}
  for files, size in ((graph, 160), ({**checkpoint('model.ckpt-7'), **graph}, 160),
                      (checkpoint('mobilenet_v1_0.25_192.ckpt'), 192), (checkpoint('model.ckpt'), 128)):
    model = trained.load(write_archive(tmp_path / 'mobilenet_v1_0.25_128.tgz', files))
    assert model.config.data.image_size == (size, size)
    assert_equal(model, variables)
  for files, counts in (({}, '0 checkpoints'), ({**checkpoint('a.ckpt-1'), **checkpoint('a.ckpt-2')}, '2 checkpoints')):
    with pytest.raises(UserError, match=f'has {counts} .*; expected one model'):
      trained.load(write_archive(tmp_path / 'other.tgz', files))


def write_keras(path, arrays):
  """Writes weights in the layout that Keras publishes."""
  h5py = pytest.importorskip('h5py')
  with h5py.File(path, 'w') as file:
    layers = {}
    for name, value in arrays.items():
      layer, _, index = name.partition('/')
      layers.setdefault(layer, []).append((int(index), value))
    file.attrs['layer_names'] = list(layers)
    for layer, values in layers.items():
      file.create_group(layer).attrs['weight_names'] = [str(i) for i, _ in sorted(values)]
      for i, value in values:
        file[layer][str(i)] = value


def test_quantised_and_folded_files_are_named_as_such(variables, tmp_path):
  arrays = slim_arrays(variables)
  folded = {name: value for name, value in arrays.items() if '/BatchNorm/' not in name}
  (tmp_path / 'fake.pb').write_bytes(graph_of(arrays, 128, 'FakeQuantWithMinMaxVars'))
  (tmp_path / 'quint8.pb').write_bytes(graph_of({}, 128, 'QuantizeV2', 'QuantizedConv2D'))
  (tmp_path / 'folded.pb').write_bytes(graph_of(folded, 128))
  (tmp_path / 'model.tflite').write_bytes(b'\x1c\0\0\0TFL3 and more')
  (tmp_path / 'renamed.pb').write_bytes(b'\x1c\0\0\0TFL3 and more')
  write_checkpoint(tmp_path / 'quant.ckpt', {**arrays, 'MobilenetV1/Conv2d_0/weights_quant/min': np.float32(-1)})
  keras = {weights.keras_name(path): weights.to_theirs(path, value) for path, value in weights.flatten(variables).items()}
  write_keras(tmp_path / 'whole.h5', keras)
  write_keras(tmp_path / 'folded.h5', {name: value for name, value in keras.items() if '_bn/' not in name})
  assert_equal(trained.load(tmp_path / 'whole.h5', image_size=128), variables)
  for name, message in (('fake.pb', r'a quantised \(8-bit\) graph'), ('quint8.pb', r'a quantised \(8-bit\) graph'),
                        ('folded.pb', 'no batch norm, which is folded into its weights'), ('model.tflite', 'a TFLite file'),
                        ('renamed.pb', 'a TFLite file'), ('quant.ckpt', 'trained for 8 bits'),
                        ('folded.h5', 'no batch norm, which is folded into its weights')):
    with pytest.raises(UserError, match=f'{name}: .*{message}') as error:
      trained.load(tmp_path / name, image_size=128)
    assert '\n' not in str(error.value) and 'is missing' not in str(error.value)


@pytest.mark.skipif(not SHARED.exists(), reason=f'the published files are not here: {SHARED}')
def test_a_published_tflite_file_is_named_as_such():
  with pytest.raises(UserError, match='quant.tflite: a TFLite file, whose weights are folded and often have 8 bits'):
    trained.load(SHARED / 'tflite' / 'mobilenet_v1_0.25_128_quant.tflite')
