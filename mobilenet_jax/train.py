"""The only training loop."""

import contextlib
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections

from mobilenet_jax import complexity, metrics, optim, parallel, results, tasks
from mobilenet_jax import config as config_lib
from mobilenet_jax.checkpoint import Checkpoints
from mobilenet_jax.data import pipeline, preprocessing, sources
from mobilenet_jax.errors import UserError
from mobilenet_jax.evaluate import evaluate, make_eval_step
from mobilenet_jax.files import write_whole
from mobilenet_jax.report import Report


@flax.struct.dataclass
class TrainState:
  """Everything a step changes."""

  step: jax.Array  # steps done
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any  # averages of {'params', 'batch_stats'}, or {} where off

  def variables(self) -> dict:
    """What to evaluate: the averaged weights where they are kept."""
    return self.ema or {'params': self.params, 'batch_stats': self.batch_stats}


def init_state(rng: jax.Array, model, tx, config: ml_collections.ConfigDict) -> TrainState:
  """A state before the first step; the parameters do not depend on the image size."""
  image = jnp.zeros((1, *config.data.image_size, 3))
  variables = model.init(rng, image, train=False)
  params, batch_stats = variables['params'], variables['batch_stats']
  # A copy: a step consumes its state, which may not hold one buffer twice.
  ema = jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if config.ema_decay else {}
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)


def make_train_step(model, task, tx, config: ml_collections.ConfigDict):
  """step(state, batch, rng) -> (state, sums), written for one device with collectives over parallel.AXIS."""

  def loss_and_gradient(params, batch_stats, batch, rng):
    color_rng, dropout_rng = jax.random.split(rng)
    images = preprocessing.normalize(batch['image'])
    if config.data.color_distortion:
      images = preprocessing.distort_colors(images, color_rng, config.data.color_distortion)

    def loss(params):
      logits, updates = model.apply(
          {'params': params, 'batch_stats': batch_stats}, images, train=True,
          mutable=['batch_stats'], rngs={'dropout': dropout_rng})
      return task.loss(logits, batch).mean(), (updates['batch_stats'], logits)

    gradient, (batch_stats, logits) = jax.grad(loss, has_aux=True)(params)
    return gradient, batch_stats, metrics.sums(task.metrics(logits, batch), batch['mask'])

  def train_step(state: TrainState, batch, rng):
    rng = jax.random.fold_in(jax.random.fold_in(rng, state.step), jax.lax.axis_index(parallel.AXIS))
    count = config.accumulate_steps
    if count == 1:
      gradient, batch_stats, sums = loss_and_gradient(state.params, state.batch_stats, batch, rng)
    else:
      parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)  # (b, ...) -> (parts, b/parts, ...)

      def add_part(carry, part_and_rng):
        total, batch_stats = carry
        gradient, batch_stats, sums = loss_and_gradient(state.params, batch_stats, *part_and_rng)
        return (jax.tree.map(lambda t, g: t + g / count, total, gradient), batch_stats), sums

      start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
      (gradient, batch_stats), sums = jax.lax.scan(add_part, start, (parts, jax.random.split(rng, count)))
      sums = jax.tree.map(lambda x: x.sum(0), sums)

    gradient, batch_stats = jax.lax.pmean((gradient, batch_stats), parallel.AXIS)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = jax.tree.map(jnp.add, state.params, updates)
    step, ema = state.step + 1, state.ema
    if config.ema_decay:
      # TF-slim's ramp, so that the first steps are soon forgotten.
      decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
      new = {'params': params, 'batch_stats': batch_stats}
      ema = jax.tree.map(lambda average, value: average + (1 - decay) * (value - average), ema, new)
    return TrainState(step, params, batch_stats, opt_state, ema), jax.lax.psum(sums, parallel.AXIS)

  return train_step


