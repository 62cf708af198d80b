"""Tests folders of models: saving, choosing a checkpoint, names that look like patterns, and what a model says of itself."""

import dataclasses
import io
import json
import os
import shutil
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import TinyMobileNet, assert_one_line, command, images_of, random_images, save, tiny_config
from PIL import Image

import mobilenet_jax
from mobilenet_jax import config as config_lib
from mobilenet_jax import models, trained
from mobilenet_jax.data import from_images
from mobilenet_jax.errors import UserError
from mobilenet_jax.models import NN2, MobileNet
from mobilenet_jax.storage import checkpoints, run_files
from mobilenet_jax.trained import export
from mobilenet_jax.trained import model as model_module
from mobilenet_jax.trained.published import readers, weights
from mobilenet_jax.training import checked, distillation, evaluate_trained, train

ODD = 'w[lr=1e-3]*?\\gs:'


def zero_model(network=MobileNet(1000, 0.25), size=128, **changes):
  shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False),
                          jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
  variables = models.variables_of(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
  config = config_lib.changed(config_lib.base(), {'data.image_size': (size, size), **changes})
  return trained.TrainedModel(config, variables, None, 'zeros')


def tiny_model_of(value, labels=('a', 'b')):
  config = config_lib.changed(tiny_config(), {'seed': int(value)})
  variables = {'params': {'classifier': {'kernel': np.full((4, 2), value), 'bias': np.zeros(2)}}, 'batch_stats': {}}
  return trained.TrainedModel(config, variables, labels, 'tiny')


def test_saving_over_a_saved_model_replaces_it(tmp_path, monkeypatch):
  folder = tmp_path / 'model'
  for value in (1.0, 2.0, 3.0):
    tiny_model_of(value).save(str(folder))
    found = trained.load(folder)
    assert found.variables['params']['classifier']['kernel'].tolist() == [[value] * 2] * 4
    assert found.config.seed == json.loads((folder / 'config.json').read_text())['seed'] == value
    assert len(run_files.checkpoint_steps(folder)) == 1

  def killed(*args):
    raise KeyboardInterrupt
  monkeypatch.setattr(model_module, 'write_whole', killed)  # after the weights, before config.json
  with pytest.raises(KeyboardInterrupt):
    tiny_model_of(4.0).save(folder)
  found = trained.load(folder)
  assert found.config.seed == 4 and (found.variables['params']['classifier']['kernel'] == 4).all()


def test_a_save_that_was_interrupted_keeps_no_other_save_out(tmp_path, monkeypatch):
  """Neither if Orbax has begun to write the weights, nor if it has not."""
  def killed(*args, **kwargs):
    raise KeyboardInterrupt
  for begun in (False, True):
    folder = tmp_path / str(begun)
    with monkeypatch.context() as context:
      context.setattr(checkpoints.ocp.CheckpointManager, 'save', killed)
      with pytest.raises(KeyboardInterrupt):
        tiny_model_of(1.0).save(folder)
    if begun:
      (folder / 'checkpoints' / '1.orbax-checkpoint-tmp').mkdir()
    assert [path.name for path in folder.iterdir()] == ['checkpoints']
    tiny_model_of(2.0).save(folder)
    assert trained.load(folder).config.seed == 2


def test_a_saved_model_is_not_the_folder_of_a_run_of_which_nothing_has_come(tmp_path):
  """Models that earlier versions saved have their weights at step 0."""
  (tmp_path / 'checkpoints' / '0').mkdir(parents=True)
  assert run_files.has_begun(tmp_path)


def test_saving_over_anything_else_is_refused(tmp_path):
  run, other, file = tmp_path / 'run', tmp_path / 'other', tmp_path / 'file'
  tiny_model_of(1.0).save(run)
  (run / 'metrics.jsonl').touch()
  other.mkdir()
  (other / 'thesis.tex').touch()
  file.touch()
  for path, message in ((run, 'holds a run'), (other, 'holds other files, such as thesis.tex'), (file, 'is a file')):
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=f'{path}: {message}; expected a new or an empty folder'):
      tiny_model_of(2.0).save(path)
    assert sorted(tmp_path.rglob('*')) == before
  assert trained.load(run).config.seed == 1


