"""Tests trained models: saving and loading, starting from them, evaluation and prediction."""

import csv
import io
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

import mobilenet_jax
from mobilenet_jax import config as config_lib
from mobilenet_jax import models, trained
from mobilenet_jax.data import from_images, read_image
from mobilenet_jax.errors import UserError
from mobilenet_jax.models import MobileNet
from mobilenet_jax.trained.published import weights
from mobilenet_jax.training import train
from conftest import assert_one_line, command, images_of, random_images, tiny_config

LABELS = ('background', 'n01440764 tench, Tinca tinca', 'n01443537 goldfish, Carassius auratus', 'lamp', 'spoon')


def random_model(labels=LABELS, num_classes=5, size=(32, 32), **changes):
  """Returns the whole network with random weights."""
  rng = np.random.default_rng(0)
  draw = lambda path, shape: (rng.uniform(0.5, 1.5, shape) if path[2] in ('scale', 'var')
                              else rng.normal(0, 1.5 / np.sqrt(max(np.prod(shape[:-1]), 1)), shape)).astype(np.float32)
  shapes = weights.shapes(MobileNet(num_classes, 0.25))
  variables = weights.unflatten({path: draw(path, shape) for path, shape in shapes.items()})
  config = config_lib.changed(config_lib.base(), {
      'data.image_size': size, 'model.width_multiplier': 0.25, 'data.name': 'nothing', **changes})
  return trained.TrainedModel(config, variables, labels, 'random')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('model')
  random_model().save(path)
  return path


def test_a_run_is_loaded_as_it_was_evaluated(tiny_model, tmp_path):
  """Averaged weights, labels and preprocessing are loaded: top-1 on the images of the evaluation equals that of the row."""
  sources = random_images(64), random_images(20, seed=1)
  named = [from_images(images_of(source), source.labels, 4, ('a', 'b', 'c', 'd')) for source in sources]
  config = tiny_config(**{'ema_decay': 0.9, 'data.eval_crop': 0.8, 'train_for': '30 steps', 'eval_every': '30 steps'})
  row = train(config, tmp_path / 'run', named)
  model = trained.load(tmp_path / 'run')
  assert model.labels == ('a', 'b', 'c', 'd') and model.config.data.eval_crop == 0.8
  assert model.num_classes == 4 and row['top1'] > 0.3
  # The module itself, not folded.
  images = model.prepare(list(images_of(named[1]))).astype(np.float32) / 127.5 - 1
  logits = model.module.apply(model.variables, images, train=False)
  assert (logits.argmax(-1) == named[1].labels).mean() == pytest.approx(row['top1'])


def test_prediction_is_that_of_the_network(folder):
  """Compares predictions for every form of image with the Flax module and a crop by hand."""
  model = mobilenet_jax.load(folder)
  image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
  whole = trained.TrainedModel(config_lib.changed(model.config, {'data.eval_crop': 1.0}), model.variables, LABELS, '')
  logits = model.module.apply(model.variables, image[None] / np.float32(127.5) - 1, train=False)
  np.testing.assert_allclose(whole.predict(image)[0], jax.nn.softmax(logits[0]), atol=1e-5)
  np.testing.assert_array_equal(whole.predict(Image.fromarray(image)), whole.predict([image]))
  label, probability = whole.top([image, image], k=2)[1][0]
  assert label == LABELS[int(logits.argmax())] and probability == pytest.approx(float(jax.nn.softmax(logits).max()), abs=1e-5)
  assert whole.features(image).shape == (1, 256) and whole.features(image, 'block_5').shape == (1, 4, 4, 64)
  with pytest.raises(UserError, match="features 'block_20': expected one of block_1, "):
    whole.features(image, 'block_20')


