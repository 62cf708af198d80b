"""Tests TFDS datasets: streams of records, their ids, damaged records, and people."""

import itertools

import numpy as np
import pytest
from conftest import NEVER, data_config

from mobilenet_jax.data import pipeline, recorded, sources, tfds_sets
from mobilenet_jax.data.drawn import fabrics
from mobilenet_jax.errors import UserError


def tagged(tmp_path, count=23):
  """Returns a TFDS builder whose examples contain a teacher's embedding, (label, number, 1)."""
  tfds = pytest.importorskip('tensorflow_datasets')

  class Tagged(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(None, None, 3)), 'label': tfds.features.ClassLabel(num_classes=3),
          'embedding': tfds.features.Tensor(shape=(3,), dtype=np.float32)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(count):
        yield i, {'image': np.full((32, 32, 3), 10 * i, np.uint8), 'label': i % 3,
                  'embedding': np.array([i % 3, i, 1], np.float32)}

  builder = Tagged(data_dir=str(tmp_path), file_format='tfrecord')
  builder.download_and_prepare()
  return builder


def test_tfds_records_as_a_stream(tmp_path, monkeypatch):
  """Tests what ImageNet needs: encoded records, each with a name, shuffled by epoch and repeatable from any step."""
  pytest.importorskip('tensorflow')
  monkeypatch.setattr(fabrics, 'NUM_EXAMPLES', {'train': 23, 'test': 9})
  builder = fabrics.Fabrics(data_dir=str(tmp_path), file_format='tfrecord')
  builder.download_and_prepare()
  source = tfds_sets.stream(builder, 'train')
  in_memory = tfds_sets._split(builder, 'train')
  config = data_config(image_size=(64, 64), crop_min_area=1.0, crop_max_aspect=1.0, flip=False, eval_crop=1.0)

  batches = list(pipeline.eval_batches(source, config, 5, NEVER))
  images, labels, mask = (np.concatenate([batch[key] for batch in batches]) for key in ('image', 'label', 'mask'))
  np.testing.assert_array_equal(images[mask > 0], in_memory.images)  # without crop and resize, the pixels are as drawn
  np.testing.assert_array_equal(labels[mask > 0], in_memory.labels)
  names = [example['id'] for example in source.examples(None, 1).as_numpy_iterator()]
  assert len(set(names)) == 23

  stream = pipeline.train_batches(source, config, 5, seed=1, start_step=0, on_bad_image=NEVER)
  whole = [next(stream)['image'] for _ in range(9)]
  stream = pipeline.train_batches(source, config, 5, seed=1, start_step=6, on_bad_image=NEVER)
  for expected in whole[6:]:
    np.testing.assert_array_equal(next(stream)['image'], expected)
  assert not np.array_equal(np.concatenate(whole[:4]), np.concatenate(whole[4:8]))  # a different order


def test_a_stream_is_told_by_what_tfds_calls_its_examples(tmp_path):
  """The ids follow from the files. Recorded outputs are found by them in any order, and parts of a split keep them."""
  stream = tfds_sets.stream(tagged(tmp_path), 'train')
  read = [example['id'].decode() for example in stream.examples(None, 0).as_numpy_iterator()]
  assert list(stream.ids) == read and len(set(read)) == 23
  assert tfds_sets.stream(stream.builder, 'train[5:9]').ids == stream.ids[5:9]
  numbers = tfds_sets.stream(stream.builder, 'train', 'embedding')
  numbers = np.array([example['teacher'] for example in numbers.examples(None, 0).as_numpy_iterator()])

  rng = np.random.default_rng(0)
  order = rng.permutation(23)[:20]  # three are missing
  np.savez(tmp_path / 'teacher.npz', names=[read[i] for i in order], embeddings=numbers[order])
  config = data_config(image_size=(32, 32), crop_min_area=1.0, crop_max_aspect=1.0, recorded=str(tmp_path / 'teacher.npz'))
  with pytest.raises(UserError, match='no outputs for 3 of 23 examples'):
    recorded.join(stream, config)
  config.recorded_missing = 'skip'
  joined = recorded.join(stream, config)
  assert joined.num_examples == len(joined.labels) == 20
  for batches in (pipeline.eval_batches(joined, config, 5, NEVER),
                  itertools.islice(pipeline.train_batches(joined, config, 5, 0, 0, NEVER), 4)):
    rows = np.concatenate([batch['teacher'] for batch in batches])
    assert sorted(rows[:, 1].tolist()) == sorted(numbers[order, 1].tolist())
  for batch in itertools.islice(pipeline.train_batches(joined, config, 5, 0, 0, NEVER), 6):
    np.testing.assert_array_equal(10 * batch['teacher'][:, 1], batch['image'][:, 0, 0, 0])
  later = list(pipeline.eval_batches(joined, config, 5, NEVER, start=2))
  np.testing.assert_array_equal(later[0]['teacher'], list(pipeline.eval_batches(joined, config, 5, NEVER))[2]['teacher'])


