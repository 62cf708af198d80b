"""Sources and batches: what is read, in which order, and what happens to what cannot be read."""

import itertools
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from conftest import NEVER, data_config, images_of, random_images, tiny_config
from PIL import Image

from mobilenet_jax import tasks
from mobilenet_jax.data import (
    BadExample, Source, eval_batches, examples, from_images, keep_in_memory, load, load_whole, train_batches)
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.runtime.threads import Workers
from mobilenet_jax.tasks import metrics
from mobilenet_jax.training.evaluation import Evaluated, evaluate


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder of two splits, two classes and 13 + 7 images of several sizes and formats; the class is the brightness."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split, count in (('train', 13), ('test', 7)):
    for i in range(count):
      path = root / split / ('dark', 'light')[i % 2]
      path.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 60, (40 + i, 36, 3)) + 150 * (i % 2)
      Image.fromarray(pixels.astype(np.uint8)).save(path / f'{i}.{("jpg", "png")[i % 3 == 0]}')
  return root


def load_folder(path, **changes):
  config = data_config(name=f'folder:{path}', **changes)
  return config, *load(config)


def assert_equal(first, second):
  for a, b in itertools.zip_longest(first, second):
    assert set(a) == set(b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], name)


def test_training_batches_repeat_from_any_step():
  source, config = random_images(40), data_config()
  stream = train_batches(source, config, 8, seed=3, start_step=0, on_bad_image=NEVER)
  whole = [next(stream) for _ in range(12)]  # two epochs and more
  stream = train_batches(source, config, 8, seed=3, start_step=7, on_bad_image=NEVER)
  for expected in whole[7:]:
    batch = next(stream)
    for key in expected:
      np.testing.assert_array_equal(batch[key], expected[key])
  assert not np.array_equal(whole[0]['image'], whole[5]['image'])  # a different order and different crops


def test_an_epoch_sees_every_example_once():
  images = np.zeros((40, 32, 32, 3), np.uint8)
  source = from_images(images, np.arange(40, dtype=np.int32), 40)
  stream = train_batches(source, data_config(), 8, seed=0, start_step=0, on_bad_image=NEVER)
  epochs = [np.concatenate([next(stream)['label'] for _ in range(5)]) for _ in range(2)]
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
  assert list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize('kind', ('arrays', 'files', 'files kept'))
def test_batches_repeat_from_any_step_and_read_nothing_before(kind, folder, monkeypatch):
  config, source, _ = load_folder(folder)
  source = {'arrays': random_images(13), 'files': source, 'files kept': keep_in_memory(source)}[kind]
  stream = train_batches(source, config, 4, seed=3, start_step=0, on_bad_image=NEVER)
  whole = [next(stream) for _ in range(7)]
  stream.close()
  time.sleep(0.1)  # until its threads have finished what they were doing
  read, original = [], Source.__getitem__
  monkeypatch.setattr(Source, '__getitem__', lambda self, i: read.append(i) or original(self, i))
  stream = train_batches(source, config, 4, seed=3, start_step=4, on_bad_image=NEVER)
  assert_equal(whole[4:], [next(stream) for _ in whole[4:]])
  assert all(batch['image'].shape == (4, 32, 32, 3) and batch['image'].dtype == np.uint8 for batch in whole)
  stream.close()
  assert len(read) <= 4 * (3 + 4)  # those batches and four ahead


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
    transform = None

    def summary(self, kept, source):
      assert kept['kept'].tolist() == source.labels.tolist()
      return {'summed': kept['kept'].sum()}

  result, = evaluate([Evaluated(Task(), step, {})], source, tiny_config(), NEVER)
  assert result['summed'] == source.labels.sum()
  assert labels == list(source.labels)
  assert result['examples'] == count
  assert result['wrong'] == pytest.approx((source.labels != 0).mean())


def test_folder_evaluation_counts_every_example_once(folder):
  config, _, source = load_folder(folder)
  assert len(source) == 7 and source.num_classes == 2
  batches = list(eval_batches(source, config, 4, NEVER))
  assert [int(batch['mask'].sum()) for batch in batches] == [4, 3]
  for batch in batches:  # dark images are below the middle, light ones above
    bright = batch['image'].mean((1, 2, 3)) > 100
    np.testing.assert_array_equal(bright[batch['mask'] > 0], batch['label'][batch['mask'] > 0] == 1)


