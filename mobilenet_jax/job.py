"""A job: the process, or one on each of several hosts, that trains the runs of a group, whoever launched it."""

from mobilenet_jax import cli  # first: it quietens what the others import

import functools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import ml_collections

from mobilenet_jax import results
from mobilenet_jax.errors import REQUEUE, InUse, Interrupted, UserError
from mobilenet_jax.files import write_whole

LOG_FILE, ATTEMPTS_FILE = 'log.txt', 'attempts.json'
GPUS = 'CUDA_VISIBLE_DEVICES'


def train_runs(configs: list[dict], workdirs: list[str], retries: int, cores: list[int] = (), gpus: str | None = None) -> None:
  """The body of a job: each run's lines go to its log; what libraries print, to the first run's.

  Ends with status 0 where all runs have their row, REQUEUE where it can be started again as it is, and 1 where a run failed
  in a way that would come again; that is noted in its folder.

  Args:
    configs: of the runs, see train.train_group.
    workdirs: theirs, in the folder of the sweep.
    retries: how often it may be started again without having got any further.
    cores: of the CPU, that it has to itself; by default all.
    gpus: of a local job, those it may use, as CUDA_VISIBLE_DEVICES has them; by default all.
  """
  logs = [open(Path(workdir) / LOG_FILE, 'a', buffering=1) for workdir in workdirs]
  os.dup2(logs[0].fileno(), 1)
  os.dup2(logs[0].fileno(), 2)
  says = [functools.partial(print, file=log) for log in logs]
  for number in (signal.SIGTERM, signal.SIGUSR2):  # submitit's own answers to them would have it go on
    signal.signal(number, signal.SIG_DFL)
  if cores:
    os.sched_setaffinity(0, cores)
  if 'SUBMITIT_LOCAL_JOB_ID' in os.environ:  # submitit has set it to none
    os.environ.pop(GPUS, None)
  if gpus is not None:
    os.environ[GPUS] = gpus
  cli.quiet()
  from mobilenet_jax import parallel
  from mobilenet_jax.train import train_group
  try:
    parallel.join_hosts()
    parallel.on_first_host(lambda: _count_start(workdirs, retries))
    with parallel.ending_with_the_others():
      outcomes = train_group([ml_collections.ConfigDict(config) for config in configs], workdirs, says=says)
  except (Interrupted, InUse) as interrupt:
    says[0](str(interrupt))
    sys.exit(REQUEUE)
  except Exception as error:
    if not isinstance(error, UserError):
      traceback.print_exc()
    outcomes = [results.read(Path(workdir)) or error for workdir in workdirs]
  if parallel.is_first_host():
    for outcome, workdir, say in zip(outcomes, workdirs, says):
      if isinstance(outcome, Exception):
        described = isinstance(outcome, (UserError, OSError))
        _note_error(Path(workdir), cli.describe(outcome) if described else f'{type(outcome).__name__}: {outcome}')
        say(f'error: {attempts(Path(workdir))["error"]}')
    results.collect(Path(workdirs[0]).parent)
  sys.exit(any(isinstance(outcome, Exception) for outcome in outcomes))


def _count_start(workdirs, retries):
  """Notes that the runs are started, and how far they had got.

  Raises:
    UserError: where they had been started `retries` times before, after the first, and got no further.
  """
  from mobilenet_jax import checkpoint
  steps = {workdir: checkpoint.newest_step(Path(workdir)) for workdir in workdirs}
  before = [attempts(Path(workdir)) for workdir in workdirs]
  same = all(noted['step'] == step for noted, step in zip(before, steps.values()))
  starts = before[0]['starts'] + 1 if same else 1
  if starts > retries + 1:
    raise UserError(f'ended {starts - 1} times at step {steps[workdirs[0]]} without getting further, perhaps for lack of '
                    'memory: try fewer --jobs or a smaller --group')
  for workdir, step in steps.items():
    write_whole(Path(workdir) / ATTEMPTS_FILE, json.dumps({'starts': starts, 'step': step, 'error': ''}) + '\n')


def _note_error(workdir, error):
  write_whole(workdir / ATTEMPTS_FILE, json.dumps({**attempts(workdir), 'error': error}) + '\n')


def attempts(workdir: Path) -> dict:
  """Of a run: its 'starts' since it last got further, the 'step' that it had reached, and the 'error' that it failed of."""
  try:
    return json.loads((workdir / ATTEMPTS_FILE).read_bytes())
  except (FileNotFoundError, ValueError):
    return {'starts': 0, 'step': -1, 'error': ''}


def forget(workdir: Path) -> None:
  """Forgets them, for a person has it started again."""
  (workdir / ATTEMPTS_FILE).unlink(missing_ok=True)
