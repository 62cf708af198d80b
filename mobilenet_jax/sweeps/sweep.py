"""A sweep: one config, what each run changes in it, and one row per finished run.

The changes come from a recipe's function sweep(config) and the command line. Runs whose batches are the same share a pass
over the data, in groups; a group is a job. Runs that have finished are skipped, runs that are running are waited for, and
runs that were interrupted continue. A run that fails is reported at the end and does not stop the others.
"""

import contextlib
import functools
from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.errors import UserError, counted, few
from mobilenet_jax.runtime import devices
from mobilenet_jax.storage import run_files
from mobilenet_jax.storage.files import lock, lock_owner
from mobilenet_jax.storage.run_files import read_row
from mobilenet_jax.sweeps import grouping as grouping_lib
from mobilenet_jax.sweeps import job, launch, naming, results, status, watch
from mobilenet_jax.sweeps.grouping import ALONE, AUTO
from mobilenet_jax.sweeps.launch import LAUNCHERS
from mobilenet_jax.training import checked, described, difference

__all__ = ['AUTO', 'LAUNCHERS', 'sweep']

JOBS_FOLDER = 'jobs'


def sweep(config: ml_collections.ConfigDict, changes: list[dict], workdir: str | Path, jobs: int = 0,
          grouping: str = AUTO, launcher: str = 'local', slurm: dict[str, str] | None = None,
          retries: int = 3) -> list[dict]:
  """Trains a run for each change of `config` in a folder of its own below `workdir`, and writes workdir/results.csv.

  Args:
    config: what the runs have in common.
    changes: for each run, the values that it changes, by dotted name.
    workdir: the sweep's folder.
    jobs: the number of groups at once. 0 means one per CPU core or one per GPU, and under Slurm all.
    grouping: 'auto' for as few groups as fit into memory and keep all jobs busy, 'all' for one group of all runs whose
      batches are the same, 'alone' for each run alone, or fields, separated by commas, in which the runs of a group agree.
      Under Slurm, where the memory is not known, 'auto' trains each run alone.
    launcher: 'local' or 'slurm' for jobs on this machine or under Slurm, or 'here' for this process, which may be one of
      several hosts.
    slurm: options of sbatch, or of submitit's SlurmExecutor.
    retries: how often a job is started again without making progress.

  Returns:
    The rows of those of the given runs that have finished. The folder may have runs of other sweeps; they keep their rows in
    results.csv.

  Raises:
    UserError: on bad input, before anything is started; or if runs failed, once all others have finished.
    Interrupted: on Ctrl-C or SIGTERM. Local jobs have ended, each with a checkpoint; Slurm jobs go on.
  """
  workdir = Path(workdir)
  given = [config_lib.changed(config, change) for change in changes]
  members = [checked(member) for member in given]
  names = naming.names(list(zip(changes, members)), naming.existing(workdir, results.runs_so_far(workdir)))
  grouping_lib.check(dict(zip(names, members)), grouping)
  if launcher != 'here' or devices.is_first_host():
    for remark in dict.fromkeys(remark for change in changes for remark in config_lib.left_out(config, change)):
      print(remark, flush=True)
  runs = _completed(dict(zip(names, given)), workdir, launcher)
  if launcher == 'here':
    failed = _train_here(runs, workdir, grouping)
  else:
    failed = _train_in_jobs(runs, workdir, jobs, grouping, launcher, slurm or {}, retries)
  rows = results.rows(workdir, list(runs))
  if failed:
    raise UserError(f'{len(failed)} of {len(runs)} runs failed (the others are in {workdir / results.CSV_FILE}): '
                    + '; '.join(f'{name} ({reason})' for name, reason in failed.items())
                    + f'. See {workdir}/<run>/{job.LOG_FILE}, fix the cause and start the same command again')
  return rows


def _completed(given, workdir, launcher) -> dict[str, ml_collections.ConfigDict]:
  """Fills in what depends on init.model and distill.model. Reading them may use devices, so a process of its own does it."""
  complete = grouping_lib.completed
  if launcher != 'here' and any(config.init.model or config.distill.model for config in given.values()):
    complete = functools.partial(grouping_lib.elsewhere, complete)
  found = complete({name: config.to_dict() for name, config in given.items()}, workdir)
  return {name: ml_collections.ConfigDict(config) for name, config in found.items()}