@pytest.mark.slow
def test_folding_with_keras_padding_changes_nothing():
  model = random_model(size=(37, 51), **{'model.padding': 'keras'})
  images = np.random.default_rng(1).uniform(-1, 1, (2, 37, 51, 3)).astype(np.float32)
  expected = model.module.apply(model.variables, images, train=False)
  for as_convolutions in (False, True):
    predict, folded = models.fold(model.module, model.variables, as_convolutions)
    np.testing.assert_allclose(predict(folded, images), expected, atol=1e-5 * np.abs(expected).max())
  same = config_lib.changed(model.config, {'model.padding': 'same'})
  other = trained.TrainedModel(same, model.variables, None, '').module.apply(model.variables, images, train=False)
  assert np.abs(other - expected).max() > 1e-3


@pytest.mark.parametrize('names, count, expected', (
    (('n01443537', 'spoon', 'n01440764'), 3, [2, 4, 1]),  # from a folder: by synset number or name, in any order
    (('spoon',), 1, [4]),
    (None, 4, [1, 2, 3, 4]),  # by number, after the background
    (None, 3, [1, 2, 3]),
    (('fork', 'spoon'), 2, 'lacks fork'),
    (None, 5, 'has 4 classes, the data has 5')))
def test_classes_are_matched(names, count, expected):
  source = from_images(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int32), count, names)
  if isinstance(expected, str):
    with pytest.raises(UserError, match=expected):
      random_model().outputs_of(source)
  else:
    assert random_model().outputs_of(source).tolist() == expected


@pytest.mark.parametrize('freeze_body, freeze_batch_stats', (
    (True, None), *(pytest.param(False, freeze, marks=pytest.mark.slow) for freeze in (False, True))))
def test_fine_tuning(freeze_body, freeze_batch_stats, tiny_model, tmp_path):
  """Frozen variables stay the same to the bit, and the others change. The classifier is new, or has the rows of the classes."""
  first = random_images(32)
  first = from_images(images_of(first), first.labels, 4, ('a', 'b', 'c', 'd'))
  train(tiny_config(), tmp_path / 'first', (first, first))
  other = random_images(32, classes=3, seed=2)
  other = from_images(images_of(other), other.labels, 3, ('d', 'b', 'a'))
  changes = {'init.model': str(tmp_path / 'first'), 'init.freeze_body': freeze_body, 'init.keep_head': freeze_body,
             'optim.weight_decay': 0.1, 'train_for': '2 steps', 'eval_every': '2 steps', 'ema_decay': 0.9}
  if freeze_batch_stats is not None:  # a frozen body has frozen statistics
    changes['model.freeze_batch_stats'] = freeze_batch_stats
  train(tiny_config(**changes), tmp_path / 'second', (other, other))
  before, after = (trained.load(tmp_path / name).variables for name in ('first', 'second'))
  same = jax.tree.map(lambda a, b: bool((a == b).all()), before['params'], {
      **after['params'], 'classifier': before['params']['classifier']})
  moved = [not value for layer, values in same.items() for value in values.values() if layer != 'classifier']
  assert not any(moved) if freeze_body else all(moved)
  stats = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before['batch_stats'], after['batch_stats']))
  assert all(stats) if freeze_batch_stats or freeze_body else not any(stats)
  head, rows = after['params']['classifier']['kernel'], before['params']['classifier']['kernel'][:, [3, 1, 0]]
  assert head.shape == rows.shape and (np.abs(head - rows).max() < 0.05) == freeze_body


def test_what_does_not_fit_is_told_before_training(tiny_model, tmp_path):
  source = random_images(32)
  train(tiny_config(), tmp_path / 'first', (source, source))
  wide = tiny_config(**{'init.model': str(tmp_path / 'first'), 'model.width_multiplier': 0.5})
  with pytest.raises(UserError, match=r'first: it has model.width_multiplier=0.25, you asked for 0.5; give'):
    train(wide, tmp_path / 'second', (source, source))
  with pytest.raises(UserError, match='nowhere: neither a file, a folder nor a published model'):
    train(tiny_config(**{'init.model': 'nowhere'}), tmp_path / 'third', (source, source))


def write_images(folder, count=3):
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(3)
  paths = [folder / f'{i}.png' for i in range(count)]
  for path in paths:
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
  return paths


