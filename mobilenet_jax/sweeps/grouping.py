"""Decides which runs of a sweep share a job, and how many jobs a machine runs at once."""

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import tasks, training
from mobilenet_jax.data import steps_per_epoch
from mobilenet_jax.errors import UserError, counted, few
from mobilenet_jax.runtime import devices, environment, signals
from mobilenet_jax.sweeps.job import GPUS

Share = tuple[tuple[int, ...], str | None]  # the cores and the GPUs of a job, as job.train_runs takes them
AUTO, ALL, ALONE = 'auto', 'all', 'alone'
MEMORY_SHARE = 0.8  # of the available memory, which the estimate for the groups may not exceed
UNEVEN = 1.25  # how much longer than with perfectly even jobs a sweep may take before a group is split


class Machine(NamedTuple):
  """A machine: the backend of JAX, its memory in bytes, the CPU cores, and the GPUs by their CUDA names."""
  backend: str
  memory: int
  cores: list[int]
  gpus: list[str]


class Needs(NamedTuple):
  """The memory that runs need, in bytes: what each run keeps, by name, and what a step of the largest takes in addition."""
  runs: dict[str, int]
  step: int


def prepare(configs: dict[str, dict], waiting: list[str]) -> tuple[Machine, Needs, dict[str, dict | str]]:
  """Prepares or checks the data of the runs.

  Args:
    configs: the config of each run, by its name.
    waiting: the names of the runs that are to be trained.

  Returns:
    The machine they run on, the memory that the waiting runs need, and what `digests` returns.
  """
  environment.quiet()
  configs = {name: ml_collections.ConfigDict(config) for name, config in configs.items()}
  inputs = _inputs(configs, waiting)
  said = {}
  for name in waiting:
    training.check_inputs(configs[name], inputs[name])
    said |= dict.fromkeys(training.too_short_for(configs[name], steps_per_epoch(inputs[name].train, configs[name].batch_size)))
  if said:  # by this process, whose output is that of the sweep, as well as in the logs
    print(*said, sep='\n', flush=True)
  name = max(waiting or configs, key=lambda name: cost(configs[name]))
  largest = _without_classes(configs[name])
  num_outputs, _ = tasks.create(largest).outputs(inputs[name].train)
  states = {name: training.state_bytes(config, num_outputs) for name, config in configs.items()}
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  gpus = []
  if jax.default_backend() == 'gpu':
    given = os.environ.get(GPUS)
    gpus = given.split(',') if given else [str(i) for i in range(jax.local_device_count())]
  machine = Machine(jax.default_backend(), devices.memory_at_hand(), cores, gpus)
  return machine, Needs(states, training.step_bytes(largest, num_outputs)), _digests(configs, inputs)


def digests(configs: dict[str, ml_collections.ConfigDict]) -> dict[str, dict | str]:
  """Returns, by name, the digests of the inputs of each finished run, or why they cannot be loaded any more."""
  return _digests(configs, _inputs(configs, []))


def _digests(configs, inputs):
  weights = training.starting_weights(configs.values())
  return {name: found if isinstance(found := inputs[name], str) else {**found.digests, **weights[config.init.model]}
          for name, config in configs.items()}


def _inputs(configs, waiting):
  """Returns the inputs of each run, by its name, or why those of a finished run cannot be loaded. Each is loaded once."""
  shared, found = {}, {}
  for name in sorted(configs, key=lambda name: name not in waiting):  # an error of a waiting run is one of the sweep
    config = _without_classes(configs[name])
    fields = {**config.to_dict(), 'data': {**config.data, 'image_size': 0, 'stream_size': 0, 'seed': 0}}
    key = json.dumps({field: fields[field] for field in ('task', 'data', 'distill', 'embedding')}, sort_keys=True,
                     allow_nan=False)
    if key not in shared:
      try:
        shared[key] = training.load_inputs(config)
      except UserError as error:
        if name in waiting:
          raise
        shared[key] = str(error)
    found[name] = shared[key]
  return found


