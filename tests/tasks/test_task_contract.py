"""Tests the contract of tasks, see mobilenet_jax/tasks/__init__.py, and that a new task needs no change anywhere else."""

import dataclasses
import inspect
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NEVER, command, images_of, random_images, tiny_config
from PIL import Image

from mobilenet_jax import tasks, trained
from mobilenet_jax.data import crop_and_flip, eval_batches, from_images, load, train_batches
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.sweeps.sweep import sweep
from mobilenet_jax.training import checked, evaluate_trained, train

COUNT = 40


def everything():
  """Returns a source with every target that a current task asks for."""
  rng = np.random.default_rng(0)
  labels = (np.arange(COUNT) % 8).astype(np.int32)
  extra = {'attributes': rng.integers(0, 2, (COUNT, 3)).astype(np.int32),
           'teacher': rng.normal(size=(COUNT, 3)).astype(np.float32)}
  return from_images(np.zeros((COUNT, 40, 40, 3), np.uint8), labels, 8, None, extra, tuple(map(str, range(COUNT))),
                     {'attributes': ('hat', 'beard', 'scarf')})


@pytest.mark.parametrize('name', tasks.TASKS)
def test_every_task_keeps_the_contract(name):
  source = everything()
  config = tiny_config(**{'task': name, 'embedding.size': 3, 'embedding.folds': 2, 'embedding.pairs_per_fold': 20})
  task = tasks.create(config)
  for member in (*tasks.Task.__annotations__, *(n for n in vars(tasks.Task) if not n.startswith('_'))):
    assert hasattr(task, member), member
    if inspect.isfunction(method := getattr(tasks.Task, member, None)):
      assert list(inspect.signature(method).parameters)[1:] == list(inspect.signature(getattr(task, member)).parameters)
  assert task.kind in ('classes', 'attributes', 'vector', 'numbers')
  assert task.main_metric in task.headlines
  for title, form in task.headlines.values():
    assert title and format(0.5, form)
  image, targets = task.transform(np.zeros((50, 60, 3), np.uint8), {'label': 7}, np.random.default_rng(0))
  assert image.shape == (32, 32, 3) and targets == {'label': 7}  # a crop changes no class, attribute or identity

  number, names = task.outputs(source)
  assert number > 0 and (names is None or len(names) == number)
  task.check(source)
  outputs = np.random.default_rng(1).normal(size=(COUNT, number)).astype(np.float32)
  batch = {'image': images_of(source), 'mask': np.ones(COUNT, np.float32), **source.targets}
  if name == 'classification':
    del batch['teacher']

  def on_a_device(outputs, batch):
    return task.loss(outputs, batch), task.metrics(outputs, batch), task.kept(outputs, batch), task.prediction(outputs)

  one = jax.tree.map(lambda x: x[None], (outputs, batch))
  loss, values, kept, prediction = jax.tree.map(lambda x: np.asarray(x[0]), jax.vmap(on_a_device, axis_name=devices.AXIS)(*one))
  assert loss.shape == (COUNT,) and loss.dtype == np.float32 and np.isfinite(loss).all()
  assert all(value.shape == (COUNT,) for value in values.values())
  assert all(len(value) == COUNT for value in kept.values())
  expected = {'classes': jax.nn.softmax, 'attributes': jax.nn.sigmoid, 'numbers': lambda x: x,
              'vector': lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)}[task.kind](outputs)
  np.testing.assert_allclose(prediction, expected, atol=1e-6)
  evaluation = {**{key: float(value.mean()) for key, value in values.items()}, **task.summary(kept, source)}
  assert task.main_metric in evaluation and all(np.isfinite(value) for value in evaluation.values())
  assert set(task.headlines) <= {*evaluation, 'emulation', 'distance'}  # these two if there is a teacher
  assert '\n' not in task.remark(evaluation) and isinstance(task.details(evaluation), str)
  assert tasks.headline(evaluation).startswith(task.headlines[task.main_metric][0])


