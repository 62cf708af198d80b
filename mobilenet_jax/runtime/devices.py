"""The only module that deals with pmap, devices and hosts.

A step is written for one device, with collectives over the axis `AXIS` only. The state and the rng go to every device
unchanged (in_axes None), and batches are split along their first axis. The results are the same on every device
(out_axes None), so no array outside of this module has a device axis.
"""

import contextlib
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mobilenet_jax.errors import REQUEUE, UserError, counted

AXIS = 'batch'
HEARTBEAT_SECONDS = 30  # without a sign of life from another host, until this one ends too


def join_hosts(coordinator: str = '', hosts: int = 0, host: int = -1) -> None:
  """Makes this process one of several hosts, as the arguments or the environment say.

  It must be called before anything asks for devices. The environment is that of Slurm's srun, Open MPI's mpirun or a Cloud
  TPU slice. Without such an environment and without arguments, this process is the only host.

  Args:
    coordinator: address and port of the first host, such as 10.0.0.1:1234.
    hosts: the number of hosts.
    host: which of them this is, from 0.

  Raises:
    UserError: if the other hosts cannot be reached.
  """
  if bool(coordinator) != bool(hosts) or hosts and not 0 <= host < hosts:
    raise UserError(f'--coordinator={coordinator} --hosts={hosts} --host={host}: expected all three, such as '
                    '--coordinator=10.0.0.1:1234 --hosts=2 --host=0, or none of them')
  if not coordinator and not _in_a_job_of_several():
    return
  given = {'coordinator_address': coordinator, 'num_processes': hosts, 'process_id': host} if coordinator else {}
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
  except (RuntimeError, ValueError) as error:
    raise UserError(f'the other hosts cannot be reached: {" ".join(str(error).split())[:200]}') from error


@contextlib.contextmanager
def ending_with_the_others() -> Iterator[None]:
  """Ends this process with one line and the status REQUEUE if another host has died.

  It ends at once, because JAX's own shutdown would wait for the other host and abort. If no operation fails, as on some
  accelerators, JAX ends the process HEARTBEAT_SECONDS after the other host's last sign of life.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    lost = ('gloo', 'unavailable', 'deadline', 'connection', 'heartbeat')
    if jax.process_count() == 1 or not any(word in str(error).lower() for word in lost):
      raise
    print(f'another host has ended ({" ".join(str(error).split())[:120]}); start the same command again on all hosts to '
          'continue', file=sys.stderr, flush=True)
    os._exit(REQUEUE)


def _in_a_job_of_several() -> bool:
  several = lambda name: int(os.environ.get(name) or 1) > 1
  return (several('SLURM_STEP_NUM_TASKS') or several('OMPI_COMM_WORLD_SIZE')
          or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', ''))


def is_first_host() -> bool:
  """Returns whether this is the host that writes and prints."""
  return jax.process_index() == 0


def host_count() -> int:
  return jax.process_count()


def host_part(size: int) -> slice:
  """Returns which of the `size` rows of a batch belong to this host."""
  share = size // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def on_first_host(function: Callable):
  """Calls function() on the first host only, and returns its result on all hosts.

  If there are several hosts, arrays are returned as NumPy arrays. If function() raises a UserError, all hosts raise it.
  """
  if jax.process_count() == 1:
    return function()
  value, error = None, None
  if is_first_host():
    try:
      value = jax.device_get(function())
    except UserError as raised:
      error = raised
  value, error = _from_first_host((value, error))
  if error:
    raise error
  return value


def _from_first_host(value):
  blob = np.frombuffer(pickle.dumps(value), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.array(len(blob))))
  blob = np.resize(blob, size)  # only the content on the first host matters
  return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(blob)).astype(np.uint8).tobytes())


def over_hosts(number: int) -> int:
  """Returns the sum of `number` over all hosts."""
  return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(number)).sum())


def device_count() -> int:
  """Returns the number of devices of all hosts."""
  return jax.device_count()


def cpu_cores() -> int:
  """Returns the number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def run_once(function: Callable, *args):
  """Compiles and calls a function that is needed just once. On CPU, XLA does not optimise it, which is quicker."""
  # Measured for the initialisation of MobileNet on one core: 10 s with optimisation, 3 s without.
  options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else {}
  return jax.jit(function).lower(*args).compile(options)(*args)


