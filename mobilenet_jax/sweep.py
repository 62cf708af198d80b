"""A sweep: one config, what each run changes in it, and one row a finished run.

    python -m mobilenet_jax.sweep --config=configs/grid.py:data=fabrics --workdir=runs/fabrics

The recipe's file has a function sweep(config) that lists the changes. It may have GROUPS, the ways in which runs share
a pass over the data: by name, the fields in which the runs of a group agree (None: each is alone); --group chooses one.
A group is a process. Runs that have finished are skipped, runs that were interrupted continue, a run that fails is
reported at the end and takes no other down.
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import functools
import multiprocessing
import multiprocessing.connection
import operator
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ml_collections
from absl import flags

from mobilenet_jax import config as config_lib
from mobilenet_jax import report, results
from mobilenet_jax.errors import REQUEUE, Interrupted, UserError

CSV_FILE = 'results.csv'
LOG_FILE = 'log.txt'
STATUS_SECONDS = 20  # between two lines of progress
ALONE = {'alone': None}  # no run shares anything with another
MEMORY_SHARE = 0.8  # of the memory at hand that a group may be estimated to take


def sweep(config: ml_collections.ConfigDict, changes: list[dict], workdir: str | Path, jobs: int = 0,
          groupings: dict[str, Sequence[str] | None] = ALONE, grouping: str = 'auto') -> list[dict]:
  """Runs every change of `config` in a folder of its own below `workdir`, and writes workdir/results.csv.

  Args:
    config: what the runs have in common.
    changes: for each run, its own values by dotted name.
    workdir: the sweep's folder.
    jobs: groups at once; 0 for one a CPU core, or one at a time where there is an accelerator.
    groupings: ways of grouping the runs, the one that shares most first: by name, the fields in which the runs of a
      group agree, or None for each run alone.
    grouping: one of these names; 'auto' for the first that fits the memory at hand and, on CPU, leaves no job idle.

  Returns:
    The rows of the finished runs.

  Raises:
    UserError: on bad input, before anything is started; or, once all others are finished, where runs failed.
  """
  if grouping not in ('auto', *groupings):
    raise UserError(f'--group={grouping}: expected {", ".join(["auto", *groupings])}')
  workdir = Path(workdir)
  runs = {}
  for change in changes:
    member = config_lib.changed(config, change)
    config_lib.validate(member)
    runs[config_lib.model_name(member)] = member
  from mobilenet_jax.run import claim_folder
  for name, member in runs.items():
    claim_folder(workdir / name, member)

  waiting = [name for name in runs if not results.read(workdir / name)]
  failed = {}
  if waiting:
    failed = _run_all(runs, waiting, workdir, jobs, groupings, grouping)
  rows = _collect(runs, workdir)
  if failed:
    raise UserError(f'{len(failed)} of {len(runs)} runs failed, the others are in {workdir / CSV_FILE}: '
                    + '; '.join(f'{name} ({reason})' for name, reason in failed.items())
                    + f'. More in {workdir}/<run>/{LOG_FILE}; mend it and start the same command again')
  return rows


def _run_all(runs, waiting, workdir, jobs, groupings, grouping) -> dict[str, str]:
  """Runs what is waiting, the costliest group first, `jobs` at once; returns the reasons of those that failed."""
  # What the libraries of an ended run left open is the system's to clean up, and no news to a person.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
  spawn = multiprocessing.get_context('spawn')
  with ProcessPoolExecutor(1, spawn) as probe:  # not here: this process shall hold neither data nor devices
    backend, memory, needs = probe.submit(_prepare, {name: runs[name].to_dict() for name in waiting}).result()
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  jobs = min(jobs or (max(len(cores), 1) if backend == 'cpu' else 1), len(waiting))
  groups, need = _choose(runs, waiting, jobs if backend == 'cpu' else 1, memory, needs, groupings, grouping)
  groups = sorted(groups, key=lambda names: sum(map(_cost, map(runs.get, names))))  # taken from the end
  jobs = min(jobs, len(groups))
  print(f'{len(runs)} runs in {workdir}: {len(runs) - len(waiting)} finished, {len(waiting)} to do on {backend}, in '
        f'{len(groups)} group{"s" if len(groups) > 1 else ""} of up to {max(map(len, groups))}, {jobs} at once; models '
        f'and activations take an estimated {need / 1e9:.2g} GB of {memory / 1e9:.2g}', flush=True)

  running, failed, done, last_status = {}, {}, len(runs) - len(waiting), time.monotonic()
  free_slots = list(range(jobs))
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs too, as Ctrl-C does
  try:
    while groups or running:
      while groups and free_slots:
        names, slot = groups.pop(), free_slots.pop()
        share = cores[slot::jobs] if backend == 'cpu' else []
        process = spawn.Process(target=_run_group, args=(
            [runs[name].to_dict() for name in names], [str(workdir / name) for name in names], share))
        process.start()
        running[process] = names, slot
      multiprocessing.connection.wait([process.sentinel for process in running], timeout=1)
      for process, (names, slot) in list(running.items()):
        if process.exitcode is None:
          continue
        del running[process]
        free_slots.append(slot)
        for name in names:
          if not results.read(workdir / name):
            failed[name] = _reason(process.exitcode, workdir / name)
          done += 1
          print(f'[{done}/{len(runs)}] {name}: {_outcome(workdir / name, failed.get(name))}', flush=True)
        _collect(runs, workdir)
      if running and time.monotonic() - last_status > STATUS_SECONDS:
        last_status = time.monotonic()
        print('  running: ' + ' | '.join(_progress(names, workdir) for names, _ in running.values()), flush=True)
  finally:
    for process in running:
      process.terminate()
    for process in running:
      process.join()
  return failed


def _prepare(configs: dict[str, dict]):
  """Prepares or checks the data; what JAX would run on, its memory, and each run's needs of it in bytes.

  The needs are what each run keeps, by name, and what a step of the largest takes besides.
  """
  import jax
  from mobilenet_jax import memory, parallel, tasks
  from mobilenet_jax.data import sources
  cli.quiet()
  configs = {name: ml_collections.ConfigDict(config) for name, config in configs.items()}
  largest = max(configs.values(), key=_cost)
  # Whether a run's own number of classes fits its data, the run says.
  task = tasks.create(config_lib.changed(largest, {'model.num_classes': 0}))
  num_outputs, _ = task.outputs(sources.load(largest.data)[0])
  states = {name: memory.state_bytes(config, num_outputs) for name, config in configs.items()}
  return jax.default_backend(), parallel.memory_at_hand(), (states, memory.step_bytes(largest, num_outputs))


def _choose(runs, waiting, jobs, memory, needs, groupings, grouping) -> tuple[list[list[str]], int]:
  """The groups, each a list of names, and the bytes that `jobs` of them are estimated to take."""
  from mobilenet_jax.train import stream
  states, step = needs
  for candidate in groupings if grouping == 'auto' else (grouping,):
    fields, groups = groupings[candidate], {}
    for name in waiting:
      common = name if fields is None else [str(operator.attrgetter(field)(runs[name])) for field in fields]
      groups.setdefault(f'{common} {stream(runs[name])}', []).append(name)
    groups = list(groups.values())
    by_size = sorted((sum(map(states.get, names)) + step for names in groups), reverse=True)
    need = sum(by_size[:jobs])
    if len(groups) >= jobs and need <= MEMORY_SHARE * memory:
      break
  return groups, need


def _cost(config) -> float:
  """In proportion to a step's, roughly."""
  return config.model.width_multiplier * config.data.image_size[0] * config.data.image_size[1]


