"""Tests TFDS datasets in both formats: records, their ids, damaged records, and people. Nothing of it needs TensorFlow."""

import dataclasses
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import NEVER, ROOT, data_config, images_of, tiny_config

from mobilenet_jax import tasks
from mobilenet_jax.data import (
    eval_batches, fingerprint, keep_in_memory, known_targets, recorded, tfds_sets, tfrecords, train_batches)
from mobilenet_jax.data.order import steps_per_epoch
from mobilenet_jax.errors import UserError
from mobilenet_jax.training import checked, distillation, load_inputs
from mobilenet_jax.training.inputs import changes

FORMATS = ('tfrecord', 'array_record')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_sets, 'INDEX_CACHE', tmp_path / 'cache')


def tagged(tmp_path, count=23, file_format='tfrecord', shards=1):
  """Returns a TFDS builder whose examples contain a teacher's embedding, (label, number, 1)."""
  tfds = pytest.importorskip('tensorflow_datasets')

  class Tagged(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(None, None, 3)), 'label': tfds.features.ClassLabel(num_classes=3),
          'embedding': tfds.features.Tensor(shape=(3,), dtype=np.float32)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(count), 'test': self._generate_examples(5)}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, {'image': np.full((32, 32 + i, 3), 10 * i, np.uint8), 'label': i % 3,
                  'embedding': np.array([i % 3, i, 1], np.float32)}

  builder = Tagged(data_dir=str(tmp_path), file_format=file_format)
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=shards, max_shard_size=None) if shards > 1 else None)
  return builder


def prepared(tmp_path, **kwargs):
  builder = tagged(tmp_path, **kwargs)
  return builder, sorted(tmp_path.rglob('*-train.*record*'))


@pytest.mark.parametrize('file_format', FORMATS)
def test_records_are_what_tfds_reads(file_format, tmp_path):
  """In the order, with the pixels and the targets that TFDS gives, and one id each; parts of a split keep the ids."""
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('tensorflow')
  builder, paths = prepared(tmp_path, file_format=file_format, shards=3)
  assert len(paths) == 3
  for split in ('train', 'test', 'train[4:9]', 'train[50%:]', 'test+train[:2]'):
    found = tfds_sets.source(builder, split, 'feature:embedding')
    if file_format == 'tfrecord':
      expected = list(tfds.as_numpy(builder.as_dataset(split=split, read_config=tfds.ReadConfig(interleave_cycle_length=1))))
    else:
      expected = list(builder.as_data_source(split))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
      np.testing.assert_array_equal(ours.image, theirs['image'])
      assert ours.targets['label'] == theirs['label'] and ours.targets['teacher'].tolist() == theirs['embedding'].tolist()
    assert found.labels.tolist() == [example['label'] for example in expected]
    assert [example.id for example in found] == list(found.ids) == list(keep_in_memory(found).ids)
  assert tfds_sets.source(builder, 'train[4:9]').ids == tuple(f'train/{i}' for i in range(4, 9))
  assert tfds_sets.source(builder, 'test+train[:2]').ids == (*(f'test/{i}' for i in range(5)), 'train/0', 'train/1')
  for split in ('train[:0]', 'train[5:2]'):
    with pytest.raises(UserError, match=r"tagged: the split 'train\[.*\]' has no examples"):
      tfds_sets.source(builder, split)
  with pytest.raises(UserError, match="tagged has no split 'validation'; it has "):
    tfds_sets.source(builder, 'validation')


@pytest.mark.parametrize('file_format', FORMATS)
def test_reading_needs_no_tensorflow(file_format, tmp_path):
  tagged(tmp_path, file_format=file_format)
  script = f"""if True:
    import sys
    sys.path[:0] = ['tests']
    import tensorflow_datasets as tfds
    from conftest import NEVER, data_config
    from mobilenet_jax.data import eval_batches, tfds_sets
    builder = tfds.builder_from_directory('{tmp_path}/tagged/1.0.0')
    source = tfds_sets.source(builder, 'train', 'feature:embedding')
    print(sum(batch['mask'].sum() for batch in eval_batches(source, data_config(), 5, NEVER)))
  """
  (tmp_path / 'tensorflow.py').write_text('raise ModuleNotFoundError("no TensorFlow here", name="tensorflow")')
  done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, 'PYTHONPATH': str(tmp_path)})
  assert done.stdout.strip() == '23.0', done.stderr


