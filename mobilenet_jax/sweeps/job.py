"""A job: the process that trains the runs of a group, or one such process on each of several hosts."""

import contextlib
import functools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import ml_collections

from mobilenet_jax.errors import REQUEUE, InUse, Interrupted, UserError, describe
from mobilenet_jax.runtime import environment
from mobilenet_jax.storage.files import write_whole
from mobilenet_jax.storage.run_files import newest_checkpoint, read_row
from mobilenet_jax.sweeps import results

LOG_FILE, ATTEMPTS_FILE = 'log.txt', 'attempts.json'
GPUS = 'CUDA_VISIBLE_DEVICES'


def train_runs(configs: list[dict], workdirs: list[str], retries: int, cores: list[int] = (),
               gpus: str | None = None) -> None:
  """Runs a job. What libraries print goes to the log of the first run.

  It exits with status 0 if all runs have their row, with REQUEUE if the job can be started again as it is, and with 1 if a
  run failed in a way that would recur.

  Args:
    configs: the configs of the runs, see training.train_group.
    workdirs: the folders of the runs, in the folder of the sweep.
    retries: how often the job may be started again without making progress.
    cores: the CPU cores that the job has to itself; by default all.
    gpus: the GPUs that it may use, in the form of CUDA_VISIBLE_DEVICES; by default those of the process that launched it.
  """
  for number in (signal.SIGTERM, signal.SIGUSR2):  # with submitit's own handlers the job would go on
    signal.signal(number, signal.SIG_DFL)
  with open(Path(workdirs[0]) / LOG_FILE, 'a') as log:
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
  sys.stdout.reconfigure(errors='backslashreplace')
  _count_start([Path(workdir) for workdir in workdirs], retries)
  if cores:
    os.sched_setaffinity(0, cores)
  if gpus is not None:
    os.environ[GPUS] = gpus
  environment.quiet()
  from mobilenet_jax.runtime import devices
  try:
    devices.join_hosts()
  except UserError as error:  # the other hosts cannot be reached
    print(f'error: {error}', flush=True)
    sys.exit(REQUEUE)
  try:
    outcomes = train([ml_collections.ConfigDict(config) for config in configs], workdirs)
  except (Interrupted, InUse) as error:
    print(error, flush=True)
    sys.exit(REQUEUE)
  sys.exit(any(isinstance(outcome, str) for outcome in outcomes))


def train(configs: list[ml_collections.ConfigDict], workdirs: list[str]) -> list[dict | str]:
  """Trains runs together, as training.train_group does. The lines of each run go to its log, its row to the sweep's file.

  If there are several hosts, an error that ends all runs also ends the process, because it may concern this host only.

  Returns:
    For each run its row, or the reason why it failed. The reason is also written into the run's folder.

  Raises:
    Interrupted, InUse: if the job can be started again as it is.
  """
  from mobilenet_jax.runtime import devices
  from mobilenet_jax.training import train_group
  with contextlib.ExitStack() as stack:
    logs = [stack.enter_context(open(Path(workdir) / LOG_FILE, 'a', buffering=1, errors='backslashreplace'))
            for workdir in workdirs]
    try:
      with devices.ending_with_the_others():
        outcomes = train_group(configs, workdirs, says=[functools.partial(print, file=log) for log in logs])
    except (Interrupted, InUse):
      raise
    except Exception as error:
      if not isinstance(error, UserError):
        traceback.print_exc()
      outcomes = [read_row(Path(workdir)) or error for workdir in workdirs]
  outcomes = [_failed(Path(workdir), outcome) if isinstance(outcome, Exception) else outcome
              for outcome, workdir in zip(outcomes, workdirs)]
  if devices.host_count() > 1 and all(isinstance(outcome, str) for outcome in outcomes):
    sys.exit(f'error: {outcomes[0]}')
  if devices.is_first_host():
    if problem := results.collect(Path(workdirs[0]).parent):
      print(problem, flush=True)
  return outcomes


def _failed(workdir: Path, error: Exception) -> str:
  """Writes the reason why a run failed into its log and its folder, and returns it."""
  described = describe(error)
  with open(workdir / LOG_FILE, 'a') as log:
    print(f'error: {described}', file=log)
  with contextlib.suppress(OSError):  # the disk may be full; the log had room for a line
    write_whole(workdir / ATTEMPTS_FILE, json.dumps({**attempts(workdir), 'error': described}, allow_nan=False) + '\n')
  return described


def _count_start(workdirs: list[Path], retries: int) -> None:
  """Records, on the first host, that the runs are started, and how far they had got.

  This comes before anything else, because a broken node or driver may get no further. Exits if all runs have ended, or if
  they have been started again `retries` times without making progress.
  """
  noted = [attempts(workdir) for workdir in workdirs]
  if all(read_row(workdir) or one['error'] for workdir, one in zip(workdirs, noted)):
    sys.exit(any(one['error'] for one in noted))  # started again because another host ended with another status
  if os.environ.get('SLURM_PROCID', '0') != '0':
    return
  steps = [newest_checkpoint(workdir) for workdir in workdirs]
  starts = noted[0]['starts'] + 1 if steps == [one['step'] for one in noted] else 1
  if starts > retries + 1:
    for workdir, step in zip(workdirs, steps):
      if not read_row(workdir):
        _failed(workdir, UserError(f'ended {starts - 1} times at step {step} without getting further, perhaps because it ran '
                                   'out of memory; try fewer --jobs or a smaller --group'))
    sys.exit(1)
  for workdir, step, one in zip(workdirs, steps, noted):
    write_whole(workdir / ATTEMPTS_FILE, json.dumps({**one, 'starts': starts, 'step': step}, allow_nan=False) + '\n')


def attempts(workdir: Path) -> dict:
  """Returns a run's number of 'starts' since it last got further, the 'step' it had reached then, and its final 'error'."""
  try:
    return json.loads((workdir / ATTEMPTS_FILE).read_bytes())
  except (FileNotFoundError, ValueError):
    return {'starts': 0, 'step': -1, 'error': ''}


def forget(workdir: Path) -> None:
  """Forgets the attempts of a run, because a person starts it again."""
  (workdir / ATTEMPTS_FILE).unlink(missing_ok=True)
