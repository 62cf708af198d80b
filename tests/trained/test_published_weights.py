"""Tests published weights against Keras and against TF-slim's graphs run by TensorFlow, in both directions."""

import functools
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SHARED, images_of, random_images, tiny_config
from published_files import random_variables, slim_arrays, write_checkpoint

from mobilenet_jax import trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.models import MODELS, MobileNet
from mobilenet_jax.runtime import devices
from mobilenet_jax.trained import labels
from mobilenet_jax.trained.published import weights
from mobilenet_jax.training import train_group

tf = pytest.importorskip('tensorflow', reason='TensorFlow reads the published files, and is not installed')
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f'the published graphs are not here: {SHARED}')
RNG = functools.partial(np.random.default_rng, 0)


def keras_or_skip():
  keras = pytest.importorskip('keras')
  if keras.backend.backend() != 'tensorflow':
    pytest.skip('Keras runs on another backend here')
  return keras


def keras_model(size, alpha, seed=0, **options):
  """Returns keras.applications.MobileNet with random weights and random batch statistics."""
  return randomized(keras_or_skip().applications.MobileNet((size, size, 3), alpha=alpha, weights=None, **options), seed)


def randomized(model, seed=0):
  rng = np.random.default_rng(seed)
  for variable in model.weights:
    if 'variance' in variable.path or 'gamma' in variable.path:
      values = rng.uniform(0.5, 1.5, variable.shape)
    else:  # scaled so that activations neither vanish nor all reach 6
      fan_in = np.prod(variable.shape[:2 if 'depthwise' in variable.path or '_dw_' in variable.path else -1])
      values = rng.normal(0, 1.5 / np.sqrt(max(fan_in, 1)), variable.shape)
    variable.assign(values.astype(np.float32))
  return model


def our_logits(model, images):
  apply = lambda variables, images: model.module.apply(variables, images, train=False)
  return devices.run_once(apply, model.variables, images)


def slim_logits(arrays, images):
  """Computes MobileNet V1 in TensorFlow's own operations, from arrays with TF-slim's names."""
  def norm(x, scope):
    gamma, beta, mean, var = (arrays[f'{scope}/BatchNorm/{name}']
                              for name in ('gamma', 'beta', 'moving_mean', 'moving_variance'))
    return tf.nn.relu6(tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-3))

  x = norm(tf.nn.conv2d(images, arrays['MobilenetV1/Conv2d_0/weights'], 2, 'SAME'), 'MobilenetV1/Conv2d_0')
  for i in range(1, 14):
    stride = 2 if i in (2, 4, 6, 12) else 1
    scope = f'MobilenetV1/Conv2d_{i}'
    x = tf.nn.depthwise_conv2d(x, arrays[f'{scope}_depthwise/depthwise_weights'], (1, stride, stride, 1), 'SAME')
    x = norm(x, f'{scope}_depthwise')
    x = norm(tf.nn.conv2d(x, arrays[f'{scope}_pointwise/weights'], 1, 'SAME'), f'{scope}_pointwise')
  x = tf.reduce_mean(x, (1, 2), keepdims=True)
  logits = tf.nn.conv2d(x, arrays['MobilenetV1/Logits/Conv2d_1c_1x1/weights'], 1, 'SAME')
  return (logits[:, 0, 0] + arrays['MobilenetV1/Logits/Conv2d_1c_1x1/biases']).numpy()


@pytest.mark.parametrize('alpha', (0.25, *(pytest.param(alpha, marks=pytest.mark.slow) for alpha in (1.0, 0.75, 0.5))))
def test_keras_files_give_keras_logits(alpha, tmp_path):
  """Tests sizes 224, 128 and an odd size, which Keras pads differently, with legacy .h5 files, which contain their size."""
  for size in (224, 128, 75):
    theirs = keras_model(size, alpha, classifier_activation=None)
    path = tmp_path / f'{size}.h5'
    theirs.save(path)
    ours = trained.load(path)
    assert ours.config.data.image_size == (size, size) and ours.config.model.width_multiplier == alpha
    assert ours.labels[0].startswith('n01440764')
    images = RNG().uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    expected = np.asarray(theirs(images, training=False)).reshape(2, 1000)
    assert expected.std() > 0.1
    np.testing.assert_allclose(our_logits(ours, images), expected, rtol=1e-4, atol=1e-4)


