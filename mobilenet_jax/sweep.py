"""A sweep: one config, what each run changes in it, one process a run, one row a finished run.

    python -m mobilenet_jax.sweep --config=configs/grid.py:data=fabrics --workdir=runs/fabrics

The recipe's file has a function sweep(config) that lists the changes. Runs that have finished are skipped, runs that
were interrupted continue, a run that fails is reported at the end and takes no other down.
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ml_collections
from absl import flags

from mobilenet_jax import config as config_lib
from mobilenet_jax import report, results
from mobilenet_jax.errors import UserError

CSV_FILE = 'results.csv'
LOG_FILE = 'log.txt'
STATUS_SECONDS = 20  # between two lines of progress


def sweep(config: ml_collections.ConfigDict, changes: list[dict], workdir: str | Path, jobs: int = 0) -> list[dict]:
  """Runs every change of `config` in a folder of its own below `workdir`, and writes workdir/results.csv.

  Args:
    config: what the runs have in common.
    changes: for each run, its own values by dotted name.
    workdir: the sweep's folder.
    jobs: runs at once; 0 for one a CPU core, or one at a time where there is an accelerator.

  Returns:
    The rows of the finished runs.

  Raises:
    UserError: on bad input, before anything is started; or, once all others are finished, where runs failed.
  """
  workdir = Path(workdir)
  runs = {}
  for change in changes:
    member = ml_collections.ConfigDict(config.to_dict())
    member.update_from_flattened_dict(change)
    config_lib.validate(member)
    runs[config_lib.model_name(member)] = member
  from mobilenet_jax.train import claim_folder
  for name, member in runs.items():
    claim_folder(workdir / name, member)

  waiting = [name for name in runs if not results.read(workdir / name)]
  failed = {}
  if waiting:
    failed = _run_all(runs, waiting, workdir, jobs)
  rows = _collect(runs, workdir)
  if failed:
    raise UserError(f'{len(failed)} of {len(runs)} runs failed, the others are in {workdir / CSV_FILE}: '
                    + '; '.join(f'{name} ({reason})' for name, reason in failed.items())
                    + f'. More in {workdir}/<run>/{LOG_FILE}; mend it and start the same command again')
  return rows


def _run_all(runs, waiting, workdir, jobs) -> dict[str, str]:
  """Runs what is waiting, the largest first, `jobs` at once; returns the reasons of those that failed."""
  # What the libraries of an ended run left open is the system's to clean up, and no news to a person.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
  spawn = multiprocessing.get_context('spawn')
  with ProcessPoolExecutor(1, spawn) as probe:  # not here: this process shall hold neither data nor devices
    backend = probe.submit(_prepare, next(iter(runs.values())).to_dict()).result()
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  jobs = min(jobs or (max(len(cores), 1) if backend == 'cpu' else 1), len(waiting))
  size = lambda name: runs[name].model.width_multiplier * runs[name].data.image_size[0] * runs[name].data.image_size[1]
  waiting = sorted(waiting, key=size)  # taken from the end
  print(f'{len(runs)} runs in {workdir}: {len(runs) - len(waiting)} finished, {len(waiting)} to do, {jobs} at once '
        f'on {backend}', flush=True)

  running, failed, last_status = {}, {}, time.monotonic()
  free_slots = list(range(jobs))
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs too, as Ctrl-C does
  try:
    while waiting or running:
      while waiting and free_slots:
        name, slot = waiting.pop(), free_slots.pop()
        share = cores[slot::jobs] if backend == 'cpu' else []
        process = spawn.Process(target=_run_one, args=(runs[name].to_dict(), str(workdir / name), share))
        process.start()
        running[name] = process, slot
      multiprocessing.connection.wait([process.sentinel for process, _ in running.values()], timeout=1)
      for name, (process, slot) in list(running.items()):
        if process.exitcode is None:
          continue
        del running[name]
        free_slots.append(slot)
        if process.exitcode:
          failed[name] = _reason(process.exitcode, workdir / name)
        done = len(runs) - len(waiting) - len(running)
        print(f'[{done}/{len(runs)}] {name}: {_outcome(workdir / name, failed.get(name))}', flush=True)
        _collect(runs, workdir)
      if running and time.monotonic() - last_status > STATUS_SECONDS:
        last_status = time.monotonic()
        print('  running: ' + ' | '.join(_progress(name, workdir / name) for name in running), flush=True)
  finally:
    for process, _ in running.values():
      process.terminate()
    for process, _ in running.values():
      process.join()
  return failed


def _prepare(config: dict) -> str:
  """Prepares or checks the data, and says what JAX would run on."""
  import jax
  from mobilenet_jax.data import sources
  cli.quiet()
  sources.load(ml_collections.ConfigDict(config).data)
  return jax.default_backend()


def _run_one(config: dict, workdir: str, cores: list[int]) -> None:
  """The body of a run's process: trains, with everything it prints in its log."""
  log = open(Path(workdir) / LOG_FILE, 'a', buffering=1)
  os.dup2(log.fileno(), 1)
  os.dup2(log.fileno(), 2)
  if cores:
    os.sched_setaffinity(0, cores)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends its runs
  cli.quiet()
  try:
    from mobilenet_jax.train import train
    train(ml_collections.ConfigDict(config), workdir)
  except Exception as error:
    if not isinstance(error, UserError):
      traceback.print_exc()
    described = isinstance(error, (UserError, OSError))
    sys.exit(f'error: {cli.describe(error) if described else f"{type(error).__name__}: {error}"}')


def _reason(exitcode: int, folder: Path) -> str:
  if exitcode < 0:
    hint = ', perhaps for lack of memory: try fewer --jobs' if exitcode == -signal.SIGKILL else ''
    return f'ended by signal {signal.Signals(-exitcode).name}{hint}'
  lines = (folder / LOG_FILE).read_text().strip().splitlines()
  return lines[-1].removeprefix('error: ')[:300] if lines else f'exit status {exitcode}'


def _outcome(folder: Path, reason: str | None) -> str:
  if reason:
    return f'failed: {reason}'
  row = results.read(folder)
  return f'top-1 {row["top1"]:.2%} in {report.duration(row["seconds"])}'


def _progress(name: str, folder: Path) -> str:
  rows = report.read(folder)
  if not rows:
    return f'{name} starting'
  top1 = next((f' top-1 {row["top1"]:.1%}' for row in reversed(rows) if row['split'] == 'eval'), '')
  return f'{name} step {rows[-1]["step"]}{top1}'


def _collect(runs, workdir: Path) -> list[dict]:
  rows = [row for name in runs if (row := results.read(workdir / name))]
  results.write_csv(workdir / CSV_FILE, rows)
  return rows


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise UserError('--workdir is missing; give a folder for the sweep, such as --workdir=runs/fabrics')
  path = cli.recipe_path(values)
  list_changes = runpy.run_path(str(path)).get('sweep')
  if list_changes is None:
    raise UserError(f'{path} has no sweep(config); a single run is python -m mobilenet_jax.main')
  started = time.monotonic()
  rows = sweep(values.config, list_changes(values.config), values.workdir, values.jobs)
  print(f'{len(rows)} runs finished, after {report.duration(time.monotonic() - started)}; '
        f'rows in {Path(values.workdir) / CSV_FILE}')


if __name__ == '__main__':
  cli.define_config()
  flags.DEFINE_string('workdir', None, 'Folder of the sweep; started again in it, the sweep continues.')
  flags.DEFINE_integer('jobs', 0, 'Runs at once; 0: one a CPU core, or one at a time on an accelerator.', lower_bound=0)
  cli.run(main)
