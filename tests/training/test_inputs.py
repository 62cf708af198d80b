"""What a run is made from besides its config: it is recorded, and a run does not go on, or count, with other inputs."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from conftest import assert_one_line, command, data_config, random_images, tiny_config
from PIL import Image

from experiments import distillation as experiment
from mobilenet_jax import models, trained
from mobilenet_jax.data import TEACHER, from_images, load
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import run_files
from mobilenet_jax.sweeps.sweep import sweep
from mobilenet_jax.training import checked, distillation, inputs, own_data, train

CLASSES = ('black', 'dark', 'light', 'white')  # as many as random_images has, so that all tests share what is compiled


@pytest.fixture
def images(tmp_path):
  """Returns a folder of 40 images of four classes, without splits."""
  for i in range(40):
    add(tmp_path / 'images', f'{CLASSES[i % 4]}/{i}.png', 60 * (i % 4) + i)
  return tmp_path / 'images'


def add(root, name, gray=77):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (36, 36), (int(gray),) * 3).save(path)


def config_of(images, **changes):
  return tiny_config(**{'data.name': f'folder:{images}', 'train_for': '2 steps', 'eval_every': '2 steps', **changes})


def saved(folder, seed=0):
  """Makes the folder of a model of the four classes with random weights."""
  config = checked(tiny_config())
  module = models.create(config.model, 4)
  variables = models.variables_of(module.init(jax.random.key(seed), np.zeros((1, 32, 32, 3)), train=False))
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  trained.TrainedModel(config, variables, CLASSES, str(folder)).save(folder)
  return folder


def begun(folder, config, *data):
  """Makes the folder of a run that has written a checkpoint; the checkpoint is not looked at."""
  (folder / 'checkpoints' / '2').mkdir(parents=True)
  run_files.write_inputs(folder, digests(config, *data))
  return folder


def digests(config, *data):
  config = checked(config)
  return {**inputs.load_inputs(config, *data).digests, **inputs.starting_weights([config])[config.init.model]}


# What differs is said, and a run does not go on.


def test_a_run_does_not_go_on_with_added_images(images, tiny_model, tmp_path):
  """Whether it had finished or not; and it is not evaluated on them."""
  config, folder = config_of(images), tmp_path / 'run'
  row = train(config, folder)
  counts = list(map(len, load(config.data)))
  for i in range(100, 130):
    add(images, f'dark/{i}.png')
  more = list(map(len, load(config.data)))
  for finished in (True, False):
    if not finished:
      (folder / run_files.RESULT_FILE).rename(tmp_path / 'kept')
    with pytest.raises(UserError, match=f'run was begun with other inputs: now there are {more[0]} examples to train on instead of '
                                        f'{counts[0]}, {more[1]} examples to evaluate on instead of {counts[1]}; bring the former'):
      train(config, folder)
  for checkpoint in ((), ('--checkpoint=best',)):
    done = command('evaluate', folder, *checkpoint)
    assert_one_line(done, 'its inputs have changed since it was trained')
  for i in range(100, 130):
    (images / 'dark' / f'{i}.png').unlink()
  again = train(config, folder)
  assert {**again, 'seconds': 0} == {**row, 'seconds': 0}
  assert command('evaluate', folder).returncode == 0


def test_an_image_of_another_class_or_name_is_noticed(images, tiny_model, tmp_path):
  run = begun(tmp_path / 'run', config_of(images))
  assert inputs.difference(run, digests(config_of(images))) == ''
  (images / load(config_of(images).data)[0].ids[0]).rename(images / CLASSES[1] / 'renamed.png')
  assert 'run was begun with other inputs: now there are ' in inputs.difference(run, digests(config_of(images)))


def test_other_labels_of_the_same_images_are_noticed(tmp_path):
  source, other = random_images(24), random_images(24)
  run = begun(tmp_path / 'run', tiny_config(), (source, source))
  other.records.targets()['label'][5] = 0
  said = inputs.difference(run, digests(tiny_config(), (other, source)))
  assert 'now there are other labels or classes of the examples to train on; bring' in said
  renamed = dataclasses.replace(source, class_names=('a', 'b', 'c', 'd'))
  said = inputs.difference(run, digests(tiny_config(), (source, renamed)))
  assert 'now there are other labels or classes of the examples to evaluate on; bring' in said


def test_another_recording_is_noticed_and_the_same_in_another_order_is_none(images, tmp_path):
  file = tmp_path / 'teacher.npz'
  config = config_of(images, **{'data.recorded': str(file), 'distill.softmax_weight': 1.0})
  ids = [id for source in load(config_of(images).data) for id in source.ids]
  logits = np.random.default_rng(0).normal(size=(len(ids), 4)).astype(np.float32)
  np.savez(file, names=ids, logits=logits, labels=CLASSES)
  run = begun(tmp_path / 'run', config)
  np.savez(file, names=[*ids[::-1], 'more/1.png'], logits=[*logits[::-1], [0, 0, 0, 0]], labels=CLASSES)
  assert inputs.difference(run, digests(config)) == ''
  logits[3] += 1
  np.savez(file, names=ids, logits=logits, labels=CLASSES)
  assert 'now there are other recorded outputs of the examples to train on; bring' in inputs.difference(run, digests(config))


def test_students_of_a_sweep_are_not_mixed_with_those_of_another_teacher(images, tiny_model, tmp_path, capsys):
  teacher = saved(tmp_path / 'teacher')
  config = config_of(images, **{'distill.model': str(teacher), 'distill.softmax_weight': 1.0, 'init.model': str(teacher)})
  changes = [{'model.width_multiplier': 0.25}]
  rows = sweep(config, changes, tmp_path / 'sweep', launcher='here')
  assert sweep(config, changes, tmp_path / 'sweep', launcher='here') == rows
  teacher.rename(tmp_path / 'away')
  assert sweep(config, changes, tmp_path / 'sweep', launcher='here') == rows
  assert '1 of 1 runs have finished, and whether their data is still the same cannot be checked: ' in capsys.readouterr().out
  saved(teacher, seed=1)
  for wider in ([], [{'model.width_multiplier': 0.5}]):
    with pytest.raises(UserError, match='mobilenet_0.25_32 was begun with other inputs: now there are other teacher'):
      sweep(config, changes + wider, tmp_path / 'sweep', launcher='here')
  assert not (tmp_path / 'sweep' / 'mobilenet_0.5_32' / 'checkpoints').exists()


def test_other_starting_weights_are_noticed(images, tiny_model, tmp_path):
  config = config_of(images, **{'init.model': str(saved(tmp_path / 'origin'))})
  run = begun(tmp_path / 'run', config)
  saved(tmp_path / 'origin', seed=1)
  assert 'now there are other starting weights; bring' in inputs.difference(run, digests(config))
  shutil.rmtree(tmp_path / 'origin')
  assert inputs.difference(run, digests(config)) == ''  # they are not needed any more


def test_an_experiment_does_not_take_the_recording_of_another_teacher(tiny_model, tmp_path, monkeypatch):
  """The steps of an experiment are kept; a teacher that was retrained in between makes its recording a stranger."""
  monkeypatch.setattr(experiment, 'sweep', lambda config, changes, folder: [{'name': 'teacher'}])
  teacher = saved(tmp_path / 'teacher')
  np.savez(tmp_path / 'outputs.npz', names=['a'], logits=[[0.0]], teacher=trained.load(teacher).digest)
  assert experiment.train_teacher(tiny_config(), tmp_path)[2] == tmp_path / 'outputs.npz'
  saved(teacher, seed=1)
  with pytest.raises(UserError, match='outputs.npz: holds the outputs of another teacher than the one in .*teacher by now'):
    experiment.train_teacher(tiny_config(), tmp_path)


def test_other_pairs_are_noticed():
  before = {'pairs': '1', 'teacher': 'a'}
  assert inputs.changes(before, {'pairs': '2', 'teacher': 'a'}) == 'other pairs'
  assert inputs.changes(before, before) == inputs.changes(before, {'pairs': '1'}) == ''


def test_a_start_that_failed_claims_nothing(tiny_model, tmp_path):
  source = random_images(24)
  with pytest.raises(UserError, match='model.num_classes=2'):
    train(tiny_config(**{'model.num_classes': 2}), tmp_path / 'run', (source, source))
  assert inputs.difference(tmp_path / 'run', digests(tiny_config(), (random_images(32), source))) == ''


def test_runs_of_earlier_versions_are_evaluated_only_on_what_they_held_out(images, tiny_model, tmp_path):
  run = begun(tmp_path / 'run', config_of(images))
  (run / run_files.INPUTS_FILE).unlink()
  assert 'begun by an earlier version of this code, which held out other images' in inputs.difference(
      run, digests(config_of(images)))
  (run / run_files.INPUTS_FILE).write_text('{')
  with pytest.raises(UserError, match='inputs.json: damaged; remove it'):
    inputs.difference(run, digests(config_of(images)))
  model = trained.load(saved(tmp_path / 'model'))
  with pytest.raises(UserError, match='model: trained by an earlier version of this code, which held out other images'):
    own_data(model, config_of(images))


def test_digests_do_not_depend_on_where_the_data_is(images, tmp_path):
  before = digests(config_of(images))
  assert before == digests(config_of(images.rename(tmp_path / 'elsewhere')))


# Labels that are none.


def test_a_split_without_labels_is_not_evaluated(tiny_model, tmp_path):
  source = random_images(24)
  unlabelled = from_images([example.image for example in source], np.full(24, -1), 4)
  with pytest.raises(UserError, match=r'0: there is no label \(-1\); expected one of 4 classes, 0 to 3'):
    train(tiny_config(), tmp_path / 'run', (source, unlabelled))
  with pytest.raises(UserError, match=r'\d+: there is no label \(-1\)'):
    train(tiny_config(), tmp_path / 'other', (unlabelled, source))


def test_a_student_of_classes_learns_from_images_without_labels(tiny_model, tmp_path):
  """With a teacher and hard_weight=0 no label is used in training; the evaluation still needs them."""
  source = random_images(24)
  saved(tmp_path / 'teacher')
  unlabelled = from_images([example.image for example in source], np.full(24, -1), 4)
  config = tiny_config(**{'distill.model': str(tmp_path / 'teacher'), 'distill.hard_weight': 0.0, 'distill.softmax_weight': 1.0})
  row = train(config, tmp_path / 'run', (unlabelled, source))
  assert row['measured_against'] == 'labels' and row['eval_examples'] == 24
  rows, _ = run_files.read_metrics(tmp_path / 'run')
  assert all('objective' in row and 'top1' not in row for row in rows if row['split'] == 'train')
  with pytest.raises(UserError, match='there is no label'):
    train(config, tmp_path / 'other', (unlabelled, unlabelled))


@pytest.mark.parametrize('labels, message', (
    (np.array([0, 1, 7, 2]), '2: the label is 7; expected one of 4 classes, 0 to 3'),
    (np.array([0, -2, 1, 2]), '1: the label is -2; expected'), (np.array([0, 2**32 + 1, 1, 2]), '1: the label is 4294967297'),
    (np.array([0, 2**64 - 1, 1, 2], np.uint64), '1: the label is 18446744073709551615'),
    (np.array([0.0, 1, 2, 3]), r'labels: float64 \(4,\); expected integers \(4,\)'), (np.eye(4, dtype=int), r'labels: int64 \(4, 4\)'),
    (np.array(['a', 'b', 'c', 'd']), r'labels: <U1 \(4,\)'), (np.zeros(3, int), r'labels: int64 \(3,\); expected integers \(4,\)')))
def test_what_is_no_label_is_an_error_that_names_the_example(labels, message):
  with pytest.raises(UserError, match=message):
    from_images(np.zeros((4, 32, 32, 3), np.uint8), labels, 4)
  if labels.dtype.kind in 'iu' and labels.shape == (4,) and labels.max() > 2**31:  # people are not limited in number otherwise
    with pytest.raises(UserError, match='expected a class or a person'):
      from_images(np.zeros((4, 32, 32, 3), np.uint8), labels, 0)


def test_what_is_no_attribute_is_an_error_that_names_it():
  attributes = np.array([[0, 1], [1, -1], [2, 0]])
  with pytest.raises(UserError, match='2: the attribute hat is 2; expected 0, 1, or -1 if it is not known'):
    from_images(np.zeros((3, 32, 32, 3), np.uint8), np.zeros(3, int), 1, None, {'attributes': attributes}, None,
                {'attributes': ('hat', 'scarf')})


# Recorded outputs.


def source_of(ids):
  return from_images(np.zeros((len(ids), 32, 32, 3), np.uint8), np.arange(len(ids)) % 3, 3, ('x', 'y', 'z'), ids=ids)


def joined(tmp_path, names, sources, **changes):
  from mobilenet_jax.data import recorded
  outputs = np.arange(3 * len(names), dtype=np.float32).reshape(-1, 3)
  np.savez(tmp_path / 't.npz', names=names, logits=outputs)
  return recorded.join(sources, data_config(recorded=str(tmp_path / 't.npz'), **changes))


def test_outputs_of_one_split_are_not_given_to_another(tmp_path):
  train_ids, test_ids = ['train/a/0.png', 'train/a/1.png'], ['test/a/0.png', 'test/a/2.png']
  sources = source_of(train_ids), source_of(test_ids)
  both = joined(tmp_path, train_ids + test_ids, sources)
  assert [source.targets[TEACHER][:, 0].tolist() for source in both] == [[0, 3], [6, 9]]
  with pytest.raises(UserError, match='no outputs for 2 of 2 examples to evaluate on'):
    joined(tmp_path, train_ids, sources, recorded_missing='skip')
  with pytest.raises(UserError, match='1 of its names stand for several examples each, such as a/0.png for test/a/0.png, train/a/0'):
    joined(tmp_path, ['a/0.png', 'a/1.png', 'a/2.png'], sources)
  both = joined(tmp_path, ['a/1.png', 'a/2.png'], sources, recorded_missing='skip')  # whose names tell them apart
  assert [source.ids for source in both] == [('train/a/1.png',), ('test/a/2.png',)]
  assert [source.remarks[0].partition(': ')[2].partition(' (')[0] for source in both] == [
      'no outputs for 1 of 2 examples to train on', 'no outputs for 1 of 2 examples to evaluate on']


def test_probabilities_of_classes_are_those_that_a_softmax_gives(tmp_path):
  from mobilenet_jax import tasks
  source = source_of(['a/0', 'a/1'])
  for task, probs, function in (('classification', [[.7, .2, .1], [.0, .4, .6]], lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
                                ('attributes', [[.7, .9, .1], [.0, .4, 1.]], lambda x: 1 / (1 + np.exp(-x)))):
    given = dataclasses.replace(source, extra={TEACHER: np.array(probs, np.float32)}, outputs_kind='probs')
    found = distillation.selected(given, tasks.create(tiny_config(task=task)), 3, None)
    np.testing.assert_allclose(function(found.targets[TEACHER].astype(float)), probs, atol=1e-6)
  for task, kind, message in (('classification', 'embeddings', 'has embeddings; this task needs logits or probs'),
                              ('embedding', 'probs', 'has probs; this task needs embeddings or logits')):
    given = dataclasses.replace(source, extra={TEACHER: np.ones((2, 3), np.float32) / 3}, outputs_kind=kind)
    with pytest.raises(UserError, match=message):
      distillation.selected(given, tasks.create(tiny_config(task=task)), 3, None)
  given = dataclasses.replace(source, extra={TEACHER: np.array([[.5, .2, .1]] * 2, np.float32)}, outputs_kind='probs')
  with pytest.raises(UserError, match='the probs of 2 of 2 examples do not sum to 1, such as 0.8; expected the probabilities of'):
    distillation.selected(given, tasks.create(tiny_config()), 3, None)


def test_outputs_without_names_are_said_to_be_matched_by_place(tmp_path):
  from mobilenet_jax import tasks
  both = joined(tmp_path, ['a/0', 'a/1'], (source_of(['a/0']), source_of(['a/1'])))
  found = distillation.selected(both[0], tasks.create(tiny_config()), 3, ('x', 'y', 'z'))
  assert 'the recorded outputs have no names and are taken to be those of the student, in its order (x, y, z)' in found.remarks


# People.


def test_people_in_both_parts_are_said():
  def people(split, names):
    found = tuple(sorted(set(names)))
    return from_images(np.zeros((len(names), 32, 32, 3), np.uint8), np.array([found.index(name) for name in names]), 0, found,
                       ids=[f'{split}/{name}/{i}' for i, name in enumerate(names)])

  config = checked(tiny_config(**{'task': 'embedding', 'embedding.folds': 2, 'embedding.pairs_per_fold': 2}))
  load = lambda train, test: inputs.load_inputs(config, (people('train', train), people('test', test))).train.remarks
  assert load('AABBCC', 'BBDDEEFF') == ('1 of the 4 people to evaluate on are trained on, too (B): the evaluation says little '
                                        'about other people',)
  assert load('AABB', 'CCDDEEFF') == ()


def test_a_teacher_that_teaches_nothing_is_said():
  source = dataclasses.replace(random_images(24), extra={TEACHER: np.zeros((24, 4), np.float32)})
  said = 'nothing is learned from the teacher, as no term of distill has a weight'
  remarks = lambda **changes: inputs.load_inputs(checked(tiny_config(**changes)), (source, source)).train.remarks
  assert said in remarks() and said not in remarks(**{'distill.softmax_weight': 1.0})


def test_examples_in_both_parts_are_said():
  source = random_images(24)
  remarks = inputs.load_inputs(checked(tiny_config()), (source, source.subset(np.arange(8)))).train.remarks
  assert remarks[0] == '8 of the 8 examples to evaluate on are trained on, too'


def test_the_split_follows_the_task():
  assert checked(tiny_config(task='embedding')).data.split_by == 'class'
  assert checked(tiny_config(task='attributes')).data.split_by == checked(tiny_config()).data.split_by == 'image'
  assert checked(tiny_config(**{'task': 'attributes', 'data.split_by': 'class'})).data.split_by == 'class'
  with pytest.raises(UserError, match='data.split_by=class: the classes that are held out would be asked for and never trained on'):
    checked(tiny_config(**{'data.split_by': 'class'}))


def test_record_writes_what_can_be_read(images, tiny_model, tmp_path):
  """On a folder with splits, in which files have the same names."""
  for split in ('train', 'test'):
    for i in range(8):
      add(tmp_path / 'split', f'{split}/{CLASSES[i % 4]}/{i}.png', 60 * (i % 4))
  saved(tmp_path / 'teacher')
  (tmp_path / 'mine.parts' / 'train').mkdir(parents=True)
  (tmp_path / 'mine.parts' / 'train' / 'notes.txt').touch()  # a user's, who loses nothing
  done = command('record', tmp_path / 'teacher', f'--data=folder:{tmp_path / "split"}', f'--out={tmp_path / "mine.npz"}')
  assert_one_line(done, 'mine.parts: is needed for an unfinished recording, but holds other files, such as train/notes.txt')
  assert (tmp_path / 'mine.parts' / 'train' / 'notes.txt').exists()
  done = command('record', tmp_path / 'teacher', f'--data=folder:{tmp_path / "split"}', f'--out={tmp_path / "t.npz"}')
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / 't.npz') as file:
    assert sorted(file['names'].tolist()) == sorted(
        f'{split}/{CLASSES[i % 4]}/{i}.png' for split in ('train', 'test') for i in range(8))
    assert str(file['teacher']) == trained.load(tmp_path / 'teacher').digest
    by_id = dict(zip(file['names'].tolist(), file['logits']))
  student = config_of(tmp_path / 'split', **{'data.recorded': str(tmp_path / 't.npz'), 'distill.softmax_weight': 1.0})
  for source in load(student.data):
    np.testing.assert_array_equal(source.targets[TEACHER], [by_id[id] for id in source.ids])
