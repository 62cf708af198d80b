"""Tests exported files against keras.applications.MobileNet, of which the exported model is a copy."""

import collections
import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from conftest import assert_one_line, command, save

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.trained import export as export_lib
from mobilenet_jax.trained.export import FORMATS, Network, check, check_request, export
from test_published_weights import keras_model

for library in ('tensorflow', 'ai_edge_litert', 'onnx', 'onnxruntime', 'tf2onnx'):
  pytest.importorskip(library, reason=f'{library} is not installed: pip install -r requirements-export.txt')

SIZE = 64


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Returns Keras's model, which outputs logits, and our model loaded from its file."""
  theirs = keras_model(SIZE, 0.25, classes=7, classifier_activation=None)
  path = tmp_path_factory.mktemp('keras') / 'flowers.h5'
  theirs.save(path)
  return theirs, trained.load(path)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope='module')
def exported(models, images, tmp_path_factory):
  """Returns a function (format, preprocessing) -> (path, check), which exports each once."""
  made = {}

  def get(name, preprocessing=False):
    if (name, preprocessing) not in made:
      folder = tmp_path_factory.mktemp('exported')
      calibration = images if name == 'tflite-int8' else None
      made[name, preprocessing] = export(Network(models[1], preprocessing=preprocessing), name, folder, images, calibration)
    return made[name, preprocessing]

  return get


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def other(model, **changes):
  return trained.TrainedModel(config_lib.changed(model.config, changes), model.variables, None, 'x')


def run_by_card(path, images):
  """Runs a file on uint8 images (n, h, w, 3), knowing nothing of it but its card. Returns the outputs and the card."""
  card = json.loads(path.with_name(f'{path.name}.json').read_text())
  source, target = card['input'], card['output']
  assert source['layout'] == 'NHWC' and source['channels'] == 'RGB'
  numbers = source['quantization']
  low, high = numbers['real_range'] if numbers else source['range']
  values = images / 255 * (high - low) + low
  if numbers:
    values = np.clip(values / numbers['scale'] + numbers['zero_point'], *source['range'])
  inputs = (values if source['dtype'].startswith('float') else np.round(values)).astype(source['dtype'])
  assert list(inputs.shape[1:]) == source['shape'][1:]
  call = {'tflite': _litert, 'onnx': _onnxruntime, 'saved_model': _tensorflow, 'keras': _keras, 'stablehlo': _jax}[
      card['format'].partition('-')[0]](path, source['name'], target['name'])
  step = source['shape'][0] or len(inputs)
  parts = [np.asarray(call(inputs[i:i + step])) for i in range(0, len(inputs), step)]
  outputs = np.concatenate(parts)
  assert outputs.dtype == target['dtype'] and parts[0].shape == (target['shape'][0] or step, target['shape'][1])
  if numbers := target['quantization']:
    outputs = (outputs.astype(float) - numbers['zero_point']) * numbers['scale']
  return outputs, card


def _litert(path, source, target):
  from ai_edge_litert.interpreter import Interpreter
  interpreter = Interpreter(str(path))
  return lambda x: interpreter.get_signature_runner()(**{source: x})[target]


def _onnxruntime(path, source, target):
  import onnxruntime
  return lambda x: onnxruntime.InferenceSession(str(path)).run([target], {source: x})[0]


def _tensorflow(path, source, target):
  import tensorflow as tf
  loaded = tf.saved_model.load(str(path))
  return lambda x: loaded.signatures['serving_default'](**{source: tf.constant(x)})[target]


def _keras(path, source, target):
  import keras
  model = keras.models.load_model(path, compile=False)
  assert model.inputs[0].name == source and model.layers[-1].name == target
  return model


def _jax(path, source, target):
  assert source is target is None
  return jax.export.deserialize(bytearray(path.read_bytes())).call


@pytest.mark.parametrize('name, preprocessing', [
    (name, preprocessing) for name in FORMATS for preprocessing in (False, True)
    if not (name == 'tflite-int8' and preprocessing)])