def test_models_are_evaluated_on_data_with_their_names(tiny_model, tmp_path):
  """By the names of the attributes, not by their number."""
  source = everything()
  del source.extra['teacher']
  train(tiny_config(task='attributes', train_for='1 step'), tmp_path, (source, source))
  model = trained.load(tmp_path)
  evaluation, = evaluate_trained([model], source, model.config, NEVER)
  assert evaluation['examples'] == COUNT
  order = [2, 0]
  other = dataclasses.replace(source, extra={'attributes': source.extra['attributes'][:, order]},
                              extra_names={'attributes': ('scarf', 'hat')})
  found, = evaluate_trained([model], other, model.config, NEVER)
  assert {name: found[f'ap/{name}'] for name in ('scarf', 'hat')} == {
      name: evaluation[f'ap/{name}'] for name in ('scarf', 'hat')} and 'ap/beard' not in found
  unknown = dataclasses.replace(source, extra_names={'attributes': ('hat', 'scarf', 'tie')})
  with pytest.raises(UserError, match=r'has 3 attributes \(hat, beard, scarf\), the data has 3; the model lacks tie'):
    evaluate_trained([model], unknown, model.config, NEVER)


def test_images_of_pairs_are_not_skipped():
  config = tiny_config(**{'task': 'embedding', 'embedding.folds': 2, 'data.bad_images': 'skip'})
  with pytest.raises(UserError, match='data.bad_images=skip: expected error'):
    checked(config)


def test_an_unknown_task_is_one_line(tmp_path):
  with pytest.raises(UserError, match="task='poetry': expected one of classification, attributes, embedding"):
    train(tiny_config(task='poetry'), tmp_path)


class Brightness:
  """A regression of the mean of the image, which the data has as a separate target."""

  kind = 'numbers'
  main_metric = 'closeness'
  headlines = {'closeness': ('closeness', '.3f')}
  needs_labels = False
  split_by = 'image'

  def __init__(self, config):
    self.transform = crop_and_flip(config.data)

  def outputs(self, source):
    del source
    return 1, ('brightness',)

  def check(self, source):
    if 'brightness' not in source.targets:
      raise UserError('task=brightness: the data has none')

  def measured_against(self, source):
    return 'brightness'

  def loss(self, outputs, batch):
    return jnp.square(outputs[:, 0] - batch['brightness'])

  def metrics(self, outputs, batch):
    return {'loss': self.loss(outputs, batch), 'closeness': jnp.exp(-self.loss(outputs, batch))}

  def kept(self, outputs, batch):
    del outputs, batch
    return {}

  def summary(self, kept, source):
    del kept, source
    return {}

  def prediction(self, outputs):
    return outputs

  def remark(self, evaluation):
    return 'dark' if evaluation['closeness'] < 0 else 'as bright as can be'

  def details(self, evaluation):
    return f'  brightness {evaluation["closeness"]:.4f}\n'


def test_a_new_task_is_trained_swept_and_told_of(tiny_model, monkeypatch, tmp_path, capsys):
  """One class and one line in TASKS put its metric into the progress line, the summary, the row and the table of a sweep."""
  monkeypatch.setitem(tasks.TASKS, 'brightness', Brightness)
  source = random_images(40)
  source.extra['brightness'] = (images_of(source).mean((1, 2, 3)) / 255).astype(np.float32)
  config = tiny_config(task='brightness')
  row = train(config, tmp_path / 'one', (source, source))
  said = capsys.readouterr().out
  assert 'closeness 0.' in said and '(as bright as can be)' in said
  assert 0 < row['closeness'] < 1
  assert tasks.headline(row) == f'closeness {row["closeness"]:.3f}'
  np.testing.assert_allclose(trained.load(tmp_path / 'one').predict(list(images_of(source)[:2])).shape, (2, 1))

  monkeypatch.setattr('mobilenet_jax.data.load', lambda data: (source, source))
  rows = sweep(config, [{'model.width_multiplier': width} for width in (0.25, 0.5)], tmp_path / 'sweep', launcher='here')
  assert [row['closeness'] for row in rows][0] == row['closeness']
  assert 'mobilenet_0.25_32: closeness 0.' in capsys.readouterr().out
  done = command('sweep', 'status', f'--workdir={tmp_path / "sweep"}')
  assert done.stdout.count('closeness 0.') == 2 and '2 finished of 2 runs' in done.stdout


