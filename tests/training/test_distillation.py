"""Distillation: its losses against closed forms, its step against one written by hand, its teachers against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from conftest import images_of, random_images, tiny_config, SmallMobileNet
from mobilenet_jax import models, tasks, trained
from mobilenet_jax.data import from_images, recorded
from mobilenet_jax.data.splits import held_out
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.run_files import read_metrics
from mobilenet_jax.tasks import losses, metrics
from mobilenet_jax.trained import recording
from mobilenet_jax.training import distillation, train

NAMES = ('glasses', 'hat', 'beard')


def faces(count, seed=0, names=NAMES):
  """Returns random images of four people, with attributes that follow from the images' colours."""
  source = random_images(count, seed=seed)
  means = np.stack([image.mean((0, 1)) for image in images_of(source)])
  attributes = (means > np.median(means, 0)).astype(np.int32)
  ids = tuple(f'{label}/{i}.jpg' for i, label in enumerate(source.labels))
  return from_images(images_of(source), source.labels, 4, None, {'attributes': attributes}, ids, {'attributes': names})


def attribute_config(**changes):
  return tiny_config(**{'task': 'attributes', 'log_every': '4 steps', **changes})


def sigmoid(x):
  return 1 / (1 + np.exp(-np.float64(x)))


# Losses and metrics.


def test_sigmoid_cross_entropy_is_the_mean_over_known_attributes():
  rng = np.random.default_rng(0)
  logits, targets = (x.astype(np.float32) for x in (rng.normal(0, 3, (5, 4)), rng.uniform(size=(5, 4))))
  known = rng.integers(0, 2, (5, 4))
  known[0] = 0
  p = sigmoid(logits)
  each = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
  np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, targets), each.mean(1), rtol=1e-5)
  expected = [row[k > 0].mean() if k.any() else 0 for row, k in zip(each, known)]
  np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, targets, known), expected, rtol=1e-5)


@pytest.mark.parametrize('temperature', (1.0, 4.0))
def test_softened_cross_entropy(temperature):
  """The gradient is T (softmax(z / T) - softmax(v / T)): equation 2 of Hinton et al., times T^2."""
  rng = np.random.default_rng(0)
  z, v = rng.normal(0, 3, (2, 5, 7))
  softmax = lambda x: np.exp(x / temperature) / np.exp(x / temperature).sum(-1, keepdims=True)
  value, gradient = jax.value_and_grad(lambda z: losses.softened_cross_entropy(z, v, temperature).sum())(z)
  assert value == pytest.approx(-temperature**2 * (softmax(v) * np.log(softmax(z))).sum(), rel=1e-5)
  np.testing.assert_allclose(gradient, temperature * (softmax(z) - softmax(v)), rtol=1e-4, atol=1e-5)


def test_unit_length_has_a_finite_gradient_at_zero():
  x = np.array([[3.0, 4.0], [0, 0]], np.float32)
  np.testing.assert_allclose(losses.unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: losses.unit(x).sum())(x)).all()


def test_semi_hard_triplets_by_brute_force():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(12, 3))
  x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  identities, margin = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4]), 0.2
  distance = ((x[:, None] - x[None]) ** 2).sum(-1)
  expected = []
  for a in range(12):
    own = []
    for p in np.flatnonzero(identities == identities[a]):
      if p == a:
        continue
      negatives = distance[a][identities != identities[a]]
      semi_hard = negatives[negatives > distance[a, p]]
      chosen = semi_hard.min() if len(semi_hard) else negatives.max()
      own.append(max(distance[a, p] - chosen + margin, 0))
    expected.append(np.mean(own) if own else 0)
  assert np.count_nonzero(expected) > 3
  np.testing.assert_allclose(losses.semi_hard_triplet(x, identities, margin), expected, atol=1e-5)
  gradient = jax.grad(lambda x: losses.semi_hard_triplet(x, jnp.zeros(12, int), margin).sum())(x)
  np.testing.assert_array_equal(gradient, np.zeros_like(x))  # there is only one person, so no negative