def test_predict_command(folder, tmp_path):
  """Tests images, folders and a list on standard input, in every format, and annotation."""
  paths = write_images(tmp_path / 'a') + write_images(tmp_path / 'b' / 'c', 1)
  model = mobilenet_jax.load(folder)
  expected = model.top(paths, k=2)
  done = command('predict', folder, tmp_path, '--top=2', '--format=json', f'--annotate={tmp_path / "out"}')
  assert done.returncode == 0 and done.stderr == ''
  found = json.loads(done.stdout)
  assert [row['file'] for row in found] == [str(path) for path in paths]
  for row, top in zip(found, expected):
    assert [one['label'] for one in row['top']] == [label for label, _ in top]
    np.testing.assert_allclose([one['probability'] for one in row['top']], [p for _, p in top], atol=1e-5)
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['0.png', '0_2.png', '1.png', '2.png']
  done = command('predict', folder, '-', '--top=1', '--format=csv', stdin=f'{paths[1]}\n{paths[0]}\n')
  rows = list(csv.DictReader(io.StringIO(done.stdout)))
  assert [(row['file'], row['label']) for row in rows] == [(str(paths[i]), expected[i][0][0]) for i in (1, 0)]
  done = command('predict', folder, paths[0])
  assert done.stdout.splitlines()[0] == str(paths[0]) and expected[0][0][0] in done.stdout.splitlines()[1]


def test_annotated_images_replace_only_annotated_images(folder, tmp_path):
  """Such as those that are to be annotated, in whose folder the new ones are to be."""
  first, second, _ = write_images(tmp_path / 'photos')
  out = f'--annotate={tmp_path / "out"}'
  for _ in range(2):  # its own ones are replaced
    assert command('predict', folder, first, out).returncode == 0
  second.rename(tmp_path / 'out' / '1.png')
  contents = {path: path.read_bytes() for path in tmp_path.rglob('*.png')}
  assert_one_line(command('predict', folder, tmp_path / 'out' / '1.png', out), '1.png is there already and was not written by')
  assert_one_line(command('predict', folder, first, f'--annotate={tmp_path / "photos"}'), '0.png is there already')
  assert {path: path.read_bytes() for path in tmp_path.rglob('*.png')} == contents
  assert command('predict', folder, first, first, f'--annotate={tmp_path / "twice"}').returncode == 0
  assert sorted(path.name for path in (tmp_path / 'twice').iterdir()) == ['0.png', '0_2.png']