def replicate(state):
  """Places a state on the devices as a mapped step returns it, so that the first step needs no compilation of its own."""
  sharding = _sharding(jax.sharding.PartitionSpec())
  if jax.process_count() == 1:
    return jax.device_put(state, sharding)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), state)


def split(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Splits this host's part of a batch over its devices: (b / hosts, ...) -> (devices, b / devices, ...)."""
  parts = jax.tree.map(lambda x: x.reshape(jax.local_device_count(), -1, *x.shape[1:]), batch)
  sharding = _sharding(jax.sharding.PartitionSpec(AXIS))
  if jax.process_count() == 1:
    return jax.device_put(parts, sharding)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), parts)


def split_ahead(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
  """Yields each batch split over the devices. The next batch is sent to them while they work on the current one."""
  batches = map(split, batches)
  for batch in batches:
    for following in batches:
      yield batch
      batch = following
    yield batch


def at_once(function: Callable, items: Sequence, while_waiting: Callable[[], None] = lambda: None) -> list:
  """Returns function(item) for each item, with one thread per core. What the calls compile is compiled at the same time.

  Meanwhile while_waiting() is called every second, and signals are handled, which a compilation in this thread would delay.
  """
  if jax.process_count() > 1:  # several hosts must run their common operations in the same order
    return [function(item) for item in items]
  with futures.ThreadPoolExecutor(cpu_cores()) as pool:
    begun = [pool.submit(function, item) for item in items]
    while futures.wait(begun, 1).not_done:
      while_waiting()
    return [one.result() for one in begun]


def _sharding(spec):
  return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), (AXIS,)), spec)


def pmap_step(step: Callable) -> Callable:
  """Maps step(state, batch, rng, frozen) -> (state, sums) over all devices. It splits the batch and consumes the state."""
  return jax.pmap(step, AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0)


def pmap_evaluation(step: Callable) -> Callable:
  """Maps step(variables, batch, frozen) -> (sums, values per example) over all devices. Batch and values are split."""
  return jax.pmap(step, AXIS, in_axes=(None, 0, None), out_axes=(None, 0))


def join(parts):
  """Returns the whole batch on each host: (devices, b / devices, ...) -> (b, ...)."""
  if jax.process_count() > 1:
    parts = multihost_utils.process_allgather(parts, tiled=True)
  return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), parts)


def memory_at_hand() -> int:
  """Returns the bytes of the first accelerator's memory or, without one, of the memory that this machine has available.

  On systems other than Linux, the latter is all of the machine's memory.
  """
  if limit := (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit'):
    return limit
  meminfo = Path('/proc/meminfo')
  if meminfo.exists():
    return int(re.search(r'MemAvailable:\s*(\d+) kB', meminfo.read_text())[1]) * 1024
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def check_divisible(field: str, batch_size: int, parts: int = 1) -> None:
  """Checks that a batch can be split over the devices, and each device's share into `parts`.

  Raises:
    UserError: if it cannot.
  """
  count = device_count() * parts
  if batch_size % count:
    near = max(batch_size // count, 1) * count
    split = counted(device_count(), 'device') + (f' x {parts} parts (accumulate_steps)' if parts > 1 else '')
    raise UserError(f'{field}={batch_size} is not divisible by {split}; {field}={near} would be')


def device_name() -> str:
  """Returns the kind of the first device and the number of devices, such as '8 x TPU v4' or 'cpu, 2 cores'."""
  kind = jax.local_devices()[0].device_kind
  if kind == 'cpu':
    kind = f'cpu, {counted(cpu_cores(), "core")}'
  return f'{device_count()} x {kind}' if device_count() > 1 else kind