def test_a_file_used_as_its_card_says_gives_kerass_probabilities(name, preprocessing, models, images, exported):
  theirs, ours = models
  path, found = exported(name, preprocessing)
  outputs, card = run_by_card(path, images)
  expected = softmax(np.asarray(theirs(images.astype(np.float32) / 127.5 - 1)).reshape(5, 7))
  if FORMATS[name].precision == 'float32':
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs, ours.prediction(images), rtol=1e-4, atol=1e-4)
    assert found.max_difference < 1e-4 and found.agreement == 1
  else:
    distance = np.abs(outputs - expected).sum(-1).mean() / 2
    assert distance == pytest.approx(found.distance, abs=0.02) and distance < 0.1
  any_size = None if not name.startswith('tflite') else 1
  assert card['input']['shape'] == [any_size, SIZE, SIZE, 3] and card['output']['shape'] == [any_size, 7]
  dtype = 'uint8' if preprocessing or name == 'tflite-int8' else 'float32'
  assert card['input']['dtype'] == dtype and card['output']['meaning'] == 'probabilities'
  assert card['check'] == dataclasses.asdict(found) and found.images == 5
  assert card['origin'] == ours.origin and path.name.startswith('flowers')
  assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f'{path.name}.json']
  if any_size is None:
    np.testing.assert_allclose(run_by_card(path, images[:1])[0], outputs[:1], atol=1e-5)


def test_an_image_prepared_as_the_card_says_gives_the_models_prediction(models, tmp_path):
  """All steps from the card, by TensorFlow: of a model that resizes twice."""
  import tensorflow as tf
  model = other(models[1], **{'data.stream_size': (80, 72), 'model.padding': 'same'})
  image = np.random.default_rng(2).integers(0, 256, (90, 121, 3), np.uint8)
  path, _ = export(Network(model), 'saved_model', tmp_path)
  steps = json.loads((tmp_path / f'{path.name}.json').read_text())['preprocessing']
  assert steps['resize'] == 'bilinear, no antialias' and len(steps['resize_to']) == 2
  x = tf.image.central_crop(image, steps['central_crop'])
  for size in steps['resize_to']:
    x = tf.image.resize(x, size, 'bilinear')
  outputs, _ = run_by_card(path, x.numpy()[None])
  np.testing.assert_allclose(outputs, model.predict(image), atol=0.01)  # we round to 8 bits in between


@pytest.mark.parametrize('changes, options', (
    pytest.param({'data.image_size': (32, 32)}, {}, marks=pytest.mark.slow),  # the last map is 1x1
    ({'data.image_size': (33, 40), 'data.stream_size': (48, 40), 'task': 'embedding'}, {'preprocessing': True}),
    pytest.param({'data.image_size': (64, 32), 'task': 'attributes'}, {'softmax': False}, marks=pytest.mark.slow)))
def test_onnx_of_other_sizes_takes_several_images(changes, options, models, tmp_path):
  model = other(models[1], **{'model.padding': 'same', **changes})
  network = Network(model, **options)
  pixels = check.generated_images(network, 3)
  path, _ = export(network, 'onnx', tmp_path, pixels[:1])  # the check uses more than the one image
  expected = model.outputs(pixels)
  if model.config.task == 'embedding':
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
  elif model.config.task == 'classification':
    expected = softmax(expected)
  inputs = pixels if options.get('preprocessing') else pixels.astype(np.float32) / 127.5 - 1
  np.testing.assert_allclose(FORMATS['onnx'].run(path, inputs), expected, rtol=1e-4, atol=1e-4)
  assert FORMATS['onnx'].tensors(path)[1].shape == (None, 7)


def test_a_file_that_keeps_a_batch_of_one_fails_its_check_also_on_one_image(models, images, tmp_path, monkeypatch):
  monkeypatch.setattr(export_lib.onnx, '_keep_batch_in_reshapes', lambda graph: None)
  small = Network(other(models[1], **{'data.image_size': (32, 32)}))
  with pytest.raises(UserError, match='onnx: the file cannot be written or run .*; export to another format') as caught:
    export(small, 'onnx', tmp_path, images[:1, :32, :32])
  assert caught.value.__cause__ is not None and '\n' not in str(caught.value) and len(str(caught.value)) < 300


def test_tflite_is_built_in_operations_of_the_network(exported):
  from ai_edge_litert.interpreter import Interpreter
  interpreter = Interpreter(str(exported('tflite')[0]))
  operations = collections.Counter(
      op['op_name'] for op in interpreter._get_ops_details() if op['op_name'] != 'DELEGATE')
  assert operations['DEPTHWISE_CONV_2D'] == 13 and operations['CONV_2D'] == 14
  assert not any(name.startswith(('Flex', 'CUSTOM')) for name in operations)
  assert sum(operations.values()) <= 31  # those 27, a mean, a classifier, a softmax, and a reshape


