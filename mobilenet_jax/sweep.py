"""A sweep: one config, what each run changes in it, and one row a finished run.

    python -m mobilenet_jax.sweep --config=configs/grid.py:data=fabrics --workdir=runs/fabrics
    python -m mobilenet_jax.sweep --config=... --workdir=/shared/sweep --launcher=slurm --slurm=partition=gpu,gpus_per_node=1
    python -m mobilenet_jax.sweep status --workdir=runs/fabrics       # also logs and cancel; see status.py

The recipe's file has a function sweep(config) that lists the changes. It may have GROUPS, the ways in which runs share
a pass over the data: by name, the fields in which the runs of a group agree (None: each is alone); --group chooses one.
A group is a job. Runs that have finished are skipped, those that run are waited for, those that were interrupted
continue; a run that fails is reported at the end and takes no other down.
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import contextlib
import dataclasses
import multiprocessing
import operator
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import ml_collections
from absl import flags

from mobilenet_jax import config as config_lib
from mobilenet_jax import job, launch, report, results, signals, status
from mobilenet_jax.errors import Interrupted, UserError
from mobilenet_jax.files import lock

JOBS_FOLDER = 'jobs'
STATUS_SECONDS = 20  # between two lines of progress
POLL_SECONDS = {'local': 0.5, 'slurm': 5}
ALONE = {'alone': None}  # no run shares anything with another
MEMORY_SHARE = 0.8  # of the memory at hand that a group may be estimated to take


def sweep(config: ml_collections.ConfigDict, changes: list[dict], workdir: str | Path, jobs: int = 0,
          groupings: dict[str, Sequence[str] | None] = ALONE, grouping: str = 'auto', launcher: str = 'local',
          slurm: dict[str, str] | None = None, retries: int = 3) -> list[dict]:
  """Runs every change of `config` in a folder of its own below `workdir`, and writes workdir/results.csv.

  Args:
    config: what the runs have in common.
    changes: for each run, its own values by dotted name.
    workdir: the sweep's folder.
    jobs: groups at once; 0 for one a CPU core, or one a GPU; under Slurm for all.
    groupings: ways of grouping the runs, the one that shares most first: by name, the fields in which the runs of a
      group agree, or None for each run alone.
    grouping: one of these names; 'auto' for the first that fits the memory at hand and leaves no job idle; under Slurm,
      where that is not known, for each run alone.
    launcher: 'local' or 'slurm'.
    slurm: options of sbatch, or of submitit's SlurmExecutor.
    retries: how often a job is started again without having got any further.

  Returns:
    The rows of the finished runs.

  Raises:
    UserError: on bad input, before anything is started; or, once all others are finished, where runs failed.
    Interrupted: on Ctrl-C or SIGTERM. Local jobs have ended, with a checkpoint; those of Slurm go on.
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
  results.write_sweep(workdir, list(runs))

  failed = {}
  if not all(results.read(workdir / name) for name in runs):
    submit = launch.submitter(launcher, workdir / JOBS_FOLDER, slurm or {})
    with contextlib.ExitStack() as alone:
      alone.enter_context(lock(workdir))
      running = status.running_jobs(workdir)
      waiting = [name for name in runs if not results.read(workdir / name) and name not in sum(running.values(), [])]
      groups, shares = _plan(runs, waiting, len(running), workdir, jobs, groupings, grouping, launcher) if waiting else ([], [])
      for name in waiting:
        job.forget(workdir / name)
      failed = _Jobs(runs, workdir, launcher, submit, retries).run(groups, shares, running, alone.close)
  rows = results.collect(workdir)
  if failed:
    raise UserError(f'{len(failed)} of {len(runs)} runs failed, the others are in {workdir / results.CSV_FILE}: '
                    + '; '.join(f'{name} ({reason})' for name, reason in failed.items())
                    + f'. More in {workdir}/<run>/{job.LOG_FILE}; mend it and start the same command again')
  return rows


def _plan(runs, waiting, running, workdir, jobs, groupings, grouping, launcher) -> tuple[list[list[str]], list[tuple]]:
  """The groups, the cheapest first, and the shares of this machine that as many at once are given."""
  # What the libraries of an ended run left open is the system's to clean up, and no news to a person.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
  spawn = multiprocessing.get_context('spawn')
  with ProcessPoolExecutor(1, spawn) as probe:  # not here: this process shall hold neither data nor devices
    machine, needs = probe.submit(_prepare, {name: runs[name].to_dict() for name in waiting}).result()
  if launcher == 'slurm':
    groups, where = _groups(runs, waiting, groupings[grouping] if grouping != 'auto' else None), 'under Slurm'
    jobs, estimate = jobs or len(groups), ''
  else:
    jobs = min(jobs or max(len(machine.cores if machine.backend == 'cpu' else machine.gpus), 1), len(waiting) + running)
    groups, need = _choose(runs, waiting, max(jobs - running, 1), machine.memory, needs, groupings, grouping, not machine.gpus)
    where = f'on {machine.backend}'
    estimate = f'; models and activations take an estimated {need / 1e9:.2g} GB of {machine.memory / 1e9:.2g}'
  jobs, finished = min(jobs, len(groups) + running), sum(bool(results.read(workdir / name)) for name in runs)
  print(f'{len(runs)} runs in {workdir}: {finished} finished, {len(waiting)} to do {where}, in '
        f'{len(groups)} group{"s" if len(groups) > 1 else ""} of up to {max(map(len, groups))}, {jobs} at once{estimate}',
        flush=True)
  groups.sort(key=lambda names: sum(_cost(runs[name]) for name in names))
  return groups, [_share(machine, i, jobs) if launcher == 'local' else ([], None) for i in range(jobs)]


