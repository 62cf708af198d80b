"""Launches jobs on this machine or on a Slurm cluster. This is the only module that uses submitit.

A job calls a function in a process of its own, or under Slurm in as many processes as requested. It outlives the process
that launched it. What is known about a job is in a file, so that any machine that sees the folder can ask for its state.
"""

import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from submitit.core import utils as submitit_utils
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor

from mobilenet_jax.errors import REQUEUE, UserError
from mobilenet_jax.runtime import signals
from mobilenet_jax.storage.files import write_whole

LAUNCHERS = {'local': LocalExecutor, 'slurm': SlurmExecutor}
JOB_FILE = 'job.json'
PENDING, RUNNING = 'pending', 'running'  # states of a job that has not ended
ROOT = Path(__file__).parents[2]  # of the repository, for jobs that start in another folder
# Slurm itself requeues a job if a node fails or the job is preempted. After a requested stop or a death (a status of 128 or
# more means a signal), the job requeues itself. A signal announces its time limit beforehand.
REQUEUE_LINES = [
    'code=$?', f'if [ $code = {REQUEUE} ] || [ $code -ge 128 ]; then scontrol requeue $SLURM_JOB_ID; fi', 'exit $code']
SLURM_DEFAULTS = {'time': 24 * 60, 'teardown': REQUEUE_LINES, 'stderr_to_stdout': True}


@dataclasses.dataclass(frozen=True)
class Job:
  """A job that was launched.

  Attributes:
    launcher: one of LAUNCHERS.
    id: Slurm's job number, or the id of the process that supervises a local job.
    host: the host on which it was launched.
    log: the file that has its output until it opens a log of its own.
    cores, gpus: the cores and GPUs of this machine that it has to itself, as job.train_runs takes them.
  """

  launcher: str
  id: str
  host: str
  log: str
  cores: tuple[int, ...] = ()
  gpus: str | None = None

  def write(self, folder: Path) -> None:
    write_whole(folder / JOB_FILE, json.dumps(dataclasses.asdict(self), allow_nan=False) + '\n')


def read(folder: Path) -> Job | None:
  """Returns the job that was launched last for the run in a folder; None if there is none."""
  try:
    content = json.loads((folder / JOB_FILE).read_bytes())
    return Job(**{**content, 'cores': tuple(content['cores'])})
  except (FileNotFoundError, ValueError, TypeError, KeyError):
    return None


def submitter(launcher: str, folder: Path, slurm: dict[str, str]) -> Callable[..., Job]:
  """Returns a function submit(name, function, args, cores, gpus) that launches function(*args, cores, gpus) as a Job.

  Args:
    launcher: one of LAUNCHERS.
    folder: the folder for submitit's files.
    slurm: options of sbatch, or of submitit's SlurmExecutor; an option without a value has ''.

  Raises:
    UserError: if there is no Slurm. submit raises it with sbatch's message if sbatch refuses the job.
  """
  try:
    executor = LAUNCHERS[launcher](folder)
  except RuntimeError as error:
    raise UserError(f'--launcher={launcher}: {error}; expected a machine that has srun and sbatch') from error
  if launcher == 'slurm':
    executor.update_parameters(**_slurm_parameters(slurm))
  else:
    executor.update_parameters(timeout_min=10**7, stderr_to_stdout=True)

  def submit(name: str, function: Callable, args: tuple, cores: tuple[int, ...] = (), gpus: str | None = None) -> Job:
    if launcher == 'slurm':
      executor.update_parameters(job_name=slurm.get('job_name', name))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    with signals.kept_from_children(), submitit_utils.environment_variables(PYTHONPATH=path):
      try:
        with contextlib.redirect_stderr(io.StringIO()):  # the error contains it too
          job = executor.submit(function, *args, cores, gpus)
      except (submitit_utils.FailedJobError, submitit_utils.FailedSubmissionError, FileNotFoundError) as error:
        raise UserError(f'--slurm: {error}; expected options of sbatch, such as --slurm=partition=gpu,time=720') from error
    return Job(launcher, job.job_id, socket.gethostname(), str(job.paths.stdout), tuple(cores), gpus)

  return submit


