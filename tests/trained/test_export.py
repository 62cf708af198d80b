"""Tests exported files against keras.applications.MobileNet, of which the exported model is a copy."""

import collections
import json
import sys

import numpy as np
import pytest

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.trained import export as export_lib
from mobilenet_jax.trained.export import FORMATS, Network, export
from test_published_weights import keras_model

for library in ('tensorflow', 'ai_edge_litert', 'onnx', 'onnxruntime', 'tf2onnx'):
  pytest.importorskip(library, reason=f'{library} is not installed: pip install -r requirements-export.txt')

SIZE = 64


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Returns Keras's model, which outputs logits, and our model loaded from its file."""
  theirs = keras_model(SIZE, 0.25, classes=7, classifier_activation=None)
  path = tmp_path_factory.mktemp('keras') / 'model.h5'
  theirs.save(path)
  return theirs, trained.load(path)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.parametrize('preprocessing', (False, True), ids=('floats', 'pixels'))
@pytest.mark.parametrize('name', [name for name, kind in FORMATS.items() if kind.precision == 'float32'])
def test_float32_files_give_keras_outputs(name, preprocessing, models, images, tmp_path):
  theirs, ours = models
  inputs = images.astype(np.float32) / 127.5 - 1
  logits = np.asarray(theirs(inputs)).reshape(5, 7)
  network = Network(ours, softmax=preprocessing, preprocessing=preprocessing)
  path, check = export(network, name, tmp_path)
  outputs = FORMATS[name].run(path, images if preprocessing else inputs)
  np.testing.assert_allclose(outputs, softmax(logits) if preprocessing else logits, rtol=1e-4, atol=1e-4)
  assert check.max_difference < 1e-4 and check.top1_agreement == 1 and check.images == export_lib.CHECK_IMAGES
  card = json.loads((tmp_path / f'{path.name}.json').read_text())
  assert card['output'] == ('probabilities' if preprocessing else 'logits')
  assert card['input']['range'] == ([0, 255] if preprocessing else [-1, 1])
  assert card['preprocessing']['central_crop'] == 0.875
  assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f'{path.name}.json']


def test_tflite_is_built_in_operations_of_the_network(models, tmp_path):
  from ai_edge_litert.interpreter import Interpreter
  path, _ = export(Network(models[1]), 'tflite', tmp_path)
  interpreter = Interpreter(str(path))
  operations = collections.Counter(
      op['op_name'] for op in interpreter._get_ops_details() if op['op_name'] != 'DELEGATE')
  assert operations['DEPTHWISE_CONV_2D'] == 13 and operations['CONV_2D'] == 14
  assert not any(name.startswith(('Flex', 'CUSTOM')) for name in operations)
  assert sum(operations.values()) <= 31  # those 27, a mean, a classifier, a softmax, and a reshape


@pytest.mark.parametrize('name', ('tflite-float16', 'tflite-dynamic', 'tflite-int8'))
def test_quantised_files(name, models, images, tmp_path):
  """The files are smaller, and within their tolerance of Keras's probabilities."""
  theirs, ours = models
  path, check = export(Network(ours), name, tmp_path, images, calibration=images)
  whole, _ = export(Network(ours), 'tflite', tmp_path)
  parts = {'tflite-float16': 0.6, 'tflite-dynamic': 0.45, 'tflite-int8': 0.45}
  assert path.stat().st_size < parts[name] * whole.stat().st_size
  inputs = Network(ours).inputs(images)  # the check's to the last bit: int8 rounds them
  expected = softmax(np.asarray(theirs(inputs)).reshape(5, 7))
  distance = np.abs(FORMATS[name].run(path, inputs) - expected).sum(-1).mean() / 2
  assert distance == pytest.approx(check.distance, abs=1e-3)
  assert distance < export_lib.MAX_DISTANCE[FORMATS[name].precision]
  numbers = json.loads((tmp_path / f'{path.name}.json').read_text())['quantization']
  assert (numbers.get('input', {}).get('dtype') == 'uint8') == (name == 'tflite-int8')


def test_onnx_and_saved_model_take_any_batch_size(models, images, tmp_path):
  for name in ('onnx', 'saved_model', 'stablehlo'):
    path, _ = export(Network(models[1], preprocessing=True), name, tmp_path)
    one = FORMATS[name].run(path, images[:1])
    np.testing.assert_allclose(FORMATS[name].run(path, images)[:1], one, atol=1e-5)


def test_features_of_a_model_without_classifier(tmp_path):
  theirs = keras_model(SIZE, 0.25, include_top=False, pooling='avg')
  theirs.save(tmp_path / 'no_top.h5')
  path, _ = export(Network(trained.load(tmp_path / 'no_top.h5')), 'onnx', tmp_path / 'out')
  inputs = np.random.default_rng(1).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
  np.testing.assert_allclose(FORMATS['onnx'].run(path, inputs), np.asarray(theirs(inputs)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('task, prediction', (
    ('attributes', lambda x: 1 / (1 + np.exp(-x))), ('embedding', lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True))))
def test_other_tasks_end_in_their_own_prediction(task, prediction, models, images, tmp_path):
  theirs, ours = models
  config = config_lib.changed(ours.config, {'task': task})
  network = Network(trained.TrainedModel(config, ours.variables, None, 'x'))
  inputs = images.astype(np.float32) / 127.5 - 1
  expected = prediction(np.asarray(theirs(inputs)).reshape(5, 7))
  for name in ('tflite', 'saved_model'):
    path, _ = export(network, name, tmp_path)
    np.testing.assert_allclose(FORMATS[name].run(path, inputs), expected, atol=1e-4)
  with pytest.raises(UserError, match=f'its MobileNet is a classifier, but this model has task={task}'):
    export(network, 'keras', tmp_path)


def test_a_failed_check_is_an_error_and_leaves_nothing(models, tmp_path, monkeypatch):
  for name, wrong in (('onnx', 2e-4), ('tflite', np.nan), ('tflite-float16', 0.1)):
    kind = FORMATS[name]
    off = export_lib.Format(kind.suffix, kind.write, lambda *args: kind.run(*args) + wrong, kind.precision)
    monkeypatch.setitem(FORMATS, name, off)
    with pytest.raises(UserError, match='it is not kept'):
      export(Network(models[1]), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_converter_names_its_requirements(models, tmp_path, monkeypatch):
  for name, library in (('onnx', 'tf2onnx'), ('tflite', 'ai_edge_litert.interpreter')):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f'{library} is not installed; install requirements-export.txt'):
      export(Network(models[1]), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold_is_one_line(models, images, tmp_path):
  ours = models[1]
  with pytest.raises(UserError, match='--calibration=FOLDER'):
    export(Network(ours), 'tflite-int8', tmp_path)
  with pytest.raises(UserError, match='leave out --preprocessing'):
    export(Network(ours, preprocessing=True), 'tflite-int8', tmp_path, images, images)
  for change, message in (({'model.activation': 'relu'}, 'not mobilenet with relu'),
                          ({'model.padding': 'same', 'data.image_size': (75, 75)}, 'pads odd sizes differently')):
    other = trained.TrainedModel(config_lib.changed(ours.config, change), *(
        getattr(ours, field) for field in ('variables', 'labels', 'origin')))
    with pytest.raises(UserError, match=message):
      export(Network(other), 'keras', tmp_path)
  assert not list(tmp_path.iterdir())
