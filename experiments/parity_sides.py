"""The two sides of parity.py: our training, and that of TensorFlow. Each runs in a process of its own.

    python -m experiments.parity_sides '{"side": "ours", ...}'       # parity.py starts it

TensorFlow's side is keras.applications.MobileNet with tf.compat.v1.train.RMSPropOptimizer and
tf.train.ExponentialMovingAverage. The loss, L2, the schedule and the mean over parts of a batch are written out here in
TensorFlow's operations.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from mobilenet_jax.data.drawn import fabrics

STEPS = (1, 2, 5, 10, 20, 50)  # after which the two are compared
DECAY = float(np.float32(0.9))  # what TensorFlow's optimiser makes of 0.9, whatever the dtype of the variables
CLASSES, EXAMPLES, BATCH = fabrics.NUM_CLASSES, fabrics.NUM_EXAMPLES['train'], 16
OURS, TENSORFLOW, INPUTS = 'ours', 'tensorflow', 'inputs.npz'


@dataclasses.dataclass(frozen=True)
class Case:
  """A way to train, on our side and on TensorFlow's.

  Attributes:
    name: what it is called in the table.
    changes: fields of the config that differ from the recipe.
    devices: the number of virtual devices.
    group: the number of models that train together; the first is the one that is compared.
  """
  name: str
  changes: dict = dataclasses.field(default_factory=dict)
  devices: int = 1
  group: int = 1

  @property
  def dtype(self) -> str:
    return self.changes.get('model.dtype', 'float32')

  @property
  def parts(self) -> int:
    return self.changes.get('accumulate_steps', 1)


def config_of(case: Case, width_multiplier: float, steps: int):
  """Returns the config of a case."""
  from configs import imagenet
  from mobilenet_jax import config as config_lib
  return config_lib.changed(imagenet.get_config(f'batch={BATCH},res=96'), {
      'data.name': 'fabrics', 'data.eval_split': 'test', 'model.num_classes': CLASSES,
      'model.width_multiplier': width_multiplier, 'model.dropout_rate': 0.0, 'label_smoothing': 0.1,
      'optim.rms_decay': DECAY, 'optim.momentum': DECAY, 'optim.decay_every': '4 steps',
      'train_for': f'{steps} steps', 'log_every': '0 steps', **case.changes})


def train_ours(case: Case, width_multiplier: float, steps: int, folder: Path) -> None:
  """Trains as loop.train_group does. Writes the batches, the weights at the start, and what became of them after STEPS.

  The weights have the names and shapes of Keras, such as 'conv1_bn/2'.
  """
  import jax

  from mobilenet_jax import config as config_lib
  from mobilenet_jax import data
  from mobilenet_jax.runtime import devices
  from mobilenet_jax.training.run import Run
  config = config_of(case, width_multiplier, steps)
  members = [config_lib.changed(config, {'model.width_multiplier': width_multiplier / (i + 1)}) for i in range(case.group)]
  runs = [Run(member, folder / f'run_{i}', lambda text: None) for i, member in enumerate(members)]
  train, evaluation = data.load(config.data)
  for run in runs:
    run.start(train, evaluation)
  start = _named(runs[0].progress.state)
  stream = data.train_batches(train, config.data, BATCH, config.seed, 0, _no_skipping)
  batches = [next(stream) for _ in range(steps)]
  stream.close()
  np.savez(folder / INPUTS, images=np.stack([batch['image'] for batch in batches]),
           labels=np.stack([batch['label'] for batch in batches]), **{f'start/{name}': value for name, value in start.items()})
  found, losses = {}, []
  for batch in devices.split_ahead(batches):
    for run in runs:
      run.train(batch)
    step, window = runs[0].progress.step, runs[0].progress.window
    losses.append(float(window[-1]['loss']) / BATCH)
    if step in STEPS:
      state = jax.device_get(runs[0].progress.state)
      found |= {f'{step}/now/{name}': value for name, value in _named(state).items()}
      found |= {f'{step}/average/{name}': value for name, value in _named(state, state.ema).items()}
  for run in runs:
    run.close()
  np.savez(folder / f'{OURS}.npz', losses=losses, **found)


def _named(state, variables=None):
  from mobilenet_jax.trained.published import weights
  flat = weights.flatten(variables or {'params': state.params, 'batch_stats': state.batch_stats})
  return {weights.keras_name(path): weights.to_theirs(path, value) for path, value in flat.items()}


def _no_skipping(error):
  raise error


def train_tensorflow(case: Case, width_multiplier: float, steps: int, folder: Path, threads: int) -> None:
  """Trains in TensorFlow from the files that train_ours has written. Writes the weights after STEPS under the same names.

  TensorFlow uses as many `threads`, or if that is 0 as many as it has.
  """
  os.environ.update(KERAS_BACKEND='tensorflow', TF_CPP_MIN_LOG_LEVEL='3')
  import keras
  import tensorflow as tf
  if threads:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
  dtype = 'float64' if case.dtype == 'float64' else 'float32'
  keras.config.set_floatx(dtype)  # of inputs
  keras.config.set_dtype_policy(dtype)  # of layers
  with np.load(folder / INPUTS) as inputs:
    images, labels = inputs['images'], inputs['labels']
    start = {name.removeprefix('start/'): inputs[name] for name in inputs if name.startswith('start/')}
  model = keras.applications.MobileNet((96, 96, 3), width_multiplier, weights=None, classes=CLASSES,
                                       classifier_activation=None, dropout=0.0)
  named = {}
  for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
      layer.momentum = 0.9997
    for i, variable in enumerate(layer.weights):
      named[f'{layer.name}/{i}'] = variable.value
      variable.assign(start[f'{layer.name}/{i}'])
  trained = [variable.value for variable in model.trainable_variables]
  moving = [variable.value for variable in model.non_trainable_variables]
  decayed = [value for name, value in named.items() if name.endswith('/0') and len(value.shape) == 4 and 'conv_dw' not in name]
  rate, step = tf.Variable(0.0, dtype=dtype), tf.Variable(0)
  optimizer = tf.compat.v1.train.RMSPropOptimizer(rate, decay=0.9, momentum=0.9, epsilon=1.0)
  averages = tf.train.ExponentialMovingAverage(0.9999, num_updates=step)
  averages.apply(named.values())  # they begin with the variables as they are

  def gradient_of(images, labels):
    with tf.GradientTape() as tape:
      logits = tf.reshape(model(tf.cast(images, dtype) / 127.5 - 1, training=True), (-1, CLASSES))
      targets = tf.one_hot(labels, CLASSES, dtype=dtype)
      smoothed = 0.9 * targets + 0.1 / CLASSES
      loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(smoothed, logits))
      loss += 4e-5 * tf.add_n([tf.nn.l2_loss(kernel) for kernel in decayed])
    return tape.gradient(loss, trained), tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))

  @tf.function
  def train_step(images, labels):
    before = [tf.identity(value) for value in moving]
    gradients, moved, losses = [], [], []
    for some_images, some_labels in zip(tf.split(images, case.parts), tf.split(labels, case.parts)):
      for value, old in zip(moving, before):
        value.assign(old)
      gradient, loss = gradient_of(some_images, some_labels)
      gradients.append(gradient)
      moved.append([tf.identity(value) for value in moving])
      losses.append(loss)
    mean = lambda values: tf.add_n(values) / len(values)
    for value, parts in zip(moving, zip(*moved)):
      value.assign(mean(parts))
    optimizer.apply_gradients(zip(map(mean, zip(*gradients)), trained))
    averages.apply(named.values())
    return mean(losses)

  found, losses = {}, []
  for i in range(steps):
    warm = min(1, (i + 1) / (EXAMPLES // BATCH))  # over an epoch
    rate.assign(0.045 * BATCH / 96 * 0.94 ** (i // 4) * warm)
    step.assign(i + 1)
    losses.append(float(train_step(images[i], labels[i])))
    if i + 1 in STEPS:
      found |= {f'{i + 1}/now/{name}': value.numpy() for name, value in named.items()}
      found |= {f'{i + 1}/average/{name}': averages.average(value).numpy() for name, value in named.items()}
  np.savez(folder / f'{TENSORFLOW}_{threads}.npz', losses=losses, **found)


def run(side: str, case: Case, width_multiplier: float, steps: int, folder: Path, threads: int = 0) -> None:
  """Runs a side in a process of its own; see train_ours and train_tensorflow.

  Raises:
    RuntimeError: if it fails, with what it has printed.
  """
  given = {'side': side, 'case': dataclasses.asdict(case), 'width_multiplier': width_multiplier, 'steps': steps,
           'folder': str(folder), 'threads': threads}
  environment = dict(os.environ)
  if side == OURS:
    environment['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={case.devices}'
    environment['JAX_ENABLE_X64'] = str(int(case.dtype == 'float64'))
  done = subprocess.run([sys.executable, '-m', __spec__.name, json.dumps(given)], env=environment, capture_output=True,
                        text=True)
  if done.returncode:
    raise RuntimeError(f'{case.name}, {side}: {done.stdout}{done.stderr}')


def main(given: dict) -> None:
  side, threads = given.pop('side'), given.pop('threads')
  given['case'], given['folder'] = Case(**given['case']), Path(given['folder'])
  if side == OURS:
    train_ours(**given)
  else:
    train_tensorflow(**given, threads=threads)


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
