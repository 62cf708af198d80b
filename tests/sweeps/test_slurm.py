"""Sweeps on a real Slurm of one node, which is started here. `make test-slurm` installs it; needs root, on Linux."""

import os
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from test_sweep import ask, reached, start, sweep_command, wait_for

from mobilenet_jax.storage import checkpoints, files, run_files
from mobilenet_jax.sweeps import job, launch, results

INSTALLED = shutil.which('slurmctld') and shutil.which('munged') and not os.geteuid()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not INSTALLED, reason='needs Slurm, and root: make test-slurm')]
CONFIG = '''
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
'''  # cred_expire is how long a requeued job waits


@pytest.fixture(scope='module', autouse=True)
def slurm(tmp_path_factory):
  """Runs a controller and a node until the end of the tests."""
  folder = tmp_path_factory.mktemp('slurm')
  for part in ('state', 'spool'):
    (folder / part).mkdir()
  with socket.socket() as one, socket.socket() as two:
    for free in (one, two):
      free.bind(('127.0.0.1', 0))
    ports = one.getsockname()[1], two.getsockname()[1]
  (folder / 'slurm.conf').write_text(CONFIG.format(folder=folder, host=socket.gethostname().split('.')[0], ports=ports))
  key = folder / 'munge.key'
  key.write_bytes(os.urandom(1024))
  key.chmod(0o600)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('SLURM_CONF', str(folder / 'slurm.conf'))
    daemons = [subprocess.Popen(['munged', '--foreground', '--force', f'--socket={folder}/munge.socket', f'--key-file={key}',
                                 f'--pid-file={folder}/munge.pid', f'--seed-file={folder}/munge.seed'],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    wait_for((folder / 'munge.socket').exists, 20)
    for command in (['slurmctld', '-D'], ['slurmd', '-D']):
      daemons.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
      wait_for(lambda: 'idle' in subprocess.run(['sinfo', '-h'], capture_output=True, text=True).stdout, 60)
      yield
    finally:
      subprocess.run(['scancel', '--user=root'])
      wait_for(lambda: not squeue(), 60)
      for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(30)


def squeue():
  return subprocess.run(['squeue', '-h', '-o', '%A %T'], capture_output=True, text=True).stdout.split('\n')[:-1]


def restarts(name):
  shown = subprocess.run(['scontrol', 'show', 'job', name], capture_output=True, text=True).stdout
  return int(shown.split('Restarts=')[1].split()[0])


ON_SLURM = ['--launcher=slurm', '--slurm=cpus_per_task=1,time=60']


def test_a_sweep_of_four_models_of_which_one_is_killed_and_one_told_to_stop(tmp_path):
  """Both are requeued and continue. In the end everything equals an undisturbed sweep of local jobs, bit for bit."""
  command = sweep_command(tmp_path, (0.25, 0.375), (32, 48), 600)
  workdir = tmp_path / 'runs'
  first = start([*command, *ON_SLURM])
  folders = {name: workdir / name for name in (f'mobilenet_{width}_{size}' for width in (0.25, 0.375) for size in (32, 48))}
  jobs = lambda: {name: launch.read(folder) for name, folder in folders.items()}
  wait_for(lambda: all(jobs().values()))
  ids = {name: launched.id for name, launched in jobs().items()}
  wait_for(lambda: sum(reached(folder, 64) for folder in folders.values()) == 2)
  killed, told = [name for name, folder in folders.items() if reached(folder, 64)]
  os.kill(files.lock_owner(folders[killed]).pid, signal.SIGKILL)
  subprocess.run(['scancel', '--signal=USR2', ids[told]], check=True)  # Slurm sends it shortly before the time limit
  wait_for(lambda: restarts(ids[killed]) == 1 and restarts(ids[told]) == 1)
  states = ask('status', workdir)
  assert 'pending' in states and 'running' in states and f'slurm {ids[killed]}' in states

  first.send_signal(signal.SIGINT)
  output = first.communicate(timeout=30)[0]
  assert first.returncode == 75 and 'jobs will go on' in output
  second = start([*command, *ON_SLURM])
  output = second.communicate(timeout=300)[0]
  assert second.returncode == 0 and output.splitlines()[-1].startswith('4 runs finished'), output
  assert {name: launched.id for name, launched in jobs().items()} == ids  # no job was launched again
  for name in (killed, told):
    assert 'continuing at step' in (folders[name] / job.LOG_FILE).read_text()
  assert 'SIGUSR2: training stopped' in (folders[told] / job.LOG_FILE).read_text()

  elsewhere = tmp_path / 'local'
  others = [argument for argument in command if not argument.startswith('--workdir')]
  local = start([*others, f'--workdir={elsewhere}', '--jobs=1'])
  output = local.communicate(timeout=300)[0]
  assert local.returncode == 0, output
  rows = [[line.split(',') for line in (folder / results.CSV_FILE).read_text().splitlines()]
          for folder in (workdir, elsewhere)]
  seconds = rows[0][0].index('seconds')
  assert len(rows[0]) == 5
  for ours, theirs in zip(*rows, strict=True):
    assert ours[:seconds] + ours[seconds + 1:] == theirs[:seconds] + theirs[seconds + 1:]
  for name, folder in folders.items():
    assert (folder / run_files.METRICS_FILE).read_bytes() == (elsewhere / name / run_files.METRICS_FILE).read_bytes()
    for ours, theirs in zip(*(jax.tree.leaves(checkpoints.read(path)[0]) for path in (folder, elsewhere / name)),
                            strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_cancelled_jobs_write_a_checkpoint_and_stay_cancelled(tmp_path):
  workdir = tmp_path / 'runs'
  running = start([*sweep_command(tmp_path, (0.25, 0.375, 0.5), (32,), 10**6), *ON_SLURM])
  folders = [workdir / f'mobilenet_{width}_32' for width in (0.25, 0.375, 0.5)]
  wait_for(lambda: sum(reached(folder, 24) for folder in folders) == 2)  # the third waits for a core
  assert '3 jobs' in ask('cancel', workdir)
  assert running.wait(120) == 1  # up to a minute longer, in which rows might still appear
  assert ' runs failed' in running.stdout.read()
  for folder in folders:
    assert not reached(folder, 24) or run_files.newest_checkpoint(folder) >= run_files.read_metrics(folder)[0][-1]['step']
  time.sleep(8)  # longer than a requeued job would wait
  assert not squeue() and ask('status', workdir).splitlines()[-1].startswith('3 stopped of 3 runs')
  assert 'CANCELLED' in ask('logs', workdir)


def test_a_run_on_two_hosts(tmp_path):
  """The hosts are two tasks on one node, which find each other through srun's environment."""
  command = sweep_command(tmp_path, (0.25,), (32,), 40)
  done = start([*command, '--launcher=slurm', '--slurm=ntasks_per_node=2,cpus_per_task=1'])
  output = done.communicate(timeout=200)[0]
  assert done.returncode == 0, output + ask('logs', tmp_path / 'runs', '--run=mobilenet_0.25_32')
  row = run_files.read_row(tmp_path / 'runs' / 'mobilenet_0.25_32')
  assert row['eval_examples'] == 21 and row['device'].startswith('2 x ')


def test_what_sbatch_refuses_is_one_line(tmp_path):
  refused = start([*sweep_command(tmp_path, (0.25,), (32,), 40), '--launcher=slurm', '--slurm=partition=gpu'])
  output = refused.communicate(timeout=60)[0]
  assert refused.returncode == 1 and output.splitlines()[-1].startswith('error: --slurm: '), output
  assert 'invalid partition' in output and 'Traceback' not in output