@pytest.mark.parametrize('name', ('w[lr=1e-3]', 'a]b', 'back\\slash', 'a**b', 'a?b', 'gs:', os.fsdecode(b'a\xff')))
def test_checkpoints_in_folders_whose_names_look_like_patterns(name, tmp_path):
  tiny_model_of(5.0).save(tmp_path / name)
  assert trained.load(tmp_path / name).config.seed == 5
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_temporary_folder_that_looks_like_a_pattern_too_is_refused(tmp_path, monkeypatch):
  (tmp_path / 'odd[t]').mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'odd[t]'))
  with pytest.raises(UserError, match=r'w\[y\].*Orbax takes this path for a pattern.*set TMPDIR to a folder without'):
    tiny_model_of(5.0).save(tmp_path / 'w[y]')


def train_in(folder):
  """Trains twelve steps, with several evaluations, and returns the row."""
  sources = random_images(64), random_images(40, seed=1)
  sources = [from_images(images_of(source), source.labels, 4, ('a', 'b', 'c', 'd')) for source in sources]
  config = tiny_config(**{'ema_decay': 0.5, 'optim.learning_rate': 0.1, 'train_for': '12 steps', 'eval_every': '2 steps',
                          'checkpoint_every': '2 steps'})
  with pytest.MonkeyPatch.context() as patch:  # as the fixture tiny_model, for a whole module
    patch.setitem(models.MODELS, 'mobilenet', TinyMobileNet)
    return train(config, folder, sources)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns a run with several checkpoints, in a folder whose name looks like a pattern."""
  folder = tmp_path_factory.mktemp('runs') / ODD
  train_in(folder)
  return folder


def test_a_run_in_a_folder_whose_name_looks_like_a_pattern_is_continued(run, tmp_path):
  assert {path.name for path in run.parent.iterdir()} == {ODD}
  copy = shutil.copytree(run, tmp_path / ODD)
  (copy / 'result.json').unlink()
  row, before = train_in(copy), run_files.read_row(run)
  assert row['top1'] == before['top1'] and row['examples_seen'] == 96
  assert trained.load(copy).digest == trained.load(run).digest
  assert not (copy / 'damaged').exists()


def test_the_checkpoint_of_a_run_can_be_chosen(run, tmp_path):
  """The best one is the one that Orbax finds."""
  link = tmp_path / 'link'
  link.symlink_to(run / 'checkpoints')
  with ocp.CheckpointManager(link, options=ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics['top1'])) as manager:
    best, steps = manager.best_step(), manager.all_steps()
  steps = sorted(steps)
  assert len(steps) > 1 and steps[-1] == 12
  weights_at = {step: checkpoints.read(run, step)[0] for step in steps}
  for checkpoint, step in (('newest', 12), ('best', best), (str(steps[0]), steps[0]), (steps[0], steps[0])):
    model = mobilenet_jax.load(run, checkpoint=checkpoint)
    jax.tree.map(np.testing.assert_array_equal, model.variables['params'], weights_at[step]['ema']['params'])
    assert model.described_origin == (str(run) if checkpoint == 'newest' else f'{run} at step {step}')
  raw = trained.load(run, averaged=False)
  jax.tree.map(np.testing.assert_array_equal, raw.variables['params'], weights_at[12]['params'])
  with pytest.raises(UserError) as error:
    trained.load(run, checkpoint=99)
  assert str(error.value) == (f'{run}: has no checkpoint 99; expected newest, best or a step: {", ".join(map(str, steps))}')

  done = command('import', run, '--checkpoint=best', f'--out={tmp_path / "copy"}')
  assert done.returncode == 0, done.stderr
  assert trained.load(tmp_path / 'copy').digest == mobilenet_jax.load(run, checkpoint='best').digest
  assert checkpoints.read(tmp_path / 'copy')[0].keys() == {'params', 'batch_stats', 'ema'}  # no state of the optimiser
  assert_one_line(command('predict', run, 'Makefile', '--checkpoint=last'), 'has no checkpoint last; expected newest, best')
  assert_one_line(command('predict', tmp_path / 'copy', 'Makefile', '--checkpoint=best'),
                  'none of its checkpoints has the metric top1, so none is the best; expected newest or a step: 1')


def test_a_chosen_checkpoint_that_is_damaged_is_not_replaced_by_another_one(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  step = run_files.checkpoint_steps(tmp_path / 'run')[0]
  for path in (tmp_path / 'run' / 'checkpoints' / str(step) / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.raises(UserError, match=f'the checkpoint of step {step} is damaged .*; choose another one'):
    trained.load(tmp_path / 'run', checkpoint=step)


@pytest.mark.parametrize('images, message', (
    ([], 'no image was given; expected a path'), (None, 'no image was given; expected a path'),
    ((image for image in []), 'no image was given'), (np.zeros((0, 9, 9, 3), np.uint8), 'no image was given'),
    (np.zeros((0, 5, 3), np.uint8), r'uint8 \(0, 5, 3\); expected uint8 \(height, width, 3\), RGB, with pixels'),
    ([None], r'object \(\); expected uint8'), (bytearray(), 'an empty file')))
def test_what_is_no_image_is_one_line(images, message):
  with pytest.raises(UserError, match=message) as error:
    zero_model().prepare(images)
  assert '\n' not in str(error.value)


def test_every_kind_of_buffer_and_sequence_is_an_image():
  pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'png')
  model, content = zero_model(), file.getvalue()
  expected = model.prepare(pixels)
  for images in (bytearray(content), memoryview(content), memoryview(pixels), (content for _ in range(1)), [bytearray(content)],
                 pixels[None]):
    np.testing.assert_array_equal(model.prepare(images), expected)


def test_repr_is_three_lines():
  lines = repr(zero_model(**{'model.width_multiplier': 0.25})).splitlines()
  assert lines == ['TrainedModel mobilenet_0.25_128 from zeros', 'images 128x128 to 1,000 outputs (classification)',
                   '475,544 parameters with the statistics of batch norm, in: memory of the host']
  lines = repr(tiny_model_of(1.0, ('a', 'b', 'c', 'd'))).splitlines()
  assert len(lines) == 3 and 'a, b, c, ...' in lines[1]


@pytest.mark.parametrize('network, changes', (
    (MobileNet(1000, 0.25), {'model.width_multiplier': 0.25}), (NN2(128), {'model.name': 'nn2'})))
def test_summary(network, changes):
  """Its totals are the paper's counts and the sizes of the arrays; so are those of each layer with its batch norm."""
  model = zero_model(network, 128, **changes)
  rows = [line.split() for line in model.summary().split('\n\n')[1].splitlines()[1:]]
  sizes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables):
    layer = jax.tree_util.keystr(path[1:-1], simple=True, separator='/').removesuffix('_bn')
    sizes[layer] = sizes.get(layer, 0) + leaf.size
  number = lambda text: int(text.replace(',', ''))
  assert {row[0].partition('/')[2]: number(row[-1]) for row in rows[:-1]} == sizes
  assert number(rows[-1][-1]) == sum(sizes.values())
  if network.num_classes == 1000:  # worked out by hand in tests/models/test_complexity.py
    assert rows[-1] == ['total', '13,570,048', '463,600', '475,544'] and 475_544 == 470_072 + 5_472
    assert rows[1] == ['MobileNet/conv_dw_1', 'conv', 'dw', '3x3', '64x64x8', '294,912', '72', '104']