@pytest.mark.parametrize('levels', (3, 1000))
def test_average_precision_equals_its_definition(levels):
  rng = np.random.default_rng(0)
  for _ in range(20):
    scores, positive = rng.integers(0, levels, 60) / levels, rng.random(60) < 0.2
    if positive.any():
      # By definition: the sum over thresholds of the precision, times the fraction of positives that the threshold adds.
      steps = sorted(set(scores), reverse=True)
      recall = [(positive & (scores >= t)).sum() / positive.sum() for t in steps]
      precision = [positive[scores >= t].mean() for t in steps]
      expected = sum(p * (r - before) for p, r, before in zip(precision, recall, [0, *recall]))
      assert metrics.average_precision(scores, positive) == pytest.approx(expected)
  assert np.isnan(metrics.average_precision(scores, np.zeros(60, bool)))


# Training.


def test_attributes_are_learnt_and_measured_over_the_whole_set(tiny_model, tmp_path, capsys):
  """Mean AP equals the mean of the attributes' APs of the trained model on the same images. Unknown labels are left out."""
  train_source, test_source = faces(64), faces(27, seed=1)
  test_source.extra['attributes'][::5, 1] = -1
  test_source.extra['attributes'][:, 2] = 0
  config = attribute_config(**{'train_for': '40 steps', 'eval_every': '40 steps', 'data.eval_crop': 1.0})
  row = train(config, tmp_path, (train_source, test_source))
  model = trained.load(tmp_path)
  assert model.labels == NAMES
  scores = jax.nn.sigmoid(model.module.apply(
      model.variables, model.prepare(list(images_of(test_source))).astype(np.float32) / 127.5 - 1, train=False))
  labels = test_source.extra['attributes']
  expected = [metrics.average_precision(s[l >= 0], l[l >= 0] > 0) for s, l in zip(np.asarray(scores).T, labels.T)][:2]
  assert row['mean_ap'] == pytest.approx(np.mean(expected), abs=1e-6) and row['mean_ap'] > 0.8
  assert row['attributes_counted'] == 2 and row['eval_examples'] == 27  # the third has no positive example
  assert '(left out, without a positive example: beard)' in capsys.readouterr().out


def test_a_distilled_step_is_the_one_by_hand(tiny_model, tmp_path):
  """The loss that is minimised, with every term at once and a teacher that is a function."""
  config = tiny_config(**{
      'distill.hard_weight': 0.5, 'distill.softmax_weight': 2.0, 'distill.temperature': 3.0, 'distill.sigmoid_weight': 0.3,
      'distill.embedding_weight': 0.7, 'distill.unit_embedding_weight': 0.9, 'distill.features_weight': 1.1,
      'distill.features': 'block_1:wide'})
  rng = np.random.default_rng(0)
  model, task = models.create(config.model, 4), tasks.create(config)
  wide = rng.normal(size=(8, 4, 4, 6)).astype(np.float32)
  teacher = distillation.Teacher(lambda v, images: (jnp.asarray(v['outputs']), {'wide': jnp.asarray(wide)}),
                                 {'outputs': rng.normal(size=(8, 4)).astype(np.float32)})
  images = rng.uniform(-1, 1, (8, 32, 32, 3)).astype(np.float32)
  params = model.init(jax.random.key(0), images, train=False)['params']
  params.update(distillation.init_projection(jax.random.key(1), config, model, teacher, (8, 32, 32, 3)))
  assert params['projection']['kernel'].shape == (16, 6)
  batch = {'image': np.zeros((8, 32, 32, 3), np.uint8), 'label': np.arange(8) % 4}
  batch, theirs = distillation.add_outputs(batch, teacher, teacher.variables)
  outputs = rng.normal(size=(8, 4)).astype(np.float32)
  features = {'block_1': rng.normal(size=(8, 16, 16, 16)).astype(np.float32)}
  t = teacher.variables['outputs']
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  larger = np.asarray(jax.image.resize(wide, (8, 16, 16, 6), 'linear'))
  expected = {
      'hard': 0.5 * -np.log(softmax(outputs)[np.arange(8), np.arange(8) % 4]),
      'softmax': 2 * 9 * -(softmax(t / 3) * np.log(softmax(outputs / 3))).sum(-1),
      'sigmoid': 0.3 * -(sigmoid(t) * np.log(sigmoid(outputs)) + (1 - sigmoid(t)) * np.log(1 - sigmoid(outputs))).mean(-1),
      'embedding': 0.7 * ((outputs - t) ** 2).sum(-1),
      'unit_embedding': 0.9 * ((unit(outputs) - unit(t)) ** 2).sum(-1),
      'features': 1.1 * ((features['block_1'] @ np.asarray(params['projection']['kernel']) - larger) ** 2).mean((1, 2, 3))}
  actual = distillation.loss(config, task, outputs, features, params, batch, theirs)
  assert actual.keys() == expected.keys()
  for name, term in expected.items():
    np.testing.assert_allclose(actual[name], term, rtol=1e-4, err_msg=name)


