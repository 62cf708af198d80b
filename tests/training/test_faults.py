"""Faults in runs, such as kills, signals and damaged files. `make faults` injects many more faults."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, random_images, tiny_config

from experiments import faults
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import checkpoints, files, run_files
from mobilenet_jax.sweeps import results, status
from mobilenet_jax.training import train, train_group



@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The outcome of a run without faults."""
  folder = tmp_path_factory.mktemp('whole')
  assert not faults.start(folder), (folder / faults.LOG_FILE).read_text()
  return faults.outcome(folder)


@pytest.mark.parametrize('fault, number, status', (
    ('killed in a step', 1, -9),
    pytest.param('SIGTERM in an evaluation', 1, 75, marks=pytest.mark.slow),
    pytest.param('killed at a checkpoint', 0, -9, marks=pytest.mark.slow),
    pytest.param('killed, a bit of the newest checkpoint flipped', 0, -9, marks=pytest.mark.slow)))
def test_a_run_ends_as_if_there_had_been_no_fault(fault, number, status, whole, tmp_path):
  """Parameters, metrics and row are equal, bit for bit."""
  injected = faults.inject(fault, number, tmp_path)
  assert injected['statuses'] == [status, 0], (tmp_path / faults.LOG_FILE).read_text()
  leaves, metrics, row = faults.outcome(tmp_path)
  assert leaves == whole[0] and metrics == whole[1] and row == whole[2]
  assert ('stopped at step' in (tmp_path / faults.LOG_FILE).read_text()) == (status == 75)


def test_a_second_signal_stops_at_once():
  script = """
import os, signal, time
from mobilenet_jax.runtime.signals import stop_wanted
with stop_wanted() as stop:
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGTERM)  # from another sender
  os.kill(os.getpid(), signal.SIGUSR2)
  print(stop(), flush=True)
  time.sleep(1.1)
  os.kill(os.getpid(), signal.SIGUSR2)
  print('still here', flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  print('not here', flush=True)
"""
  done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (-15, 'SIGTERM\nstill here\n')


def test_two_processes_in_a_folder(tiny_model, tmp_path):
  """The second process is told which process holds the folder. A group releases both of its run folders at the end."""
  config, data = tiny_config(), (random_images(40), random_images(20))
  with files.lock(tmp_path), pytest.raises(UserError, match=r'another process works in it \(process \d+ on '):
    train(config, tmp_path, data)
  train_group([config, tiny_config(**{'model.width_multiplier': 0.5})], [tmp_path, tmp_path / 'other'], data)
  with pytest.raises(UserError, match='belongs to another config') as refused:  # keeping the error must not keep the lock
    train(tiny_config(batch_size=16), tmp_path, data)
  for folder in (tmp_path, tmp_path / 'other'):
    files.lock(folder).close()
  assert refused


def test_a_damaged_row_or_line_costs_nothing_else(tiny_model, tmp_path, capsys):
  config, data = tiny_config(), (random_images(40), random_images(20))
  row = train(config, tmp_path, data)
  lines = (tmp_path / 'metrics.jsonl').read_bytes().splitlines()
  (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join([lines[0], b'{"st\xff', *lines[2:]]) + b'\n')
  assert run_files.read_metrics(tmp_path)[0] == [json.loads(line) for line in (lines[0], *lines[2:])]
  (tmp_path / 'result.json').write_text((tmp_path / 'result.json').read_text()[:40])
  assert run_files.read_row(tmp_path) is None
  again = train(config, tmp_path, data)
  assert {**again, 'seconds': 0} == {**row, 'seconds': 0}
  assert (tmp_path / 'metrics.jsonl').read_bytes().splitlines() == [lines[0], *lines[2:]]
  said = capsys.readouterr().out
  assert 'result.json: damaged; evaluating again' in said and '1 damaged rows are left out' in said


@pytest.mark.parametrize('change', (
    {'top1': None}, {'top1': 'high'}, {'seconds': [1]}, {'name': 3}, {'mult_adds': {}}, {'dataset': None}))
def test_a_row_of_another_form_is_none(change, tmp_path):
  row = {name: 'text' if name in run_files.TEXT_COLUMNS else 1 for name in (*run_files.MODEL_COLUMNS, *run_files.RUN_COLUMNS)}
  run_files.write_row(tmp_path, {**row, 'top1': 0.5})
  assert run_files.read_row(tmp_path)['top1'] == 0.5
  run_files.write_row(tmp_path, {**row, **change})
  assert run_files.read_row(tmp_path) is None
  long = json.dumps({**row, 'top1': 10**400})  # a float would overflow
  for content in ('[]', '3', 'null', '"x"', '{}', long):
    (tmp_path / 'result.json').write_text(content)
    assert run_files.read_row(tmp_path) is None


