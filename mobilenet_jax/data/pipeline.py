"""Batches of NumPy arrays.

A batch is {'image': uint8 (b, *stream_size, 3), 'label': int32 (b,), 'mask': float32 (b,)}, plus the other targets that
the source has: 'attributes' int32 (b, a), 'teacher' float32 (b, d). The seed and the step determine everything: an
iterator started at step s yields what an iterator started at 0 yields from s on, and reads nothing that comes before. If there
are several hosts, each one reads its own part of every batch. The whole batch, put together, does not depend on the number of
hosts.
"""

import collections
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import ml_collections
import numpy as np

from mobilenet_jax.data import order, preprocessing
from mobilenet_jax.data.examples import BadExample, Source
from mobilenet_jax.data.preprocessing import Transform
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.runtime.threads import Workers

BATCHES_AHEAD = 4
Batch = dict[str, np.ndarray]


def train_batches(source: Source, config: ml_collections.ConfigDict, batch_size: int, seed: int, start_step: int,
                  on_bad_image: Callable[[BadExample], None], on_stall: Callable[[float], None] = lambda seconds: None,
                  stop: Callable[[], bool] = lambda: False, transform: Transform | None = None) -> Iterator[Batch]:
  """Yields training batches endlessly, from `start_step` on, with a different order in each epoch.

  Args:
    source: a source from `load`.
    config: the `data` section of a config.
    batch_size: examples per batch.
    seed: seed of the order and the crops.
    start_step: the step of the first batch, counted from 0.
    on_bad_image: called with each example that cannot be read or decoded, if bad_images='skip'; another example of the same
      batch takes its place.
    on_stall: called with the seconds since the last batch, after every config.stall_seconds without a batch.
    stop: called while no batch is ready, if there is only one host; the batches end when it returns True.
    transform: what is done to an example, see tasks.Task.transform; by default a random crop and flip.

  Raises:
    UserError: if an example cannot be read or decoded and bad_images='error'; the error names it.
  """
  per_epoch = order.steps_per_epoch(source, batch_size)
  part = devices.host_part(batch_size)

  def requests():
    known, indices = None, None
    for step in itertools.count(start_step):
      epoch, k = divmod(step, per_epoch)
      if epoch != known:
        known, indices = epoch, order.epoch_order(source, config, batch_size, seed, epoch)
      own = indices[k * batch_size:(k + 1) * batch_size][part]
      yield own, [(seed, epoch, int(i)) for i in own]

  made = _made(source, config, batch_size, transform, requests(), on_bad_image, on_stall, stop)
  for step, batch in enumerate(made, start=start_step):
    good = np.flatnonzero(batch['mask'])
    if not len(good):
      raise UserError(f'data.name={config.name}: none of the {len(batch["mask"])} images of step {step} can be read')
    yield batch if batch['mask'].all() else {name: values[np.resize(good, len(values))] for name, values in batch.items()}


def eval_batches(source: Source, config: ml_collections.ConfigDict, batch_size: int,
                 on_bad_image: Callable[[BadExample], None], start: int = 0,
                 on_stall: Callable[[float], None] = lambda seconds: None,
                 stop: Callable[[], bool] = lambda: False, transform: Transform | None = None) -> Iterator[Batch]:
  """Yields every example once, in order, from batch `start` on; the last batch is padded with examples of mask 0.

  If bad_images='skip', examples that cannot be read or decoded have mask 0 as well.
  """
  part = devices.host_part(batch_size)
  requests = ((indices, [None] * len(indices)) for first in range(start * batch_size, len(source), batch_size)
              for indices in (np.arange(first, min(first + batch_size, len(source)))[part],))
  return _made(source, config, batch_size, transform, requests, on_bad_image, on_stall, stop)


def blank_batch(config: ml_collections.ConfigDict, source: Source, batch_size: int) -> Batch:
  """Returns this host's part of a batch of black images with mask 0, in the form of the batches of `source`."""
  size = batch_size // devices.host_count()
  return {'image': np.zeros((size, *preprocessing.stream_size(config), 3), np.uint8), 'mask': np.zeros(size, np.float32),
          **{name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in source.target_shapes.items()}}


def _made(source, config, batch_size, transform, requests, on_bad_image, on_stall, stop):
  """Yields a batch for each request, in which bad examples have mask 0. Threads, one per core, work BATCHES_AHEAD batches ahead.

  A request is the indices of the examples, and the arguments of order.generator, or None, for each.
  """
  transform = transform or preprocessing.crop_and_flip(config)
  threads = devices.cpu_cores()
  workers = Workers(threads)

  def begin(request):
    indices, seeds = request
    batch = blank_batch(config, source, batch_size)
    parts = np.array_split(np.arange(len(indices)), threads)
    return batch, [workers.submit(_fill, batch, source, transform, rows, indices, seeds, workers.closed)
                   for rows in parts if len(rows)]

  try:
    begun = collections.deque(map(begin, itertools.islice(requests, BATCHES_AHEAD)))
    while begun:
      batch, parts = begun.popleft()
      if not _wait(parts, config.stall_seconds, on_stall, stop):
        return
      begun.extend(map(begin, itertools.islice(requests, 1)))
      for error in (error for part in parts for error in part.result()):
        if config.bad_images == 'error':
          raise UserError(f'{error}; repair or remove it, or train with --config.data.bad_images=skip') from error
        on_bad_image(error)
      yield batch
  finally:
    workers.close()


def _fill(batch, source, transform, rows, indices, seeds, closed):
  """Makes rows of a batch, and returns the BadExamples, whose rows stay blank."""
  bad = []
  for row in rows:
    if closed.is_set():
      break
    try:
      example = source[indices[row]]
    except BadExample as error:
      bad.append(error)
      continue
    rng = order.generator(*seeds[row]) if seeds[row] else None
    image, targets = transform(example.image, example.targets, rng)
    for name, value in {'image': image, **targets, 'mask': 1}.items():
      value, column = np.asarray(value), batch[name]
      assert value.shape == column.shape[1:] and np.can_cast(value.dtype, column.dtype, 'same_kind'), (name, value)
      column[row] = value
  return bad


def _wait(parts, stall_seconds, on_stall, stop):
  """Waits for the parts of a batch. Returns False if a stop is wanted first."""
  asked, said = time.monotonic(), 0
  while futures.wait(parts, min(stall_seconds, 1.0)).not_done:
    if devices.host_count() == 1 and stop():  # a host that waits cannot agree with other hosts to stop
      return False
    waited = time.monotonic() - asked
    if waited >= (said + 1) * stall_seconds:
      said += 1
      on_stall(waited)
  return True
