"""What a person hears from a run, a start that fails, and a run that becomes longer."""

import itertools
import json
import os
import signal
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_images, tiny_config

from mobilenet_jax.errors import Interrupted, UserError
from mobilenet_jax.storage import checkpoints, run_files
from mobilenet_jax.sweeps import status
from mobilenet_jax.training import Teacher, loop, report, train, train_group
from mobilenet_jax.training.durations import Durations
from mobilenet_jax.training.run import Run
from mobilenet_jax.training.state import Progress

DATA = random_images(32), random_images(48).subset(np.arange(32, 48))  # no example is in both


def heard(config, folder):
  """Trains, and returns the lines that a person sees, and the run's row."""
  lines = []
  outcome, = train_group([config], [folder], DATA, says=[lines.append])
  if isinstance(outcome, UserError):
    raise outcome
  return lines, outcome


def files_of(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != 'lock'}


def test_evaluations_that_are_left_are_counted():
  for total, every, checkpoint in itertools.product(range(1, 14), (0, 1, 2, 3, 40), (0, 1, 4, 6)):
    durations = Durations(total, 0, every, checkpoint)
    for step in range(total + 1):
      later = [s for s in range(step + 1, total + 1) if durations.due('eval', s) or durations.due('checkpoint', s)]
      assert durations.evaluations_after(step) == len(later)


def test_a_line_for_everything_that_takes_long(tiny_model, monkeypatch, tmp_path):
  monkeypatch.setattr(report, 'FIRST_SECONDS', 0)
  monkeypatch.setattr(report, 'THEN_SECONDS', 0)
  monkeypatch.setattr(loop, 'EVALUATION_SECONDS', 0)
  config = tiny_config(log_every='8 steps', eval_every='8 steps', checkpoint_every='8 steps')
  lines, _ = heard(config, tmp_path)
  steps = [line for line in lines if line.startswith('step ')]
  assert lines[:2] == [': 32 examples to train on, 16 to evaluate on, 4 classes'.join((config.data.name, '')), 'compiling']
  assert steps[0].startswith('step 2/8  ') and steps[0].endswith(' left')  # before any log is due
  assert any(line.startswith('evaluating: 8 of 16, ') for line in lines)
  assert 'evaluated on 16' in steps[-1]


def test_what_a_run_is_too_short_for_is_said(tiny_model, tmp_path):
  lines, _ = heard(tiny_config(**{'optim.warmup': '9 steps', 'model.batch_norm_decay': 0.9}), tmp_path)
  assert "optim.warmup='9 steps': longer than the run of 8 steps, so the learning rate does not reach 0.01" in lines
  assert ('model.batch_norm_decay=0.9: after 8 steps, 43% of the running statistics are still their first values, which may '
          'keep accuracy at chance; 0.31 is low enough') in lines
  lines, _ = heard(tiny_config(), tmp_path / 'low')
  assert not any('batch_norm_decay' in line for line in lines)


def test_the_time_that_is_left_counts_evaluations(monkeypatch, tmp_path):
  """A clock by hand: steps of a second, evaluations of 30 of them."""
  now = [0.0]
  monkeypatch.setattr('time.monotonic', lambda: now[0])
  said = []
  task = type('Task', (), {'headlines': (), 'remark': lambda self, values: ''})()
  progress = type('Progress', (), {'step': 0, 'pending': False})()
  say = lambda text, **numbers: said.append(numbers)
  written = report.Report(tmp_path, task, progress, Durations(100, 10, 20, 50), 8, 120, say)
  now[0] += 10
  written.train(10, {'loss': 1.0})
  assert said[-1]['seconds_left'] == 90 + 6 * 120 / 8 / 3  # after steps 20, 40, 50, 60, 80, 100; a third of a step an example
  now[0] += 10
  written.train(20, {'loss': 1.0})
  now[0] += 30
  written.evaluation(20, {'examples': 120})
  now[0] += 10
  written.train(30, {'loss': 1.0})
  assert said[-1] == {'step': 30, 'total_steps': 100, 'seconds_left': 70 + 5 * 30}
  written.close()


def test_the_progress_of_a_run_is_in_its_folder_until_it_has_finished(tiny_model, tmp_path):
  seen = []

  def say(text):
    seen.append((text, run_files.read_progress(tmp_path).get('doing'), status.progress(tmp_path, running=True)))

  train_group([tiny_config()], [tmp_path], DATA, says=[say])
  texts, doing, shown = zip(*seen)
  assert doing == texts and shown[1] == 'compiling' and shown[2].startswith('step 2/8, ') and shown[2].endswith(' left')
  assert any(text.startswith('step 4/8, top-1 ') and text.endswith(' left') for text in shown)
  assert run_files.read_progress(tmp_path) == {} and run_files.read_row(tmp_path)


def test_a_stop_while_compiling_says_that_it_waits_for_the_compilation(tiny_model, monkeypatch, tmp_path):
  lines, started = [], Run.start

  def start(run, *args):
    os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + 60
    while not any('stopping after this compilation' in line for line in lines):
      assert time.monotonic() < end
      time.sleep(0.05)
    started(run, *args)

  monkeypatch.setattr(Run, 'start', start)
  monkeypatch.setattr('mobilenet_jax.runtime.devices.cpu_cores', lambda: 1)
  folders = [tmp_path / name for name in 'ab']
  with pytest.raises(Interrupted):
    train_group([tiny_config()] * 2, folders, DATA, says=[lines.append] * 2)
  assert lines.count('SIGTERM: stopping after this compilation') == 2  # a line for each run
  assert 'compiling model 1 of 2' in lines and 'compiling model 2 of 2' not in lines
  assert lines[-2:] == ['stopped before the first step'] * 2
  assert not list(tmp_path.glob('*/checkpoints/[0-9]*'))