def test_same_padding_is_not_keras_padding_at_odd_sizes(tmp_path):
  theirs = keras_model(75, 0.25, classifier_activation=None)
  theirs.save(tmp_path / 'model.h5')
  ours = trained.load(tmp_path / 'model.h5')
  images = RNG().uniform(-1, 1, (2, 75, 75, 3)).astype(np.float32)
  with ours.config.unlocked():
    ours.config.model.padding = 'same'
  assert np.abs(our_logits(ours, images) - np.asarray(theirs(images)).reshape(2, 1000)).max() > 1e-2


class Odd(MobileNet):
  body = ((2, 64), (2, 128))  # at 75 pixels, the second one strides over a map of 19x19, which Keras pads differently


def test_fine_tuning_computes_what_a_keras_file_does_at_an_odd_size_and_with_its_own_epsilon(tmp_path, monkeypatch):
  """The weights stay as they are, and so do the outputs; without the origin's epsilon or padding, they would not."""
  layers = keras_or_skip().layers
  x = inputs = layers.Input((75, 75, 3))

  def norm(x, name):
    return layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-5, name=name)(x))

  x = norm(layers.Conv2D(8, 3, 2, 'same', use_bias=False, name='conv1')(x), 'conv1_bn')
  for i, channels in ((1, 16), (2, 32)):
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = norm(layers.DepthwiseConv2D(3, 2, 'valid', use_bias=False, name=f'conv_dw_{i}')(x), f'conv_dw_{i}_bn')
    x = norm(layers.Conv2D(channels, 1, use_bias=False, name=f'conv_pw_{i}')(x), f'conv_pw_{i}_bn')
  x = layers.Conv2D(4, 1, name='conv_preds')(layers.GlobalAveragePooling2D(keepdims=True)(x))
  theirs = randomized(keras_or_skip().Model(inputs, layers.Flatten()(x)))
  for layer in theirs.layers:
    if layer.name.endswith('_bn'):
      layer.moving_variance.assign(1e-3 * layer.moving_variance)  # so that epsilon counts
  theirs.save(tmp_path / 'origin.h5')
  monkeypatch.setattr(weights, 'MobileNet', Odd)
  monkeypatch.setattr(weights, 'BODY', Odd.body)
  monkeypatch.setattr(weights, '_width_multiplier', lambda channels: channels / Odd.body[-1][1])
  monkeypatch.setitem(MODELS, 'mobilenet', Odd)

  source, lines = random_images(16, size=75), []
  config = tiny_config(**{
      'init.model': str(tmp_path / 'origin.h5'), 'init.keep_head': True, 'init.freeze_body': True, 'data.eval_crop': 1.0,
      'data.image_size': (75, 75), 'model.freeze_batch_stats': True, 'optim.learning_rate': 0.0, 'train_for': '1 step'})
  train_group([config], [tmp_path / 'run'], (source, source), says=[lines.append])
  expected = theirs.predict(images_of(source).astype(np.float32) / 127.5 - 1, verbose=0)
  ours = trained.load(tmp_path / 'run')
  np.testing.assert_allclose(ours.outputs(images_of(source)), expected, rtol=1e-4, atol=1e-4 * expected.std())
  assert (f'starting from {tmp_path / "origin.h5"}, with its batch_norm_epsilon=1e-05 and padding=keras, with its classifier; '
          'the body is frozen') in lines


