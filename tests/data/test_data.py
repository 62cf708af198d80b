import io
import threading

import numpy as np
import pytest
from conftest import NEVER, data_config, random_images, tiny_config
from PIL import Image

from mobilenet_jax import tasks
from mobilenet_jax.data import ArraySource, pipeline, preprocessing, sources
from mobilenet_jax.data.drawn import fabrics
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.tasks import metrics
from mobilenet_jax.training.evaluation import Evaluated, evaluate


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder of two splits, two classes and 13 + 7 images of several sizes and formats; the class is the brightness."""
  pytest.importorskip('tensorflow')
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split, count in (('train', 13), ('test', 7)):
    for i in range(count):
      path = root / split / ('dark', 'light')[i % 2]
      path.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 60, (40 + i, 36, 3)) + 150 * (i % 2)
      Image.fromarray(pixels.astype(np.uint8)).save(path / f'{i}.{("jpg", "png")[i % 3 == 0]}')
  return root


def load(path, **changes):
  config = data_config(name=f'folder:{path}', **changes)
  return config, *map(sources.keep_in_memory, sources.load(config))


def test_fabrics_is_deterministic_and_its_classes_are_told_apart_by_texture_alone():
  first, again = (fabrics.draw(7, np.random.default_rng(3)) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  assert first.shape == (64, 64, 3) and first.dtype == np.uint8
  assert len(set(fabrics.CLASSES)) == len(fabrics.WEAVES) * len(fabrics.MOTIFS)
  # Independent of the drawing code: the strongest frequency of a striped weave lies on the expected axis.
  for weave, axis in (('horizontal', 0), ('vertical', 1)):
    label = fabrics.CLASSES.index(f'{weave}_disc')
    power = sum(np.abs(np.fft.fft2(fabrics.draw(label, np.random.default_rng(i)).mean(-1))) for i in range(20))
    band = slice(10, 17)  # periods of 64/16 to 64/10 pixels
    along = power[band, :1].max() if axis == 0 else power[:1, band].max()
    across = power[:1, band].max() if axis == 0 else power[band, :1].max()
    assert along > 3 * across


def test_training_batches_repeat_from_any_step():
  source, config = random_images(40), data_config()
  stream = pipeline.train_batches(source, config, 8, seed=3, start_step=0, on_bad_image=NEVER)
  whole = [next(stream) for _ in range(12)]  # two epochs and more
  stream = pipeline.train_batches(source, config, 8, seed=3, start_step=7, on_bad_image=NEVER)
  for expected in whole[7:]:
    batch = next(stream)
    for key in expected:
      np.testing.assert_array_equal(batch[key], expected[key])
  assert not np.array_equal(whole[0]['image'], whole[5]['image'])  # a different order and different crops


def test_an_epoch_sees_every_example_once():
  images = np.zeros((40, 32, 32, 3), np.uint8)
  source = ArraySource(images, np.arange(40, dtype=np.int32), 40)
  stream = pipeline.train_batches(source, data_config(), 8, seed=0, start_step=0, on_bad_image=NEVER)
  epochs = [np.concatenate([next(stream)['label'] for _ in range(5)]) for _ in range(2)]
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
  assert list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize('kind', ('arrays', 'folder'))
def test_streams_repeat_from_any_step(kind, folder):
  config, source, _ = load(folder)
  if kind == 'arrays':
    source = random_images(13)
  stream = pipeline.train_batches(source, config, 4, seed=3, start_step=0, on_bad_image=NEVER)
  whole = [next(stream) for _ in range(7)]
  stream = pipeline.train_batches(source, config, 4, seed=3, start_step=4, on_bad_image=NEVER)
  for expected in whole[4:]:
    batch = next(stream)
    assert batch['image'].shape == (4, 32, 32, 3) and batch['image'].dtype == np.uint8
    for key in expected:
      np.testing.assert_array_equal(batch[key], expected[key])


@pytest.mark.parametrize('count', (16, 17, 23))
def test_evaluation_counts_every_example_once(count):
  source = random_images(count)
  labels = []

  def step(variables, batch, teacher_variables):
    batch = {name: np.concatenate(parts) for name, parts in batch.items()}  # the parts are those of the devices
    assert batch['image'].shape == (8, 32, 32, 3)
    labels.extend(batch['label'][batch['mask'] > 0])
    wrong = (batch['label'] != 0).astype(np.float32)
    sums = {k: np.asarray(v) for k, v in metrics.sums({'wrong': wrong}, batch['mask']).items()}
    return sums, {'kept': batch['label'].reshape(devices.device_count(), -1)}

  class Task:
    crop_targets = None

    def summary(self, kept, source):
      assert kept['kept'].tolist() == source.labels.tolist()
      return {'summed': kept['kept'].sum()}

  result, = evaluate([Evaluated(Task(), step, {})], source, tiny_config(), NEVER)
  assert result['summed'] == source.labels.sum()
  assert labels == list(source.labels)
  assert result['examples'] == count
  assert result['wrong'] == pytest.approx((source.labels != 0).mean())


def test_folder_evaluation_counts_every_example_once(folder):
  config, _, source = load(folder)
  assert source.num_examples == 7 and source.num_classes == 2
  batches = list(pipeline.eval_batches(source, config, 4, NEVER))
  assert [int(batch['mask'].sum()) for batch in batches] == [4, 3]
  for batch in batches:  # dark images are below the middle, light ones above
    bright = batch['image'].mean((1, 2, 3)) > 100
    np.testing.assert_array_equal(bright[batch['mask'] > 0], batch['label'][batch['mask'] > 0] == 1)


def test_folder_without_splits_holds_out_a_tenth(folder, tmp_path):
  for name in ('dark', 'light'):
    (tmp_path / name).mkdir()
    for i in range(10):
      Image.new('RGB', (33, 40), (10 * i, 0, 0)).save(tmp_path / name / f'{i}.png')
  _, train, test = load(tmp_path)
  assert (train.num_examples, test.num_examples) == (18, 2)
  seen = [(int(label), int(image[0, 0, 0])) for source in (train, test)
          for image, label in zip(source.images, source.labels)]
  assert sorted(seen) == [(label, 10 * i) for label in (0, 1) for i in range(10)]


def test_small_folders_are_kept_decoded_and_large_ones_are_streamed(tmp_path, monkeypatch):
  """Both give the same examples in the same order. The images have different sizes."""
  rng = np.random.default_rng(0)
  for name in ('train/dark', 'train/light', 'test/dark', 'test/light'):
    (tmp_path / name).mkdir(parents=True)
    for i in range(3):
      image = rng.integers(0, 256, (40 + i, 50, 3), np.uint8)
      Image.fromarray(image).save(tmp_path / name / f'{i}.png')
  config, in_memory, _ = load(tmp_path)
  monkeypatch.setattr(sources, 'SAMPLE', 2)
  monkeypatch.setattr(sources, 'MAX_BYTES_IN_MEMORY', 5 * 40 * 50 * 3)
  _, stream, _ = load(tmp_path)
  assert isinstance(in_memory, ArraySource) and isinstance(stream, sources.FileSource)
  assert {image.shape for image in in_memory.images} == {(40, 50, 3), (41, 50, 3), (42, 50, 3)}
  for a, b in zip(*(pipeline.eval_batches(source, config, 4, NEVER) for source in (in_memory, stream)), strict=True):
    np.testing.assert_array_equal(a['label'], b['label'])
    np.testing.assert_allclose(a['image'], b['image'].astype(int), atol=1)
  batch = next(pipeline.train_batches(in_memory, config, 5, 0, 0, NEVER))
  assert batch['image'].shape == (5, *config.image_size, 3)


def test_bad_images_are_named_and_fatal_or_skipped(folder, tmp_path):
  import shutil
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  bad = tmp_path / 'train' / 'dark' / '4.jpg'
  bad.write_bytes(bad.read_bytes()[:200])
  eval_bad = tmp_path / 'test' / 'light' / '1.jpg'
  eval_bad.write_bytes(b'not an image')

  config, source, eval_source = load(tmp_path)
  with pytest.raises(UserError, match=r'dark/4\.jpg: cannot be decoded as a JPEG'):
    stream = pipeline.train_batches(source, config, 4, 0, 0, NEVER)
    for _ in range(3):
      next(stream)

  config.bad_images = 'skip'
  skipped = []
  stream = pipeline.train_batches(source, config, 4, 0, 0, skipped.append)
  for _ in range(6):  # two epochs, each with twelve of the thirteen images
    batch = next(stream)
    assert batch['mask'].all() and (batch['image'].mean((1, 2, 3)) > 5).all()
  assert set(skipped) == {str(bad)}

  skipped = []
  batches = list(pipeline.eval_batches(eval_source, config, 4, skipped.append))
  assert sum(batch['mask'].sum() for batch in batches) == 6 and skipped == [str(eval_bad)]


@pytest.mark.parametrize('height, width, size', ((64, 64, (32, 32)), (50, 41, (32, 48)), (20, 30, (40, 40))))
@pytest.mark.parametrize('train', (True, False))
def test_pillow_crops_as_tensorflow_does(height, width, size, train):
  """Compares the two implementations of the preprocessing on the same draws."""
  pytest.importorskip('tensorflow')
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
  config = data_config(image_size=size, crop_min_area=0.3)
  encoded = io.BytesIO()
  Image.fromarray(image).save(encoded, 'png')
  for _ in range(5):
    draws = rng.random(preprocessing.DRAWS).astype(np.float32) if train else None
    if train:
      window = preprocessing.random_window(np.float32(height), np.float32(width), draws, config, np)
    else:
      window = preprocessing.central_window(float(height), float(width), config, np)
    ours = preprocessing.crop_array(image, window, train and draws[4] < 0.5, size)
    theirs, part, flip = preprocessing.crop_encoded(encoded.getvalue(), list(draws) if train else None, config)
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape and bool(flip) == (train and draws[4] < 0.5)
    np.testing.assert_allclose(part, np.array(window) / (height, width, height, width), rtol=1e-6)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1  # rounding


def test_central_crop_is_tensorflows():
  tf = pytest.importorskip('tensorflow')
  for size in (227, 64, 33, 500):
    image = np.arange(size * size * 3).reshape(size, size, 3) % 251
    top, left, height, width = map(int, preprocessing.central_window(float(size), float(size), data_config(), np))
    np.testing.assert_array_equal(image[top:top + height, left:left + width], tf.image.central_crop(image, 0.875))


def test_random_windows_are_inside_and_large_enough():
  rng = np.random.default_rng(0)
  config = data_config(crop_min_area=0.5)
  for _ in range(500):
    height, width = rng.integers(20, 200, 2).astype(float)
    top, left, h, w = preprocessing.random_window(height, width, rng.random(5), config, np)
    assert 0 <= top and top + h <= height and 0 <= left and left + w <= width
  square = [preprocessing.random_window(100.0, 100.0, rng.random(5), config, np) for _ in range(500)]
  areas = [h * w / 1e4 for _, _, h, w in square]
  assert min(areas) > 0.42 and max(areas) <= 1  # clipping an aspect of 4/3 removes at most a seventh of the area
  aspects = [w / h for _, _, h, w in square]
  assert 0.72 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.4


def test_normalize_and_distort_stay_in_range():
  import jax
  images = preprocessing.normalize(np.array([[[[0, 127, 255]]]], np.uint8), (1, 1))
  np.testing.assert_allclose(images, [[[[-1, -1 / 255, 1]]]], atol=1e-6)
  images = jax.random.uniform(jax.random.key(0), (8, 6, 6, 3), minval=-1, maxval=1)
  np.testing.assert_allclose(preprocessing.distort_colors(images, jax.random.key(1), 0.0), images, atol=1e-6)
  distorted = preprocessing.distort_colors(images, jax.random.key(1), 1.0)
  assert np.abs(distorted).max() <= 1 and np.abs(distorted - images).mean() > 0.05


@pytest.mark.parametrize('size', ((24, 24), (20, 28), (13, 32)))
def test_device_resizes_as_tensorflow(size):
  tf = pytest.importorskip('tensorflow')
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  expected = tf.image.resize(images, size, 'bilinear').numpy() / 127.5 - 1
  np.testing.assert_allclose(preprocessing.normalize(images, size), expected, atol=1e-5)


def test_prefetch_keeps_order_and_hands_errors_on():
  def numbers():
    yield from range(5)
    raise ValueError('the end')

  stream = pipeline.prefetch(numbers(), 60, NEVER)
  assert [next(stream) for _ in range(5)] == list(range(5))
  with pytest.raises(ValueError, match='the end'):
    next(stream)


def test_data_that_stalls_is_said():
  go_on, said = threading.Event(), []

  def numbers():
    yield 0
    assert go_on.wait(60)
    yield 1

  def on_stall(seconds):
    said.append(seconds)
    if len(said) == 3:
      go_on.set()

  assert list(pipeline.prefetch(numbers(), 0.05, on_stall)) == [0, 1]
  assert len(said) >= 3 and said[2] > said[1] > said[0] >= 0.05


@pytest.mark.parametrize('name, message', (
    ('folder:/nowhere', 'there is no such folder'),
    ('npz:/nowhere.npz', 'not a readable .npz file'),
    ('no_such_dataset', 'TFDS has no such dataset'),
    ('mnist', 'not prepared in .*; prepare it once with: tfds build mnist')))
def test_datasets_that_are_not_there(name, message, tmp_path):
  with pytest.raises(UserError, match=message):
    sources.load(data_config(name=name, data_dir=str(tmp_path)))


def test_empty_class_folder_is_named(tmp_path):
  for name in ('cat', 'dog'):
    (tmp_path / name).mkdir()
  Image.new('RGB', (40, 40)).save(tmp_path / 'cat' / '1.png')
  with pytest.raises(UserError, match='dog: no images in this class folder'):
    sources.load(data_config(name=f'folder:{tmp_path}'))
  with pytest.raises(UserError, match='0 sub-folders; expected one per class'):
    sources.load(data_config(name=f'folder:{tmp_path / "dog"}'))
  config = tiny_config(**{'data.name': f'folder:{tmp_path / "cat"}'})  # images alone
  with pytest.raises(UserError, match='the data has no class labels; expected at least two'):
    tasks.create(config).outputs(sources.load_whole(config.data))


def test_npz(tmp_path):
  source = random_images(12)
  path = tmp_path / 'set.npz'
  np.savez(path, train_images=source.images, train_labels=source.labels, test_images=source.images[:5],
           test_labels=source.labels[:5])
  train, test = sources.load(data_config(name=f'npz:{path}'))
  assert (train.num_examples, test.num_examples, train.num_classes, test.num_classes) == (12, 5, 4, 4)
  np.savez(path, train_images=source.images / 255, train_labels=source.labels)
  with pytest.raises(UserError, match=r'train_images is float64 \(12, 32, 32, 3\).*expected uint8'):
    sources.load(data_config(name=f'npz:{path}'))


# People, attributes, pairs.


@pytest.fixture(scope='module')
def people(tmp_path_factory):
  """Returns a folder of twelve people with one to three images each, and pairs of some of them in two folds."""
  pytest.importorskip('tensorflow')
  root = tmp_path_factory.mktemp('people')
  for i in range(12):
    (root / f'person_{i:02}').mkdir()
    for k in range(1, 2 + i % 3):
      Image.new('RGB', (40, 40), (20 * i, 60 * k, 0)).save(root / f'person_{i:02}' / f'person_{i:02}_{k:04}.png')
  lines = ['2\t1', 'person_01\t1\t2', 'person_02\t1\tperson_03\t1', 'person_04\t1\t2', 'person_05\t2\tperson_06\t1']
  (root / 'pairs.txt').write_text('\n'.join(lines) + '\n')
  return root


def test_people_are_held_out_whole(people):
  _, train, test = load(people, split_by='class')
  assert set(train.labels) & set(test.labels) == set() and len(set(test.labels)) == 1
  assert train.num_examples + test.num_examples == sum(1 + i % 3 for i in range(12))
  assert test.ids[0].split('/')[0] == train.class_names[test.labels[0]]


def test_nobody_of_a_held_out_fold_is_trained_on(people):
  _, train, test = load(people, pairs=str(people / 'pairs.txt'), held_out_folds=(1,))
  names = {name.partition('/')[0] for name in train.ids}
  assert names == {f'person_{i:02}' for i in range(12)} - {'person_04', 'person_05', 'person_06'}
  assert set(test.ids) == {f'person_{i:02}/person_{i:02}_{k:04}.png' for i, k in (
      (1, 1), (1, 2), (2, 1), (3, 1), (4, 1), (4, 2), (5, 2), (6, 1))}
  with pytest.raises(UserError, match=r'data.held_out_folds=\(2,\): .*pairs.txt has the folds 0 to 1'):
    load(people, pairs=str(people / 'pairs.txt'), held_out_folds=(2,))


@pytest.mark.parametrize('in_memory', (True, False))
def test_batches_of_identities(people, in_memory):
  """Each batch holds groups of two images of a person; people with one image have no such group."""
  config, train, _ = load(people, per_identity=2)
  source = train if in_memory else sources.load(config)[0]
  stream = pipeline.train_batches(source, config, 4, seed=0, start_step=0, on_bad_image=NEVER)
  for _ in range(8):
    labels = next(stream)['label']
    assert labels[0] == labels[1] and labels[2] == labels[3]
  single = ArraySource(np.zeros((8, 32, 32, 3), np.uint8), np.arange(8, dtype=np.int32), 8)
  with pytest.raises(UserError, match='data.per_identity=2: none of the 8 identities has that many images'):
    next(pipeline.train_batches(single, config, 4, 0, 0, NEVER))