def test_folder_without_splits_holds_out_a_tenth(folder, tmp_path):
  for name in ('dark', 'light'):
    (tmp_path / name).mkdir()
    for i in range(10):
      Image.new('RGB', (33, 40), (10 * i, 0, 0)).save(tmp_path / name / f'{i}.png')
  _, train, test = load_folder(tmp_path)
  assert (len(train), len(test)) == (18, 2)
  seen = [(int(example.targets['label']), int(example.image[0, 0, 0])) for source in (train, test) for example in source]
  assert sorted(seen) == [(label, 10 * i) for label in (0, 1) for i in range(10)]


@pytest.mark.parametrize('most', (2**30, 5 * 40 * 50 * 3, 0))
def test_images_kept_in_memory_change_nothing(most, folder, monkeypatch):
  """Whether all of them fit or not: bit for bit, ids and targets included."""
  monkeypatch.setattr(examples, 'MAX_BYTES_IN_MEMORY', most)
  monkeypatch.setattr(examples, 'SAMPLE', 4)
  config, source, eval_source = load_folder(folder)
  kept, eval_kept = map(keep_in_memory, (source, eval_source))
  assert kept.ids == source.ids and kept.labels.tolist() == source.labels.tolist()
  for _ in range(2):
    assert_equal(eval_batches(eval_source, config, 4, NEVER), eval_batches(eval_kept, config, 4, NEVER))
  assert_equal(*(list(itertools.islice(train_batches(s, config, 4, 0, 0, NEVER), 9)) for s in (source, kept)))
  fits = most == 2**30
  shutil.copytree(folder, folder.parent / f'gone_{most}')
  config, gone, _ = load_folder(folder.parent / f'gone_{most}')
  gone = keep_in_memory(gone.subset(np.arange(8)))
  first = [example.image for example in gone]
  shutil.rmtree(folder.parent / f'gone_{most}')
  if fits:  # nothing is read twice
    for example, image in zip(gone, first, strict=True):
      np.testing.assert_array_equal(example.image, image)
  else:
    with pytest.raises(BadExample, match='No such file'):
      list(gone)


def damage(path, kind):
  if kind == 'cut short':
    path.write_bytes(path.read_bytes()[:200])
  elif kind == 'not an image':
    path.write_bytes(b'not an image')
  else:
    path.unlink()
    if kind == 'dangling link':
      path.symlink_to('nowhere')


@pytest.mark.parametrize('kind', ('cut short', 'not an image', 'dangling link', 'gone'))
@pytest.mark.parametrize('kept', (False, True))
def test_bad_images_are_named_and_fatal_or_skipped(kind, kept, folder, tmp_path):
  """Whether they cannot be decoded or cannot be read, and also if that happens after they have been listed."""
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  bad, eval_bad = tmp_path / 'train' / 'dark' / '4.jpg', tmp_path / 'test' / 'light' / '1.jpg'
  config, source, eval_source = load_folder(tmp_path)
  for path in (bad, eval_bad):
    damage(path, kind)
  if kept:
    source, eval_source = map(keep_in_memory, (source, eval_source))
  with pytest.raises(UserError, match=r'dark/4\.jpg: .*; repair or remove it, or train with --config.data.bad_'):
    list(itertools.islice(train_batches(source, config, 4, 0, 0, NEVER), 3))

  config.bad_images = 'skip'
  skipped = []
  for batch in itertools.islice(train_batches(source, config, 4, 0, 0, skipped.append), 6):  # two epochs, of 12 images each
    assert batch['mask'].all() and (batch['image'].mean((1, 2, 3)) > 5).all()
  assert {error.name for error in skipped} == {str(bad)} and 1 <= len(skipped) <= 2

  skipped = []
  batches = list(eval_batches(eval_source, config, 4, skipped.append))
  assert sum(batch['mask'].sum() for batch in batches) == 6 and [error.name for error in skipped] == [str(eval_bad)]
  assert not batches[0]['image'][batches[0]['mask'] == 0].any()


def test_a_folder_that_vanishes_is_one_line(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'data')
  config, source, _ = load_folder(tmp_path / 'data', bad_images='skip')
  stream = train_batches(source, config, 4, 0, 0, lambda error: None)
  next(stream)
  shutil.rmtree(tmp_path / 'data')
  with pytest.raises(UserError, match=r'none of the 4 images of step \d+ can be read'):
    list(itertools.islice(stream, 9))


