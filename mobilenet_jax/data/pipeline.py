"""Batches of NumPy arrays, in the same form for every source.

A batch is {'image': uint8 (b, *stream_size, 3), 'label': int32 (b,), 'mask': float32 (b,)}, plus the other targets that
the source has: 'attributes' int32 (b, a), 'teacher' float32 (b, d). The seed and the step determine everything: an
iterator started at step s yields what an iterator started at 0 yields from s on. If there are several hosts, each one has
its own part of every batch. The whole batch, put together, does not depend on the number of hosts.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import ml_collections
import numpy as np

from mobilenet_jax.data import preprocessing, tfds_sets
from mobilenet_jax.data.sources import ArraySource, Source, StreamSource
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices

Batch = dict[str, np.ndarray]
# (targets of one example, window, flip) -> the targets of the cropped example. The window is (top, left, height, width) in
# fractions of the image; the crop is mirrored if `flip`. The task provides this function, see tasks.Task.crop_targets.
# None means that the targets do not change.
CropTargets = Callable[[dict[str, np.ndarray], np.ndarray, bool], dict[str, np.ndarray]]


def steps_per_epoch(source: Source, batch_size: int) -> int:
  """Returns the number of whole batches in an epoch; the remaining examples of the epoch are dropped.

  Raises:
    UserError: if there is not even one.
  """
  if source.num_examples < batch_size:
    raise UserError(f'batch_size={batch_size} is more than the {source.num_examples} training examples; use a smaller one')
  return source.num_examples // batch_size


def left_out(source: Source, config: ml_collections.ConfigDict) -> str:
  """Returns a line on the identities with too few images for data.per_identity, which are left out; '' if there are none."""
  if not config.per_identity or isinstance(source, StreamSource):
    return ''
  counts = np.unique(source.labels, return_counts=True)[1]
  fewer = int((counts < config.per_identity).sum())
  return '' if not fewer else (f'data.per_identity={config.per_identity}: {fewer} of {len(counts)} identities have fewer '
                               'images and are left out of training')


def train_batches(source: Source, config: ml_collections.ConfigDict, batch_size: int, seed: int, start_step: int,
                  on_bad_image: Callable[[str], None], on_stall: Callable[[float], None] = lambda seconds: None,
                  stop: Callable[[], bool] = lambda: False, crop_targets: CropTargets | None = None) -> Iterator[Batch]:
  """Yields training batches endlessly, from `start_step` on, with a different order in each epoch.

  Args:
    source: a source from sources.load.
    config: the `data` section of a config.
    batch_size: examples per batch.
    seed: seed of the order and the crops.
    start_step: the step of the first batch, counted from 0.
    on_bad_image: called with the name of each image that cannot be decoded, if bad_images='skip'; another image of the
      same batch takes its place.
    on_stall: called with the seconds since the last batch, after every config.stall_seconds without a batch.
    stop: called while no batch is ready, if there is only one host; the batches end when it returns True.
    crop_targets: how a crop changes the targets of an example.

  Raises:
    UserError: if an image cannot be decoded and bad_images='error'; the error names the image.
  """
  per_epoch = steps_per_epoch(source, batch_size)
  if isinstance(source, ArraySource):
    batches = _array_train_batches(source, config, batch_size, seed, start_step, per_epoch, crop_targets)
  else:
    batches = _stream_train_batches(source, config, batch_size, seed, start_step, per_epoch, on_bad_image, crop_targets)
  return prefetch(batches, config.stall_seconds, on_stall, stop)


def eval_batches(source: Source, config: ml_collections.ConfigDict, batch_size: int,
                 on_bad_image: Callable[[str], None], start: int = 0,
                 on_stall: Callable[[float], None] = lambda seconds: None,
                 stop: Callable[[], bool] = lambda: False, crop_targets: CropTargets | None = None) -> Iterator[Batch]:
  """Yields every example once, in order, from batch `start` on; the last batch is padded with examples of mask 0.

  If bad_images='skip', images that cannot be decoded have mask 0 as well.
  """
  if isinstance(source, ArraySource):
    batches = _array_eval_batches(source, config, batch_size, start, crop_targets)
  else:
    batches = _stream_eval_batches(source, config, batch_size, on_bad_image, start, crop_targets)
  return prefetch(batches, config.stall_seconds, on_stall, stop)


def blank_batch(config: ml_collections.ConfigDict, source: Source, batch_size: int) -> Batch:
  """Returns this host's part of a batch of black images, in the form of the batches of `source`, to compile a step for."""
  size = batch_size // devices.host_count()
  targets = {name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in target_shapes(source).items()}
  return _batch(np.zeros((size, *preprocessing.stream_size(config), 3), np.uint8), targets)