def _slurm_parameters(given: dict[str, str]) -> dict:
  parameters, others = dict(SLURM_DEFAULTS), {'requeue': True}
  for name, value in given.items():
    name = name.replace('-', '_')
    if name in ('teardown', 'additional_parameters', 'signal_delay_s', 'use_srun', 'stderr_to_stdout', 'srun_args'):
      raise UserError(f'--slurm={name}: sweeps need their own value for this option; expected other options of sbatch')
    if name in ('nodes', 'ntasks_per_node', 'cpus_per_task') and not value.isdecimal():
      raise UserError(f'--slurm={name}={value}: expected a number')
    value = int(value) if value.isdecimal() else value or True
    if name == 'setup':
      value = [value]
    if name == 'cpus_per_task':  # in Slurm 22.05 to 23.02, srun does not inherit it from sbatch
      parameters['srun_args'] = [f'--cpus-per-task={value}']
    (parameters if name in SlurmExecutor._valid_parameters() else others)[name] = value
  return {**parameters, 'additional_parameters': others}


def states(jobs: Iterable[Job]) -> dict[Job, str]:
  """Returns PENDING or RUNNING for each job that has not ended. Local jobs on other hosts are not found.

  Raises:
    UserError: if Slurm does not answer.
  """
  jobs = set(jobs)
  slurm = _squeue([job.id for job in jobs if job.launcher == 'slurm'])
  found = {job: PENDING if slurm[job.id] == 'PENDING' else RUNNING for job in jobs
           if job.launcher == 'slurm' and job.id in slurm}
  local = {job: RUNNING for job in jobs if job.launcher == 'local' and job.host == socket.gethostname() and _runs(job.id)}
  return found | local


def _squeue(ids: list[str]) -> dict[str, str]:
  # submitit takes its states from sacct, which many clusters do not have.
  if not ids:
    return {}
  try:
    done = subprocess.run(['squeue', '--noheader', f'--jobs={",".join(ids)}', '--format=%A %T'], capture_output=True,
                          text=True)
  except FileNotFoundError:
    raise UserError('this folder has Slurm jobs, but this machine has no squeue; use a machine that has it') from None
  if done.returncode and 'Invalid job id' not in done.stderr:  # its message if all of them have ended
    raise UserError(f'squeue: {" ".join(done.stderr.split())}; start the same command again once Slurm answers')
  return dict(line.split() for line in done.stdout.splitlines())


def _runs(pid: str) -> bool:
  with contextlib.suppress(ChildProcessError):  # another process may have started it
    os.waitpid(int(pid), os.WNOHANG)
  processes = Path('/proc')
  if not (processes / 'self').exists():
    with contextlib.suppress(ProcessLookupError):
      os.kill(int(pid), 0)
      return True
    return False
  try:
    return b'submitit' in (processes / pid / 'cmdline').read_bytes()  # empty, once it is a zombie
  except OSError:
    return False


def cancel(job: Job) -> None:
  """Asks a Slurm job, or a local job on this host, to write a checkpoint and end, and not to start again.

  Raises:
    UserError: if the job belongs to another user.
  """
  if job.launcher == 'slurm':
    done = subprocess.run(['scancel', job.id], capture_output=True, text=True)
    if done.returncode and states([job]):
      raise UserError(f'scancel {job.id}: {" ".join(done.stderr.split())}')
  else:
    tell(int(job.id))  # the supervisor passes it on; submitit's own way to cancel kills after a second


def tell(pid: int) -> None:
  """Asks a process on this host to end.

  Raises:
    UserError: if the process belongs to another user.
  """
  try:
    os.kill(pid, signal.SIGTERM)
  except ProcessLookupError:
    pass
  except PermissionError as error:
    raise UserError(f'process {pid} belongs to another user; only that user can cancel it') from error