def test_a_read_that_never_returns_keeps_nobody_from_ending(tmp_path):
  """The process ends at once; threads of concurrent.futures would be waited for."""
  import subprocess
  script = """if True:
    import sys, time
    sys.path[:0] = ['tests']
    from conftest import NEVER, data_config, random_images
    from mobilenet_jax.data import Source, train_batches
    read = Source.__getitem__
    Source.__getitem__ = lambda self, i: read(self, i) if i % 7 else time.sleep(1000)
    said = []
    batches = train_batches(random_images(40), data_config(stall_seconds=0.2), 8, 0, 0, NEVER, said.append, lambda: len(said) > 2)
    print(len(list(batches)), len(said), time.monotonic())
  """
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60)
  batches, said, ended = done.stdout.split()
  assert done.returncode == 0 and int(batches) < 5 and int(said) == 3, done
  assert time.monotonic() - float(ended) < 10  # of a thousand seconds


def test_data_that_stalls_is_said(monkeypatch):
  go_on, said, original = threading.Event(), [], Source.__getitem__

  def slow(self, i):
    assert i < 24 or go_on.wait(60)
    return original(self, i)

  def on_stall(seconds):
    said.append(seconds)
    if len(said) == 3:
      go_on.set()

  monkeypatch.setattr(Source, '__getitem__', slow)
  assert len(list(eval_batches(random_images(30), data_config(stall_seconds=0.05), 4, NEVER, on_stall=on_stall))) == 8
  assert len(said) >= 3 and said[2] > said[1] > said[0] >= 0.05


def test_what_a_transform_raises_is_raised():
  def transform(image, targets, rng):
    raise ZeroDivisionError('in a task')

  with pytest.raises(ZeroDivisionError, match='in a task'):
    next(train_batches(random_images(8), data_config(), 4, 0, 0, NEVER, transform=transform))


