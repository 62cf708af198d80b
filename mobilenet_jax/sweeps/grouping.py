"""Which runs of a sweep share a job, and how many jobs a machine takes at once."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax.sweeps.job import GPUS

Groupings = dict[str, Sequence[str] | None]  # by name, the fields in which the runs of a group agree; None: each is alone
Share = tuple[tuple[int, ...], str | None]  # the cores and the GPUs of a job, as job.train_runs takes them
ALONE = {'alone': None}
MEMORY_SHARE = 0.8  # of the memory at hand that a group may be estimated to take


class Machine(NamedTuple):
  """The backend of JAX, its memory in bytes, the cores of the CPU, and the GPUs as CUDA names them."""
  backend: str
  memory: int
  cores: list[int]
  gpus: list[str]


class Needs(NamedTuple):
  """Of memory, in bytes: what each run keeps, by name, and what a step of the largest takes besides."""
  runs: dict[str, int]
  step: int


def prepare(configs: dict[str, dict]) -> tuple[Machine, Needs]:
  """Prepares or checks the data of runs; where they are, and what they need."""
  import jax
  from mobilenet_jax import data, tasks, training
  from mobilenet_jax.runtime import devices, environment
  environment.quiet()
  configs = {name: ml_collections.ConfigDict(config) for name, config in configs.items()}
  largest = max(configs.values(), key=cost)
  # Whether a run's own number of classes fits its data, the run says.
  task = tasks.create(config_lib.changed(largest, {'model.num_classes': 0}))
  num_outputs, _ = task.outputs(data.load(largest.data)[0])
  states = {name: training.state_bytes(config, num_outputs) for name, config in configs.items()}
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  gpus = []
  if jax.default_backend() == 'gpu':
    given = os.environ.get(GPUS)
    gpus = given.split(',') if given else [str(i) for i in range(jax.local_device_count())]
  machine = Machine(jax.default_backend(), devices.memory_at_hand(), cores, gpus)
  return machine, Needs(states, training.step_bytes(largest, num_outputs))


def prepare_elsewhere(configs: dict[str, dict]) -> tuple[Machine, Needs]:
  """The same in a process that ends: who launches jobs shall hold neither data nor devices."""
  # What the libraries of an ended process left open is the system's to clean up, and no news to a person.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
  with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
    return pool.submit(prepare, configs).result()


def choose(runs: dict[str, ml_collections.ConfigDict], names: list[str], jobs: int, machine: Machine, needs: Needs,
           groupings: Groupings, grouping: str) -> list[list[str]]:
  """The groups, the cheapest first.

  With 'auto' those of the first grouping that fits the memory and leaves none of so many jobs idle, or else of the last.
  """
  for candidate in groupings if grouping == 'auto' else (grouping,):
    groups = group(runs, names, groupings[candidate])
    if len(groups) >= jobs and estimate(groups, jobs, machine, needs) <= MEMORY_SHARE * machine.memory:
      break
  return groups


def estimate(groups: list[list[str]], jobs: int, machine: Machine, needs: Needs) -> int:
  """The bytes of memory that the largest of the groups take, so many jobs at once, or one a GPU."""
  by_size = sorted((sum(map(needs.runs.get, members)) + needs.step for members in groups), reverse=True)
  return sum(by_size[:1 if machine.gpus else jobs])


def group(runs: dict[str, ml_collections.ConfigDict], names: list[str], fields: Sequence[str] | None) -> list[list[str]]:
  """The names of runs that agree in these fields, and can share a stream of batches; the cheapest group first."""
  from mobilenet_jax.training import stream
  groups = {}
  for name in names:
    values = config_lib.flat(runs[name])
    common = name if fields is None else [str(values.get(field)) for field in fields]  # a network may lack a field
    groups.setdefault(f'{common} {stream(runs[name])}', []).append(name)
  return sorted(groups.values(), key=lambda members: sum(cost(runs[name]) for name in members))


def cost(config: ml_collections.ConfigDict) -> float:
  """In proportion to a step's, roughly."""
  return config.model.get('width_multiplier', 1.0) * config.data.image_size[0] * config.data.image_size[1]


def that_fit(groups: list[list[str]], jobs: int, machine: Machine, needs: Needs) -> int:
  """How many of so many jobs the memory is enough for; one in any case."""
  while jobs > 1 and estimate(groups, jobs, machine, needs) > MEMORY_SHARE * machine.memory:
    jobs -= 1
  return jobs


def jobs_at_once(machine: Machine, wanted: int) -> int:
  """As many as wanted, by default one a core of the CPU, or a GPU; more than that only of cores: they would lack memory."""
  if machine.backend == 'cpu':
    return wanted or max(len(machine.cores), 1)
  most = max(len(machine.gpus), 1)
  return min(wanted or most, most)


def share(machine: Machine, slot: int, jobs: int) -> Share:
  """What one of so many jobs has of a machine."""
  if machine.gpus:
    return (), ','.join(machine.gpus[slot::jobs])
  cores = machine.cores if machine.backend == 'cpu' else []
  return tuple(cores[slot::jobs] or cores[slot % len(cores):][:1] if cores else ()), None


def parts(*shares: Share) -> set:
  """The cores and GPUs in shares."""
  return {part for cores, gpus in shares for part in (*cores, *(gpus or '').split(','))} - {''}