@pytest.fixture(scope='module')
def trained_teacher(tmp_path_factory):
  folder, source = tmp_path_factory.mktemp('teacher'), faces(64)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, 'mobilenet', SmallMobileNet)
    config = attribute_config(**{'train_for': '30 steps', 'eval_every': '30 steps', 'data.eval_crop': 1.0})
    train(config, folder, (source, source))
  return folder


@pytest.fixture
def teacher_folder(trained_teacher, small_model):
  return trained_teacher


def test_a_model_its_recording_and_a_function_teach_the_same(teacher_folder, tmp_path, monkeypatch):
  """Without crops all three teachers see the same image. No labels are known."""
  teacher = trained.load(teacher_folder)
  source = faces(32, seed=3)
  source.extra['attributes'][:] = -1
  monkeypatch.setattr(recording, 'BATCH', 5)
  monkeypatch.setattr(recording, 'PART', 10)
  parts = tmp_path / 'parts'
  names, outputs = recording.record(teacher, source, parts)
  (parts / '000000020.npy').unlink()
  again = recording.record(teacher, source, parts)  # continues
  np.testing.assert_array_equal(again[1], outputs)
  np.savez(tmp_path / 'teacher.npz', names=names, logits=outputs, attributes=NAMES)

  see_all = {'data.crop_min_area': 1.0, 'data.crop_max_aspect': 1.0, 'data.flip': False, 'data.eval_crop': 1.0,
             'distill.hard_weight': 0.0, 'distill.sigmoid_weight': 1.0, 'train_for': '6 steps', 'eval_every': '6 steps'}
  by_file = attribute_config(**see_all, **{'data.recorded': str(tmp_path / 'teacher.npz')})
  bare = dataclasses.replace(source, extra={}, extra_names={})
  joined, _ = recorded.join((bare, bare), by_file.data)
  rows = {'recorded': train(by_file, tmp_path / 'recorded', (joined, joined))}
  evaluated = dataclasses.replace(source, extra={'attributes': (joined.extra['teacher'] > 0).astype(np.int32)})
  by_model = attribute_config(**see_all, **{'distill.model': str(teacher_folder)})
  rows['model'] = train(by_model, tmp_path / 'model', (evaluated, evaluated))
  function = distillation.Teacher(lambda v, images: (teacher.module.apply(
      teacher.variables, images / jnp.float32(127.5) - 1, train=False), {}))
  rows['function'] = train(attribute_config(**see_all), tmp_path / 'function', (evaluated, evaluated), function)
  for name in ('model', 'function'):
    assert rows[name]['emulation'] == pytest.approx(rows['recorded']['emulation'], rel=1e-4)
    assert rows[name]['mean_ap'] == pytest.approx(rows['recorded']['mean_ap'], rel=1e-3)
  own_entropy = losses.sigmoid_cross_entropy(outputs, jax.nn.sigmoid(outputs)).mean()
  assert rows['model']['emulation'] > own_entropy  # the lowest possible value