@pytest.mark.parametrize('file_format', FORMATS)
def test_recorded_outputs_are_found_by_id(file_format, tmp_path):
  """In any order, kept in memory or not."""
  source = tfds_sets.source(tagged(tmp_path, file_format=file_format), 'train')
  rng = np.random.default_rng(0)
  order = rng.permutation(23)[:20]  # three are missing
  outputs = np.stack([np.arange(23) % 3, np.arange(23), np.ones(23)], 1).astype(np.float32)
  np.savez(tmp_path / 'teacher.npz', names=[source.ids[i] for i in order], embeddings=outputs[order])
  config = data_config(image_size=(32, 32), crop_min_area=1.0, recorded=str(tmp_path / 'teacher.npz'))
  with pytest.raises(UserError, match='no outputs for 3 of 23 examples'):
    recorded.join((source, source), config)
  config.recorded_missing = 'skip'
  for joined in recorded.join((source, keep_in_memory(source)), config):
    assert len(joined) == len(joined.labels) == 20
    for batches in (eval_batches(joined, config, 5, NEVER), itertools.islice(train_batches(joined, config, 5, 0, 0, NEVER), 4)):
      rows = np.concatenate([batch['teacher'] for batch in batches])
      assert sorted(rows[:, 1].tolist()) == sorted(order.tolist())
    for batch in itertools.islice(train_batches(joined, config, 5, 0, 0, NEVER), 6):
      np.testing.assert_array_equal(10 * batch['teacher'][:, 1], batch['image'][:, 0, 0, 0])
    later = list(eval_batches(joined, config, 5, NEVER, start=2))
    np.testing.assert_array_equal(later[0]['teacher'], list(eval_batches(joined, config, 5, NEVER))[2]['teacher'])


def test_a_feature_of_tfds_is_what_a_teacher_gave(tmp_path):
  source = tfds_sets.source(tagged(tmp_path), 'train', 'feature:embedding')
  config = data_config(image_size=(32, 32), crop_min_area=1.0)
  batch = next(train_batches(source, config, 4, 0, 0, NEVER))
  assert batch['teacher'].dtype == np.float32 and batch['label'].dtype == np.int32
  np.testing.assert_array_equal(10 * batch['teacher'][:, 1], batch['image'][:, 0, 0, 0])
  np.testing.assert_array_equal(batch['teacher'][:, 0], batch['label'])
  np.testing.assert_array_equal(source.targets['teacher'][:, 0], source.labels)
  with pytest.raises(UserError, match='data.recorded=feature:label: tagged has the features .*expected a feature of shape'):
    tfds_sets.source(tagged(tmp_path), 'train', 'feature:label')


def test_an_index_is_made_once_and_again_for_a_file_that_has_changed(tmp_path, monkeypatch):
  builder, paths = prepared(tmp_path, shards=3)
  made, original = [], tfrecords._starts
  monkeypatch.setattr(tfrecords, '_starts', lambda path: made.append(path.name) or original(path))
  expected = images_of(tfds_sets.source(builder, 'train[:1]'))
  tfds_sets.source(builder, 'train')
  assert sorted(made) == [paths[0].name, *(path.name for path in paths)]
  made.clear()
  tfds_sets.source(builder, 'train')
  assert not made
  os.utime(paths[1], ns=(1, 1))  # an index that is not of this file
  assert len(tfds_sets.source(builder, 'train')) == 23 and made == [path.name for path in paths]
  for index in (tmp_path / 'cache').iterdir():
    index.write_bytes(index.read_bytes()[:100])  # cut short
  np.testing.assert_array_equal(images_of(tfds_sets.source(builder, 'train[:1]')), expected)


