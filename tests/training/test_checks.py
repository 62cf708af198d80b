"""What a run takes over from the models that it names: the origin it starts from, and the teacher it learns from."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import pytest
from conftest import TinyMobileNet, images_of, random_images, tiny_config
from PIL import Image

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, trained
from mobilenet_jax.errors import Interrupted, UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.storage import run_files
from mobilenet_jax.sweeps import grouping
from mobilenet_jax.training import checked, completed, evaluate_trained, loop, train_group
from mobilenet_jax.training.checks import compared

pytestmark = pytest.mark.usefixtures('tiny_model')

DATA = random_images(32), random_images(20, seed=1)
LARGE = random_images(32, size=60), random_images(20, size=60, seed=1)
STILL = {'init.keep_head': True, 'init.freeze_body': True, 'model.freeze_batch_stats': True, 'optim.learning_rate': 0.0,
         'train_for': '2 steps', 'eval_every': '2 steps'}  # nothing changes in training


def model_in(folder, **changes):
  """Saves a model of four classes with random weights, large enough for activations above 6, and returns it."""
  config = checked(tiny_config(**changes))
  network = models.create(config.model, 4)
  init = lambda key: models.variables_of(network.init(key, np.zeros((1, 32, 32, 3), np.float32), train=False))
  variables = devices.run_once(init, jax.random.key(0))
  variables = jax.tree.map(lambda leaf: np.asarray(9 * leaf if leaf.ndim > 1 else leaf), variables)
  shutil.rmtree(folder, ignore_errors=True)
  trained.TrainedModel(config, variables, None, str(folder)).save(folder)
  return trained.load(folder)


def heard(configs, folders, data=DATA):
  """Trains a group, and returns the lines that a person sees of each run, and the rows."""
  lines = [[] for _ in configs]
  outcomes = train_group(configs, folders, data, says=[own.append for own in lines])
  for outcome in outcomes:
    if isinstance(outcome, UserError):
      raise outcome
  return lines, outcomes


def one(config, folder=Path('nowhere')):
  found, = completed([config], [folder])
  return found


@contextlib.contextmanager
def hidden(folder):
  """Renames a folder that other tests share for a while, as if it had been removed."""
  away = folder.rename(folder.with_name('away'))
  try:
    yield
  finally:
    away.rename(folder)


# Starting from another model.


@pytest.fixture(scope='module')
def still(tmp_path_factory):
  """Returns a folder with an origin and a run that starts from it, and what `heard` returns of the run."""
  root = tmp_path_factory.mktemp('still')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, 'mobilenet', TinyMobileNet)
    model_in(root / 'origin', **{'model.activation': 'relu', 'model.batch_norm_epsilon': 0.1})
    return root, *heard([tiny_config(**STILL, **{'init.model': str(root / 'origin')})], [root / 'run'])


def test_what_is_trained_computes_what_its_origin_does(still):
  root, (lines,), _ = still
  assert (f'starting from {root / "origin"}, with its activation=relu and batch_norm_epsilon=0.1, with its classifier; '
          'the body is frozen') in lines
  assert json.loads((root / 'run' / 'config.json').read_text())['model']['activation'] == 'relu'
  outputs, origins = (trained.load(root / name).outputs(images_of(DATA[1])) for name in ('run', 'origin'))
  np.testing.assert_allclose(outputs, origins, atol=1e-5)


def test_a_run_that_has_begun_goes_on_without_its_origin(still, tmp_path):
  root, _, rows = still
  config, folder = tiny_config(**STILL, **{'init.model': str(root / 'origin')}), tmp_path / 'run'
  shutil.copytree(root / 'run', folder)
  with hidden(root / 'origin'):
    with pytest.raises(UserError, match='origin: neither a file'):
      one(config, tmp_path / 'new')
    for found in one(config, folder), grouping.completed({'run': config.to_dict()}, tmp_path)['run']:
      assert found['model']['activation'] == 'relu'
    with pytest.raises(UserError, match='elsewhere: neither a file'):  # the run did not begin with that one
      one(config_lib.changed(config, {'init.model': 'elsewhere'}), folder)
    assert heard([config], [folder])[1] == rows  # it has finished
    (folder / run_files.RESULT_FILE).unlink()  # as if it had been stopped before its end
    lines, again = heard([config], [folder])
    assert 'continuing at step 2' in lines[0] and again[0]['top1'] == rows[0]['top1']
    (folder / run_files.CONFIG_FILE).unlink()
    with pytest.raises(UserError, match='config.json: there is no such file'):
      one(config, folder)


class Twin(TinyMobileNet):
  """A network with another name and the same variables."""


def test_only_what_is_not_set_is_taken_over_and_only_by_the_same_network(tmp_path, monkeypatch):
  monkeypatch.setitem(models.MODELS, 'twin', Twin)
  model_in(tmp_path / 'origin', **{'model.activation': 'relu', 'model.padding': 'keras', 'model.batch_norm_epsilon': 0.1,
                                   'model.dropout_rate': 0.5, 'model.dtype': 'bfloat16', 'model.lowering': 'grouped'})
  config = tiny_config(**{'init.model': str(tmp_path / 'origin'), 'model.padding': 'same'})
  assert one(config).model.to_dict() == {**checked(config).model.to_dict(), 'activation': 'relu', 'batch_norm_epsilon': 0.1}
  assert one(one(config)).to_dict() == one(config).to_dict()  # as the jobs of a sweep get it
  twin = config_lib.changed(config, {'model.name': 'twin'})
  assert one(twin).to_dict() == checked(twin).to_dict()

  (lines,), _ = heard([config_lib.changed(config, STILL)], [tmp_path / 'run'])
  assert (f'starting from {tmp_path / "origin"}, with its activation=relu and batch_norm_epsilon=0.1, with its classifier; '
          'the body is frozen; model.padding=same, as the recipe sets it, where it has keras') in lines
  same, other = compared(one(twin).model, trained.config_of(tmp_path / 'origin').model)
  assert not same and other.startswith('model.name=twin instead of its mobilenet, whose weights have the same shapes')


def test_an_origin_of_an_earlier_version_has_the_defaults_of_its_time(tmp_path):
  model_in(tmp_path / 'origin', **{'model.activation': 'relu'})
  path = tmp_path / 'origin' / run_files.CONFIG_FILE
  values = json.loads(path.read_text())
  del values['model']['padding'], values['data']['stall_seconds']
  path.write_text(json.dumps(values))
  found = one(tiny_config(**{'init.model': str(tmp_path / 'origin')})).model
  assert (found.activation, found.padding) == ('relu', 'same')
  path.unlink()  # as a save that was interrupted leaves it
  assert trained.config_of(tmp_path / 'origin').model.activation == 'relu'
  path.write_text(json.dumps({**values, 'model': {**values['model'], 'heads': 3}}))
  with pytest.raises(UserError, match='origin: written by an earlier version of this code'):
    one(tiny_config(**{'init.model': str(tmp_path / 'origin')}))


# Learning from another model.


def student(teacher, **changes):
  return tiny_config(**{'distill.model': str(teacher), 'distill.softmax_weight': 2.0, 'distill.hard_weight': 0.5,
                        'train_for': '2 steps', 'eval_every': '2 steps', 'log_every': '1 steps', **changes})


@pytest.mark.parametrize('own, stream, teachers, expected', (
    ((32, 32), (0, 0), (32, 32), (0, 0)), ((32, 32), (0, 0), (48, 40), (48, 40)), ((32, 64), (0, 0), (48, 48), (48, 64)),
    ((64, 64), (0, 0), (48, 48), (0, 0)), ((32, 32), (40, 64), (48, 48), (48, 64)), ((32, 32), (64, 64), (48, 48), (64, 64))))
def test_images_are_cropped_at_the_larger_of_both_sizes(own, stream, teachers, expected, tmp_path):
  (tmp_path / 'teacher').mkdir()
  path = tmp_path / 'teacher' / run_files.CONFIG_FILE  # the weights are not looked at
  path.write_text(config_lib.to_json(tiny_config(**{'data.image_size': teachers})))
  config = student(path.parent, **{'data.image_size': own, 'data.stream_size': stream})
  assert one(config).data.stream_size == expected


class Lesson(NamedTuple):
  """Two students of a larger teacher that train together after they were stopped while the teacher was evaluated."""
  teacher: trained.TrainedModel
  config: ml_collections.ConfigDict
  folders: list[Path]
  stopped: list[str]  # the lines of the first one
  lines: list[list[str]]
  rows: list[dict]


@pytest.fixture(scope='module')
def lesson(tmp_path_factory):
  root = tmp_path_factory.mktemp('lesson')
  stopped, folders = [], [root / 'one', root / 'two']

  def say(line):
    stopped.append(line)
    if line.startswith('evaluating: '):
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, 'mobilenet', TinyMobileNet)
    patch.setattr(loop, 'EVALUATION_SECONDS', 0)
    teacher, config = model_in(root / 'teacher', **{'data.image_size': (48, 48)}), student(root / 'teacher')
    with pytest.raises(Interrupted, match='SIGTERM: training stopped before the first step'):
      train_group([config] * 2, folders, LARGE, says=[say, str])
    return Lesson(teacher, config, folders, stopped, *heard([config] * 2, folders, LARGE))


def test_a_student_of_a_larger_teacher(lesson, tmp_path):
  """It hears how good the teacher is by itself, logs each term of its loss, and predicts files as it is evaluated."""
  teacher, config, (folder, _), _, (lines, _), (row, _) = lesson
  source = LARGE[1]
  measured, = evaluate_trained([teacher], source, teacher.config, pytest.fail)
  assert "images are cropped at 48x48, the teacher's size, and resized to 32x32 on the device" in lines
  assert f'the teacher {teacher.origin}: top-1 {measured["top1"]:.2%}, top-5 100.00% on 20 examples' in lines
  first, *others = run_files.read_metrics(folder)[0]
  assert first == {'step': 0, 'split': 'teacher', **{name: pytest.approx(value) for name, value in measured.items()}}
  for found in (found for found in others if found['split'] == 'train'):
    assert found['objective/hard'] + found['objective/softmax'] == pytest.approx(found['objective'], rel=1e-6)
    assert found['objective/hard'] == pytest.approx(0.5 * found['loss'], rel=1e-6)

  model = trained.load(folder)
  for i, image in enumerate(images_of(source)):
    Image.fromarray(image).save(tmp_path / f'{i}.png')
  predicted = model.predict([tmp_path / f'{i}.png' for i in range(20)])
  assert -np.log(predicted[np.arange(20), source.labels]).mean() == pytest.approx(row['loss'], rel=1e-4)

  streams = {loop.stream(one(config_lib.changed(config, {'data.image_size': size}))) for size in ((32, 32), (40, 40), (48, 48))}
  assert len(streams) == 1  # so that they can train together
  with hidden(Path(teacher.origin)):
    assert heard([config], [folder], LARGE)[1] == [row]  # it has finished


def test_a_stop_while_the_teacher_is_evaluated(lesson):
  stopped = lesson.stopped
  assert stopped[-1] == 'stopped before the first step' and not any(line.startswith('the teacher') for line in stopped)
  for again, folder in zip(lesson.lines, lesson.folders):
    assert sum(line.startswith('evaluating: 8 of 20') for line in again) == 2  # once for both runs, and once after the training
    assert sum(line.startswith('the teacher') for line in again) == 1
    assert [row['split'] for row in run_files.read_metrics(folder)[0]] == ['teacher', 'train', 'train', 'eval']
