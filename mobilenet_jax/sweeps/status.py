"""Reads the state of a sweep from its folder, on any machine that sees the folder."""

import collections
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mobilenet_jax import tasks
from mobilenet_jax.errors import UserError, counted
from mobilenet_jax.runtime.pace import duration
from mobilenet_jax.storage.files import lock_owner
from mobilenet_jax.storage.run_files import newest_checkpoint, read_metrics, read_progress, read_row
from mobilenet_jax.sweeps import job, launch, results
from mobilenet_jax.training import described

FINISHED, FAILED, STOPPED, WAITING, UNKNOWN = 'finished', 'failed', 'stopped', 'waiting', 'unknown'
LOG_LINES = 20
ASK_AGAIN_SECONDS = 10


def alive(workdir: Path, jobs: dict[launch.Job, list[str]]) -> dict[launch.Job, str]:
  """Returns launch.PENDING or launch.RUNNING for each job that has not ended. `jobs` has the names of each job's runs."""
  found = launch.states(jobs)
  for one, names in jobs.items():  # local jobs on another host
    if one not in found and any(lock_owner(workdir / name) for name in names):
      found[one] = launch.RUNNING
  return found


def unfinished_jobs(workdir: Path, names: Iterable[str]) -> dict[launch.Job, list[str]]:
  """Returns the jobs with runs that have neither finished nor failed, and the names of these runs, among `names`.

  A job in the result may have ended.
  """
  jobs = collections.defaultdict(list)
  for name in names:
    folder = workdir / name
    if (launched := launch.read(folder)) and not (read_row(folder) or job.attempts(folder)['error']):
      jobs[launched].append(name)
  return dict(jobs)


def running_jobs(workdir: Path, names: Iterable[str]) -> dict[launch.Job, list[str]]:
  """Returns the part of unfinished_jobs whose jobs have not ended."""
  jobs = unfinished_jobs(workdir, names)
  return {one: jobs[one] for one in alive(workdir, jobs)}


def table(workdir: Path, names: Sequence[str] = ()) -> list[dict]:
  """Returns one row per run: its name, its state, its job and how far it is; by default of all runs of a sweep."""
  names = names or results.read_sweep(workdir)
  jobs, rows = unfinished_jobs(workdir, names), []
  try:
    states = alive(workdir, jobs)
  except UserError as error:
    print(f'the state of some jobs is unknown: {error}')
    states = dict.fromkeys(jobs, UNKNOWN)
  for name in names:
    folder = workdir / name
    launched, attempts, row = launch.read(folder), job.attempts(folder), read_row(folder)
    if row:
      state, so_far = FINISHED, described(row)
    else:
      state = launch.RUNNING if lock_owner(folder) else states.get(launched) or (
          FAILED if attempts['error'] else STOPPED if launched or newest_checkpoint(folder) else WAITING)
      again = f' (started {attempts["starts"]} times from there)' if attempts['starts'] > 1 else ''
      so_far = attempts['error'] if state == FAILED else progress(folder, state == launch.RUNNING) + again
    where = f'{launched.launcher} {launched.id}' if launched else ''
    rows.append({'run': name, 'state': state, 'job': where, 'so far': so_far})
  return rows


def progress(folder: Path, running: bool) -> str:
  """Returns how far a run is, such as 'step 400/1000, top-1 56.10%, 2:10 left', or what it does before its first step."""
  now, (rows, _) = read_progress(folder), read_metrics(folder)
  if not rows:
    return now.get('doing', 'starting' if running else 'not started')
  evaluation = next((tasks.headline(row) for row in reversed(rows) if row['split'] == 'eval'), '')
  step = max(rows[-1]['step'], now.get('step', 0))
  total = f'/{now["total_steps"]}' if 'total_steps' in now else ''
  left = f'{duration(now["seconds_left"])} left' if running and 'seconds_left' in now else ''
  return ', '.join(filter(None, [f'step {step}{total}', evaluation, left]))