def test_an_index_that_cannot_be_kept_is_made_each_time(tmp_path, monkeypatch):
  builder, _ = prepared(tmp_path / 'data')
  (tmp_path / 'file').touch()
  monkeypatch.setattr(tfds_sets, 'INDEX_CACHE', tmp_path / 'file' / 'cache')
  assert len(list(tfds_sets.source(builder, 'train'))) == 23


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('after', (False, True))
@pytest.mark.parametrize('kept', (False, True))
def test_a_damaged_record_is_named_and_by_config_left_out(file_format, after, kept, tmp_path):
  """All that can be read is read, whether the file was damaged before or after it was first looked at."""
  builder, (path,) = prepared(tmp_path, count=25, file_format=file_format)
  source = tfds_sets.source(builder, 'train')
  list(source)
  content = bytearray(path.read_bytes())
  content[3000] ^= 1  # there, both have records
  path.write_bytes(content)
  source = source if after else tfds_sets.source(builder, 'train')
  source = keep_in_memory(source) if kept else source
  config = data_config(image_size=(32, 32))
  with pytest.raises(UserError, match=rf'{path}, record \d+: .*; repair or remove it, or train with --config.data.bad_images=skip'):
    list(eval_batches(source, config, 6, NEVER))
  config.bad_images = 'skip'
  lost, again = [], []
  batches = list(eval_batches(source, config, 6, lost.append))
  assert sum(batch['mask'].sum() for batch in batches) == 24 and len(lost) == 1
  stream = train_batches(source, config, 6, 0, 0, again.append)
  steps = [next(stream) for _ in range(2 * steps_per_epoch(source, 6))]
  assert {error.name for error in again} == {error.name for error in lost} and all(batch['mask'].all() for batch in steps)


