"""Several models on one stream of batches: each ends as it would have ended alone."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, TinyMobileNet, random_images, tiny_config

from mobilenet_jax import models, tasks
from mobilenet_jax.data import blank_batch
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.storage.checkpoints import Checkpoints
from mobilenet_jax.sweeps import grouping
from mobilenet_jax.training import memory, optimizer, train, train_group
from mobilenet_jax.training.state import init_state
from mobilenet_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures('tiny_model')

DATA = random_images(40, size=60), random_images(20, size=60, seed=1)
STREAM = {'data.stream_size': (48, 48), 'ema_decay': 0.9, 'model.dropout_rate': 0.1}
MEMBERS = {
    'narrow': {},
    'wide': {'model.width_multiplier': 0.5, 'train_for': '6 steps'},
    'large': {'data.image_size': (48, 48), 'eval_every': '2 steps'},
}


def configs():
  return [tiny_config(**STREAM, **changes) for changes in MEMBERS.values()]


def folders(root):
  return [root / name for name in MEMBERS]


def content(folder):
  """Returns what a run leaves behind, without times: row, file names, steps of the checkpoints, metrics and config."""
  row = json.loads((folder / 'result.json').read_text())
  del row['seconds']
  names = sorted(str(path.relative_to(folder)) for path in folder.glob('*'))
  steps = sorted(path.name for path in (folder / 'checkpoints').iterdir())
  return row, names, steps, (folder / 'metrics.jsonl').read_bytes(), (folder / 'config.json').read_bytes()


def states(folder, config):
  tx = optimizer.create(config.optim, lambda step: 0.1)
  like = init_state(jax.random.key(0), models.create(config.model, 4), tx, config)
  return jax.tree.leaves(Checkpoints(folder / 'checkpoints', 'top1').restore(like)[1])


def assert_same_runs(root, other):
  for config, folder, twin in zip(configs(), folders(root), folders(other)):
    assert content(folder) == content(twin)
    for a, b in zip(states(folder, config), states(twin, config), strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a group that was not disturbed."""
  root = tmp_path_factory.mktemp('whole')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, 'mobilenet', TinyMobileNet)
    train_group(configs(), folders(root), DATA)
  return root


def test_a_member_equals_the_same_run_alone_bit_for_bit(whole, tmp_path):
  for config, folder in zip(configs(), folders(tmp_path)):
    train(config, folder, DATA)
  assert_same_runs(whole, tmp_path)


def test_a_member_whose_loss_is_not_finite_stops_alone(tmp_path):
  bad = tiny_config(**STREAM, **{'optim.learning_rate': 1e30, 'optim.warmup': '3 steps'})
  _, error, _ = train_group([configs()[0], bad, configs()[1]],
                            [tmp_path / 'group' / name for name in ('narrow', 'bad', 'wide')], DATA)
  assert isinstance(error, UserError) and 'is not finite at step' in str(error)
  assert not (tmp_path / 'group' / 'bad' / 'result.json').exists()
  train(configs()[1], tmp_path / 'alone', DATA)
  assert content(tmp_path / 'group' / 'wide') == content(tmp_path / 'alone')


KILLED_SCRIPT = '''
import pathlib, sys
sys.path[:0] = ['tests/training', 'tests', '.']
import conftest
import test_train_group as group
from mobilenet_jax import models
models.MODELS['mobilenet'] = conftest.TinyMobileNet
folders = group.folders(pathlib.Path(sys.argv[1]))
if len(sys.argv) > 2:
  conftest.kill_at(int(sys.argv[2]), folders)
group.train_group(group.configs(), folders, group.DATA)
'''


def test_an_interrupted_group_continues_bit_for_bit(whole, tmp_path):
  """It is killed after the checkpoints of step 4, and again after one member has finished at step 6."""
  def run(*args):
    return subprocess.run([sys.executable, '-c', KILLED_SCRIPT, str(tmp_path), *args], cwd=ROOT, capture_output=True, text=True)

  for step in '6', '8':
    assert run(step).returncode == -9
  assert (tmp_path / 'wide' / 'result.json').exists()
  assert not (tmp_path / 'large' / 'result.json').exists()
  done = run()
  assert done.returncode == 0, done.stderr
  assert 'continuing at step 4' in done.stdout
  assert_same_runs(whole, tmp_path)


def test_runs_of_different_streams_do_not_share_one(tmp_path):
  with pytest.raises(UserError, match='a and .*b cannot share a stream of batches: - "batch_size": 8, .* 16'):
    train_group([tiny_config(), tiny_config(batch_size=16)], [tmp_path / 'a', tmp_path / 'b'], DATA)
  assert not (tmp_path / 'a').exists()


