"""What has become of a sweep, from its folder, on any machine that sees it.

    python -m mobilenet_jax.sweep status --workdir=runs/fabrics                  # a table; --watch: again and again
    python -m mobilenet_jax.sweep logs --workdir=runs/fabrics [--run=NAME]       # of a run; else of those that failed
    python -m mobilenet_jax.sweep cancel --workdir=runs/fabrics                  # ends all jobs, each with a checkpoint
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
import collections
import os
import signal
import socket
import time
from pathlib import Path

from mobilenet_jax import job, launch, report, results
from mobilenet_jax.errors import UserError
from mobilenet_jax.files import lock_owner

COMMANDS = ('status', 'logs', 'cancel')
WATCH_SECONDS = 5
FINISHED, FAILED, STOPPED, WAITING = 'finished', 'failed', 'stopped', 'waiting'
LOG_LINES = 20


def alive(workdir: Path, jobs: dict[launch.Job, list[str]]) -> dict[launch.Job, str]:
  """Of jobs, and the names of their runs, those that have not ended: launch.PENDING or launch.RUNNING."""
  held = {one: launch.RUNNING for one, names in jobs.items() if any(lock_owner(workdir / name) for name in names)}
  return held | launch.states(jobs)  # held: local ones of another host, too


def unfinished_jobs(workdir: Path) -> dict[launch.Job, list[str]]:
  """The jobs of a sweep, ended or not, and the names of the runs that they have still to do."""
  jobs = collections.defaultdict(list)
  for name in results.read_sweep(workdir):
    if (launched := launch.read(workdir / name)) and not results.read(workdir / name):
      jobs[launched].append(name)
  return dict(jobs)


def running_jobs(workdir: Path) -> dict[launch.Job, list[str]]:
  """Those of unfinished_jobs that have not ended."""
  jobs = unfinished_jobs(workdir)
  return {one: jobs[one] for one in alive(workdir, jobs)}


def table(workdir: Path) -> list[dict]:
  """A row a run: its name, its state, its job and how far it is."""
  states, rows = alive(workdir, unfinished_jobs(workdir)), []
  for name in results.read_sweep(workdir):
    folder = workdir / name
    launched, attempts, row = launch.read(folder), job.attempts(folder), results.read(folder)
    state = FINISHED if row else states.get(launched) or (
        FAILED if attempts['error'] else STOPPED if launched else WAITING)
    how_far = {FINISHED: lambda: f'{report.headline(row)} in {report.duration(row["seconds"])}',
               FAILED: lambda: attempts['error']}.get(state, lambda: progress(folder))()
    if not row and attempts['starts'] > 1:
      how_far += f' (started {attempts["starts"]} times there)'
    rows.append({'run': name, 'state': state, 'job': f'{launched.launcher} {launched.id}' if launched else '', 'so far': how_far})
  return rows


def progress(folder: Path) -> str:
  """How far a run is, such as 'step 400, top-1 56.10%'; '' before the first that it said."""
  rows = report.read(folder)
  evaluation = next((f', {report.headline(row)}' for row in reversed(rows) if row['split'] == 'eval'), '')
  return f'step {rows[-1]["step"]}{evaluation}' if rows else ''


def last_line(path: str | Path) -> str:
  """Of a log; '' where there is none."""
  lines = _lines(path)
  return lines[-1][:300] if lines else ''


def _lines(path):
  return Path(path).read_text(errors='replace').rstrip().splitlines() if Path(path).exists() else []


def show_table(workdir: Path) -> None:
  """Prints the table of states, and gathers the rows of what has finished."""
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
    launched = launch.read(workdir / name)
    for path in (workdir / name / job.LOG_FILE, *([launched.log] if launched else [])):
      if lines := _lines(path):
        print(f'==> {path}', *lines[-LOG_LINES:], sep='\n')


def cancel(workdir: Path) -> None:
  """Ends the sweep that launches local jobs, and all jobs, each with a checkpoint.

  Raises:
    UserError: where local ones are on another host.
  """
  jobs, sweep = running_jobs(workdir), lock_owner(workdir)
  hosts = {one.host for one in jobs if one.launcher == 'local'} | ({sweep.split()[-1]} if sweep else set())
  if hosts - {socket.gethostname()}:
    raise UserError(f'{workdir}: local jobs run on {", ".join(hosts)}; give the same command there')
  if sweep:  # which ends its local jobs, and would start them again else
    os.kill(int(sweep.split()[1]), signal.SIGTERM)
  while lock_owner(workdir):
    time.sleep(0.2)
  for one in running_jobs(workdir):
    launch.cancel(one)
  while alive(workdir, jobs):
    time.sleep(0.5)
  print(f'{len(jobs)} jobs of {workdir} have ended; the command that started the sweep continues it')


def main(args: argparse.Namespace) -> None:
  if args.command == 'logs':
    show_logs(args.workdir, args.run)
  elif args.command == 'cancel':
    cancel(args.workdir)
  else:
    show_table(args.workdir)
    while args.watch:
      time.sleep(WATCH_SECONDS)
      print('\033[H\033[2J', end='')  # clears the screen
      show_table(args.workdir)


def parser() -> cli.Parser:
  found = cli.Parser(__doc__)
  found.add_argument('command', choices=COMMANDS)
  found.add_argument('--workdir', type=Path, required=True, help='folder of the sweep')
  found.add_argument('--run', default='', help='of logs: the name of a run')
  found.add_argument('--watch', action='store_true', help=f'of status: again every {WATCH_SECONDS} seconds')
  return found