def test_a_feature_of_tfds_is_what_a_teacher_gave(tmp_path):
  source = tfds_sets.stream(tagged(tmp_path), 'train', 'embedding')
  config = data_config(image_size=(32, 32), crop_min_area=1.0, crop_max_aspect=1.0)
  blank = pipeline.blank_batch(config, source, 4)
  batch = next(pipeline.train_batches(source, config, 4, 0, 0, NEVER))
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {name: (x.shape, x.dtype) for name, x in blank.items()}
  np.testing.assert_array_equal(10 * batch['teacher'][:, 1], batch['image'][:, 0, 0, 0])
  np.testing.assert_array_equal(batch['teacher'][:, 0], batch['label'])
  np.testing.assert_array_equal(sources.keep_in_memory(source).extra['teacher'][:, 0], source.labels)
  with pytest.raises(UserError, match='data.recorded=feature:label: tagged has the features .*expected a feature of shape'):
    tfds_sets.stream(source.builder, 'train', 'label')


def test_a_damaged_record_is_named_and_by_config_left_out(tmp_path):
  """What follows in its file is left out too, once. All other examples are seen, in training as often as before."""
  builder = tagged(tmp_path, count=25)
  source = tfds_sets.stream(builder, 'train')
  path, = tmp_path.rglob('*train*tfrecord*')
  content = bytearray(path.read_bytes())
  content[len(content) * 3 // 4] ^= 1
  path.write_bytes(content)
  config = data_config(image_size=(32, 32))
  with pytest.raises(UserError, match=r'the record tagged-train.tfrecord-00000-of-00001__\d+ is damaged, and \d+ after it'):
    list(pipeline.eval_batches(source, config, 6, NEVER))
  config.bad_images = 'skip'
  lost, again = [], []
  batches = list(pipeline.eval_batches(source, config, 6, lost.append))
  assert sum(batch['mask'].sum() for batch in batches) + len(lost) == 25 and 3 <= len(lost) <= 10
  stream = pipeline.train_batches(source, config, 6, 0, 0, again.append)
  steps = [next(stream) for _ in range(2 * pipeline.steps_per_epoch(source, 6))]
  assert again == lost and all(batch['mask'].all() for batch in steps)
  path.write_bytes(content[:20])  # nothing is left
  with pytest.raises(UserError, match='none of the 25 records of tagged can be read'):
    next(pipeline.train_batches(source, config, 6, 0, 0, lost.append))


def test_celeb_a_is_read_as_tfds_has_it():
  """The attributes are read by name, and the identity one level deeper; a stream and memory give the same."""
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('tensorflow')
  with tfds.testing.mock_data(num_examples=6):
    builder = tfds.builder('celeb_a')
    assert builder.info.features['image'].shape == (218, 178, 3)
    stream = tfds_sets.stream(builder, 'train')
    names = stream.extra_names['attributes']
    assert len(names) == 40 and 'Eyeglasses' in names and stream.num_classes == 0
    expected = list(tfds.as_numpy(builder.as_dataset(split='train')))
    found = list(stream.examples(None, 1).as_numpy_iterator())
    for row, example in zip(expected, found):
      assert example['label'] == row['identity']['Identity_No']
      assert example['attributes'].tolist() == [row['attributes'][name] for name in names]


def test_people_of_tfds_are_told_by_their_names():
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('tensorflow')
  with tfds.testing.mock_data(num_examples=6):
    stream = tfds_sets.stream(tfds.builder('lfw'), 'train')
    labels = [example['label'] for example in stream.examples(None, 1).as_numpy_iterator()]
    names = [example['label'] for example in tfds.as_numpy(tfds.builder('lfw').as_dataset(split='train'))]
  assert [[a == b for a in labels] for b in labels] == [[a == b for a in names] for b in names]