def _without_classes(config):
  """Returns a config whose classes are those of the data; each run checks itself whether its number fits the data."""
  return config_lib.changed(config, {'model.num_classes': 0})


def completed(configs: dict[str, dict], workdir: Path) -> dict[str, dict]:
  """Returns the configs of the runs of a sweep, by name, as training.completed does."""
  environment.quiet()
  found = training.completed([ml_collections.ConfigDict(config) for config in configs.values()],
                             [workdir / name for name in configs])
  return {name: config.to_dict() for name, config in zip(configs, found)}


def elsewhere(function: Callable, *args):
  """Calls a function in a process that then ends, so that the process that launches jobs holds neither data nor devices."""
  # The system cleans up what the libraries of an ended process left open. A person need not see warnings about it.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
  with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
    with signals.kept_from_children():
      found = pool.submit(function, *args)
    try:
      return found.result()
    except KeyboardInterrupt:
      for process in multiprocessing.active_children():
        process.terminate()
      raise


def choose(runs: dict[str, ml_collections.ConfigDict], names: list[str], jobs: int, machine: Machine, needs: Needs,
           grouping: str) -> list[list[str]]:
  """Returns the groups of runs, the cheapest first.

  'auto' puts all runs that can share their batches into one group, and splits the costliest group in two as long as the
  groups do not fit into memory or keep the `jobs` busy unevenly.
  """
  groups = group(runs, names, grouping)
  costs = {name: cost(runs[name]) for name in names}
  while grouping == AUTO:
    fits = estimate(groups, jobs, machine, needs) <= MEMORY_SHARE * machine.memory
    even = _longest(groups, jobs, costs) <= UNEVEN * sum(costs.values()) / jobs
    several = [members for members in groups if len(members) > 1]
    if fits and even or not several:
      break
    largest = max(several, key=len if not fits else lambda members: sum(map(costs.get, members)))
    groups.remove(largest)
    groups += _dealt(largest, 2, costs)
  return _cheapest_first(groups, costs)


def _longest(groups, jobs, costs) -> float:
  """Returns the cost of the job that gets most if each group, the costliest first, goes to the job that has least."""
  loads = [0.0] * jobs
  for members in reversed(_cheapest_first(groups, costs)):
    loads[loads.index(min(loads))] += sum(map(costs.get, members))
  return max(loads)


def _dealt(names, count, costs) -> list[list[str]]:
  """Deals names into lists of about the same cost. In each they are in the order in which they were."""
  parts = [[] for _ in range(count)]
  for name in sorted(names, key=costs.get, reverse=True):
    min(parts, key=lambda members: sum(map(costs.get, members))).append(name)
  return [[name for name in names if name in members] for members in parts]


def _cheapest_first(groups, costs):
  return sorted(groups, key=lambda members: sum(map(costs.get, members)))


def estimate(groups: list[list[str]], jobs: int, machine: Machine, needs: Needs) -> int:
  """Returns the bytes that the largest groups are estimated to take, `jobs` of them at once, or one per GPU."""
  by_size = sorted((sum(map(needs.runs.get, members)) + needs.step for members in groups), reverse=True)
  return sum(by_size[:1 if machine.gpus else jobs])


def check(runs: dict[str, ml_collections.ConfigDict], grouping: str) -> None:
  """Raises UserError if a grouping names a field that no run has."""
  known = {field for config in runs.values() for field in config_lib.flat(config)}
  for field in _fields(grouping):
    if field not in known:
      choices = f'{AUTO}, {ALL}, {ALONE}, or fields in which the runs of a group agree, such as data.image_size'
      raise UserError(f'--group={grouping}: {config_lib.unknown_field(field, known) if "." in field else f"expected {choices}"}')


def _fields(grouping) -> list[str]:
  return [] if grouping in (AUTO, ALL, ALONE) else grouping.split(',')