def test_complexity_of_a_model(tmp_path):
  zero_model(**{'model.width_multiplier': 0.25}).save(tmp_path / 'model')
  done = command('complexity', tmp_path / 'model', '--json')
  values = json.loads(done.stdout)
  assert (values['model'], values['mult_adds'], values['trainable']) == ('mobilenet_0.25_128', 13_570_048, 470_072)
  for arguments in ((), (tmp_path / 'model', '--config=configs/fabrics.py')):
    assert_one_line(command('complexity', *arguments), 'expected either a recipe, --config=configs/fabrics.py, or a model')


# What is not finite.


def spoilt(model, collection, layer, name, value):
  """Returns the model with one number of an array replaced."""
  variables = jax.tree.map(np.array, model.variables)
  variables[collection][layer][name].flat[-1] = value
  return dataclasses.replace(model, variables=variables)


@pytest.mark.parametrize('array, value', (
    (('params', 'classifier', 'bias'), -np.inf), (('batch_stats', 'conv_dw_3_bn', 'mean'), np.nan)))
def test_a_model_that_is_not_finite_is_not_loaded(array, value, tmp_path, monkeypatch):
  """Neither as a model, nor as a teacher, nor as a file of published weights; nor is it saved."""
  model = spoilt(zero_model(), *array, value)
  with pytest.raises(UserError, match='values that are not finite'):
    model.save(tmp_path / 'model')
  with monkeypatch.context() as patch:
    patch.setattr(model_module, 'check_finite', lambda variables, origin: None)
    model.save(tmp_path / 'model')
  message = f'1 of 137 arrays of the model have values that are not finite, such as {"/".join(array)}; expected a trained'
  for load in (lambda: trained.load(tmp_path / 'model', checkpoint=1),
               lambda: distillation.load_teacher(tiny_config(**{'distill.model': str(tmp_path / 'model')}))):
    with pytest.raises(UserError, match=f'{tmp_path}/model: {message}'):
      load()
  arrays = {weights.slim_name(path): weights.to_theirs(path, leaf) for path, leaf in weights.flatten(model.variables).items()}
  (tmp_path / 'weights.ckpt').touch()
  monkeypatch.setattr(readers, 'is_file', lambda path: True)
  monkeypatch.setattr(readers, 'read', lambda path, averaged: readers.Published('slim', arrays, (128, 128), 1e-3))
  with pytest.raises(UserError, match=f'weights.ckpt: {message}'):
    trained.load(tmp_path / 'weights.ckpt')