def test_files_of_a_run_or_a_sweep_that_are_damaged_are_one_line(tmp_path):
  for content in ('{"train": 3}', '[1]', '{"a": null}', '\xff'):
    (tmp_path / 'inputs.json').write_text(content, 'latin1')
    with pytest.raises(UserError, match='inputs.json: damaged'):
      run_files.read_inputs(tmp_path)
  for content in ('{"runs": null}', '{"runs": []}', '{"runs": [3]}', '{"runs": "ab"}', '[]', '\xff'):
    (tmp_path / 'sweep.json').write_text(content, 'latin1')
    with pytest.raises(UserError, match='sweep.json: damaged; start the sweep again'):
      results.read_sweep(tmp_path)
  (tmp_path / 'checkpoints' / '3' / 'metrics').mkdir(parents=True)
  for content in ('{', '\xff'):
    (tmp_path / 'checkpoints' / '3' / 'metrics' / 'metrics').write_text(content, 'latin1')
    with pytest.raises(UserError, match='metrics/metrics: damaged; remove it'):
      checkpoints.read(tmp_path)


@pytest.mark.parametrize('content', ('{"step": "x"}', '{"seconds_left": "z", "step": 3}', '[]', '3', '{"doing": null}', '\xff'))
def test_a_damaged_progress_is_not_shown(content, tmp_path):
  (tmp_path / 'progress.json').write_text(content, 'latin1')
  assert set(run_files.read_progress(tmp_path)) <= {'step'} and status.progress(tmp_path, running=True) == 'starting'


def with_teacher(count, bad=()):
  """Returns images with a teacher whose outputs for the `bad` ones are NaN."""
  source = random_images(count)
  teacher = np.zeros((count, 4), np.float32)
  teacher[list(bad), 2] = np.nan
  return dataclasses.replace(source, extra={'teacher': teacher})


def test_a_batch_of_a_loss_that_is_not_finite_is_kept_and_by_config_left_out(tiny_model, tmp_path, capsys):
  """One of two runs in a group meets it. This run goes back and leaves out the batch; the other ends as it would alone."""
  changes = {'data.flip': False, 'train_for': '14 steps'}
  soft = tiny_config(**changes, **{'distill.softmax_weight': 1.0, 'nonfinite_loss': 'skip'})
  hard = tiny_config(**changes, **{'nonfinite_loss': 'skip'})
  data = with_teacher(40, bad=[17]), with_teacher(20)
  row, other = train_group([soft, hard], [tmp_path / 'soft', tmp_path / 'hard'], data)
  assert np.isfinite(row['loss']) and row['examples_seen'] == 14 * 8
  assert {**train(hard, tmp_path / 'alone', data), 'seconds': 0} == {**other, 'seconds': 0}
  kept = sorted((tmp_path / 'soft').glob('nonfinite_loss_step_*.npz'))
  assert len(kept) in (2, 3)  # it comes once per epoch, which has five steps
  for path in kept:
    assert np.isnan(np.load(path)['teacher']).any() and np.load(path)['image'].shape == (8, 32, 32, 3)
  assert capsys.readouterr().out.count('going back to step') == len(kept)
  state, notes = checkpoints.read(tmp_path / 'soft')
  assert notes['skipped'] == sorted(int(path.stem.rpartition('_')[2]) for path in kept) and state['step'] == 14 - len(kept)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))

  with pytest.raises(UserError, match=r'the loss is nan at step \d: training stopped, .* the batch is in .*npz'):
    train(tiny_config(**changes, **{'distill.softmax_weight': 1.0}), tmp_path / 'stopped', data)
  assert list((tmp_path / 'stopped').glob('nonfinite_loss_step_*.npz'))


def test_metrics_of_earlier_versions_may_have_nan(tmp_path):
  """They are read, shown without them, and written again as strict JSON."""
  (tmp_path / 'metrics.jsonl').write_text('{"step": 2, "split": "train", "loss": NaN}\n'
                                          '{"step": "2", "split": "train"}\n'
                                          '{"step": 4, "split": "eval", "top1": NaN, "top5": 0.5, "loss": Infinity}\n')
  rows, damaged = run_files.read_metrics(tmp_path)
  assert damaged == 1 and rows[1] == {'step': 4, 'split': 'eval', 'top1': None, 'top5': 0.5, 'loss': None}
  assert status.progress(tmp_path, running=False) == 'step 4, top-5 50.00%'
  run_files.write_metrics(tmp_path, rows)
  assert run_files.read_metrics(tmp_path) == (rows, 0) and 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()
  (tmp_path / 'result.json').write_text(json.dumps({name: name if name in run_files.TEXT_COLUMNS else np.nan for name in (
      *run_files.MODEL_COLUMNS, *run_files.RUN_COLUMNS, 'top1')}))
  assert np.isnan(run_files.read_row(tmp_path)['top1'])