def _examine(runs, workdir, alone) -> tuple[dict[str, run_files.Claim], dict[launch.Job, list[str]]]:
  """Locks the sweep's folder until `alone` is closed. Returns the runs that are not finished, by name, and those of jobs.

  Raises:
    UserError: if the folder of a run belongs to another config. Nothing is changed in any of them.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  alone.enter_context(lock(workdir))
  running = _running(workdir, runs)
  busy = {name for names in running.values() for name in names}
  found, refused = {}, {}
  for name, config in runs.items():
    try:
      found[name] = run_files.examine(workdir / name, config, models.defaults(config.model.name),
                                      name in busy or bool(lock_owner(workdir / name)))
    except UserError as error:
      refused[name] = str(error)
  if refused:
    (_, text), *others = refused.items()
    raise UserError(text + (f'. Also refused: {", ".join(name for name, _ in others)}' if others else ''))
  kept = _kept(runs, workdir, results.add_runs(workdir, list(runs)))
  for text in filter(None, (kept, results.collect(workdir))):
    print(text, flush=True)
  return {name: claim for name, claim in found.items() if claim.longer or not read_row(workdir / name)}, running


def _kept(runs, workdir, others) -> str:
  """Returns what is to be said of the runs of other sweeps in the folder."""
  if not others:
    return ''
  flat = lambda configs: map(config_lib.flat, configs.values())
  differences = naming.between(flat(naming.existing(workdir, others)), flat(runs))
  return (f'{workdir} also has {counted(len(others), "run")} of other sweeps, which stay in {results.CSV_FILE}'
          + (f'; all of them differ from these in: {few(differences)}' if differences else ''))


def _running(workdir, runs) -> dict[launch.Job, list[str]]:
  """Returns the jobs that train some of the runs. Those of other sweeps go on unwatched.

  Raises:
    UserError: if a job also trains runs of another sweep, as it could neither be ended nor started again for these runs alone.
  """
  found = status.running_jobs(workdir, dict.fromkeys([*results.runs_so_far(workdir), *runs]))
  running = {one: names for one, names in found.items() if not runs.keys().isdisjoint(names)}
  for names in running.values():
    if others := [name for name in names if name not in runs]:
      ours = [name for name in names if name in runs]
      raise UserError(f'{workdir}: a job trains {few(ours)} and, of another sweep, {few(others)}; wait until it ends, '
                      'or end it with mobilenet_jax sweep cancel')
  if unwatched := len(found) - len(running):
    print(f'{counted(unwatched, "job")} of other sweeps in {workdir} will go on', flush=True)
  return running


def _claim(runs, workdir, waiting) -> None:
  """Takes the folders of the runs that are to be trained, once nothing speaks against it."""
  for name, (longer, change) in waiting.items():
    run_files.claim(workdir / name, runs[name], longer)
    job.forget(workdir / name)
    if change:
      print(f'{name}: {change}', flush=True)


def _train_here(runs, workdir, grouping) -> dict[str, str]:
  """Trains group after group in this process, which may be one of several hosts. Returns why runs failed, by name."""
  failed = {}
  with contextlib.ExitStack() as alone:
    waiting, _ = devices.on_first_host(lambda: _examine(runs, workdir, alone))
    if not waiting:
      devices.on_first_host(lambda: _check(runs, workdir, grouping_lib.digests(runs)))
      return {}
    say = functools.partial(print, flush=True) if devices.is_first_host() else lambda text: None
    say(_reading(runs, waiting))
    machine, needs = devices.on_first_host(lambda: _prepared(grouping_lib.prepare, runs, workdir, waiting))
    devices.on_first_host(lambda: _claim(runs, workdir, waiting))
    groups = grouping_lib.choose(runs, list(waiting), 1, machine, needs, grouping)
    say(_intention(runs, waiting, workdir, groups, grouping_lib.reason(grouping), 1, f'on {devices.device_name()}',
                   _estimate(groups, 1, machine, needs)))
    for names in reversed(groups):
      outcomes = job.train([runs[name] for name in names], [str(workdir / name) for name in names])
      for name, outcome in zip(names, outcomes):
        say(f'{name}: {described(outcome)}')
        if isinstance(outcome, str):
          failed[name] = outcome
  return failed


def _train_in_jobs(runs, workdir, jobs, grouping, launcher, slurm, retries) -> dict[str, str]:
  """Launches jobs that train the unfinished runs, and waits for them. Returns why runs failed, by name."""
  with contextlib.ExitStack() as alone:
    waiting, running = _examine(runs, workdir, alone)
    if not waiting:
      _check(runs, workdir, grouping_lib.digests(runs))
      return {}
    submit = launch.submitter(launcher, workdir / JOBS_FOLDER, slurm)
    waiting = {name: claim for name, claim in waiting.items() if not any(name in names for names in running.values())}
    if waiting:
      print(_reading(runs, waiting), flush=True)
    prepare = functools.partial(grouping_lib.elsewhere, grouping_lib.prepare)
    machine, needs = _prepared(prepare, runs, workdir, waiting)
    _claim(runs, workdir, waiting)
    if launcher == 'slurm':  # nothing is known of the nodes' memory when a sweep is launched
      groups = grouping_lib.group(runs, list(waiting), ALONE if grouping == AUTO else grouping)
      at_once, where, estimate = jobs or len(runs), 'under Slurm', ''
      shares = [((), None)] * at_once
    else:
      most = grouping_lib.jobs_at_once(machine, jobs)
      new = min(max(most - len(running), 1), len(waiting))
      groups = grouping_lib.choose(runs, list(waiting), new, machine, needs, grouping)
      new = min(new, len(groups)) if jobs else grouping_lib.that_fit(groups, min(new, len(groups)), machine, needs)
      at_once = min(new + len(running), most)
      where, estimate = f'on {machine.backend}', _estimate(groups, new, machine, needs)
      shares = [grouping_lib.share(machine, i, at_once) for i in range(at_once)]
    why = grouping_lib.reason(grouping, memory_known=launcher != 'slurm')
    print(_intention(runs, waiting, workdir, groups, why, min(at_once, len(groups)), where, estimate), flush=True)
    return watch.Jobs(runs, workdir, launcher, submit, retries).run(groups, shares, running, alone.close)


def _prepared(prepare, runs, workdir, waiting) -> tuple:
  """Returns the machine and what the runs need, once their inputs are known to be those with which they were begun."""
  machine, needs, digests = prepare({name: config.to_dict() for name, config in runs.items()}, list(waiting))
  _check(runs, workdir, digests)
  return machine, needs


def _check(runs, workdir, digests) -> None:
  """Raises UserError if runs were begun with other inputs. Says so if those of finished runs are gone."""
  gone = {name: found for name, found in digests.items() if isinstance(found, str)}
  if gone:
    print(f'{len(gone)} of {len(runs)} runs have finished, and whether their data is still the same cannot be checked: '
          f'{next(iter(gone.values()))}', flush=True)
  if different := [text for name in runs if name not in gone and (text := difference(workdir / name, digests[name]))]:
    raise UserError(different[0] + (f' ({len(different)} of the {len(runs)} runs)' if len(different) > 1 else ''))


def _reading(runs, waiting) -> str:
  names = dict.fromkeys(config.data.name for config in runs.values())
  return f'reading {few(list(names))} for {counted(len(waiting), "run")}'


def _intention(runs, waiting, workdir, groups, why, at_once, where, estimate='') -> str:
  finished = sum(bool(read_row(workdir / name)) for name in runs)
  running = len(runs) - finished - len(waiting)
  in_groups = grouping_lib.described(runs, groups, why) + f'; {at_once} at once{estimate}' if groups else ''
  return (f'{counted(len(runs), "run")} in {workdir}: {finished} finished, ' + (f'{running} running, ' if running else '') +
          f'{len(waiting)} to do {where}{in_groups}')


def _estimate(groups, jobs, machine, needs) -> str:
  need = grouping_lib.estimate(groups, jobs, machine, needs)
  return f'; models and activations take an estimated {need / 1e9:.2g} GB of {machine.memory / 1e9:.2g}'