def test_images_of_which_nothing_is_known_are_enough(teacher_folder, tmp_path):
  """A folder of images without classes or attributes, and a teacher. The student takes the names of the teacher's outputs."""
  (tmp_path / 'images').mkdir()
  for i, image in enumerate(images_of(faces(40, seed=3))):
    Image.fromarray(image).save(tmp_path / 'images' / f'{i}.png')
  config = attribute_config(**{
      'data.name': f'folder:{tmp_path / "images"}', 'data.split_by': 'class', 'distill.model': str(teacher_folder),
      'distill.hard_weight': 0.0, 'distill.sigmoid_weight': 1.0, 'train_for': '40 steps', 'eval_every': '40 steps'})
  row = train(config, tmp_path / 'student')
  assert row['mean_ap'] > 0.6 and trained.load(tmp_path / 'student').labels == NAMES
  assert row['eval_examples'] == held_out([f'images/{i}.png' for i in range(40)]).sum()
  assert row['measured_against'] == "the teacher's decisions"
  assert all(row['split'] != 'teacher' for row in read_metrics(tmp_path / 'student')[0])  # it would be measured against itself


def test_embeddings_are_distilled_and_verified(tiny_model, tmp_path):
  """A student emulates recorded embeddings of people, until it verifies people correctly."""
  source, held_out = faces(64), faces(40, seed=1)
  people = np.eye(8, dtype=np.float32)[:4]
  config = tiny_config(**{
      'task': 'embedding', 'embedding.size': 8, 'embedding.folds': 2, 'embedding.pairs_per_fold': 20,
      'distill.hard_weight': 0.0, 'distill.unit_embedding_weight': 1.0, 'train_for': '60 steps', 'eval_every': '60 steps'})
  for part in (source, held_out):
    part.extra.update(teacher=people[part.labels])
  # No person may be in two folds; four people are enough for two folds.
  row = train(config, tmp_path, (source, held_out))
  assert row['distance'] < 0.3 and row['accuracy'] > 0.9 and row['auc'] > 0.9
  assert trained.load(tmp_path).num_classes == 8
  first = read_metrics(tmp_path)[0][0]  # what is recorded is measured, too
  assert (first['step'], first['split'], first['accuracy'], first['auc'], first['examples']) == (0, 'teacher', 1, 1, 40)
  assert 'distance' not in first


def test_identity_batches(tiny_model, tmp_path):
  """The triplet loss falls on batches with two images of each of four people."""
  source = faces(64)
  config = tiny_config(**{
      'task': 'embedding', 'embedding.size': 8, 'embedding.folds': 2, 'embedding.pairs_per_fold': 20, 'log_every': '20 steps',
      'data.per_identity': 2, 'train_for': '60 steps', 'eval_every': '60 steps'})
  row = train(config, tmp_path, (source, source))
  assert row['auc'] > 0.8


# Teachers and students that do not fit each other.


@pytest.mark.parametrize('changes, message', (
    ({'distill.sigmoid_weight': 1.0}, 'distill.sigmoid_weight=1.0: there is no teacher'),
    ({'distill.hard_weight': 0.0}, 'all weights are 0'),
    ({'distill.model': 'TEACHER', 'model.num_classes': 0, 'task': 'classification'},
     "the teacher has 3 outputs, the student 4; expected equal numbers"),
    ({'distill.model': 'TEACHER', 'distill.features_weight': 1.0, 'distill.features': 'block_1:block_9'},
     'distill.features=block_1:block_9: the teacher has no feature block_9; available: block_1, block_2'),
    ({'distill.model': 'nowhere'}, 'nowhere: neither a file')))
def test_what_does_not_fit_is_one_line(changes, message, teacher_folder, tmp_path):
  changes = {name: str(teacher_folder) if value == 'TEACHER' else value for name, value in changes.items()}
  with pytest.raises(UserError, match=message):
    train(attribute_config(**changes), tmp_path / 'student', (faces(32), faces(32)))