def test_what_is_random_does_not_depend_on_threads_batches_or_other_examples(monkeypatch):
  def crops(cores, size):
    monkeypatch.setattr(devices, 'cpu_cores', lambda: cores)
    stream = train_batches(random_images(48), data_config(crop_min_area=0.3), size, 5, 0, NEVER)
    return np.concatenate([next(stream)['image'] for _ in range(48 // size)])

  expected = crops(1, 8)
  for cores, size in ((3, 8), (16, 8), (2, 48), (5, 4)):
    np.testing.assert_array_equal(crops(cores, size), expected)


def test_workers_call_in_order_hand_errors_on_and_end():
  before = threading.active_count()
  workers = Workers(3)
  results = [workers.submit(divmod, i, i % 5) for i in range(20)]
  for i, result in enumerate(results):
    if i % 5:
      assert result.result() == divmod(i, i % 5)
    else:
      assert isinstance(result.exception(), ZeroDivisionError)
  workers.close()
  for _ in range(100):
    if threading.active_count() <= before:
      break
    time.sleep(0.02)
  assert threading.active_count() <= before


@pytest.mark.parametrize('name, message', (
    ('folder:/nowhere', 'there is no such folder'),
    ('npz:/nowhere.npz', 'not a readable .npz file'),
    ('no_such_dataset', 'TFDS has no such dataset'),
    ('mnist', 'not prepared in .*; prepare it once with: tfds build mnist')))
def test_datasets_that_are_not_there(name, message, tmp_path):
  with pytest.raises(UserError, match=message):
    load(data_config(name=name, data_dir=str(tmp_path)))


def test_empty_class_folder_is_named(tmp_path):
  for name in ('cat', 'dog'):
    (tmp_path / name).mkdir()
  Image.new('RGB', (40, 40)).save(tmp_path / 'cat' / '1.png')
  with pytest.raises(UserError, match='dog: no images in this class folder'):
    load(data_config(name=f'folder:{tmp_path}'))
  with pytest.raises(UserError, match='0 sub-folders; expected one per class'):
    load(data_config(name=f'folder:{tmp_path / "dog"}'))
  config = tiny_config(**{'data.name': f'folder:{tmp_path / "cat"}'})  # images alone
  with pytest.raises(UserError, match='the data has no class labels; expected at least two'):
    tasks.create(config).outputs(load_whole(config.data))


def test_labels_that_are_not_utf8_are_one_line(tmp_path):
  Image.new('RGB', (40, 40)).save(tmp_path / '1.png')
  for content, message in ((b'file,label\n1.png,caf\xe9\n', 'save it as UTF-8'), (b'file,label\n1.png\n', 'line 2: 1 cells; expected 2, as in the header')):
    (tmp_path / 'labels.csv').write_bytes(content)
    with pytest.raises(UserError, match=f'labels.csv.*{message}'):
      load_whole(data_config(name=f'folder:{tmp_path}'))


def test_npz(tmp_path):
  source = random_images(12)
  images, labels, path = images_of(source), source.labels, tmp_path / 'set.npz'
  np.savez(path, train_images=images, train_labels=labels, test_images=images[:5], test_labels=labels[:5])
  train, test = load(data_config(name=f'npz:{path}'))
  assert (len(train), len(test), train.num_classes, test.num_classes) == (12, 5, 4, 4)
  assert train.ids[3] == 'train/3' and test.ids[4] == 'test/4'
  for wrong in (labels / 1.0, labels[:0]):
    np.savez(tmp_path / 'wrong.npz', train_images=images[:len(wrong)], train_labels=wrong, test_images=images[:5],
             test_labels=labels[:5])
    with pytest.raises(UserError, match=r'train_labels .*; expected uint8 \(n, h, w, 3\) and integers \(n,\)'):
      load(data_config(name=f'npz:{tmp_path}/wrong.npz'))
  np.savez(path, train_images=images / 255, train_labels=labels)
  with pytest.raises(UserError, match=r'train_images is float64 \(12, 32, 32, 3\).*expected uint8'):
    load(data_config(name=f'npz:{path}'))


# People, attributes, pairs.


@pytest.fixture(scope='module')
def people(tmp_path_factory):
  """Returns a folder of twelve people with one to three images each, and pairs of some of them in two folds."""
  root = tmp_path_factory.mktemp('people')
  for i in range(12):
    (root / f'person_{i:02}').mkdir()
    for k in range(1, 2 + i % 3):
      Image.new('RGB', (40, 40), (20 * i, 60 * k, 0)).save(root / f'person_{i:02}' / f'person_{i:02}_{k:04}.png')
  lines = ['2\t1', 'person_01\t1\t2', 'person_02\t1\tperson_03\t1', 'person_04\t1\t2', 'person_05\t2\tperson_06\t1']
  (root / 'pairs.txt').write_text('\n'.join(lines) + '\n')
  return root


def test_people_are_held_out_whole(people):
  _, train, test = load_folder(people, split_by='class')
  assert set(train.labels) & set(test.labels) == set() and len(set(test.labels)) == 1
  assert len(train) + len(test) == sum(1 + i % 3 for i in range(12))
  assert test.ids[0].split('/')[0] == train.class_names[test.labels[0]]


def test_nobody_of_a_held_out_fold_is_trained_on(people):
  _, train, test = load_folder(people, pairs=str(people / 'pairs.txt'), held_out_folds=(1,))
  names = {name.partition('/')[0] for name in train.ids}
  assert names == {f'person_{i:02}' for i in range(12)} - {'person_04', 'person_05', 'person_06'}
  assert set(test.ids) == {f'person_{i:02}/person_{i:02}_{k:04}.png' for i, k in (
      (1, 1), (1, 2), (2, 1), (3, 1), (4, 1), (4, 2), (5, 2), (6, 1))}
  with pytest.raises(UserError, match=r'data.held_out_folds=\(2,\): .*pairs.txt has the folds 0 to 1'):
    load_folder(people, pairs=str(people / 'pairs.txt'), held_out_folds=(2,))


@pytest.mark.parametrize('in_memory', (True, False))
def test_batches_of_identities(people, in_memory):
  """Each batch holds groups of two images of a person; people with one image have no such group."""
  config, train, _ = load_folder(people, per_identity=2)
  source = keep_in_memory(train) if in_memory else train
  stream = train_batches(source, config, 4, seed=0, start_step=0, on_bad_image=NEVER)
  for _ in range(8):
    labels = next(stream)['label']
    assert labels[0] == labels[1] and labels[2] == labels[3]
  single = from_images(np.zeros((8, 32, 32, 3), np.uint8), np.arange(8, dtype=np.int32), 8)
  with pytest.raises(UserError, match='data.per_identity=2: none of the 8 identities has that many images'):
    next(train_batches(single, config, 4, 0, 0, NEVER))