@pytest.mark.parametrize('name, part', (('tflite-float16', 0.6), ('tflite-dynamic', 0.45), ('tflite-int8', 0.45)))
def test_quantised_files_are_smaller(name, part, exported):
  assert exported(name)[0].stat().st_size < part * exported('tflite')[0].stat().st_size


def test_features_of_a_model_without_classifier(tmp_path):
  theirs = keras_model(32, 0.25, include_top=False, pooling='avg')
  theirs.save(tmp_path / 'no_top.h5')
  path, found = export(Network(trained.load(tmp_path / 'no_top.h5')), 'onnx', tmp_path / 'out')
  pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
  outputs, card = run_by_card(path, pixels)
  np.testing.assert_allclose(outputs, np.asarray(theirs(pixels.astype(np.float32) / 127.5 - 1)), rtol=1e-4, atol=1e-4)
  assert card['output']['meaning'] == 'features' and found.agreement is None and found.images == check.CHECK_IMAGES
  assert_one_line(command('export', tmp_path / 'no_top.h5', 'onnx', f'--out={tmp_path}/logits', '--logits'),
                  'has no classifier, and its output is its features; leave out --logits')


@pytest.mark.parametrize('task, prediction', (
    ('attributes', lambda x: 1 / (1 + np.exp(-x))), ('embedding', lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True))))
def test_other_tasks_end_in_their_own_prediction(task, prediction, models, images, tmp_path):
  theirs, ours = models
  network = Network(other(ours, task=task))
  expected = prediction(np.asarray(theirs(images.astype(np.float32) / 127.5 - 1)).reshape(5, 7))
  for name in ('tflite', 'saved_model'):
    path, _ = export(network, name, tmp_path)
    outputs, card = run_by_card(path, images)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    assert card['task'] == task
  with pytest.raises(UserError, match=f'its MobileNet is a classifier, but this model has task={task}'):
    export(network, 'keras', tmp_path)


@pytest.mark.parametrize('task, softmax_too, expected', (
    ('classification', True, (0.5, 0.3)), ('classification', False, (0.5, 0.3)),
    ('attributes', True, (0.75, 0.15)), ('attributes', False, (0.75, 0.15)),
    ('embedding', True, (None, 0.5)), ('embedding', False, (None, 0.5))))
def test_what_is_compared_is_the_prediction(task, softmax_too, expected, models):
  """By hand, for two images and two outputs, also if the outputs are those before the prediction."""
  network = Network(other(models[1], task=task), softmax=softmax_too)
  ours, theirs = map(np.array, {
      'classification': ([[0.6, 0.4], [0.9, 0.1]], [[0.4, 0.6], [0.5 + 1e-6, 0.5 - 1e-6]]),
      'attributes': ([[0.6, 0.4], [0.9, 0.1]], [[0.4, 0.4], [0.5 + 1e-6, 0.1]]),
      'embedding': ([[1, 0], [0, 1]], [[0.5, 0.75 ** 0.5], [0.75 ** 0.5, 0.5]])}[task])  # 60 degrees apart: at a distance of 1
  before = {'classification': np.log, 'attributes': lambda p: np.log(p / (1 - p)), 'embedding': lambda x: 7.0 * x}[task]
  found = check.compare(*((ours, theirs) if softmax_too else (before(ours), before(theirs))), network)
  assert (found.agreement, found.distance) == (expected[0], pytest.approx(expected[1], abs=1e-4))


@pytest.fixture
def fake(monkeypatch):
  """Returns a function that adds a format without a converter, whose files 'return' the Flax model's outputs.

  Its arguments: name, change of the outputs, precision, what the converter raises.
  """
  def add(name='fake', change=lambda outputs: outputs, precision='float32', error=None):
    def write(network, path, calibration):
      if error:
        raise error
      path.write_text(name)
      kept['network'] = network

    kept = {}
    tensors = lambda path: (export_lib.Tensor('images', 'float32', (None, SIZE, SIZE, 3)),
                            export_lib.Tensor('outputs', 'float32', (None, 7)))
    run = lambda path, inputs: change(kept['network'].reference(np.round((inputs + 1) * 127.5).astype(np.uint8)))
    monkeypatch.setitem(FORMATS, name, export_lib.Format(f'.{name}', write, run, tensors, precision))
  return add