def group(runs: dict[str, ml_collections.ConfigDict], names: list[str], grouping: str) -> list[list[str]]:
  """Returns groups of names of runs that can share their batches; the cheapest group first.

  Args:
    runs: the configs by name.
    names: the names of the runs to group.
    grouping: 'alone' for each run alone, 'all', or fields, separated by commas, in which the runs of a group agree.
  """
  groups = {}
  for name in names:
    values = config_lib.flat(runs[name])
    common = name if grouping == ALONE else [str(values.get(field)) for field in _fields(grouping)]  # a network may lack one
    groups.setdefault(f'{common} {training.stream(runs[name])}', []).append(name)
  return _cheapest_first(list(groups.values()), {name: cost(runs[name]) for name in names})


def described(runs: dict[str, ml_collections.ConfigDict], groups: list[list[str]], why: str) -> str:
  """Returns which runs share a pass over the data, and what keeps others from it, in words.

  Args:
    runs: the configs, by name.
    groups: the names of the runs of each group.
    why: why runs whose batches are the same are in several groups, if they are.
  """
  if len(groups) == sum(map(len, groups)) == 1:
    return ''
  names = [name for members in groups for name in members]
  text = f', in {counted(len(groups), "group")} of up to {max(map(len, groups))} that share each batch'
  if len(groups) == len(names):
    text = ', each alone'
  if len(groups) == 1:
    return text
  batches = [config_lib.flat(ml_collections.ConfigDict(json.loads(training.stream(runs[name])))) for name in names]
  reasons = []
  if differing := [field for field in batches[0] if len({str(batch.get(field)) for batch in batches}) > 1]:
    advice = {'data.seed': 'with data.seed=0 seeds of the weights share them' if all(
        runs[name].data.seed < 0 for name in names) else '',
              'data.image_size': 'with data.stream_size as large as the largest, sizes share them'}
    reasons.append(f'the batches differ in {few(differing)}' + ''.join(f'; {advice[f]}' for f in differing if advice.get(f)))
  if len(groups) > len(group(runs, names, ALL)):
    reasons.append(why)
  return f'{text} ({", ".join(reasons)})'


def reason(grouping: str, memory_known: bool = True) -> str:
  """Returns why `grouping` keeps runs apart whose batches are the same."""
  if grouping != AUTO:
    return f'--group={grouping}'
  return 'to fit into memory and keep all jobs busy' if memory_known else 'as the memory of the nodes is not known'


def cost(config: ml_collections.ConfigDict) -> float:
  """Returns a number that is roughly proportional to the cost of a step."""
  return config.model.get('width_multiplier', 1.0) * config.data.image_size[0] * config.data.image_size[1]


def that_fit(groups: list[list[str]], jobs: int, machine: Machine, needs: Needs) -> int:
  """Returns how many of the `jobs` fit into memory at once; at least one."""
  while jobs > 1 and estimate(groups, jobs, machine, needs) > MEMORY_SHARE * machine.memory:
    jobs -= 1
  return jobs


def jobs_at_once(machine: Machine, wanted: int) -> int:
  """Returns the number of jobs to run at once: `wanted`, or by default one per CPU core or one per GPU.

  There may be more jobs than cores, but not more jobs than GPUs, because they would run out of memory.
  """
  if machine.backend == 'cpu':
    return wanted or max(len(machine.cores), 1)
  most = max(len(machine.gpus), 1)
  return min(wanted or most, most)


def share(machine: Machine, slot: int, jobs: int) -> Share:
  """Returns the cores and GPUs of a machine that the job in `slot` gets, one of `jobs` jobs."""
  if machine.gpus:
    return (), ','.join(machine.gpus[slot::jobs])
  cores = machine.cores if machine.backend == 'cpu' else []
  return tuple(cores[slot::jobs] or cores[slot % len(cores):][:1] if cores else ()), None


def parts(*shares: Share) -> set:
  """Returns the set of the cores and GPUs in `shares`."""
  return {part for cores, gpus in shares for part in (*cores, *(gpus or '').split(','))} - {''}