def overflowing():
  """Returns a model of finite weights whose logits overflow on bright images only: features are relu6(brightness)."""
  config = checked(tiny_config(**{'model.num_classes': 2}))
  module = models.create(config.model, 2)
  like = jax.eval_shape(lambda: module.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False))
  value = {'kernel': lambda shape: 1 / np.prod(shape[:-1]), 'scale': lambda _: 1, 'var': lambda _: 1}
  fill = lambda path, leaf: np.full(leaf.shape, value.get(path[-1].key, lambda _: 0)(leaf.shape), np.float32)
  variables = models.variables_of(jax.tree_util.tree_map_with_path(fill, like))
  variables['params']['classifier']['kernel'][:, 0] = 3e38
  return trained.TrainedModel(config, variables, ('a', 'b'), 'bright')


def test_outputs_that_are_not_finite_name_an_image(tiny_model, tmp_path):
  model = overflowing()
  paths = [tmp_path / name for name in ('dark.png', 'bright.png')]
  for path, value in zip(paths, (0, 255)):
    save(path, (value,) * 3)
  assert np.isfinite(model.predict(paths[0])).all()
  for use in (model.predict, model.top, lambda images: model.outputs(model.prepare(images))):
    with pytest.raises(UserError, match='bright: the outputs for 1 of 2 images are not finite, such as for image 1, counted '
                                        'from 0'):
      use(paths)
  with pytest.raises(UserError, match='bright: the logits for 1 of 2 images are not finite'):  # the check of an export
    export.Network(model, softmax=False).reference(model.prepare(paths))
  model.save(tmp_path / 'model')
  done = command('predict', tmp_path / 'model', *paths, '--format=json')
  assert_one_line(done, f'such as for {paths[1]}; expected a trained')
  assert command('predict', tmp_path / 'model', paths[0], '--batch=1').returncode == 0
  source = from_images([str(path) for path in paths], np.array([0, 1]), 2, ('a', 'b'))
  with pytest.raises(UserError, match='bright: the outputs for 1 of 2 images are not finite, such as for .*/bright.png'):
    trained.record(model, source, tmp_path / 'parts')
  with pytest.raises(UserError, match='bright: the outputs for 1 of 2 examples, or what is measured of them, are not finite'):
    evaluate_trained([model], source, config_lib.changed(model.config, {'eval_batch_size': 2}), None)