def _run_group(configs: list[dict], workdirs: list[str], cores: list[int]) -> None:
  """The body of a group's process: each run's lines go to its log; what libraries print, to the first run's."""
  logs = [open(Path(workdir) / LOG_FILE, 'a', buffering=1) for workdir in workdirs]
  os.dup2(logs[0].fileno(), 1)
  os.dup2(logs[0].fileno(), 2)
  says = [functools.partial(print, file=log) for log in logs]
  if cores:
    os.sched_setaffinity(0, cores)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends its runs
  cli.quiet()
  try:
    from mobilenet_jax.train import train_group
    outcomes = train_group([ml_collections.ConfigDict(config) for config in configs], workdirs, says=says)
  except Interrupted as interrupt:
    says[0](str(interrupt))
    sys.exit(REQUEUE)
  except Exception as error:
    if not isinstance(error, UserError):
      traceback.print_exc()
    outcomes = [results.read(Path(workdir)) or error for workdir in workdirs]
  for outcome, say in zip(outcomes, says):
    if isinstance(outcome, Exception):
      described = isinstance(outcome, (UserError, OSError))
      say(f'error: {cli.describe(outcome) if described else f"{type(outcome).__name__}: {outcome}"}')
  sys.exit(any(isinstance(outcome, Exception) for outcome in outcomes))


def _reason(exitcode: int, folder: Path) -> str:
  if exitcode < 0:
    hint = ', perhaps for lack of memory: try fewer --jobs or a smaller --group' if exitcode == -signal.SIGKILL else ''
    return f'ended by signal {signal.Signals(-exitcode).name}{hint}'
  lines = (folder / LOG_FILE).read_text().strip().splitlines()
  return lines[-1].removeprefix('error: ')[:300] if lines else f'exit status {exitcode}'


def _outcome(folder: Path, reason: str | None) -> str:
  if reason:
    return f'failed: {reason}'
  row = results.read(folder)
  return f'{report.headline(row)} in {report.duration(row["seconds"])}'


def _progress(names: list[str], workdir: Path) -> str:
  """Of a group, by its first run that is not finished."""
  name = next((name for name in names if not results.read(workdir / name)), names[-1])
  rows = report.read(workdir / name)
  name += f' and {len(names) - 1} more' if len(names) > 1 else ''
  if not rows:
    return f'{name} starting'
  evaluation = next((f', {report.headline(row)}' for row in reversed(rows) if row['split'] == 'eval'), '')
  return f'{name} step {rows[-1]["step"]}{evaluation}'


def _collect(runs, workdir: Path) -> list[dict]:
  rows = [row for name in runs if (row := results.read(workdir / name))]
  results.write_csv(workdir / CSV_FILE, rows)
  return rows


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise UserError('--workdir is missing; give a folder for the sweep, such as --workdir=runs/fabrics')
  path = cli.recipe_path(values)
  recipe = runpy.run_path(str(path))
  if 'sweep' not in recipe:
    raise UserError(f'{path} has no sweep(config); a single run is python -m mobilenet_jax.main')
  started = time.monotonic()
  rows = sweep(values.config, recipe['sweep'](values.config), values.workdir, values.jobs,
               recipe.get('GROUPS', ALONE), values.group)
  print(f'{len(rows)} runs finished, after {report.duration(time.monotonic() - started)}; '
        f'rows in {Path(values.workdir) / CSV_FILE}')


if __name__ == '__main__':
  cli.define_config()
  flags.DEFINE_string('workdir', None, 'Folder of the sweep; started again in it, the sweep continues.')
  flags.DEFINE_string('group', 'auto', "How runs share a pass over the data: a name in the recipe's GROUPS; auto: the "
                      'first that fits the memory and keeps every CPU core busy.')
  flags.DEFINE_integer('jobs', 0, 'Groups at once; 0: one a CPU core, or one at a time on an accelerator.', lower_bound=0)
  cli.run(main)