def test_both_layouts_of_keras_and_no_top(tmp_path):
  """Tests the layout of Keras 3's save_weights, and a file of only weights, like the published ones."""
  import h5py
  theirs = keras_model(64, 0.25, classes=7)
  theirs.save(tmp_path / 'whole.h5')
  theirs.save_weights(tmp_path / 'keras3.weights.h5')
  with h5py.File(tmp_path / 'whole.h5') as whole, h5py.File(tmp_path / 'mobilenet_2_5_128_tf.h5', 'w') as bare:
    for name in whole['model_weights']:
      whole.copy(whole['model_weights'][name], bare, name)
    bare.attrs['layer_names'] = whole['model_weights'].attrs['layer_names']
  whole, bare = (trained.load(tmp_path / name) for name in ('whole.h5', 'mobilenet_2_5_128_tf.h5'))
  keras3 = trained.load(tmp_path / 'keras3.weights.h5', image_size=64)
  assert (whole.config.data.image_size, bare.config.data.image_size) == ((64, 64), (128, 128))
  for other in (keras3, bare):
    jax.tree.map(np.testing.assert_array_equal, other.variables, whole.variables)

  no_top = keras_model(64, 0.25, include_top=False, pooling='avg')
  no_top.save(tmp_path / 'no_top.h5')
  ours = trained.load(tmp_path / 'no_top.h5')
  image = RNG().integers(0, 256, (64, 64, 3), np.uint8)
  assert ours.num_classes == 0
  expected = np.asarray(no_top(ours.prepare(image).astype(np.float32) / 127.5 - 1))
  np.testing.assert_allclose(ours.features(image), expected, rtol=1e-4, atol=1e-4)
  with pytest.raises(UserError, match='no classifier'):
    ours.predict(image)


def test_slim_checkpoints_raw_and_averaged(tmp_path):
  """Compares the averages, if the checkpoint has them, or the raw variables with the network in TensorFlow's operations."""
  raw, averaged = random_variables(1001, 0.5), random_variables(1001, 0.5)
  averaged = jax.tree.map(lambda x: x * 1.1, averaged)
  arrays = {**slim_arrays(raw), **slim_arrays(averaged, '/ExponentialMovingAverage'),
            **slim_arrays(raw, '/RMSProp'), **slim_arrays(raw, '/RMSProp_1'), 'global_step': np.int64(7)}
  for name in list(arrays):  # training need not average the statistics
    if '/moving_' in name and name.endswith('Average'):
      del arrays[name]
  prefix = tmp_path / 'mobilenet_v1_0.5_160.ckpt'
  write_checkpoint(prefix, arrays)
  images = RNG().uniform(-1, 1, (2, 160, 160, 3)).astype(np.float32)
  averaged = {'params': averaged['params'], 'batch_stats': raw['batch_stats']}
  for path, choose, expected in ((prefix, True, averaged), (Path(f'{prefix}.index'), False, raw)):
    ours = trained.load(path, averaged=choose)
    assert ours.config.data.image_size == (160, 160) and ours.config.model.width_multiplier == 0.5
    assert ours.labels[0] == 'background'
    expected = slim_logits(slim_arrays(expected), images)
    np.testing.assert_allclose(our_logits(ours, images), expected, rtol=1e-4, atol=1e-4)


def test_frozen_graphs(tmp_path):
  """Tests a graph with fused batch norm, as in the release of 2018; the graph contains its epsilon."""
  arrays = slim_arrays(random_variables(1001, 0.25))
  with tf.Graph().as_default() as graph:
    tf.compat.v1.placeholder(tf.float32, (None, 192, 192, 3), 'input')
    for name, value in arrays.items():
      tf.constant(value, name=name)
    x = tf.zeros((1, 4, 4, 8))
    tf.compat.v1.nn.fused_batch_norm(x, *np.ones((4, 8), np.float32), epsilon=2e-3, is_training=False)
  (tmp_path / 'frozen.pb').write_bytes(graph.as_graph_def().SerializeToString())
  ours = trained.load(tmp_path / 'frozen.pb')
  assert ours.config.data.image_size == (192, 192) and ours.config.model.batch_norm_epsilon == 2e-3
  found = slim_arrays(ours.variables)
  assert found.keys() == arrays.keys()
  for name, value in found.items():
    np.testing.assert_array_equal(value, arrays[name])