def grid(memory_bytes, jobs, name='auto', gpus=()):
  """Returns how the 16 runs are grouped if a model takes 10 bytes and a step 100.

  The values are the number of groups, the size of the first, the estimated memory, and the number of jobs that fit.
  """
  from configs import grid
  config = tiny_config(**{'data.image_size': (56, 56)})
  runs = {}
  for change in grid.sweep(config):
    member = tiny_config(**change)
    runs[f'{member.model.width_multiplier} {member.data.image_size}'] = member
  needs = grouping.Needs(dict.fromkeys(runs, 10), 100)
  machine = grouping.Machine('gpu' if gpus else 'cpu', memory_bytes, [0], gpus)
  groups = grouping.choose(runs, list(runs), jobs, machine, needs, name)
  assert sorted(name for names in groups for name in names) == sorted(runs)
  memory_of = groups, jobs, machine, needs
  return len(groups), len(groups[0]), grouping.estimate(*memory_of), grouping.that_fit(*memory_of)


@pytest.mark.parametrize('given, expected', (
    ((1000, 1), (1, 16, 260, 1)),  # all in one group: 16 models and one step
    ((300, 1), (2, 8, 180, 1)),  # 260 is more than the share of 300 that may be used
    ((1000, 2), (2, 8, 360, 2)),  # one group would leave a job idle
    ((150, 1), (10, 2, 120, 1)),
    ((300, 4), (16, 1, 440, 2)),  # of four jobs, two fit
    ((1, 1), (16, 1, 110, 1)),  # nothing fits: the smallest groups
    ((1000, 1, 'model.width_multiplier'), (4, 4, 140, 1)),
    ((1000, 1, 'model.width_multiplier,data.image_size'), (16, 1, 110, 1)),
    ((240, 2, 'auto', ['0', '1']), (2, 8, 180, 2)),  # each GPU has its own memory
    ((1, 1, 'all'), (1, 16, 260, 1))))  # as requested
def test_grouping_fits_the_memory_and_the_jobs(given, expected):
  assert grid(*given) == expected


@pytest.mark.parametrize('jobs', (1, 2, 3, 4, 8))
@pytest.mark.parametrize('seed', range(4))
def test_jobs_are_busy_evenly_unless_one_run_takes_longer(jobs, seed):
  """Runs of random widths and of two streams. No job gets more than a quarter over its share, or it has a single run."""
  rng = np.random.default_rng(seed)
  runs = {str(i): tiny_config(**{'model.width_multiplier': float(width), 'seed': i % 2})
          for i, width in enumerate(rng.uniform(0.25, 2, 12))}
  groups = grouping.choose(runs, list(runs), jobs, grouping.Machine('cpu', 10**9, [0], []), grouping.Needs(
      dict.fromkeys(runs, 10), 100), 'auto')
  costs = {name: grouping.cost(config) for name, config in runs.items()}
  loads = np.zeros(jobs)
  for members in reversed(groups):  # as they are launched
    loads[loads.argmin()] += sum(costs[name] for name in members)
    assert len({runs[name].seed for name in members}) == 1
  assert loads.max() <= 1.25 * sum(costs.values()) / jobs or all(len(members) == 1 for members in groups)
  assert len(groups) == 2 or jobs > 1


def test_what_keeps_runs_from_sharing_is_said():
  runs = lambda **fields: {str(value): tiny_config(**{field: value, **also}) for field, values, also in fields.values()
                           for value in values}
  said = lambda runs, name: grouping.described(runs, grouping.group(runs, list(runs), name), grouping.reason(name))
  rates = runs(rates=('optim.learning_rate', (0.1, 0.2), {}))
  assert said(rates, 'all') == ', in 1 group of up to 2 that share each batch'
  assert said(rates, 'alone') == ', each alone (--group=alone)'
  alone = grouping.group(rates, list(rates), 'alone')
  assert grouping.described(rates, alone, grouping.reason('auto', memory_known=False)) == (
      ', each alone (as the memory of the nodes is not known)')
  assert 'the batches differ in data.seed; with data.seed=0 seeds' in said(runs(seeds=('seed', (0, 1), {})), 'all')
  assert 'in 1 group of up to 2' in said(runs(seeds=('seed', (0, 1), {'data.seed': 7})), 'all')
  sizes = runs(sizes=('data.image_size', ((32, 32), (40, 40)), {}))
  assert 'the batches differ in data.image_size; with data.stream_size' in said(sizes, 'all')
  assert 'the batches differ in batch_size)' in said(runs(batches=('batch_size', (8, 16), {})), 'all')


def test_estimated_memory_is_that_of_the_compiled_step():
  """The state is equal to the byte; a step is within a quarter of XLA's own plan of temporary buffers."""
  config = tiny_config(batch_size=64)
  task = tasks.create(config)
  model, tx = models.create(config.model, 4, devices.AXIS), optimizer.create(config.optim, lambda step: 0.1)
  state, source = init_state(jax.random.key(0), model, tx, config), random_images(1)
  assert memory.state_bytes(config, 4) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  step = devices.pmap_step(make_train_step(model, task, tx, config)).lower(
      devices.replicate(state), devices.split(blank_batch(config.data, source, 64)), jax.random.key(0), {}).compile()
  assert memory.step_bytes(config, 4) == pytest.approx(step.memory_analysis().temp_size_in_bytes, rel=0.25)