def test_teachers_of_other_attributes_are_one_line(teacher_folder, tmp_path):
  other = faces(32, names=('glasses', 'hat', 'scarf'))
  with pytest.raises(UserError, match=r"the teacher has 3 outputs \(glasses, hat, beard\) and lacks 1 of the student's 3 "
                                      r'\(scarf\)'):
    train(attribute_config(**{'distill.model': str(teacher_folder)}), tmp_path / 'student', (other, other))


@pytest.mark.parametrize('arrays, message', (
    ({'names': ['0/0.jpg'], 'probs': np.ones((1, 3)) / 2},
     r'no outputs for 31 of 32 examples to train on \(1/1.jpg, 2/2.jpg, 3/3.jpg, ...\)'),
    ({'names': ['0/0.jpg'], 'probs': np.ones((1, 3)) / 2, 'logits': np.ones((1, 3))}, 'has logits and probs; expected one of them'),
    ({'names': ['0/0.jpg'], 'probs': np.ones((1, 3)) / 2, 'labels': ['a', 'b', 'a']}, 'expected a different name for each'),
    ({'names': ['0/0.jpg'], 'probs': np.full((1, 3), np.nan)},
     '1 of 1 examples have outputs that are not finite in float32, such as 0/0.jpg'),
    ({'names': ['0/0.jpg'], 'logits': np.full((1, 3), 1e300)}, '1 of 1 examples have outputs that are not finite in float32'),
    ({'names': ['0/0.jpg'], 'logits': np.ones((2, 3))}, r'has names <U7 \(1,\), logits float64 \(2, 3\); expected names \(n,\) of text and'),
    ({}, 'has nothing; expected names')))
def test_recorded_outputs_that_do_not_fit_are_one_line(arrays, message, tmp_path):
  np.savez(tmp_path / 'teacher.npz', **arrays)
  with pytest.raises(UserError, match=message):
    recorded.join((faces(32), faces(32)), attribute_config(**{'data.recorded': str(tmp_path / 'teacher.npz')}).data)


def test_outputs_are_matched_by_name():
  """The teacher has the student's attributes in another order, and one that the student does not have."""
  source = faces(4)
  values = np.arange(16, dtype=np.float32).reshape(4, 4)
  source.extra['teacher'] = values
  source.extra_names['teacher'] = ('beard', 'scarf', 'glasses', 'hat')
  task = tasks.create(attribute_config())
  selected = distillation.selected(source, task, 3, NAMES)
  np.testing.assert_array_equal(selected.targets['teacher'], values[:, [2, 3, 0]])
  np.testing.assert_array_equal(selected[1].targets['teacher'], values[1, [2, 3, 0]])
  teacher = distillation.Teacher(lambda v, images: (jnp.asarray(values), {}), {}, source.extra_names['teacher'])
  chosen = distillation.select(teacher, 3, NAMES, (4, 8, 8, 3))
  np.testing.assert_array_equal(chosen.function({}, np.zeros((4, 8, 8, 3), np.uint8))[0], values[:, [2, 3, 0]])


def test_recorded_probabilities_become_logits_and_missing_examples_can_be_left_out(tmp_path):
  probs = np.array([[0.5, 0.9, 0.0], [1.0, 0.1, 0.25]])
  np.savez(tmp_path / 'teacher.npz', names=['0.jpg', '5.jpg'], probs=probs, attributes=NAMES)  # matched by file name alone
  config = attribute_config(**{'data.recorded': str(tmp_path / 'teacher.npz'), 'data.recorded_missing': 'skip'})
  both = recorded.join((faces(32), faces(8)), config.data)
  for joined, count, part in zip(both, (32, 8), ('train', 'evaluate')):
    assert joined.ids == ('0/0.jpg', '1/5.jpg') and joined.extra_names['teacher'] == NAMES
    assert f'no outputs for {count - 2} of {count} examples to {part} on (1/1.jpg, ' in joined.remarks[0]
    chosen = distillation.selected(joined, tasks.create(config), 3, NAMES)
    np.testing.assert_allclose(sigmoid(chosen.targets['teacher']), probs, atol=2e-7)