class _Machine(NamedTuple):
  """What runs share: the backend of JAX, its memory in bytes, the cores of the CPU, and the GPUs as CUDA names them."""
  backend: str
  memory: int
  cores: list[int]
  gpus: list[str]


def _prepare(configs: dict[str, dict]):
  """Prepares or checks the data; this machine, and each run's needs of its memory in bytes.

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
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  gpus = []
  if jax.default_backend() == 'gpu':
    given = os.environ.get(job.GPUS)
    gpus = given.split(',') if given else [str(i) for i in range(jax.local_device_count())]
  machine = _Machine(jax.default_backend(), parallel.memory_at_hand(), cores, gpus)
  return machine, (states, memory.step_bytes(largest, num_outputs))


def _choose(runs, waiting, jobs, memory, needs, groupings, grouping, one_memory=True) -> tuple[list[list[str]], int]:
  """The groups, each a list of names, and the bytes that `jobs` of them, or where each has its own memory one, may take."""
  states, step = needs
  for candidate in groupings if grouping == 'auto' else (grouping,):
    groups = _groups(runs, waiting, groupings[candidate])
    by_size = sorted((sum(map(states.get, names)) + step for names in groups), reverse=True)
    need = sum(by_size[:jobs if one_memory else 1])
    if len(groups) >= jobs and need <= MEMORY_SHARE * memory:
      break
  return groups, need


def _groups(runs, waiting, fields) -> list[list[str]]:
  """The names of runs that agree in these fields, and can share a stream of batches; each alone where fields is None."""
  from mobilenet_jax.train import stream
  groups = {}
  for name in waiting:
    common = name if fields is None else [str(operator.attrgetter(field)(runs[name])) for field in fields]
    groups.setdefault(f'{common} {stream(runs[name])}', []).append(name)
  return list(groups.values())


def _cost(config) -> float:
  """In proportion to a step's, roughly."""
  return config.model.width_multiplier * config.data.image_size[0] * config.data.image_size[1]


def _share(machine, slot, jobs) -> tuple[list[int], str | None]:
  """The cores and the GPUs of one of so many jobs."""
  if machine.gpus:
    return [], ','.join(machine.gpus[slot::jobs] or [machine.gpus[slot % len(machine.gpus)]])
  return machine.cores[slot::jobs] if machine.backend == 'cpu' else [], os.environ.get(job.GPUS)


@dataclasses.dataclass
class _Launched:
  """Of a job that was running when last asked: its runs' names, its share of the machine, and their attempts before it."""
  names: list[str]
  share: tuple | None = None
  attempts: list[dict] | None = None
  missed: bool = False