@needs_shared
@pytest.mark.parametrize('size', (128, 224))
def test_the_published_graphs_give_tensorflow_probabilities(size):
  path = SHARED / 'mobilenet_v1_slim' / f'mobilenet_v1_0.25_{size}_frozen.pb'
  with tarfile.open(SHARED / 'imagenet_val1300.tar') as archive:
    members = [member for member in archive if member.name.endswith('.JPEG')][:8]
    images = [tf.io.decode_jpeg(archive.extractfile(member).read()).numpy() for member in members]
  graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
  ours = trained.load(path)
  assert ours.config.data.image_size == (size, size)
  prepared = ours.prepare(images)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    output, = tf.compat.v1.import_graph_def(graph, return_elements=['MobilenetV1/Predictions/Reshape_1:0'])
    feed = 'import/input:0'
    expected = [session.run(output, {feed: image[None] / 127.5 - 1})[0] for image in prepared.astype(np.float32)]
  np.testing.assert_allclose(ours.predict(images), expected, atol=1e-4)
  assert np.argmax(expected, 1).tolist() == ours.predict(images).argmax(1).tolist()


@needs_shared
def test_the_labels_are_the_synsets_of_imagenet():
  with tarfile.open(SHARED / 'imagenet_val1300.tar') as archive:
    words = archive.extractfile('imagenet_val1300/synset_words.txt').read().decode().splitlines()
  assert labels.imagenet_labels(1000) == tuple(words)
  assert labels.imagenet_labels(1001) == ('background', *words)


def test_all_that_does_not_fit_is_told_together(tmp_path):
  arrays = slim_arrays(random_variables(1001, 0.25))
  del arrays['MobilenetV1/Conv2d_3_pointwise/weights']
  arrays['MobilenetV1/Conv2d_0/BatchNorm/gamma'] = np.ones(9, np.float32)
  arrays['MobilenetV1/Conv2d_14_depthwise/depthwise_weights'] = np.ones((3, 3, 4, 1), np.float32)
  write_checkpoint(tmp_path / 'model.ckpt', arrays)
  with pytest.raises(UserError) as error:
    trained.load(tmp_path / 'model.ckpt')
  for part in ('Conv2d_3_pointwise/weights is missing', r'Conv2d_0/BatchNorm/gamma is (9,), expected (8,)',
               'Conv2d_14_depthwise/depthwise_weights (3, 3, 4, 1) is unexpected'):
    assert part in str(error.value)


@pytest.mark.parametrize('name', ('model.h5', 'model.pb', 'model.tgz', 'model.ckpt'))
@pytest.mark.parametrize('damage', ('truncated', 'another kind', 'empty'))
def test_damaged_files_are_one_line(name, damage, tmp_path):
  path = tmp_path / name
  arrays = slim_arrays(random_variables(5, 0.25))
  if name == 'model.h5':
    keras_model(32, 0.25, classes=5).save(path)
  elif name == 'model.pb':
    with tf.Graph().as_default() as graph:
      for key, value in arrays.items():
        tf.constant(value, name=key)
    path.write_bytes(graph.as_graph_def().SerializeToString())
  else:
    write_checkpoint(tmp_path / 'model.ckpt', arrays)
    if name == 'model.tgz':
      with tarfile.open(path, 'w:gz') as archive:
        for part in tmp_path.glob('model.ckpt.*'):
          archive.add(part, part.name)
      for part in tmp_path.glob('model.ckpt.*'):
        part.unlink()
  whole = path if path.exists() else next(tmp_path.glob('model.ckpt.data*'))
  whole.write_bytes({'truncated': whole.read_bytes()[:whole.stat().st_size // 2], 'empty': b'',
                     'another kind': b'GIF89a' * 1000}[damage])
  with pytest.raises(UserError) as error:
    trained.load(path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)