def bad_images(folder):
  """Writes one file of each kind that is refused, named by what the error says about it."""
  folder.mkdir()
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
  noise.resize((1, 1)).save(folder / 'single pixel.png')
  (folder / 'not an image.jpg').write_text('hello')
  (folder / 'an empty file.jpg').touch()
  noise.save(folder / 'whole.jpg')
  (folder / 'cut short.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:500])
  (folder / 'whole.jpg').unlink()
  (folder / 'no such file.jpg').symlink_to('nowhere')
  return sorted(folder.iterdir())


def test_bad_images_are_one_line_each(folder, tmp_path):
  """The other images are labelled as if there were no bad ones, whatever the batch."""
  good = write_images(tmp_path / 'good', 5)
  bad = bad_images(tmp_path / 'bad')
  for path in bad:
    with pytest.raises(UserError, match=f'(?i){path.stem}') as error:
      read_image(path, True)
    assert str(path) in str(error.value) and '\n' not in str(error.value)
  model, gray = mobilenet_jax.load(folder), Image.fromarray(np.full((40, 40), 7, np.uint8))
  assert model.predict(gray).shape == (1, 5) and model.predict(good[0].read_bytes()).shape == (1, 5)
  with pytest.raises(UserError, match='the image: not an image, or damaged'):
    model.predict(Image.open(io.BytesIO(good[0].read_bytes()[:-100])))
  paths = [path for pair in itertools.zip_longest(bad, good) for path in pair if path]
  expected = command('predict', folder, *good, '--format=json')
  assert expected.returncode == 0 and expected.stderr == ''
  for batch in (1, 2, 100):
    done = command('predict', folder, '-', '--format=json', f'--batch={batch}', stdin='\n'.join(map(str, paths)))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == len(bad)
    assert all(f'error: {path}: ' in done.stderr for path in bad)
    for ours, theirs in zip(json.loads(done.stdout), json.loads(expected.stdout), strict=True):
      assert ours['file'] == theirs['file']
      assert [x['label'] for x in ours['top']] == [x['label'] for x in theirs['top']]


@pytest.mark.parametrize('args, message', (
    (['predict', 'FOLDER', 'nowhere.jpg'], 'nowhere.jpg: there is no such file or folder'),
    (['predict', 'FOLDER', 'Makefile', '--batch=0'], '--batch=0: expected at least 1'),
    (['predict', 'FOLDER', '-'], 'standard input names no image'),
    (['predict', 'FOLDER'], 'the following arguments are required: images'),
    (['predict', 'nowhere', 'Makefile'], 'nowhere: neither a file, a folder nor a published model'),
    (['predict', 'nowhere.h5', 'Makefile'], 'nowhere.h5: there is no such file'),
    (['predict', 'Makefile', 'Makefile'], 'not a file of weights that can be read'),
    (['predict', 'tests', 'Makefile'], 'tests: no checkpoint in this folder'),
    (['evaluate', 'FOLDER', '--data=folder:/nowhere'], 'folder:/nowhere: there is no such folder'),
    (['export', 'FOLDER', 'coreml', '--out=x'], "invalid choice: 'coreml'"),
    (['import', 'FOLDER', '--out=tests'], 'is a file or a folder that is not empty')))
def test_bad_arguments_are_one_line(args, message, folder):
  done = command(*[folder if arg == 'FOLDER' else arg for arg in args], stdin='')
  assert done.returncode == 1 and message in done.stderr, done.stderr
  assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith('error: ')


def test_evaluate_command(folder, tmp_path):
  """Evaluates on folders of classes, by name, and on a labels.csv; top-1 is counted by hand from `predict`."""
  pytest.importorskip('tensorflow')
  model = mobilenet_jax.load(folder)
  truth = {}
  for label in ('lamp', 'spoon', 'n01443537'):
    for path in write_images(tmp_path / 'val' / label, 2):
      truth[path] = next(i for i, name in enumerate(LABELS) if name.startswith(label))
  right = sum(int(row.argmax() == truth[path]) for path, row in zip(truth, model.predict(list(truth))))
  done = command('evaluate', folder, f'--data=folder:{tmp_path}/val', '--batch=4', '--json')
  assert done.stderr == ''
  found = json.loads(done.stdout)
  assert found['trained_on'] is None  # it is not known of a saved model
  assert found['examples'] == 6 and found['top1'] == pytest.approx(right / 6) and found['top5'] == 1
  (tmp_path / 'val' / 'labels.csv').write_text('file,label\n' + ''.join(
      f'{path.relative_to(tmp_path / "val")},{label - 1}\n' for path, label in truth.items()))
  again = command('evaluate', folder, f'--data=folder:{tmp_path}/val', '--batch=6', '--json')
  assert {**json.loads(again.stdout), 'loss': 0} == {**found, 'loss': 0}

  (tmp_path / 'val' / 'labels.csv').write_text('file,label\nnone.png,0\n')
  done = command('evaluate', folder, f'--data=folder:{tmp_path}/val')
  assert done.returncode == 1 and '1 of its 1 images are not in' in done.stderr
  (tmp_path / 'val' / 'labels.csv').unlink()
  (tmp_path / 'val' / 'lamp').rename(tmp_path / 'val' / 'table')
  done = command('evaluate', folder, f'--data=folder:{tmp_path}/val')
  assert done.returncode == 1 and 'the model lacks table; expected data with the same classes' in done.stderr