class _Jobs:
  """Launches the groups of a sweep, and watches over them."""

  def __init__(self, runs, workdir: Path, launcher: str, submit: Callable[..., launch.Job], retries: int):
    self._runs, self._workdir, self._launcher, self._submit, self._retries = runs, workdir, launcher, submit, retries
    self._launched = {}  # by job
    self._failed = {}  # reason by name

  def run(self, groups: list[list[str]], shares: list[tuple], running: dict[launch.Job, list[str]],
          all_launched: Callable[[], None]) -> dict[str, str]:
    """Runs the groups, the last one first, as many at once as there are shares; waits for what is running, too.

    Calls all_launched() once jobs of Slurm are: somebody else may watch from then on.

    Returns:
      Of the runs that failed the reason, by name.
    """
    free, last_status = list(shares), time.monotonic()
    for started, names in running.items():
      self._launched[started] = _Launched(names, free.pop() if free and self._launcher == 'local' else None)
    with signals.stop_wanted() as stop, self._leaving_none():
      while groups or self._launched:
        while groups and free:
          self._launch(groups.pop(), free.pop())
        if self._launcher == 'slurm' and not groups:
          all_launched()
        end = time.monotonic() + POLL_SECONDS[self._launcher]
        while time.monotonic() < end and not stop():
          time.sleep(0.2)
        if stop():
          raise Interrupted('interrupted: the same command continues' if self._launcher == 'local' else
                            f'{len(self._launched)} jobs go on under Slurm: python -m mobilenet_jax.sweep status '
                            f'--workdir={self._workdir} shows them; or logs, or cancel')
        for ended in self._ended():
          free += [ended.share] if ended.share else []
          groups += self._to_do_again(ended)
        if self._launched and time.monotonic() - last_status > STATUS_SECONDS:
          last_status = time.monotonic()
          print('  running: ' + ' | '.join(_progress(one.names, self._workdir) for one in self._launched.values()), flush=True)
    return self._failed

  @contextlib.contextmanager
  def _leaving_none(self):
    """Whatever ends the watch, local jobs end too, each with a checkpoint; those of Slurm go on."""
    try:
      yield
    except BaseException:
      local = [started for started in self._launched if started.launcher == 'local']
      for started in local:
        launch.cancel(started)
      while launch.states(local):
        time.sleep(0.1)
      raise

  def _launch(self, names, share):
    folders = [self._workdir / name for name in names]
    attempts = [job.attempts(folder) for folder in folders]
    label = names[0] + (f'_and_{len(names) - 1}_more' if len(names) > 1 else '')
    started = self._submit(label, job.train_runs, [self._runs[name].to_dict() for name in names], list(map(str, folders)),
                           self._retries, *share)
    for folder in folders:
      started.write(folder)
    self._launched[started] = _Launched(names, share, attempts)
    if self._launcher == 'slurm':
      print(f'job {started.id}: {", ".join(names)}', flush=True)

  def _ended(self) -> list[_Launched]:
    """The jobs that have ended; where a run of theirs has come to no end, once they are missed twice."""
    alive, ended = status.alive(self._workdir, {started: one.names for started, one in self._launched.items()}), []
    for started, one in list(self._launched.items()):
      if started in alive:
        one.missed = False
      elif one.missed or not self._open(one.names):  # what another machine wrote may take a while to be seen
        ended.append(self._launched.pop(started))
      else:
        one.missed = True
    return ended

  def _open(self, names) -> list[str]:
    """Those that are neither finished nor failed."""
    folders = {name: self._workdir / name for name in names}
    return [name for name, folder in folders.items() if not (results.read(folder) or job.attempts(folder)['error'])]

  def _to_do_again(self, ended) -> list[list[str]]:
    """Says what has become of a job's runs; those that it left, as a group, if starting again may help."""
    left = self._open(ended.names)
    begun = ended.attempts != [job.attempts(self._workdir / name) for name in ended.names]
    again = left if self._launcher == 'local' and begun else []  # which the job limits; Slurm has its own ways
    for name in ended.names:
      folder = self._workdir / name
      if name in again:
        print(f'  {name} ended early: starting it again', flush=True)
        continue
      if not results.read(folder):
        self._failed[name] = job.attempts(folder)['error'] or f'its job ended: {status.last_line(launch.read(folder).log)}'
      print(f'[{self._done()}/{len(self._runs)}] {name}: {_outcome(folder, self._failed.get(name))}', flush=True)
    results.collect(self._workdir)
    return [again] if again else []

  def _done(self):
    return sum(name in self._failed or bool(results.read(self._workdir / name)) for name in self._runs)


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


def _progress(names: list[str], workdir: Path) -> str:
  """Of a group, by its first run that is not finished."""
  name = next((name for name in names if not results.read(workdir / name)), names[-1])
  more = f' and {len(names) - 1} more' if len(names) > 1 else ''
  return f'{name}{more} {status.progress(workdir / name) or "starting"}'


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise UserError('--workdir is missing; give a folder for the sweep, such as --workdir=runs/fabrics')
  path = cli.recipe_path(values)
  recipe = runpy.run_path(str(path))
  if 'sweep' not in recipe:
    raise UserError(f'{path} has no sweep(config); a single run is python -m mobilenet_jax.main')
  if bad := [option for option in values.slurm if '=' not in option]:
    raise UserError(f'--slurm={bad[0]}: expected options of sbatch, such as --slurm=partition=gpu,time=720')
  started = time.monotonic()
  rows = sweep(values.config, recipe['sweep'](values.config), values.workdir, values.jobs, recipe.get('GROUPS', ALONE),
               values.group, values.launcher, dict(option.split('=', 1) for option in values.slurm), values.retries)
  print(f'{len(rows)} runs finished, after {report.duration(time.monotonic() - started)}; '
        f'rows in {Path(values.workdir) / results.CSV_FILE}')


if __name__ == '__main__':
  if sys.argv[1:2] and sys.argv[1] in status.COMMANDS:
    cli.run_with(status.parser(), status.main)
    sys.exit()
  cli.define_config()
  flags.DEFINE_string('workdir', None, 'Folder of the sweep; started again in it, the sweep continues.')
  flags.DEFINE_string('group', 'auto', "How runs share a pass over the data: a name in the recipe's GROUPS; auto: the "
                      'first that fits the memory and leaves no CPU core or GPU idle; under Slurm, each run alone.')
  flags.DEFINE_integer('jobs', 0, 'Groups at once; 0: one a CPU core, or one a GPU; under Slurm all.', lower_bound=0)
  flags.DEFINE_enum('launcher', 'local', sorted(launch.LAUNCHERS), 'This machine, or a Slurm cluster.')
  flags.DEFINE_list('slurm', [], 'Options of sbatch: partition=gpu,gpus_per_node=1,time=720 (minutes; by default a day).')
  flags.DEFINE_integer('retries', 3, 'How often a job is started again without having got any further.', lower_bound=0)
  cli.run(main)