def last_words(folder: Path) -> str:
  """Returns the last line of a run's log, or of its job's log if that was written later."""
  paths = [path for path in _logs(folder) if path.exists()]
  lines = _lines(max(paths, key=lambda path: path.stat().st_mtime)) if paths else []
  return lines[-1][:300] if lines else 'it has no log'


def _logs(folder):
  launched = launch.read(folder)
  return [folder / job.LOG_FILE, *([Path(launched.log)] if launched else [])]


def _lines(path):
  return path.read_text(errors='replace').rstrip().splitlines() if path.exists() else []


def end(workdir: Path, jobs: dict[launch.Job, list[str]], launchers: Sequence[str] = tuple(launch.LAUNCHERS)) -> None:
  """Ends the jobs of the given launchers, each with a checkpoint, and waits for them. Local jobs must be on this host.

  Args:
    workdir: the folder of the sweep.
    jobs: the jobs and the names of their runs.
    launchers: some of launch.LAUNCHERS.
  """
  jobs = {one: names for one, names in jobs.items() if one.launcher in launchers}
  asked = {}
  while running := launch.states(jobs):
    for one in running:
      # A job that had not begun to train may have missed the request, and loses nothing by another.
      late = one in asked and time.monotonic() - asked[one] > ASK_AGAIN_SECONDS
      if one not in asked or late and not any(lock_owner(workdir / name) for name in jobs[one]):
        launch.cancel(one)
        asked[one] = time.monotonic()
    time.sleep(0.2)


def show_table(workdir: Path) -> None:
  """Prints the table of states. Also collects the rows of finished runs, or says why they cannot be collected."""
  rows = table(workdir)
  problem = results.collect(workdir)
  widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
  for row in [dict(zip(rows[0], rows[0])), *rows]:
    print('  '.join(row[column].ljust(width) for column, width in widths.items()).rstrip())
  counts = collections.Counter(row['state'] for row in rows)
  print(', '.join(f'{count} {state}' for state, count in counts.items()), f'of {len(rows)} runs; {time.strftime("%H:%M:%S")}')
  if problem:
    print(problem)


def show_logs(workdir: Path, run: str) -> None:
  """Prints the end of a run's log and of its job's log; by default those of all runs that have failed or stopped."""
  names = results.read_sweep(workdir)
  if run and run not in names:
    raise UserError(f'--run={run}: expected one of {", ".join(names)}')
  names = [run] if run else [row['run'] for row in table(workdir) if row['state'] in (FAILED, STOPPED)]
  found = {path: lines for name in names for path in _logs(workdir / name) if (lines := _lines(path))}
  for path, lines in found.items():
    print(f'==> {path}', *lines[-LOG_LINES:], sep='\n')
  if not found:
    print(f'{run} has no log yet' if run else 'no run has failed or stopped; --run=NAME shows the log of a run')


def cancel(workdir: Path) -> None:
  """Ends the process that launches the jobs, and all jobs, each with a checkpoint.

  Raises:
    UserError: if that process or local jobs run on another host.
  """
  here = socket.gethostname()
  if sweep := lock_owner(workdir):  # it would start jobs again, and it ends its local jobs itself
    if sweep.host != here:
      raise UserError(f'{workdir}: its sweep is process {sweep.pid} on {sweep.host}; run the same command there')
    launch.tell(sweep.pid)
  jobs = running_jobs(workdir, results.read_sweep(workdir))
  while lock_owner(workdir):
    time.sleep(0.2)
  jobs |= running_jobs(workdir, results.read_sweep(workdir))
  if elsewhere := {one.host for one in alive(workdir, jobs) if one.launcher == 'local'} - {here}:
    raise UserError(f'{workdir}: local jobs run on {", ".join(elsewhere)}; run the same command there')
  print(f'ending {counted(len(jobs), "job")} of {workdir}, each with a checkpoint', flush=True)
  end(workdir, jobs)
  for names in jobs.values():
    for name in names:
      if (owner := lock_owner(workdir / name)) and owner.host == here:  # its job was killed, but it was not
        launch.tell(owner.pid)
  while alive(workdir, jobs):
    time.sleep(0.5)
  print('ended; the command that started the sweep continues it')