def train(config: ml_collections.ConfigDict, workdir: str | Path,
          data: tuple[sources.Source, sources.Source] | None = None) -> dict:
  """Trains to the end, from the newest checkpoint in `workdir` where there is one.

  Args:
    config: a whole config, see mobilenet_jax/config.py.
    workdir: the run's folder: config.json, metrics.jsonl, tensorboard/, checkpoints/ and, once finished,
      result.json.
    data: training and evaluation source; by default those that config.data names.

  Returns:
    The run's row, see results.COLUMNS.

  Raises:
    UserError: on bad input, a folder that belongs to another config, or a loss that is not finite.
  """
  # ── Config ──────────────────────────────────────────────────────────────────────────────────────────────
  config_lib.validate(config)
  parallel.check_divisible('batch_size', config.batch_size, config.accumulate_steps)
  parallel.check_divisible('eval_batch_size', config.eval_batch_size)
  workdir = Path(workdir)
  claim_folder(workdir, config)
  if row := results.read(workdir):
    return row

  # ── Data ────────────────────────────────────────────────────────────────────────────────────────────────
  train_source, eval_source = data or map(sources.keep_in_memory, sources.load(config.data))
  num_classes = config.model.num_classes or train_source.num_classes
  if num_classes < train_source.num_classes:
    raise UserError(f'model.num_classes={num_classes}: {config.data.name} has {train_source.num_classes}; '
                    'expected at least as many, or 0 to take the number from the data')
  steps_per_epoch = pipeline.steps_per_epoch(train_source, config.batch_size)
  steps = lambda duration, field: config_lib.steps(duration, field, steps_per_epoch, config.batch_size)
  total_steps = steps(config.train_for, 'train_for')
  every = {name: steps(config[f'{name}_every'], f'{name}_every') for name in ('log', 'eval', 'checkpoint')}

  # ── Model, task, optimiser ──────────────────────────────────────────────────────────────────────────────
  task = tasks.create(config, num_classes)
  model = task.model(parallel.AXIS)
  schedule = optim.learning_rate(config.optim, steps(config.optim.warmup, 'optim.warmup'),
                                 steps(config.optim.decay_every, 'optim.decay_every'))
  tx = optim.create(config.optim, schedule)
  state = parallel.run_once(lambda rng: init_state(rng, model, tx, config), jax.random.key(config.seed))
  train_step = parallel.pmap_step(make_train_step(model, task, tx, config))
  eval_step = parallel.pmap_evaluation(make_eval_step(model, task))

  # ── Checkpoints ─────────────────────────────────────────────────────────────────────────────────────────
  with contextlib.ExitStack() as stack:  # whatever ends the loop, what is being written is finished
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir / 'checkpoints', task.main_metric)))
    start_step, seconds_before = 0, 0.0
    if restored := checkpoints.restore(state):
      start_step, state, notes = restored
      seconds_before = notes['seconds']
    state = parallel.replicate(state)
    report = stack.enter_context(contextlib.closing(Report(workdir, start_step, total_steps, config.batch_size)))
    if start_step:
      report.note(f'continuing at step {start_step}')

    # ── The loop ──────────────────────────────────────────────────────────────────────────────────────────
    started = time.monotonic()
    rng = jax.random.key(config.seed + 1)
    skipped = set()

    def on_bad_image(name):
      if name not in skipped:
        skipped.add(name)
        report.note(f'skipping {name}: it cannot be decoded ({len(skipped)} skipped so far)')

    batches = stack.enter_context(contextlib.closing(pipeline.train_batches(
        train_source, config.data, config.batch_size, config.seed, start_step, on_bad_image)))
    ahead = parallel.split_ahead(batches)
    window = []  # sums on the device since the last log: reading one would wait for its step
    evaluation = {}
    for step in range(start_step + 1, total_steps + 1):
      state, sums = train_step(state, next(ahead), rng)
      window.append(sums)
      due = {name: step == total_steps or (interval and step % interval == 0) for name, interval in every.items()}
      if any(due.values()):
        report.train(step, {**_mean(window, step), 'learning_rate': float(schedule(step - 1))})
        window = []
      if due['eval'] or due['checkpoint']:
        evaluation = evaluate(eval_step, state.variables(), eval_source, config, on_bad_image)
        report.evaluation(step, evaluation)
      if due['checkpoint']:
        notes = {'seconds': seconds_before + time.monotonic() - started, 'config': config.to_dict(),
                 'preprocessing': preprocessing.description(config.data)}
        checkpoints.save(step, state, evaluation, notes)
    if not evaluation:  # the run had ended, but for its row
      evaluation = evaluate(eval_step, state.variables(), eval_source, config, on_bad_image)

  # ── The result ──────────────────────────────────────────────────────────────────────────────────────────
  cost = complexity.measure(model, (*config.data.image_size, 3), train=False)
  row = {
      'name': config_lib.model_name(config), 'model': config.model.name,
      'width_multiplier': config.model.width_multiplier,
      'height': config.data.image_size[0], 'width': config.data.image_size[1],
      'mult_adds': cost.mult_adds, 'params': cost.trainable,
      'top1': evaluation['top1'], 'top5': evaluation['top5'], 'loss': evaluation['loss'],
      'eval_examples': evaluation['examples'], 'examples_seen': total_steps * config.batch_size,
      'seconds': round(seconds_before + time.monotonic() - started, 1),
      'dataset': config.data.name, 'seed': config.seed, 'commit': _commit(), 'device': parallel.device_name(),
  }
  results.write(workdir, row)
  return row


def claim_folder(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Writes config.json into a new run folder, or checks that the one there says the same.

  Raises:
    UserError: naming the differences.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path, text = workdir / 'config.json', config_lib.to_json(config)
  if not path.exists():
    write_whole(path, text)
  elif difference := config_lib.difference(path.read_text(), text):
    raise UserError(f'{workdir} belongs to another config (- there, + given: {difference}); '
                    'give another --workdir, or the config that is there')


def _mean(window: list[dict], last_step: int) -> dict[str, float]:
  """The mean over a window of steps, which ends with `last_step`.

  Raises:
    UserError: naming the first step whose loss is not finite.
  """
  mean = metrics.Mean()
  for step, sums in enumerate(jax.device_get(window), start=last_step - len(window) + 1):
    if not math.isfinite(sums['loss']):
      raise UserError(f'the loss is {sums["loss"]} at step {step}: training stopped, the last checkpoint is from '
                      'before; try a smaller optim.learning_rate or a longer optim.warmup in a new --workdir')
    mean.add(sums)
  return mean.compute()


def _commit() -> str:
  """The short commit of the code, '-dirty' where it was changed; 'unknown' outside of git."""
  command = ['git', 'describe', '--always', '--dirty', '--exclude=*']
  try:
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