def test_a_start_that_failed_does_not_claim_its_folder(tiny_model, tmp_path):
  with pytest.raises(UserError, match='num_classes=2'):
    train(tiny_config(**{'model.num_classes': 2}), tmp_path, DATA)
  assert not (tmp_path / 'config.json').exists()
  with pytest.raises(UserError, match='batch_size=64 is more than the 32 training examples'):
    train(tiny_config(batch_size=64), tmp_path, DATA)
  assert not (tmp_path / 'config.json').exists()
  with pytest.raises(UserError, match='nowhere: neither a file'):
    train(tiny_config(**{'init.model': 'nowhere'}), tmp_path, DATA)
  assert not (tmp_path / 'config.json').exists()
  with pytest.raises(UserError, match='the teacher has 3 outputs, the student 4'):  # found later
    train(tiny_config(**{'distill.softmax_weight': 1.0}), tmp_path, DATA,
          Teacher(lambda variables, images: (jnp.zeros((len(images), 3)), {})))
  lines, _ = heard(tiny_config(**{'optim.learning_rate': 0.02}), tmp_path)
  assert 'is replaced, as nothing has come of it' in lines[0]
  assert '- "softmax_weight": 1.0, + "softmax_weight": 0.0' in lines[0]
  assert json.loads((tmp_path / 'config.json').read_text())['optim']['learning_rate'] == 0.02
  before = files_of(tmp_path)
  with pytest.raises(UserError, match='belongs to another config'):
    train(tiny_config(), tmp_path, DATA)
  assert files_of(tmp_path) == before


def weights(folder):
  return checkpoints.read_model(folder)[0]


def test_a_run_may_become_longer(tiny_model, tmp_path):
  """The weights are those of a run that was as long from the start."""
  short, long_ = tiny_config(train_for='6 steps'), tiny_config(train_for='1.5 epochs')
  longer = tiny_config(train_for='10 steps', ema_decay=0.0)
  _, row = heard(short, tmp_path / 'a')
  assert 'extended' not in row and row['examples_seen'] == 48
  lines, row = heard(longer, tmp_path / 'a')
  assert lines[0] == "train_for grows from '6 steps' to '10 steps'" and 'continuing at step 6' in lines
  assert row['extended'] == '6 steps at step 6' and row['examples_seen'] == 80
  heard(longer, tmp_path / 'b')
  jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / 'a'), weights(tmp_path / 'b'))
  evaluations = lambda folder: [row for row in run_files.read_metrics(folder)[0] if row['split'] == 'eval']
  assert [row['step'] for row in evaluations(tmp_path / 'a')] == [4, 6, 8, 10]
  assert [row for row in evaluations(tmp_path / 'a') if row['step'] != 6] == evaluations(tmp_path / 'b')

  before = files_of(tmp_path / 'a')
  for other in (short, long_, tiny_config(train_for='12 steps', seed=3)):
    with pytest.raises(UserError, match='belongs to another config'):
      train(other, tmp_path / 'a', DATA)
  assert files_of(tmp_path / 'a') == before


def test_a_finished_run_keeps_its_row_if_it_cannot_become_longer(tiny_model, tmp_path):
  """The data is another by now, or is gone, or another run of the sweep does not fit."""
  config = lambda steps, **changes: tiny_config(train_for=f'{steps} steps', **changes)
  heard(config(6), tmp_path / 'a')
  before = files_of(tmp_path / 'a')
  with pytest.raises(UserError, match='was begun with other inputs'):
    train(config(10), tmp_path / 'a', (random_images(24), DATA[1]))
  with pytest.raises(UserError, match='nowhere.npz'):
    train(config(10, **{'data.recorded': 'nowhere.npz'}), tmp_path / 'b')
  assert not (tmp_path / 'b' / 'config.json').exists()
  assert files_of(tmp_path / 'a') == before and heard(config(6), tmp_path / 'a')[1]['examples_seen'] == 48


def test_a_finished_run_without_checkpoints_does_not_become_longer(tiny_model, tmp_path):
  train(tiny_config(), tmp_path, DATA)
  (tmp_path / 'checkpoints').rename(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match='belongs to another config'):
    train(tiny_config(train_for='12 steps'), tmp_path, DATA)
  assert run_files.read_row(tmp_path)


def test_what_an_earlier_version_did_not_sum_is_not_averaged_over_too_many_steps():
  """A window in a checkpoint may be of a version that logged fewer names."""
  said = {}
  run = Run.__new__(Run)
  run.folder = SimpleNamespace(report_training=lambda step, values: said.update(values))
  run._schedule = lambda step: 0.5
  run.progress = Progress(2, None, [{'objective': 8.0, 'count': 4.0, 'finite': True},
                                    {'objective': 4.0, 'objective/hard': 4.0, 'count': 4.0, 'finite': True}])
  run.log()
  assert said == {'objective': 1.5, 'learning_rate': 0.5} and run.progress.window == []
