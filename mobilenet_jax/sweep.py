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
import functools
import runpy
import sys
import time
from pathlib import Path

import ml_collections
from absl import flags

from mobilenet_jax import config as config_lib
from mobilenet_jax import grouping as grouping_lib
from mobilenet_jax import job, launch, report, results, status, watch
from mobilenet_jax.errors import UserError
from mobilenet_jax.files import lock
from mobilenet_jax.grouping import ALONE, Groupings

JOBS_FOLDER = 'jobs'


def sweep(config: ml_collections.ConfigDict, changes: list[dict], workdir: str | Path, jobs: int = 0,
          groupings: Groupings = ALONE, grouping: str = 'auto', launcher: str = 'local',
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
    launcher: 'local' or 'slurm' for jobs of this machine or of Slurm; 'here' for this process, which may be one of
      several hosts.
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
    name = config_lib.model_name(member)
    if name in runs:
      raise UserError(f'two runs of the sweep are {name}; expected runs that differ in model, width or size, and for other '
                      'differences a sweep each, with a --workdir of its own')
    runs[name] = member
  if launcher == 'here':
    failed = _train_here(runs, workdir, groupings, grouping)
  else:
    failed = _train_in_jobs(runs, workdir, jobs, groupings, grouping, launcher, slurm or {}, retries)
  rows = [row for name in runs if (row := results.read(workdir / name))]
  if failed:
    raise UserError(f'{len(failed)} of {len(runs)} runs failed, the others are in {workdir / results.CSV_FILE}: '
                    + '; '.join(f'{name} ({reason})' for name, reason in failed.items())
                    + f'. More in {workdir}/<run>/{job.LOG_FILE}; mend it and start the same command again')
  return rows


def _claim(runs, workdir, alone) -> list[str]:
  """Has the sweep's folder for this process, until `alone` is closed; the names of the runs that are not finished."""
  from mobilenet_jax.run import claim_folder
  workdir.mkdir(parents=True, exist_ok=True)
  alone.enter_context(lock(workdir))
  for name, config in runs.items():
    claim_folder(workdir / name, config)
  results.write_sweep(workdir, list(runs))
  results.collect(workdir)
  return [name for name in runs if not results.read(workdir / name)]


def _train_here(runs, workdir, groupings, grouping) -> dict[str, str]:
  """Trains group after group in this process, which may be one of several hosts; the reasons of the runs that failed."""
  from mobilenet_jax import parallel
  failed = {}
  with contextlib.ExitStack() as alone:
    waiting = parallel.on_first_host(lambda: _claim(runs, workdir, alone))
    if not waiting:
      return {}
    if parallel.is_first_host():
      _forget_failures(workdir, waiting)
    machine, needs = parallel.on_first_host(lambda: grouping_lib.prepare({name: runs[name].to_dict() for name in waiting}))
    groups = grouping_lib.choose(runs, waiting, 1, machine, needs, groupings, grouping)
    say = functools.partial(print, flush=True) if parallel.is_first_host() else lambda text: None
    say(_intention(runs, waiting, workdir, groups, 1, f'on {parallel.device_name()}', _estimate(groups, 1, machine, needs)))
    for names in reversed(groups):
      outcomes = job.train([runs[name] for name in names], [str(workdir / name) for name in names])
      for name, outcome in zip(names, outcomes):
        say(f'{name}: {report.described(outcome)}')
        if isinstance(outcome, str):
          failed[name] = outcome
  return failed


def _train_in_jobs(runs, workdir, jobs, groupings, grouping, launcher, slurm, retries) -> dict[str, str]:
  """Has jobs train what is not finished, and waits for them; the reasons of the runs that failed."""
  with contextlib.ExitStack() as alone:
    waiting = _claim(runs, workdir, alone)
    if not waiting:
      return {}
    submit = launch.submitter(launcher, workdir / JOBS_FOLDER, slurm)
    running = status.running_jobs(workdir)
    waiting = [name for name in waiting if not any(name in names for names in running.values())]
    machine, needs = grouping_lib.prepare_elsewhere({name: runs[name].to_dict() for name in waiting or runs})
    if launcher == 'slurm':  # of whose nodes nothing is known here
      groups = grouping_lib.group(runs, waiting, None if grouping == 'auto' else groupings[grouping])
      at_once, where, estimate = jobs or len(runs), 'under Slurm', ''
      shares = [((), None)] * at_once
    else:
      most = grouping_lib.jobs_at_once(machine, jobs)
      new = min(max(most - len(running), 1), len(waiting))
      groups = grouping_lib.choose(runs, waiting, new, machine, needs, groupings, grouping)
      new = min(new, len(groups)) if jobs else grouping_lib.that_fit(groups, min(new, len(groups)), machine, needs)
      at_once = min(new + len(running), most)
      where, estimate = f'on {machine.backend}', _estimate(groups, new, machine, needs)
      shares = [grouping_lib.share(machine, i, at_once) for i in range(at_once)]
    print(_intention(runs, waiting, workdir, groups, min(at_once, len(groups)), where, estimate), flush=True)
    _forget_failures(workdir, waiting)
    return watch.Jobs(runs, workdir, launcher, submit, retries).run(groups, shares, running, alone.close)


def _forget_failures(workdir, names) -> None:
  for name in names:
    job.forget(workdir / name)


def _intention(runs, waiting, workdir, groups, at_once, where, estimate='') -> str:
  finished = sum(bool(results.read(workdir / name)) for name in runs)
  running = len(runs) - finished - len(waiting)
  in_groups = f', in {len(groups)} group{"s" if len(groups) > 1 else ""} of up to {max(map(len, groups), default=0)}'
  return (f'{len(runs)} runs in {workdir}: {finished} finished, ' + (f'{running} running, ' if running else '') +
          f'{len(waiting)} to do {where}' + (f'{in_groups}, {at_once} at once{estimate}' if groups else ''))


def _estimate(groups, jobs, machine, needs) -> str:
  need = grouping_lib.estimate(groups, jobs, machine, needs)
  return f'; models and activations take an estimated {need / 1e9:.2g} GB of {machine.memory / 1e9:.2g}'


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise UserError('--workdir is missing; give a folder for the sweep, such as --workdir=runs/fabrics')
  path = cli.recipe_path(values)
  recipe = runpy.run_path(str(path))
  if 'sweep' not in recipe:
    raise UserError(f'{path} has no sweep(config); a single run is python -m mobilenet_jax.main')
  if values.slurm and values.launcher != 'slurm':
    raise UserError(f'--slurm={",".join(values.slurm)} --launcher={values.launcher}: expected --launcher=slurm with it')
  if values.coordinator and values.launcher != 'here':
    raise UserError(f'--coordinator={values.coordinator} --launcher={values.launcher}: expected --launcher=here with it')
  started = time.monotonic()
  train = functools.partial(
      sweep, values.config, recipe['sweep'](values.config), values.workdir, values.jobs, recipe.get('GROUPS', ALONE),
      values.group, values.launcher, dict(option.partition('=')[::2] for option in values.slurm), values.retries)
  if values.launcher == 'here':
    from mobilenet_jax import parallel
    parallel.join_hosts(values.coordinator, values.hosts, values.host)
    with parallel.ending_with_the_others():
      rows = train()
    if not parallel.is_first_host():
      return
  else:
    rows = train()
  print(f'{len(rows)} runs finished, after {report.duration(time.monotonic() - started)}; '
        f'rows in {Path(values.workdir) / results.CSV_FILE}')


if __name__ == '__main__':
  if sys.argv[1:2] and sys.argv[1] in status.COMMANDS:
    cli.run_with(status.parser(), status.main)
    sys.exit()
  cli.define_config()
  cli.define_hosts()
  flags.DEFINE_string('workdir', None, 'Folder of the sweep; started again in it, the sweep continues.')
  flags.DEFINE_string('group', 'auto', "How runs share a pass over the data: a name in the recipe's GROUPS; auto: the "
                      'first that fits the memory and leaves no CPU core or GPU idle; under Slurm, each run alone.')
  flags.DEFINE_integer('jobs', 0, 'Groups at once; 0: one a CPU core, or one a GPU; under Slurm all.', lower_bound=0)
  flags.DEFINE_enum('launcher', 'local', ['here', *sorted(launch.LAUNCHERS)], 'Jobs on this machine, or a Slurm cluster; '
                    'here: none, but group after group in this process, which may be one of several hosts.')
  flags.DEFINE_list('slurm', [], 'Options of sbatch: partition=gpu,gpus_per_node=1,time=720 (minutes; by default a day).')
  flags.DEFINE_integer('retries', 3, 'How often a job is started again without having got any further.', lower_bound=0)
  cli.run(main)