def prefetch(batches: Iterator[Batch], stall_seconds: float, on_stall: Callable[[float], None],
             stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
  """Yields the items of `batches`, which a thread makes two ahead; order and errors do not change.

  The other arguments are as in `train_batches`.
  """
  ready: queue.Queue = queue.Queue(2)
  left = threading.Event()

  def put(item) -> bool:
    while not left.is_set():
      try:
        ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def work():
    try:
      for batch in batches:
        if not put((batch, None)):
          return
      put((None, StopIteration()))
    except Exception as error:  # raised again in the thread that consumes the batches
      put((None, error))

  threading.Thread(target=work, daemon=True).start()
  try:
    asked, said = time.monotonic(), 0
    while True:
      try:
        batch, error = ready.get(timeout=min(stall_seconds, 1.0))
      except queue.Empty:
        if devices.host_count() == 1 and stop():  # a host that waits cannot agree with other hosts to stop
          return
        waited = time.monotonic() - asked
        if waited >= (said + 1) * stall_seconds:
          said += 1
          on_stall(waited)
        continue
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield batch
      asked, said = time.monotonic(), 0
  finally:
    left.set()


def target_shapes(source: Source) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Returns the shape and the type of each target of an example, by its name in a batch."""
  if isinstance(source, StreamSource):
    return source.target_shapes
  return {name: (values.shape[1:], values.dtype) for name, values in source.targets.items()}


def _batch(images, targets, mask=None) -> Batch:
  images = np.asarray(images)
  mask = np.ones(len(images), np.float32) if mask is None else np.asarray(mask, np.float32)
  narrow = lambda values: values.astype(np.int32) if values.dtype.kind in 'biu' else values
  return {'image': images, 'mask': mask, **{name: narrow(np.asarray(values)) for name, values in targets.items()}}


def _pad(batch: Batch, blank: Batch) -> Batch:
  """Returns `batch` padded with examples of `blank`, which have mask 0."""
  count = len(batch['mask'])
  filled = {name: np.concatenate([batch[name], rest[count:]]) if count else rest for name, rest in blank.items()}
  filled['mask'][count:] = 0
  return filled


# Arrays in memory: NumPy and Pillow, with one thread per core.


def _array_train_batches(source, config, batch_size, seed, start_step, per_epoch, crop_targets):
  step = start_step
  with futures.ThreadPoolExecutor(devices.cpu_cores()) as pool:
    while True:
      epoch, first = step // per_epoch, step % per_epoch
      # Two streams of one counter-based generator: the epoch gives the order, and the step gives the crops.
      rng = np.random.Generator(np.random.Philox(key=[seed, 2 * epoch]))
      order = _epoch_order(source, config, batch_size, rng)
      for k in range(first, per_epoch):
        indices = order[k * batch_size:(k + 1) * batch_size]
        rng = np.random.Generator(np.random.Philox(key=[seed, 2 * step + 1]))
        draws, part = rng.random((batch_size, preprocessing.DRAWS)), devices.host_part(batch_size)
        indices, draws = indices[part], draws[part]
        yield _batch(*_crop(source, indices, draws, config, pool, crop_targets))
        step += 1


def _array_eval_batches(source, config, batch_size, start, crop_targets):
  blank = blank_batch(config, source, batch_size)
  with futures.ThreadPoolExecutor(devices.cpu_cores()) as pool:
    for first in range(start * batch_size, source.num_examples, batch_size):
      indices = np.arange(first, min(first + batch_size, source.num_examples))[devices.host_part(batch_size)]
      yield _pad(_batch(*_crop(source, indices, [None] * len(indices), config, pool, crop_targets)), blank)


def _epoch_order(source, config, batch_size, rng) -> np.ndarray:
  """Returns the indices of an epoch's examples in a new order, batch after batch."""
  if not config.per_identity:
    return rng.permutation(source.num_examples)
  # A batch has some identities with `per_identity` images each. Identities with more images come more often, in other batches.
  own = [rng.permutation(np.flatnonzero(source.labels == label)) for label in np.unique(source.labels)]
  size = config.per_identity
  parts = [images[k:k + size] for images in own for k in range(0, len(images) - size + 1, size)]
  if not parts:
    raise UserError(f'data.per_identity={size}: none of the {len(own)} identities has that many images; expected people with '
                    'more images, or a smaller number')
  parts = [parts[i] for i in rng.permutation(len(parts))]
  wanted = source.num_examples // batch_size * batch_size // size
  return np.concatenate([parts[i % len(parts)] for i in range(wanted)])


def _targets_at(source, indices):
  return {name: values[indices] for name, values in source.targets.items()}


def _crop(source, indices, draws, config, pool, crop_targets=None):
  """Crops the images at `indices`: at random if there are draws, else centrally.

  Returns:
    The images, a list of (*stream_size, 3), and the targets by name.
  """
  size, targets = preprocessing.stream_size(config), _targets_at(source, indices)

  def crop(i):
    image, draw = source.images[indices[i]], draws[i]
    shape = [float(n) for n in image.shape[:2]]
    if draw is None:
      window, flip = preprocessing.central_window(*shape, config, np), False
    else:
      window, flip = preprocessing.random_window(*shape, draw, config, np), config.flip and draw[4] < 0.5
    cropped = preprocessing.crop_array(image, window, flip, size)
    if crop_targets is None:
      return cropped, None
    part = np.array(window) / (*shape, *shape)  # top, left, height, width in fractions of the image
    return cropped, crop_targets({name: values[i] for name, values in targets.items()}, part, bool(flip))

  parts = np.array_split(np.arange(len(indices)), devices.cpu_cores())
  examples = list(itertools.chain.from_iterable(pool.map(lambda part: [crop(i) for i in part], parts)))
  if crop_targets is not None and examples:
    targets = {name: np.stack([row[name] for _, row in examples]) for name in targets}
  return [image for image, _ in examples], targets


# Streams: tf.data. An image that cannot be decoded makes its whole batch fail, without naming the image. That batch is
# then decoded again, one example at a time, and the stream restarts after it. Thus the usual case costs nothing.


def _stream_train_batches(source, config, batch_size, seed, start_step, per_epoch, on_bad_image, crop_targets):
  step = start_step
  while True:
    try:
      for batch in _stream_epoch(source, config, batch_size, seed, step, per_epoch, on_bad_image, crop_targets):
        yield batch
        step += 1
    except tfds_sets.damage_errors() as error:
      source = _without_damaged(source, config, on_bad_image, error)


def _stream_epoch(source, config, batch_size, seed, step, per_epoch, on_bad_image, crop_targets):
  """Yields the batches from `step` to the end of its epoch."""
  epoch, first = step // per_epoch, step % per_epoch
  order_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
  if config.per_identity and isinstance(source, StreamSource):
    raise UserError(f'data.per_identity={config.per_identity}: {config.name} is read as a stream, in which people cannot be '
                    'looked up; expected a folder of people, or a dataset that fits into memory')
  if config.per_identity:
    encoded = source.in_order(_epoch_order(source, config, batch_size, np.random.default_rng(order_seed)))
  else:
    encoded = source.examples(order_seed, config.shuffle_buffer)
  # If records were left out, the first examples are repeated to fill the epoch.
  for batch, bad in _decoded(encoded.repeat(), config, batch_size, first, per_epoch, order_seed, crop_targets, train=True):
    good = np.flatnonzero(batch['mask'])
    for name in bad:
      _report(name, config, on_bad_image)
    if not len(good):
      raise UserError(f'data.name={config.name}: none of the {batch_size} images of step {step} can be decoded')
    yield {k: v[np.resize(good, len(v))] for k, v in batch.items()} if bad else batch
    step += 1


def _stream_eval_batches(source, config, batch_size, on_bad_image, start, crop_targets):
  blank = blank_batch(config, source, batch_size)
  while start < -(-source.num_examples // batch_size):
    batches = -(-source.num_examples // batch_size)
    encoded = source.examples(None, config.shuffle_buffer)
    try:
      for batch, bad in _decoded(encoded, config, batch_size, start, batches, 0, crop_targets, train=False):
        for name in bad:
          _report(name, config, on_bad_image)
        yield _pad(batch, blank)
        start += 1
    except tfds_sets.damage_errors() as error:
      source = _without_damaged(source, config, on_bad_image, error)


def _without_damaged(source, config, on_bad_image, error):
  """Returns a stream without the records that cannot be read, and reports each of them. Other sources have no records.

  Raises:
    UserError: if bad_images='error'; the error names the first record.
  """
  source, lost = source.without_damaged()
  if not lost:
    raise error
  if config.bad_images == 'error':
    raise UserError(f'{config.name}: the record {lost[0]} is damaged, and {len(lost) - 1} after it in its file cannot be '
                    'read; prepare the dataset again, or leave them out with --config.data.bad_images=skip') from error
  for name in lost:
    on_bad_image(name)
  if not source.num_examples:
    raise UserError(f'{config.name}: none of the {len(lost)} records of {source.builder.name} can be read; prepare the '
                    'dataset again')
  return source


def _report(name, config, on_bad_image):
  if config.bad_images == 'error':
    raise UserError(f'{name}: cannot be decoded as a JPEG, PNG, GIF or BMP image; repair or remove it, or skip such images '
                    'with --config.data.bad_images=skip')
  on_bad_image(name)


def _decoded(encoded, config, batch_size, first, last, seed, crop_targets, train):
  """Yields batches `first` to `last` of an epoch, each with the names of its images that cannot be decoded."""
  import tensorflow as tf

  def decode(position, example):
    draws = None
    if train:
      draws = tf.unstack(tf.random.stateless_uniform([preprocessing.DRAWS], seed=[seed, position]))
    targets = {name: value for name, value in example.items() if name not in ('image', 'id')}
    image, window, flip = preprocessing.crop_encoded(example['image'], draws, config)
    if crop_targets is not None:
      targets = _crop_targets_in_graph(crop_targets, targets, window, flip)
    return image, targets

  part = devices.host_part(batch_size)
  numbered = encoded.enumerate()
  if devices.host_count() > 1:  # a host decodes only its own part, but reads everything, as all hosts share one order
    numbered = numbered.filter(lambda i, _: (i % batch_size >= part.start) & (i % batch_size < part.stop))
  share = part.stop - part.start

  def batches_from(k):
    rest = numbered.skip(k * share)
    decoded = rest.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return decoded.batch(share).prefetch(2).as_numpy_iterator()

  iterator = batches_from(first)
  for k in range(first, last):
    try:
      found = next(iterator, None)
      yield (_batch(*found) if found else {'mask': np.zeros(0)}), []  # other hosts may have all of the last batch
    except tf.errors.InvalidArgumentError:
      images, rows, mask, bad = [], [], [], []
      for position, example in numbered.skip(k * share).take(share):
        try:
          image, targets = decode(position, example)
          image, ok = image.numpy(), True
        except tf.errors.InvalidArgumentError:
          image, targets, ok = np.zeros((*preprocessing.stream_size(config), 3), np.uint8), dict(example), False
          del targets['image']
          bad.append(targets.pop('id').numpy().decode())
        images.append(image)
        rows.append({name: value.numpy() for name, value in targets.items()})
        mask.append(ok)
      yield _batch(images, {name: np.stack([row[name] for row in rows]) for name in rows[0]}, mask), bad
      iterator = batches_from(k + 1)


def _crop_targets_in_graph(crop_targets, targets, window, flip):
  """Applies CropTargets to tensors; types and shapes do not change."""
  import tensorflow as tf
  names = list(targets)

  def crop(window, flip, *values):
    cropped = crop_targets(dict(zip(names, values)), window, bool(flip))
    changed = [np.asarray(cropped[name], value.dtype) for name, value in zip(names, values)]
    assert [value.shape for value in changed] == [value.shape for value in values], (names, changed)  # else: a bad image
    return changed

  values = tf.numpy_function(crop, [window, flip, *targets.values()], [value.dtype for value in targets.values()])
  return {name: tf.ensure_shape(value, targets[name].shape) for name, value in zip(names, values)}
