"""Launches the groups of a sweep as jobs, and watches them until the last one has ended."""

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable
from pathlib import Path

import ml_collections

from mobilenet_jax.errors import Interrupted, UserError, counted
from mobilenet_jax.runtime import signals
from mobilenet_jax.runtime.pace import Pace, duration
from mobilenet_jax.storage.run_files import newest_checkpoint, read_progress, read_row
from mobilenet_jax.sweeps import grouping, job, launch, results, status
from mobilenet_jax.training import described

STATUS_SECONDS = 20  # between two progress lines
POLL_SECONDS = {'local': 0.5, 'slurm': 5}
# How long it may take until files that another machine wrote can be seen: NFS caches that a file was missing.
UNSEEN_SECONDS = {'local': 0, 'slurm': 60}


@dataclasses.dataclass
class _Launched:
  """A job that was running when last asked.

  Attributes:
    names: the names of its runs.
    steps: the steps that each of them had done before.
    attempts: their attempts before it.
    missed_since: since when it is missing.
    since: since when it runs, as far as this process knows.
  """
  names: list[str]
  steps: dict[str, int]
  attempts: list[dict] | None = None
  missed_since: float | None = None
  since: float = dataclasses.field(default_factory=lambda: time.monotonic())


class Jobs:
  """The jobs of a sweep.

  Args:
    runs: the config of each run, by name.
    workdir: the sweep's folder.
    launcher: one of launch.LAUNCHERS.
    submit: see launch.submitter.
    retries: how often a job is started again without making progress.
  """

  def __init__(self, runs: dict[str, ml_collections.ConfigDict], workdir: Path, launcher: str,
               submit: Callable[..., launch.Job], retries: int):
    self._runs, self._workdir, self._launcher, self._submit, self._retries = runs, workdir, launcher, submit, retries
    self._launched = {}  # by job
    self._failed = {}  # reason by name
    self._spent = []  # (seconds, cost) of each job that has ended and had begun here

  def run(self, groups: list[list[str]], shares: list[tuple], running: dict[launch.Job, list[str]],
          all_launched: Callable[[], None]) -> dict[str, str]:
    """Runs the groups, the last one first, as many at once as there are shares. Also waits for jobs that are running.

    Calls all_launched() once all Slurm jobs are launched, because another process may watch them from then on.

    Returns:
      The reasons of the runs that failed, by name.
    """
    self._launched = {launched: _Launched(names, self._steps(names)) for launched, names in running.items()}
    free, pace = self._not_taken(shares), Pace(STATUS_SECONDS, STATUS_SECONDS)
    with signals.stop_wanted() as stop, self._leaving_none():
      while groups or self._launched:
        while groups and free and not stop():
          self._launch(groups.pop(), free.pop())
        if self._launcher == 'slurm' and not groups:
          all_launched()
        end = time.monotonic() + POLL_SECONDS[self._launcher]
        while time.monotonic() < end and not stop():
          time.sleep(0.2)
        if stop():
          raise Interrupted(self._what_now())
        for launched, ended in self._ended():
          share = launched.cores, launched.gpus
          if self._has_a_share(launched) and grouping.parts(share) <= grouping.parts(*shares):
            free.append(share)
          groups += self._to_do_again(launched, ended)
        free = free if self._launched else list(shares)
        if self._launched and pace.due():
          doing = ' | '.join(_progress(one.names, self._workdir) for one in self._launched.values())
          print(f'  {self._done()} of {len(self._runs)} done{self._left(groups, len(shares))}: {doing}', flush=True)
    return {name: reason for name, reason in self._failed.items() if not read_row(self._workdir / name)}

  def _not_taken(self, shares):
    """Returns the shares that new jobs may have beside the running jobs."""
    taken = [(launched.cores, launched.gpus) for launched in self._launched if self._has_a_share(launched)]
    free = [share for share in shares if not grouping.parts(share) & grouping.parts(*taken)]
    return free[:max(len(shares) - len(taken), 0)]

  def _has_a_share(self, launched):
    return launched.launcher == self._launcher and (launched.launcher == 'slurm' or launched.host == socket.gethostname())

  def _what_now(self):
    if self._launcher == 'local':
      return 'interrupted; start the same command again to continue'
    return (f'under Slurm, {counted(len(self._launched), "job")} will go on; mobilenet_jax sweep status '
            f'--workdir={self._workdir} shows what they do; sweep logs and sweep cancel take the same --workdir')

  @contextlib.contextmanager
  def _leaving_none(self):
    """Ends local jobs, each with a checkpoint, if the watch ends with any exception. Slurm jobs go on."""
    try:
      yield
    except BaseException:
      if local := [launched for launched in self._launched if launched.launcher == 'local']:
        print(f'ending {counted(len(local), "job")}, each with a checkpoint', flush=True)
      status.end(self._workdir, {launched: one.names for launched, one in self._launched.items()}, ('local',))
      raise

  def _launch(self, names, share):
    folders = [self._workdir / name for name in names]
    attempts = [job.attempts(folder) for folder in folders]
    label = names[0] + (f'_and_{len(names) - 1}_more' if len(names) > 1 else '')
    configs = [self._runs[name].to_dict() for name in names]
    launched = self._submit(label, job.train_runs, (configs, list(map(str, folders)), self._retries), *share)
    self._launched[launched] = _Launched(names, self._steps(names), attempts)
    for folder in folders:
      launched.write(folder)
    if self._launcher == 'slurm':
      print(f'job {launched.id}: {", ".join(names)}', flush=True)

  def _ended(self) -> list[tuple[launch.Job, _Launched]]:
    """Returns the jobs that have ended. A job with unfinished runs counts only after it has been missing for a while."""
    try:
      alive = status.alive(self._workdir, {launched: one.names for launched, one in self._launched.items()})
    except UserError as error:
      print(f'  {error}; asking again', flush=True)
      return []
    ended = []
    for launched, one in list(self._launched.items()):
      if launched in alive:
        one.missed_since = None
        continue
      one.missed_since = one.missed_since or time.monotonic()
      if not self._open(one.names) or time.monotonic() - one.missed_since >= UNSEEN_SECONDS[launched.launcher]:
        ended.append((launched, self._launched.pop(launched)))
    return ended

  def _open(self, names) -> list[str]:
    """Returns the names of the runs that have neither finished nor failed."""
    folders = {name: self._workdir / name for name in names}
    return [name for name, folder in folders.items() if not (read_row(folder) or job.attempts(folder)['error'])]

  def _to_do_again(self, launched, ended) -> list[list[str]]:
    """Reports what became of a job's runs. Returns the unfinished ones as a group if starting them again may help."""
    left = self._open(ended.names)
    begun = ended.attempts != [job.attempts(self._workdir / name) for name in ended.names]
    again = left if launched.launcher == 'local' and begun else []  # the job limits its starts; Slurm requeues its jobs itself
    for name in ended.names:
      folder = self._workdir / name
      if name in again:
        print(f'  {name} ended early: starting it again', flush=True)
        continue
      row = read_row(folder)
      if not row:
        self._failed[name] = job.attempts(folder)['error'] or f'its job ended: {status.last_words(folder)}'
      print(f'{name}: {described(row or self._failed[name])} ({self._done()} of {len(self._runs)} done)', flush=True)
    if cost := self._cost(ended.names, ended.steps):
      self._spent.append((time.monotonic() - ended.since, cost))
    if problem := results.collect(self._workdir):
      print(problem, flush=True)
    return [again] if again else []

  def _steps(self, names):
    return {name: newest_checkpoint(self._workdir / name) for name in names}

  def _cost(self, names, steps) -> float:
    """Returns the cost of what runs have to do after `steps`; 0 if one is not known, as nothing has been heard of the run."""
    cost = 0.0
    for name in names:
      folder, config = self._workdir / name, self._runs[name]
      row = read_row(folder)
      total = row['examples_seen'] / config.batch_size if row else read_progress(folder).get('total_steps', 0)
      if steps[name] and not total:
        return 0.0
      cost += grouping.cost(config) * (1 - steps[name] / total if steps[name] else 1)
    return cost

  def _left(self, groups, at_once) -> str:
    """Returns an estimate of the time that is left, from that of the running jobs and the cost of the others; '' at first."""
    running = [(one, seconds) for one in self._launched.values() if (seconds := _seconds_left(one.names, self._workdir))]
    known = self._spent + [(time.monotonic() - one.since + seconds, cost) for one, seconds in running
                           if (cost := self._cost(one.names, one.steps))]
    if not known or len(running) < len(self._launched):
      return ''
    rate = sum(seconds for seconds, _ in known) / sum(cost for _, cost in known)
    all_left = sum(seconds for _, seconds in running) + rate * sum(self._cost(names, self._steps(names)) for names in groups)
    return f', about {duration(max(all_left / at_once, *(seconds for _, seconds in running), 0))} left'

  def _done(self):
    return sum(name in self._failed or bool(read_row(self._workdir / name)) for name in self._runs)


def _progress(names, workdir) -> str:
  """Returns the progress of a group: of the one of its runs that has said something last."""
  unfinished = [name for name in names if not read_row(workdir / name)] or names[-1:]
  name = max(unfinished, key=lambda name: read_progress(workdir / name).get('time', 0))
  more = f' (and {len(names) - 1} more)' if len(names) > 1 else ''
  return f'{name}{more} {status.progress(workdir / name, running=True)}'


def _seconds_left(names, workdir) -> float | None:
  """Returns the seconds that a group expects to need, which are those of each of its runs; None if it does not know yet."""
  known = [left for name in names if (left := read_progress(workdir / name).get('seconds_left')) is not None]
  return max(known, default=None)
