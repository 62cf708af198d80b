"""The state of a sweep, read from its folder on any machine that sees it."""

import collections
import contextlib
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from mobilenet_jax import tasks
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import lock_owner
from mobilenet_jax.storage.run_files import newest_checkpoint, read_metrics, read_row
from mobilenet_jax.sweeps import job, launch, results
from mobilenet_jax.training import described

FINISHED, FAILED, STOPPED, WAITING, UNKNOWN = 'finished', 'failed', 'stopped', 'waiting', 'unknown'
LOG_LINES = 20
ASK_AGAIN_SECONDS = 10


def alive(workdir: Path, jobs: dict[launch.Job, list[str]]) -> dict[launch.Job, str]:
  """Of jobs, and the names of their runs, those that have not ended: launch.PENDING or launch.RUNNING."""
  found = launch.states(jobs)
  for one, names in jobs.items():  # local ones of another host
    if one not in found and any(lock_owner(workdir / name) for name in names):
      found[one] = launch.RUNNING
  return found


def unfinished_jobs(workdir: Path) -> dict[launch.Job, list[str]]:
  """The jobs of a sweep, ended or not, and the names of their runs that have neither finished nor failed."""
  jobs = collections.defaultdict(list)
  for name in results.read_sweep(workdir):
    folder = workdir / name
    if (launched := launch.read(folder)) and not (read_row(folder) or job.attempts(folder)['error']):
      jobs[launched].append(name)
  return dict(jobs)


def running_jobs(workdir: Path) -> dict[launch.Job, list[str]]:
  """Those of unfinished_jobs that have not ended."""
  jobs = unfinished_jobs(workdir)
  return {one: jobs[one] for one in alive(workdir, jobs)}


def table(workdir: Path) -> list[dict]:
  """A row a run: its name, its state, its job and how far it is."""
  jobs, rows = unfinished_jobs(workdir), []
  try:
    states = alive(workdir, jobs)
  except UserError as error:
    print(f'of some jobs nothing is known: {error}')
    states = dict.fromkeys(jobs, UNKNOWN)
  for name in results.read_sweep(workdir):
    folder = workdir / name
    launched, attempts, row = launch.read(folder), job.attempts(folder), read_row(folder)
    if row:
      state, so_far = FINISHED, described(row)
    else:
      state = launch.RUNNING if lock_owner(folder) else states.get(launched) or (
          FAILED if attempts['error'] else STOPPED if launched or newest_checkpoint(folder) else WAITING)
      again = f' (started {attempts["starts"]} times there)' if attempts['starts'] > 1 else ''
      so_far = attempts['error'] if state == FAILED else progress(folder) + again
    where = f'{launched.launcher} {launched.id}' if launched else ''
    rows.append({'run': name, 'state': state, 'job': where, 'so far': so_far})
  return rows


def progress(folder: Path) -> str:
  """How far a run is, such as 'step 400, top-1 56.10%'; '' before the first that it said."""
  rows, _ = read_metrics(folder)
  evaluation = next((f', {tasks.headline(row)}' for row in reversed(rows) if row['split'] == 'eval'), '')
  return f'step {rows[-1]["step"]}{evaluation}' if rows else ''


def last_words(folder: Path) -> str:
  """The last line of a run's log, or of its job's where that wrote later."""
  paths = [path for path in _logs(folder) if path.exists()]
  lines = _lines(max(paths, key=lambda path: path.stat().st_mtime)) if paths else []
  return lines[-1][:300] if lines else 'it has no log'


def _logs(folder):
  launched = launch.read(folder)
  return [folder / job.LOG_FILE, *([Path(launched.log)] if launched else [])]


def _lines(path):
  return path.read_text(errors='replace').rstrip().splitlines() if path.exists() else []


def end(workdir: Path, jobs: dict[launch.Job, list[str]], launchers: Sequence[str] = tuple(launch.LAUNCHERS)) -> None:
  """Has jobs of these launchers end, each with a checkpoint, and waits for them; local ones only those of this host.

  Args:
    workdir: the folder of the sweep.
    jobs: the jobs and the names of their runs.
    launchers: of launch.LAUNCHERS.
  """
  jobs = {one: names for one, names in jobs.items() if one.launcher in launchers}
  asked = {}
  while running := launch.states(jobs):
    for one in running:
      # What had not begun to train may have missed it, and loses nothing.
      late = one in asked and time.monotonic() - asked[one] > ASK_AGAIN_SECONDS
      if one not in asked or late and not any(lock_owner(workdir / name) for name in jobs[one]):
        launch.cancel(one)
        asked[one] = time.monotonic()
    time.sleep(0.2)


def show_table(workdir: Path) -> None:
  """Prints the table of states, and gathers the rows of what has finished, if it may write there."""
  with contextlib.suppress(OSError):
    results.collect(workdir)
  rows = table(workdir)
  widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
  for row in [dict(zip(rows[0], rows[0])), *rows]:
    print('  '.join(row[column].ljust(width) for column, width in widths.items()).rstrip())
  counts = collections.Counter(row['state'] for row in rows)
  print(', '.join(f'{count} {state}' for state, count in counts.items()), f'of {len(rows)} runs; {time.strftime("%H:%M:%S")}')


def show_logs(workdir: Path, run: str) -> None:
  """Prints the end of a run's log, and of its job's; by default of those that have failed or stopped."""
  names = results.read_sweep(workdir)
  if run and run not in names:
    raise UserError(f'--run={run}: expected one of {", ".join(names)}')
  for name in [run] if run else [row['run'] for row in table(workdir) if row['state'] in (FAILED, STOPPED)]:
    for path in _logs(workdir / name):
      if lines := _lines(path):
        print(f'==> {path}', *lines[-LOG_LINES:], sep='\n')


def cancel(workdir: Path) -> None:
  """Ends the sweep that launches local jobs, and all jobs, each with a checkpoint.

  Raises:
    UserError: where local ones are on another host.
  """
  here = socket.gethostname()
  if sweep := lock_owner(workdir):  # which would start jobs again; it ends its local ones itself
    if sweep.host != here:
      raise UserError(f'{workdir}: its sweep is process {sweep.pid} on {sweep.host}; give the same command there')
    launch.tell(sweep.pid)
  jobs = running_jobs(workdir)
  while lock_owner(workdir):
    time.sleep(0.2)
  jobs |= running_jobs(workdir)
  if elsewhere := {one.host for one in alive(workdir, jobs) if one.launcher == 'local'} - {here}:
    raise UserError(f'{workdir}: local jobs run on {", ".join(elsewhere)}; give the same command there')
  end(workdir, jobs)
  for names in jobs.values():
    for name in names:
      if (owner := lock_owner(workdir / name)) and owner.host == here:  # whose job was killed without it
        launch.tell(owner.pid)
  while alive(workdir, jobs):
    time.sleep(0.5)
  print(f'{len(jobs)} jobs of {workdir} have ended; the command that started the sweep continues it')
