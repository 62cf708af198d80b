"""Real photographs by every path: the same pixels, those of TensorFlow, and the same class."""

import csv
import io
import tarfile

import numpy as np
import pytest
from conftest import NEVER, SHARED, command
from PIL import Image

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.data import eval_batches, from_images, keep_in_memory, load_whole, tfds_sets
from mobilenet_jax.models import MobileNet
from mobilenet_jax.trained import recording
from mobilenet_jax.trained.published import weights

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason=f'the photographs are not here: {SHARED}')
FEW = 12


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Returns paths of photographs: 227 x 227 from ImageNet, and of many sizes from COCO."""
  root = tmp_path_factory.mktemp('photos')
  for name in ('imagenet_val1300', 'coco192'):
    with tarfile.open(SHARED / f'{name}.tar') as archive:
      archive.extractall(root, filter='data')
  return {name: sorted(path for path in (root / name).rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
          for name in ('imagenet_val1300', 'coco192')}


def model_for(size, stream):
  module = MobileNet(5, 0.25)
  variables = weights.unflatten({path: np.zeros(shape, np.float32) for path, shape in weights.shapes(module).items()})
  config = config_lib.changed(config_lib.base(), {'data.image_size': size, 'data.stream_size': stream,
                                                  'model.width_multiplier': 0.25})
  return trained.TrainedModel(config, variables, None, 'zeros')


def from_tfds(paths, folder, file_format, monkeypatch):
  """Returns the files as a TFDS set, whose records are their bytes."""
  import tensorflow_datasets as tfds

  class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(encoding_format='jpeg'), 'label': tfds.features.ClassLabel(num_classes=2)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, path in enumerate(paths):
        yield i, {'image': io.BytesIO(path.read_bytes()), 'label': 0}

  monkeypatch.setattr(tfds_sets, 'INDEX_CACHE', folder / 'cache')
  builder = Photos(data_dir=str(folder / file_format), file_format=file_format)
  builder.download_and_prepare()
  return tfds_sets.source(builder, 'train')


def by_every_path(paths, model, folder, monkeypatch):
  """Returns the pixels that the network is given, by path: uint8 (n, *stream_size, 3)."""
  config = model.config.data
  for i, path in enumerate(paths):
    link = folder / 'classes' / 'a' / f'{i:04}.jpg'
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path)
  whole = load_whole(config_lib.changed(model.config, {'data.name': f'folder:{folder}/classes'}).data)
  alone = from_images([str(path) for path in paths], np.zeros(len(paths), np.int32), 0, upright=True)
  sources = {'folder': whole, 'folder, kept': keep_in_memory(whole), 'paths': alone, **{kind: from_tfds(paths, folder, kind, monkeypatch) for kind in ('tfrecord', 'array_record')}}
  batches = lambda source: np.concatenate([batch['image'][batch['mask'] > 0] for batch in eval_batches(
      source, config, 7, NEVER, transform=model.task.transform)])
  found = {name: batches(source) for name, source in sources.items()}
  found['folder, kept, again'] = batches(sources['folder, kept'])
  found['notebook, paths'] = model.prepare([str(path) for path in paths])
  found['notebook, PIL images'] = model.prepare([Image.open(path) for path in paths])
  seen = []
  outputs = lambda self, images, names: seen.append(images) or np.zeros((len(images), 5))
  monkeypatch.setattr(trained.TrainedModel, 'outputs', outputs)
  rows = recording.outputs_for(model, whole)
  found['recording'] = np.concatenate(seen)[:len(rows)]
  return found


@pytest.mark.parametrize('name', ('imagenet_val1300', 'coco192'))
@pytest.mark.parametrize('size, stream', (((128, 128), (0, 0)), ((75, 131), (0, 0)), ((128, 128), (192, 224))))
@pytest.mark.parametrize('count', (FEW, pytest.param(None, marks=pytest.mark.slow)))
def test_pixels_are_the_same_by_every_path_and_tensorflows(name, size, stream, count, photos, tmp_path, monkeypatch):
  tf = pytest.importorskip('tensorflow')
  paths, model = photos[name][:count], model_for(size, stream)
  found = by_every_path(paths, model, tmp_path, monkeypatch)
  first = found['folder']
  for kind, pixels in found.items():
    np.testing.assert_array_equal(pixels, first, kind)
  different = 0
  for path, ours in zip(paths, first, strict=True):
    image = tf.io.decode_jpeg(path.read_bytes(), channels=3, dct_method='INTEGER_ACCURATE')
    theirs = tf.image.resize(tf.image.central_crop(image, 0.875), stream if any(stream) else size).numpy().round()
    assert np.abs(ours.astype(int) - theirs).max() <= 1, path
    different += (ours != theirs).mean()
  assert different / len(paths) <= 0.01


def weights_of(name):
  return SHARED / 'mobilenet_v1_slim' / f'{name.replace("mobilenet_", "mobilenet_v1_")}_frozen.pb'


def tensorflows_classes(name, size, paths):
  """Returns the class of each image by the published graph in TensorFlow, which counts the background."""
  import tensorflow as tf
  graph = tf.compat.v1.GraphDef()
  graph.ParseFromString(weights_of(name).read_bytes())
  network = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=''), []).prune(
      'input:0', 'MobilenetV1/Predictions/Reshape_1:0')
  classes = []
  for i in range(0, len(paths), 50):
    images = [tf.io.decode_jpeg(path.read_bytes(), channels=3, dct_method='INTEGER_ACCURATE') for path in paths[i:i + 50]]
    images = [tf.round(tf.image.resize(tf.image.central_crop(image, 0.875), (size, size))) for image in images]
    classes.append(network(tf.stack(images) / 127.5 - 1).numpy().argmax(-1))
  return np.concatenate(classes)


@pytest.mark.parametrize('name, size, right', (('mobilenet_0.25_128', 128, 754), ('mobilenet_0.25_224', 224, 858)))
@pytest.mark.parametrize('count', (FEW, pytest.param(None, marks=pytest.mark.slow)))
def test_published_models_have_the_same_top1_by_every_path(name, size, right, count, photos, tmp_path):
  """For every image: in a notebook, by predict, on a folder and kept in memory; and for all but a tie in TensorFlow."""
  pytest.importorskip('tensorflow')
  model, paths = trained.load(str(weights_of(name))), photos['imagenet_val1300'][:count]
  root = paths[0].parent.parent
  whole = load_whole(config_lib.changed(model.config, {'data.name': f'folder:{root}'}).data)
  rows = [i for i, example in enumerate(whole.ids) if example.rpartition('/')[2] in {path.name for path in paths}]
  order = np.argsort([whole.ids[i] for i in rows])
  part = whole.subset(np.array(rows)[order])
  found = {'notebook': model.predict([str(path) for path in paths])}
  for kind, source in (('folder', part), ('kept', keep_in_memory(part))):
    found[kind] = np.concatenate([model.prediction(batch['image'])[batch['mask'] > 0] for batch in eval_batches(
        source, model.config.data, 50, NEVER, transform=model.task.transform)])
  done = command('predict', weights_of(name), '-', '--format=csv', '--top=1', stdin='\n'.join(map(str, paths)))
  labels = [row['label'] for row in csv.DictReader(io.StringIO(done.stdout))]
  classes = {kind: rows.argmax(-1).tolist() for kind, rows in found.items()}
  classes['predict'] = [model.labels.index(label) for label in labels]
  for kind in classes:
    assert classes[kind] == classes['notebook'], kind
  theirs = tensorflows_classes(name, size, paths)
  assert (theirs != classes['notebook']).sum() <= 1
  if count is None:
    truth = np.array([int(part.class_names[label]) for label in part.labels]) + 1  # 0 is the background
    for kind in (theirs, classes['kept']):
      assert abs((np.array(kind) == truth).sum() - right) <= 1