def boxes_of(images):
  """Returns the top, left, bottom and right of the bright part, in fractions of each image."""
  found = []
  for image in images:
    rows, columns = np.nonzero(image[..., 0] > 127)
    height, width = image.shape[:2]
    found.append((rows.min() / height, columns.min() / width, (rows.max() + 1) / height, (columns.max() + 1) / width))
  return np.array(found, np.float32)


def crop_box(targets, window, flip):
  """Crops a box as a detector would: to fractions of the cropped image, cut off at its border."""
  top, left, height, width = window
  y0, x0, y1, x1 = targets['box']
  y0, y1 = np.clip((np.array([y0, y1]) - top) / height, 0, 1)
  x0, x1 = np.clip((np.array([x0, x1]) - left) / width, 0, 1)
  x0, x1 = (1 - x1, 1 - x0) if flip else (x0, x1)
  return {**targets, 'box': np.array([y0, x0, y1, x1], np.float32)}


def with_boxes():
  """Returns images of a bright rectangle on black, and its boxes."""
  rng = np.random.default_rng(5)
  images = np.zeros((24, 96, 128, 3), np.uint8)
  for image in images:
    y, x = rng.integers(30, 50), rng.integers(40, 70)
    image[y:y + rng.integers(10, 24), x:x + rng.integers(10, 30)] = 255
  return images, boxes_of(images)


@pytest.mark.parametrize('road', ('arrays', 'files'))
def test_boxes_follow_crops_and_flips(road, tmp_path):
  """Compares boxes and images from either kind of source, in training and in evaluation."""
  images, boxes = with_boxes()
  config = tiny_config(**{'data.image_size': (96, 128), 'data.crop_min_area': 0.6, 'data.eval_crop': 0.9}).data
  if road == 'arrays':
    source = from_images(images, np.zeros(24, np.int32), 2)
  else:
    for i, image in enumerate(images):
      path = tmp_path / 'train' / str(i % 2) / f'{i:02}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      encoded = io.BytesIO()
      Image.fromarray(image).save(encoded, 'png')
      path.write_bytes(encoded.getvalue())
    config.name, config.eval_split = f'folder:{tmp_path}', 'train'
    source = load(config)[0]
    boxes = boxes[[int(name.split('/')[-1].removesuffix('.png')) for name in source.ids]]
  source.extra['box'] = boxes
  seen = 0
  transform = crop_and_flip(config, crop_box)
  training = train_batches(source, config, 8, 0, 0, NEVER, transform=transform)
  for batch in (*(next(training) for _ in range(6)), *eval_batches(source, config, 8, NEVER, transform=transform)):
    assert batch['box'].shape == (8, 4) and batch['box'].dtype == np.float32
    np.testing.assert_allclose(batch['box'], boxes_of(batch['image']), atol=2 / 96)  # a pixel of the crop, resized
    seen += len(np.unique(batch['box'], axis=0))
  assert seen > 60
  plain = next(train_batches(source, config, 8, 0, 0, NEVER))
  moved = next(train_batches(source, config, 8, 0, 0, NEVER, transform=transform))
  np.testing.assert_array_equal(plain['image'], moved['image'])  # the same crops
  assert not np.allclose(plain['box'], moved['box'])


@pytest.mark.parametrize('bad_images', ('error', 'skip'))
def test_a_crop_that_changes_a_shape_is_not_taken_for_a_bad_image(bad_images, tmp_path):
  for i, image in enumerate(with_boxes()[0][:8]):
    (tmp_path / 'train' / str(i % 2)).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(tmp_path / 'train' / str(i % 2) / f'{i}.png')
  config = tiny_config(**{'data.name': f'folder:{tmp_path}', 'data.eval_split': 'train', 'data.bad_images': bad_images}).data
  with pytest.raises(Exception, match="'label', array"):
    transform = crop_and_flip(config, lambda targets, window, flip: {'label': [1, 2]})
    next(train_batches(load(config)[0], config, 4, 0, 0, NEVER, transform=transform))