def test_a_failed_check_is_an_error_and_leaves_nothing(models, fake, tmp_path):
  for precision, wrong in (('float32', 2e-4), ('float32', np.nan), ('float16', 0.1)):
    fake('off', lambda outputs: outputs + wrong, precision)
    with pytest.raises(UserError, match='it is not kept'):
      export(Network(models[1]), 'off', tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_converter_names_its_requirements(models, tmp_path, monkeypatch):
  for name, library in (('onnx', 'tf2onnx'), ('tflite', 'ai_edge_litert.interpreter')):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f'{library} is not installed; install requirements-export.txt'):
      export(Network(models[1]), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_format_that_fails_does_not_keep_the_others_from_being_written(models, fake, tmp_path):
  fake('one', error=TypeError('two\nlines'))
  fake('two', error=UserError('two: it cannot'))
  fake('four', error=PermissionError(13, 'x', 'four.tmp'))
  fake('five', error=MemoryError())
  fake('three')
  done = command('export', models[1].origin, 'one', 'two', 'four', 'five', 'three', f'--out={tmp_path}')
  assert done.returncode == 1 and done.stderr.splitlines() == [
      'error: one: the file cannot be written or run (TypeError: two lines); export to another format',
      'error: two: it cannot',
      'error: four.tmp: Permission denied; give a file or a folder that you may use, and start the same command again',
      'error: out of memory (MemoryError); try a smaller batch, smaller images or fewer jobs']
  assert sorted(p.name for p in tmp_path.iterdir()) == ['flowers.three', 'flowers.three.json']


def test_a_file_far_from_its_model_is_kept_with_a_warning(models, fake, tmp_path, monkeypatch):
  monkeypatch.setitem(check.MAX_DISTANCE, 'int8', 1)
  fake('off', lambda outputs: outputs[:, ::-1], 'int8')
  done = command('export', models[1].origin, 'off', f'--out={tmp_path}')
  agreement = json.loads((tmp_path / 'flowers-int8.off.json').read_text())['check']['agreement']
  assert done.returncode == 0 and agreement < 0.9 and f'top-1 agrees on {agreement:.1%}' in done.stdout
  assert done.stderr == (f'warning: off: the file agrees with the model on only {agreement:.1%} (less than 90%), measured on '
                         '32 images; calibrate on more images like those that the model is for, or export tflite-float16\n')
  for found, warned in ((check.Check(256, 0.1, 0.785, 0.2), True), (check.Check(256, 0.1, 0.9, 0.2), False),
                        (check.Check(256, 0.1, None, 0.2), True), (check.Check(256, 0.1, None, 0.1), False)):
    assert bool(export_lib.warning('tflite-dynamic', found)) == warned
    assert not export_lib.warning('tflite', found)


def test_files_are_named_after_the_model_and_replace_only_its_own(models, fake, tmp_path):
  for folder in ('one', 'two'):
    (tmp_path / folder).mkdir()
    shutil.copy(models[1].origin, tmp_path / folder / 'mine.h5')
  models[1].save(tmp_path / 'run_0.25')
  fake()
  out = tmp_path / 'out'
  run = lambda model, *args: command('export', tmp_path / model, 'fake', f'--out={out}', *args)
  assert [run(model).returncode for model in ('one/mine.h5', 'run_0.25', 'one/../one/mine.h5', 'run_0.25/')] == [0] * 4
  assert sorted(p.name for p in out.iterdir()) == ['mine.fake', 'mine.fake.json', 'run_0.25.fake', 'run_0.25.fake.json']
  before = {path: path.read_bytes() for path in out.iterdir()}
  fake(error=RuntimeError('nothing may be converted'))
  assert_one_line(run('two/mine.h5'), f'mine.fake: is there already, of another model ({tmp_path}/one/mine.h5); give another')
  assert_one_line(run('two/mine.h5', '--name=run_0.25'), f'is there already, of another model ({tmp_path}/run_0.25)')
  assert 'nothing may be converted' in run('one/mine.h5').stderr  # a failure leaves the earlier file
  assert {path: path.read_bytes() for path in out.iterdir()} == before
  (out / 'mine.fake.json').write_text('[]')
  assert_one_line(run('one/mine.h5'), 'without a mine.fake.json that says which model it is of')
  (out / 'mine.fake').unlink()
  assert_one_line(run('two/mine.h5'), 'without a mine.fake.json that says')
  fake()
  assert run('two/mine.h5', '--name=other').returncode == 0 and (out / 'other.fake').exists()


def test_a_folder_is_replaced_as_a_whole(models, fake, tmp_path):
  fake()
  (tmp_path / 'flowers.fake').mkdir()
  (tmp_path / 'flowers.fake' / 'old').touch()
  (tmp_path / 'flowers.fake.json').write_text(json.dumps({'origin': models[1].origin}))
  export(Network(models[1]), 'fake', tmp_path)
  assert (tmp_path / 'flowers.fake').is_file() and len(list(tmp_path.iterdir())) == 2


def test_published_models_give_their_names(models):
  named = lambda origin: export_lib.target.default_name(dataclasses.replace(models[1], origin=origin))
  assert named('mobilenet_0.25_128') == 'mobilenet_0.25_128' and named('keras:mobilenet_0.5_160') == 'keras_mobilenet_0.5_160'
  assert named('x/mobilenet_v1_0.25_128_frozen.pb') == 'mobilenet_v1_0.25_128_frozen'


@pytest.mark.parametrize('args, message', (
    (['tflite', '--name=a/b'], '--name=a/b: expected a name for files'), (['tflite', '--name='], '--name=: expected a name'),
    (['tflite', '--name=..'], '--name=..: expected a name'), (['tflite', f'--name={"x" * 201}'], 'of at most 200 bytes'),
    (['tflite', 'tflite-int8'], 'tflite-int8: the ranges of activations are measured on images'),
    (['tflite', 'tflite-int8', '--preprocessing', '--calibration=IMAGES'], 'takes pixels already, with a scale of its own'),
    (['tflite', '--calibration=IMAGES'], 'only tflite-int8 is calibrated'),
    (['tflite', '--images=nowhere'], '--images=nowhere: there is no such folder'),
    (['tflite', '--images=Makefile'], '--images=Makefile: is a file; expected a folder of images'),
    (['tflite', '--images=EMPTY'], 'no image in this folder (.jpg'),
    (['tflite', '--out=Makefile/x'], 'Makefile is not a folder; give another --out')))
def test_arguments_are_checked_before_anything_is_written(args, message, models, tmp_path):
  save(tmp_path / 'images' / 'a.png')
  (tmp_path / 'empty').mkdir()
  args = [arg.replace('IMAGES', f'{tmp_path}/images').replace('EMPTY', f'{tmp_path}/empty') for arg in args]
  out = [] if any(arg.startswith('--out=') for arg in args) else [f'--out={tmp_path}/out']
  assert_one_line(command('export', models[1].origin, *out, *args), message)
  assert not (tmp_path / 'out').exists()


def test_what_keras_cannot_hold_is_one_line(models, tmp_path):
  ours = models[1]
  nn2 = trained.TrainedModel(config_lib.changed(ours.config, {'model.name': 'nn2'}), ours.variables, None, 'x')
  del nn2.config.model['activation']
  for model, message in ((other(ours, **{'model.activation': 'relu'}), 'with relu6, not mobilenet with relu; export'),
                         (nn2, 'with relu6, not nn2; export'),
                         (other(ours, **{'model.padding': 'same', 'data.image_size': (75, 75)}), 'pads odd sizes')):
    with pytest.raises(UserError, match=message):
      check_request(Network(model), ['tflite', 'keras'], tmp_path)


def test_images_that_are_used_and_left_out_are_said(models, fake, tmp_path, monkeypatch):
  fake()
  rng = np.random.default_rng(0)
  for i in range(12):
    save(tmp_path / 'images' / f'{i:02}.png', tuple(rng.integers(0, 256, 3).tolist()))
  (tmp_path / 'images' / '00.png').write_bytes(b'no image')
  (tmp_path / 'images' / 'notes.txt').touch()
  run = lambda: command('export', models[1].origin, 'fake', f'--out={tmp_path}/out', f'--images={tmp_path}/images')
  done = run()
  folder = tmp_path / 'images'
  assert done.returncode == 0 and 'on 11 images of' in done.stdout and done.stderr.splitlines() == [
      f'skipping {folder}/00.png: not a JPEG, PNG, BMP, GIF, WebP or TIFF image',
      f'{folder}: uses 11 of 12 images; left out: 1 file of another type (1 .txt)']
  from mobilenet_jax.commands import export as export_command
  monkeypatch.setattr(export_command, 'MAX_IMAGES', 3)
  done = run()
  assert done.stderr.splitlines()[1:] == [
      f'{folder}: uses 2 of 12 images, evenly spread; left out: 1 file of another type (1 .txt)',
      f'warning: {folder}: 2 images say little about a file, and less about the ranges of tflite-int8; give at least 10, '
      'better 100']
  monkeypatch.setattr(export_command, 'MAX_IMAGES', 1)
  assert 'none of the 1 images that were tried can be read' in run().stderr