def test_an_array_record_that_is_cut_short_is_named(tmp_path):
  builder, (path,) = prepared(tmp_path, file_format='array_record')
  content = path.read_bytes()
  for size, message in ((len(content) // 2, 'the file is damaged or cut off'), (4000, 'damaged')):
    path.write_bytes(content[:size])
    with pytest.raises(UserError, match=f'{path}, record 3: {message}'):
      tfds_sets.source(builder, 'train')[3]
  path.unlink()
  with pytest.raises(UserError, match=f'{path}(, record 3)?: No such file or directory'):
    tfds_sets.source(builder, 'train')[3]


@pytest.mark.parametrize('after', (False, True))
def test_a_file_that_is_cut_short_loses_its_end(after, tmp_path):
  """So does one whose record has a damaged length, as what follows cannot be found."""
  builder, (path,) = prepared(tmp_path, count=25)
  source = tfds_sets.source(builder, 'train')
  config, content, lost = data_config(image_size=(32, 32), bad_images='skip'), path.read_bytes(), []
  path.write_bytes(content[:len(content) // 2])
  source = source if after else tfds_sets.source(builder, 'train')
  good = sum(batch['mask'].sum() for batch in eval_batches(source, config, 6, lost.append))
  assert 8 < good < 16 and good + len(lost) == 25
  assert ('has become shorter' if after else 'damaged or cut off at record') in str(lost[0])
  damaged = bytearray(content)
  damaged[int(tfrecords._starts(path)[10])] ^= 4
  path.write_bytes(damaged)
  lost = []
  list(eval_batches(tfds_sets.source(builder, 'train'), config, 6, lost.append))
  assert [error.name for error in lost] == [f'{path}, record {i}' for i in range(10, 25)]
  path.unlink()
  with pytest.raises(UserError, match=f'{path}: No such file or directory; prepare the dataset again'):
    tfds_sets.source(builder, 'train')


def test_celeb_a_and_lfw_are_read_as_tfds_has_them(tmp_path):
  """Attributes are read by name, the identity one level deeper, and people who have names are told apart by them."""
  tfds = pytest.importorskip('tensorflow_datasets')
  people = [b'Ann', b'Bob', b'Ann', b'Cy', b'Bob', b'Ann']

  class Celebrities(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    named = False

    def _info(self):
      label = {'label': tfds.features.Text()} if self.named else {
          'attributes': {'Wig': np.bool_, 'Eyeglasses': np.bool_}, 'identity': {'Identity_No': np.int64}}
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict(
          {'image': tfds.features.Image(shape=(218, 178, 3)), **label}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, name in enumerate(people):
        yield i, {'image': np.full((218, 178, 3), i, np.uint8), **({'label': name.decode()} if self.named else {
            'attributes': {'Wig': i % 2, 'Eyeglasses': i % 3 == 0}, 'identity': {'Identity_No': 100 * len(name) + i}})}

  class People(Celebrities, skip_registration=True):
    named = True

  for kind, expected in ((Celebrities, [300, 301, 302, 203, 304, 305]), (People, [0, 1, 0, 2, 1, 0])):
    builder = kind(data_dir=str(tmp_path), file_format='tfrecord')
    builder.download_and_prepare()
    source = tfds_sets.source(builder, 'train')
    assert source.num_classes == 0 and source.labels.tolist() == expected
    assert [int(example.targets['label']) for example in source] == expected
    batch, = eval_batches(source, data_config(), 6, NEVER)
    assert batch['label'].tolist() == expected
  source = tfds_sets.source(Celebrities(data_dir=str(tmp_path), file_format='tfrecord'), 'train')
  assert source.extra_names == {'attributes': ('Eyeglasses', 'Wig')}
  assert source.targets['attributes'].tolist() == [[i % 3 == 0, i % 2] for i in range(6)]


def built(tmp_path, features, examples, file_format='tfrecord', **splits):
  """Returns a builder of these features and examples, which lack the image; by default all are in the split train."""
  tfds = pytest.importorskip('tensorflow_datasets')

  class Built(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict(
          {'image': tfds.features.Image(shape=(None, None, 3)), **features(tfds.features)}))

    def _split_generators(self, dl_manager):
      return {name: self._generate_examples(part) for name, part in (splits or {'train': examples}).items()}

    def _generate_examples(self, part):
      for i, example in enumerate(part):
        yield i, {'image': np.full((32, 32, 3), 9 * i, np.uint8), **example}

  builder = Built(data_dir=str(tmp_path), file_format=file_format)
  builder.download_and_prepare()
  return builder


def print_of(source):
  return fingerprint(source, known_targets(source)[0])


def classes(features):
  return {'label': features.ClassLabel(names=['x', 'y', 'z'])}


@pytest.mark.parametrize('file_format', FORMATS)
def test_an_example_without_a_label_is_named(file_format, tmp_path):
  builder = built(tmp_path, classes, (), file_format, train=[{'label': i % 3} for i in range(6)],
                  test=[{'label': i} for i in (0, 1, -1, 2)])
  source, config = tfds_sets.source(builder, 'test'), data_config(image_size=(32, 32), bad_images='skip')
  for read in (lambda: list(eval_batches(source, config, 2, NEVER)), lambda: source.labels, lambda: source[2]):
    with pytest.raises(UserError, match=r'record 2: there is no label \(-1\); expected one of 3 classes, 0 to 2'):
      read()
  unlabelled = dataclasses.replace(source, labelled=False)
  assert unlabelled.labels.tolist() == [0, 1, -1, 2]
  known, complete = known_targets(source)
  assert known['label'].tolist() == [0, 1, -1, 2] and complete
  sample, complete = known_targets(source, most=3, sample=2)
  assert sample['label'].tolist() == [0, 2] and not complete


def test_sets_without_labels_have_none(tmp_path):
  plain = tfds_sets.source(built(tmp_path / 'a', lambda features: {'attributes': {'hat': np.bool_}}, [{'attributes': {'hat': True}}]),
                           'train')
  assert plain.num_classes == 0
  with pytest.raises(UserError, match=r'there is no label \(-1\); expected a class or a person'):
    plain[0]
  people = built(tmp_path / 'b', lambda features: {'label': features.Text()}, [{'label': name} for name in ('Bob', '', 'Ann', 'Bob')])
  source = tfds_sets.source(people, 'train')
  assert source.class_names == ('Ann', 'Bob') and dataclasses.replace(source, labelled=False).labels.tolist() == [1, -1, 0, 1]
  with pytest.raises(UserError, match='record 1: there is no label'):
    source.labels
  many = built(tmp_path / 'c', lambda features: {'label': features.Tensor(shape=(2,), dtype=np.int64)}, [{'label': [1, 2]}])
  with pytest.raises(UserError, match=r'built: the feature label has the shape \(2,\) and the type .*int64.*; expected a class'):
    tfds_sets.source(many, 'train')


@pytest.mark.parametrize('file_format', FORMATS)
def test_a_teacher_in_a_dict_of_numbers_is_matched_by_name(file_format, tmp_path):
  builder = built(tmp_path, lambda features: {**classes(features), 'teacher': {name: np.float32 for name in 'zxy'}},
                  [{'label': i % 3, 'teacher': {'x': i, 'y': 10 + i, 'z': 20 + i}} for i in range(5)], file_format)
  source = tfds_sets.source(builder, 'train', 'feature:teacher')
  found = distillation.selected(source, tasks.create(tiny_config()), 3, ('z', 'x', 'y'))
  assert found[2].targets['teacher'].tolist() == [22, 2, 12] and found.targets['teacher'][4].tolist() == [24, 4, 14]
  assert found.target_shapes['teacher'] == ((3,), np.float32) and not found.remarks
  with pytest.raises(UserError, match=r"data.recorded has 3 outputs \(x, y, z\) and lacks 1 of the student's 3 \(w\)"):
    distillation.selected(source, tasks.create(tiny_config()), 3, ('w', 'x', 'y'))


@pytest.mark.parametrize('file_format', FORMATS)
def test_a_set_that_was_prepared_anew_is_noticed(file_format, tmp_path):
  labels = [0, 1, 2, 1, 0, 2]
  prints = lambda folder, labels, split='train': print_of(tfds_sets.source(
      built(tmp_path / folder, classes, [{'label': label} for label in labels], file_format), split))
  before = prints('a', labels)
  assert prints('b', labels) == before
  said = lambda now: changes({'examples': before}, {'examples': now})
  assert said(prints('c', [*labels, 1])) == '7 examples instead of 6'
  assert said(prints('d', labels[::-1])) == 'other labels or classes of the examples'
  assert said(prints('a', labels, 'train[:5]')) == '5 examples instead of 6'
  assert said({**before, 'ids': 'x'}) == 'other examples, though as many'


def test_both_formats_have_the_same_fingerprint(tmp_path):
  prints = [print_of(tfds_sets.source(built(tmp_path / kind, classes, [{'label': i % 3} for i in range(7)], kind), 'train[2:]'))
            for kind in FORMATS]
  assert prints[0] == prints[1]


def inputs_of(builder, train, test, monkeypatch, **changes):
  """Returns the inputs of a run on two splits of a builder."""
  monkeypatch.setattr(tfds_sets, '_builder', lambda config: builder)
  return load_inputs(checked(tiny_config(**{'data.name': 'built', 'data.train_split': train, 'data.eval_split': test, **changes})))


@pytest.mark.parametrize('file_format', FORMATS)
def test_labels_are_looked_at_before_training(file_format, tmp_path, monkeypatch):
  examples = lambda *labels: [{'label': label} for label in labels]
  builder = built(tmp_path, classes, (), file_format, train=examples(0, 1, 0, 1, 2, 2), few=examples(0, 1, 0, 1), test=examples(0, 2),
                  unlabelled=examples(-1, -1, -1, -1))
  assert inputs_of(builder, 'train', 'test', monkeypatch).train.remarks == (
      '1 of the 3 classes have no example to evaluate on: y',)
  with pytest.raises(UserError, match='1 of the 2 classes to evaluate on have no example to train on: z; expected the classes of'):
    inputs_of(builder, 'few', 'test', monkeypatch)
  assert inputs_of(builder, 'train[:4]', 'test', monkeypatch).train.remarks[0] == (  # a part is taken on purpose
      '1 of the 2 classes to evaluate on have no example to train on: z')
  for splits in (('train', 'unlabelled'), ('unlabelled', 'test')):
    with pytest.raises(UserError, match=r'record 0: there is no label \(-1\); expected one of 3 classes'):
      inputs_of(builder, *splits, monkeypatch)
  student = {'distill.hard_weight': 0.0, 'distill.softmax_weight': 1.0}
  assert not inputs_of(builder, 'unlabelled', 'test', monkeypatch, **student).train.labelled
  assert inputs_of(builder, 'train', 'test', monkeypatch, **student).train.labelled


def test_a_feature_of_probabilities_is_not_taken_for_logits(tmp_path):
  builder = built(tmp_path, lambda features: {**classes(features), 'p': features.Tensor(shape=(3,), dtype=np.float32)},
                  [{'label': i % 3, 'p': [.2, .3, .5]} for i in range(5)])
  with pytest.raises(UserError, match=r'the outputs in the feature are all in \[0, 1\], as probabilities are; expected logits'):
    distillation.selected(tfds_sets.source(builder, 'train', 'feature:p'), tasks.create(tiny_config()), 3, None)


def test_outputs_in_a_feature_that_are_not_finite_are_named(tmp_path):
  features = lambda features: {**classes(features), 'outputs': features.Tensor(shape=(2,), dtype=np.float32)}
  builder = built(tmp_path, features, [{'label': 0, 'outputs': np.array([0, value], np.float32)} for value in (1, np.nan)])
  source = tfds_sets.source(builder, 'train', 'feature:outputs')
  assert source[0].targets['teacher'].tolist() == [0, 1]
  with pytest.raises(UserError, match='record 1: the feature outputs has values that are not finite'):
    _ = source[1]
