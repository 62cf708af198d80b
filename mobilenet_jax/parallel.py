"""The only place that knows pmap and devices.

A step is written for one device, with collectives over the axis `AXIS` only. State and rng go to every device
as they are (in_axes None), batches are split along their first axis, and what comes back is the same on every
device (out_axes None): no array carries a device axis outside of here.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

import jax
import numpy as np

from mobilenet_jax.errors import UserError

AXIS = 'batch'


def device_count() -> int:
  return jax.local_device_count()


def cpu_cores() -> int:
  """The cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def run_once(function: Callable, *args):
  """Compiles and calls what is needed just once: without optimisation, which takes XLA's CPU backend longer."""
  # Measured for the initialisation of MobileNet on one core: 10 s with, 3 s without.
  options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else {}
  return jax.jit(function).lower(*args).compile(options)(*args)


def replicate(state):
  """Puts a state where a mapped step leaves its own, so that the first step and the rest are one compilation."""
  return jax.device_put(state, _sharding(jax.sharding.PartitionSpec()))


def split(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Gives each device its part of a batch: (b, ...) -> (devices, b / devices, ...)."""
  parts = jax.tree.map(lambda x: x.reshape(device_count(), -1, *x.shape[1:]), batch)
  return jax.device_put(parts, _sharding(jax.sharding.PartitionSpec(AXIS)))


def split_ahead(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
  """Each batch split, and the next one on its way to the devices while they work on this."""
  batches = map(split, batches)
  for batch in batches:
    for following in batches:
      yield batch
      batch = following
    yield batch


def at_once(function: Callable, items: Sequence) -> list:
  """function(item) of each, a thread a core: what is compiled in them is compiled at the same time."""
  if len(items) < 2:
    return [function(item) for item in items]
  with futures.ThreadPoolExecutor(min(len(items), cpu_cores())) as pool:
    return list(pool.map(function, items))


def _sharding(spec):
  return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,)), spec)


def pmap_step(step: Callable) -> Callable:
  """Maps step(state, batch, rng, frozen) -> (state, sums) over all local devices, consuming the state; the batch split."""
  return jax.pmap(step, AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0)


def pmap_evaluation(step: Callable) -> Callable:
  """Maps step(variables, batch, frozen) -> (sums, values an example) over all local devices; batch and values split."""
  return jax.pmap(step, AXIS, in_axes=(None, 0, None), out_axes=(None, 0))


def join(parts):
  """The inverse of `split`, on the host: (devices, b / devices, ...) -> (b, ...)."""
  return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), parts)


def memory_at_hand() -> int:
  """Bytes: the first accelerator's, or what the machine has available (elsewhere than on Linux, all it has)."""
  if limit := (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit'):
    return limit
  meminfo = Path('/proc/meminfo')
  if meminfo.exists():
    return int(re.search(r'MemAvailable:\s*(\d+) kB', meminfo.read_text())[1]) * 1024
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def check_divisible(field: str, batch_size: int, parts: int = 1) -> None:
  """Raises UserError where a batch cannot be split over the devices, and each share into `parts`."""
  count = device_count() * parts
  if batch_size % count:
    near = max(batch_size // count, 1) * count
    split = f'{device_count()} devices' + (f' x {parts} parts (accumulate_steps)' if parts > 1 else '')
    raise UserError(f'{field}={batch_size} is not divisible by {split}; {field}={near} would be')


def device_name() -> str:
  """What the first device calls itself, and how many there are: '8 x TPU v4', or 'cpu, 2 cores'."""
  kind = jax.local_devices()[0].device_kind
  if kind == 'cpu':
    kind = f'cpu, {cpu_cores()} core{"s" if cpu_cores() > 1 else ""}'
  return f'{device_count()} x {kind}' if device_count() > 1 else kind
