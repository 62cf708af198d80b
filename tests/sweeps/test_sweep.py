"""Jobs of a sweep on this machine: jobs that die, are orphaned, cancelled or given up. test_slurm.py tests Slurm jobs."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, images_of, random_images, tiny_config

from mobilenet_jax.commands import sweep as sweep_command_line
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime.pace import duration
from mobilenet_jax.storage import files, run_files
from mobilenet_jax.sweeps import grouping, job, launch, results, watch
from mobilenet_jax.sweeps.sweep import sweep
from mobilenet_jax.training import checked

ROW = {name: name if name in run_files.TEXT_COLUMNS else 1 for name in (*run_files.MODEL_COLUMNS, *run_files.RUN_COLUMNS)}


def sweep_command(tmp_path, widths, sizes, steps):
  """Returns the command line of a sweep in tmp_path/runs."""
  train, test = random_images(40, size=36), random_images(21, size=36, seed=1)
  np.savez(tmp_path / 'set.npz', train_images=images_of(train), train_labels=train.labels, test_images=images_of(test),
           test_labels=test.labels)
  recipe = tmp_path / 'recipe.py'
  recipe.write_text('from configs import small_images\n'
                    'get_config = small_images.get_config\n'
                    'sweep = lambda config: [\n'
                    "    {'model.width_multiplier': width, 'data.image_size': (size, size), 'data.stream_size': (48, 48)}\n"
                    f'    for width in {widths} for size in {sizes}]\n')
  return [sys.executable, '-m', 'mobilenet_jax', 'sweep', f'--config={recipe}:data=npz:{tmp_path}/set.npz,res=32',
          f'--workdir={tmp_path / "runs"}', f'--config.train_for={steps} steps', '--config.log_every=4 steps',
          '--config.checkpoint_every=20 steps', '--config.eval_every=40 steps', '--config.batch_size=8',
          '--config.eval_batch_size=8']


@pytest.fixture
def endless(tmp_path):
  """Two runs that never end, one job each."""
  yield sweep_command(tmp_path, (0.25, 0.375), (32,), 10**6)
  subprocess.run([sys.executable, '-m', 'mobilenet_jax', 'sweep', 'cancel', f'--workdir={tmp_path / "runs"}'], cwd=ROOT)


def start(command):
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          start_new_session=True)


def ask(what, workdir, *args):
  done = subprocess.run([sys.executable, '-m', 'mobilenet_jax', 'sweep', what, f'--workdir={workdir}', *args], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
  return done.stdout


def wait_for(condition, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.1)


def reached(folder, step):
  return any(row['step'] >= step for row in run_files.read_metrics(folder)[0])


@pytest.mark.slow
def test_jobs_that_die_are_left_behind_or_cancelled(endless, tmp_path):
  workdir = tmp_path / 'runs'
  folders = [workdir / 'mobilenet_0.25_32', workdir / 'mobilenet_0.375_32']
  first = start(endless)
  wait_for(lambda: all(reached(folder, 24) for folder in folders))
  assert '2 running of 2 runs' in ask('status', workdir)
  refused = subprocess.run(endless, cwd=ROOT, capture_output=True, text=True)
  assert refused.returncode == 1 and f'another process works in it (process {first.pid} on' in refused.stderr
  first.kill()  # its jobs go on
  jobs = [launch.read(folder).id for folder in folders]
  second = start(endless)
  wait_for(lambda: (owner := files.lock_owner(workdir)) and owner.pid == second.pid)
  os.kill(files.lock_owner(folders[0]).pid, signal.SIGKILL)
  wait_for(lambda: launch.read(folders[0]).id != jobs[0])  # started again, on the same core
  assert launch.read(folders[0]).cores != launch.read(folders[1]).cores
  assert launch.read(folders[1]).id == jobs[1]
  wait_for(lambda: 'continuing at step' in (folders[0] / job.LOG_FILE).read_text())
  assert 'ended; the command' in ask('cancel', workdir)
  assert second.wait(60) == 75, second.stdout.read()
  assert ask('status', workdir).splitlines()[-1].startswith('2 stopped of 2 runs')
  for folder in folders:
    steps = [row['step'] for row in run_files.read_metrics(folder)[0] if row['split'] == 'train']
    assert steps == list(range(4, len(steps) * 4 + 1, 4))  # none twice, none missing
    assert run_files.newest_checkpoint(folder) >= steps[-1]  # besides those of the schedule, it wrote one when it stopped
  assert 'SIGTERM: training stopped between two steps' in ask('logs', workdir, '--run=mobilenet_0.25_32')


def test_a_sweep_may_become_longer_but_not_while_it_runs(tiny_model, tmp_path, capsys):
  source = random_images(40, size=36)
  np.savez(tmp_path / 'set.npz', train_images=images_of(source), train_labels=source.labels, test_images=images_of(source),
           test_labels=source.labels)
  config = lambda steps: tiny_config(**{'data.name': f'npz:{tmp_path}/set.npz', 'train_for': f'{steps} steps'})
  train = lambda steps: sweep(config(steps), [{}], tmp_path / 'runs', launcher='here')
  folder = tmp_path / 'runs' / 'mobilenet_0.25_32'
  with pytest.raises(UserError, match='expected at least|train_for=|a number and one unit'):
    train(0)
  train(4)
  with files.lock(folder), pytest.raises(UserError, match='a job trains it with another config .*4 steps.*8 steps'):
    train(8)
  assert results.read_sweep(tmp_path / 'runs') and run_files.read_row(folder)['examples_seen'] == 32
  row, = train(8)
  assert row['extended'] == '4 steps at step 4' and row['examples_seen'] == 64
  assert "mobilenet_0.25_32: train_for grows from '4 steps' to '8 steps'" in capsys.readouterr().out
  assert '4 steps at step 4' in (tmp_path / 'runs' / 'results.csv').read_text()


def test_a_sweep_that_cannot_start_changes_none_of_its_runs(tmp_path):
  """Of two finished runs that are to become longer, one is in use."""
  runs, workdir = [{}, {'model.width_multiplier': 0.5}], tmp_path / 'runs'
  names = ('mobilenet_0.25_32', 'mobilenet_0.5_32')
  for name, change in zip(names, runs):
    run_files.claim(workdir / name, checked(tiny_config(train_for='4 steps', **change)), longer=False)
    run_files.write_row(workdir / name, ROW)
    (workdir / name / 'checkpoints' / '4').mkdir(parents=True)
  contents = lambda: {path: path.read_bytes() for name in names for path in (workdir / name).rglob('*.json')}
  before = contents()
  with files.lock(workdir / names[1]), pytest.raises(UserError, match='a job trains it with another config'):
    sweep(tiny_config(train_for='8 steps'), runs, workdir, launcher='here')
  with pytest.raises(UserError, match='belongs to another config .*train_for may only grow, in the same unit'):
    sweep(tiny_config(train_for='8 epochs'), runs, workdir, launcher='here')
  with pytest.raises(UserError, match='nowhere: there is no such folder'):
    sweep(tiny_config(train_for='4 steps', **{'data.name': 'folder:/nowhere'}), [{}], tmp_path / 'new', launcher='here')
  assert contents() == before and not list((tmp_path / 'new').rglob('config.json'))


def test_the_time_that_a_sweep_has_left_counts_what_was_done_before(tmp_path, monkeypatch):
  """A clock by hand. One of two jobs continues at step 90 of 100; runs of the same cost take 10 s a step."""
  now = [1000.0]
  monkeypatch.setattr('time.monotonic', lambda: now[0])
  config = tiny_config()
  jobs = watch.Jobs({name: config for name in 'abc'}, tmp_path, 'local', lambda *args: args[0], 0)
  for name in 'abc':
    (tmp_path / name).mkdir()
  (tmp_path / 'a' / 'checkpoints' / '90').mkdir(parents=True)
  jobs._launched = {name: watch._Launched([name], jobs._steps([name])) for name in 'ab'}
  assert jobs._left([['c']], 2) == ''  # nothing is known
  now[0] += 50
  for name, step in (('a', 95), ('b', 5)):
    run_files.write_progress(tmp_path / name, {'step': step, 'total_steps': 100, 'seconds_left': (100 - step) * 10})
  left = 50 + 950 + 100 * 10  # of a, b and c
  assert jobs._left([['c']], 1) == f', about {duration(left)} left' and jobs._left([], 2) == f', about {duration(950)} left'
  run_files.write_row(tmp_path / 'a', {**ROW, 'examples_seen': 100 * config.batch_size})
  jobs._spent.append((100.0, jobs._cost(['a'], jobs._launched.pop('a').steps)))
  assert jobs._left([['c']], 1) == f', about {duration(950 + 1000)} left'


def test_a_job_that_gets_no_further_is_given_up(tmp_path):
  """It is given up after the given number of starts. A checkpoint in between resets the count."""
  for _ in range(3):
    job._count_start([tmp_path], retries=2)
  with pytest.raises(SystemExit):
    job._count_start([tmp_path], retries=2)
  assert job.attempts(tmp_path)['error'].startswith('ended 3 times at step 0 without getting further')
  job.forget(tmp_path)
  job._count_start([tmp_path], retries=2)
  (tmp_path / 'checkpoints' / '40').mkdir(parents=True)
  job._count_start([tmp_path], retries=2)
  assert job.attempts(tmp_path) == {'starts': 1, 'step': 40, 'error': ''}


@pytest.mark.slow
def test_jobs_that_always_die_are_given_up_and_reported(tmp_path):
  """The system kills them once they have used some seconds of processor time. Each run is alone in its job."""
  command = sweep_command(tmp_path, (0.25, 0.375), (32,), 10**6)
  rarely = ['--config.checkpoint_every=0 steps', '--config.eval_every=0 steps']
  command = [argument for argument in command if not argument.startswith(('--config.checkpoint_every', '--config.eval_every'))]
  limited = ['sh', '-c', 'ulimit -t 15; exec "$@"', 'sh', *command, *rarely, '--retries=1', '--jobs=2']
  done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and done.stderr.count('\n') == 1
  assert done.stdout.count('ended early: starting it again') == 2 * 2  # the last start only finds that there were too many
  assert 'mobilenet_0.25_32 (ended 2 times at step 0 without getting further' in done.stderr
  assert ask('status', tmp_path / 'runs').splitlines()[-1].startswith('2 failed of 2 runs')


def _finish(workdir, name):
  (workdir / name).mkdir()
  run_files.write_row(workdir / name, {**ROW, 'name': name})
  results.collect(workdir)


def test_rows_of_concurrent_jobs_are_all_collected(tmp_path):
  names = [f'run_{i}' for i in range(24)]
  results.add_runs(tmp_path, names)
  with multiprocessing.get_context('forkserver').Pool(4) as pool:
    pool.starmap(_finish, [(tmp_path, name) for name in names], chunksize=1)
  lines = (tmp_path / results.CSV_FILE).read_text().splitlines()
  assert [line.split(',')[0] for line in lines[1:]] == names


def test_shares_of_a_machine():
  cpu = grouping.Machine('cpu', 1, [0, 1, 2, 3, 4], [])
  assert [grouping.share(cpu, i, 2) for i in range(2)] == [((0, 2, 4), None), ((1, 3), None)]
  assert grouping.share(cpu, 6, 7) == ((1,), None)
  assert grouping.jobs_at_once(cpu, 0) == 5 and grouping.jobs_at_once(cpu, 7) == 7
  gpu = grouping.Machine('gpu', 1, [0, 1], ['4', '5', '6', '7'])
  assert [grouping.share(gpu, i, 2) for i in range(2)] == [((), '4,6'), ((), '5,7')]
  assert grouping.jobs_at_once(gpu, 0) == grouping.jobs_at_once(gpu, 9) == 4 and grouping.jobs_at_once(gpu, 2) == 2
  tpu = grouping.Machine('tpu', 1, [0, 1], [])
  assert grouping.share(tpu, 0, 1) == ((), None) and grouping.jobs_at_once(tpu, 3) == 1


def test_what_a_job_left_behind_has_is_not_given_to_another(tmp_path):
  gpu = grouping.Machine('gpu', 1, [], ['0', '1', '2', '3'])
  shares = [grouping.share(gpu, i, 4) for i in range(4)]
  jobs = watch.Jobs({}, tmp_path, 'local', None, 0)
  here = socket.gethostname()
  running = [launch.Job('local', str(i), here, '', (), str(i)) for i in (0, 2)]
  running += [launch.Job('slurm', '9', here, ''), launch.Job('local', '7', 'elsewhere', '', (), '1')]
  jobs._launched = dict.fromkeys(running)
  assert [gpus for _, gpus in jobs._not_taken(shares)] == ['1', '3']
  jobs._launched = {launch.Job('local', '5', here, '', (), '0,1,2,3'): None}
  assert not jobs._not_taken(shares)


def test_folders_that_are_none_of_a_sweep_or_damaged(tmp_path):
  for content in ('', '{"runs', '[]'):
    (tmp_path / results.SWEEP_FILE).write_text(content)
    with pytest.raises(UserError, match='sweep.json: damaged; start the sweep again'):
      results.read_sweep(tmp_path)
  (tmp_path / launch.JOB_FILE).write_text('{"launcher": "local"')
  assert launch.read(tmp_path) is None
  (tmp_path / job.ATTEMPTS_FILE).write_text('{"starts"')
  assert job.attempts(tmp_path)['starts'] == 0


def test_groups_agree_in_fields_that_there_are():
  runs = {str(width): tiny_config(**{'model.width_multiplier': width}) for width in (0.25, 0.5)}
  assert len(grouping.group(runs, list(runs), 'model.width_multiplier')) == 2
  assert len(grouping.group(runs, list(runs), 'all')) == 1
  assert len(grouping.group(runs, list(runs), 'data.folder,seed')) == 1 == len(grouping.group(runs, list(runs), 'init.model'))
  with pytest.raises(UserError, match="data.imagesize: data has no field 'imagesize'; did you mean data.image_size?"):
    grouping.check(runs, 'data.imagesize')


def test_options_of_sbatch():
  assert sweep_command_line._options('"nodelist=a,b", time=5,exclusive') == {'nodelist': 'a,b', 'time': '5', 'exclusive': ''}
