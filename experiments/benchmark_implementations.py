"""The implementations that the benchmark compares: ours and, if they are installed, its peers.

Each is a function (alpha, size, dtype, mode, batch) -> call. alpha is the width multiplier, size the side of the input in
pixels, and mode 'inference' or 'training'. A call runs one batch, or one step with RMSprop and cross-entropy over 1,000
classes, and waits until it is done. Libraries are imported inside the functions, because a process runs one implementation.

    python -m experiments.benchmark_implementations NAME ALPHA SIZE DTYPE MODE BATCH

This builds one and prints {"compile_s", "warm_ms"}. It then answers every number n on its standard input with the
milliseconds of n calls and the peak memory so far, as JSON.
"""

import importlib.util
import json
import os
import resource
import statistics
import sys
import tempfile
import time

import numpy as np

from mobilenet_jax.runtime.devices import cpu_cores

CLASSES = 1000
SLOW_MS = 10_000  # a call that takes this long needs no warm-up after the first
WARM_UP_MS = 1_000  # of each turn
LEARNING_RATE, MOMENTUM, DECAY = 1e-3, 0.9, 0.9


def _ours(lowering):
  def build(alpha, size, dtype, mode, batch):
    import jax
    from mobilenet_jax import config as config_lib
    from mobilenet_jax import models, tasks
    from mobilenet_jax.runtime import devices
    from mobilenet_jax.training import optimizer
    from mobilenet_jax.training.state import init_state
    from mobilenet_jax.training.step import make_train_step
    config = config_lib.base()
    config.model.update(width_multiplier=alpha, dtype=dtype, lowering=lowering)
    config.data.image_size = config_lib.square(size)
    task = tasks.create(config)
    model = models.create(config.model, CLASSES, devices.AXIS)
    tx = optimizer.create(config.optim, optimizer.learning_rate(config, steps_per_epoch=500))
    state = devices.run_once(lambda rng: init_state(rng, model, tx, config), jax.random.key(0))
    if mode == 'inference':
      predict, weights = models.fold(model, state.variables())
      predict, images = jax.jit(predict), jax.device_put(_images(batch, size) / 127.5 - 1)
      return lambda: predict(weights, images).block_until_ready()
    step = devices.pmap_step(make_train_step(model, task, tx, config))
    state, rng = devices.replicate(state), jax.random.key(1)
    data = {'image': _images(batch, size).astype(np.uint8), 'label': _labels(batch),
            'mask': np.ones(batch, np.float32)}  # copied to the device in every step, as in training

    def call():
      nonlocal state
      state, sums = step(state, devices.split(data), rng, {})
      jax.block_until_ready((state, sums))
    return call
  return build


def _torch(channels_last, compiled):
  def build(alpha, size, dtype, mode, batch):
    os.environ['TORCHINDUCTOR_COMPILE_THREADS'] = '1'  # its pool of compilers would disturb what is measured
    import torch
    from torch import nn
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    layout = {'memory_format': torch.channels_last} if channels_last else {}
    model = _torch_mobilenet(alpha).to(device).to(**layout)
    images = torch.rand(batch, 3, size, size, device=device).to(**layout)
    run = torch.compile(model) if compiled else model
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    if mode == 'inference':
      model.eval()

      def call():
        with torch.inference_mode(), autocast:
          run(images)
        wait()
      return call
    labels = torch.from_numpy(_labels(batch).astype(np.int64)).to(device)
    optimizer = torch.optim.RMSprop(model.parameters(), LEARNING_RATE, alpha=DECAY, momentum=MOMENTUM)

    def call():
      optimizer.zero_grad()
      with autocast:
        loss = nn.functional.cross_entropy(run(images).float(), labels)
      loss.backward()
      optimizer.step()
      wait()
    return call
  return build


def _torch_mobilenet(alpha):
  """Returns our model in PyTorch, layer by layer. PyTorch pads both sides alike."""
  from torch import nn

  from mobilenet_jax.models.mobilenet import BODY, scale_channels

  def conv(inputs, outputs, kernel, stride=1, groups=1):
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6(inplace=True)]

  channels = scale_channels(32, alpha)
  layers = conv(3, channels, 3, stride=2)
  for stride, outputs in BODY:
    outputs = scale_channels(outputs, alpha)
    layers += conv(channels, channels, 3, stride, groups=channels) + conv(channels, outputs, 1)
    channels = outputs
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def _keras(backend):
  def build(alpha, size, dtype, mode, batch):
    os.environ.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL='3')
    import keras
    keras.mixed_precision.set_global_policy('mixed_bfloat16' if dtype == 'bfloat16' else 'float32')
    model = keras.applications.MobileNet((size, size, 3), alpha=alpha, weights=None, classifier_activation=None)
    images, labels = keras.ops.convert_to_tensor(_images(batch, size) / 127.5 - 1), _labels(batch)
    if mode == 'inference':
      if backend == 'jax':
        import jax
        variables = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
        predict = jax.jit(lambda variables, x: model.stateless_call(*variables, x, training=False)[0])
        return lambda: predict(variables, images).block_until_ready()
      import tensorflow as tf
      predict = tf.function(lambda x: model(x, training=False))
      return lambda: predict(images).numpy()
    optimizer = keras.optimizers.RMSprop(LEARNING_RATE, rho=DECAY, momentum=MOMENTUM)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # TensorFlow's own kernels: through XLA its depthwise convolutions are slower on CPU.
    model.compile(optimizer, loss, jit_compile=backend == 'jax')
    return lambda: model.train_on_batch(images, labels)
  return build


def _tflite(alpha, size, dtype, mode, batch):
  os.environ.update(KERAS_BACKEND='tensorflow', TF_CPP_MIN_LOG_LEVEL='3')
  import keras
  import tensorflow as tf
  from ai_edge_litert.interpreter import Interpreter
  model = keras.applications.MobileNet((size, size, 3), alpha=alpha, weights=None, classifier_activation=None)
  interpreter = Interpreter(model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert(),
                            num_threads=cpu_cores())
  index = interpreter.get_input_details()[0]['index']
  interpreter.resize_tensor_input(index, (batch, size, size, 3))
  interpreter.allocate_tensors()
  interpreter.set_tensor(index, _images(batch, size) / 127.5 - 1)
  return interpreter.invoke


def _onnxruntime(alpha, size, dtype, mode, batch):
  import onnxruntime
  import torch
  images = np.random.default_rng(0).random((batch, 3, size, size), np.float32)
  with tempfile.TemporaryDirectory() as folder:
    path = f'{folder}/model.onnx'
    torch.onnx.export(_torch_mobilenet(alpha).eval(), (torch.from_numpy(images),), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_cores()
    session = onnxruntime.InferenceSession(path, options)
  inputs = {session.get_inputs()[0].name: images}
  return lambda: session.run(None, inputs)


OURS = 'mobilenet_jax'
# By name: the packages it needs, whether it can train, and the function that builds it.
IMPLEMENTATIONS = {
    OURS: ((), True, _ours('auto')),
    'mobilenet_jax grouped': ((), True, _ours('grouped')),
    'PyTorch': (('torch',), True, _torch(channels_last=False, compiled=False)),
    'PyTorch channels-last': (('torch',), True, _torch(channels_last=True, compiled=False)),
    'PyTorch compiled': (('torch',), True, _torch(channels_last=True, compiled=True)),
    'TensorFlow-Keras': (('keras', 'tensorflow'), True, _keras('tensorflow')),
    'Keras on JAX': (('keras',), True, _keras('jax')),
    'TFLite': (('ai_edge_litert', 'keras', 'tensorflow'), False, _tflite),
    'ONNX Runtime': (('onnxruntime', 'onnx', 'onnxscript', 'torch'), False, _onnxruntime),
}


def missing(name: str) -> list[str]:
  """Returns the packages that an implementation needs and that are not installed."""
  return [package for package in IMPLEMENTATIONS[name][0] if importlib.util.find_spec(package) is None]


def _images(batch, size):
  return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype(np.float32)


def _labels(batch):
  return np.random.default_rng(1).integers(0, CLASSES, batch).astype(np.int32)


def _peak_mb(name):
  """Returns the peak memory in MB, of the accelerator if JAX or PyTorch runs the implementation on one, else of the process."""
  if name.startswith('PyTorch'):
    import torch
    if torch.cuda.is_available():
      return torch.cuda.max_memory_allocated() / 1e6
  elif name.startswith(OURS) or name == 'Keras on JAX':
    import jax
    if stats := jax.local_devices()[0].memory_stats():
      return stats['peak_bytes_in_use'] / 1e6
  return resident_mb(resource.RUSAGE_SELF)


def resident_mb(whose: int) -> float:
  """Returns the peak resident memory in MB of this process or of its largest child; `whose` is as in getrusage."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(whose).ru_maxrss * unit / 1e6


def main() -> None:
  name, alpha, size, dtype, mode, batch = sys.argv[1:]
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # so that what libraries print is not taken for an answer
  call = IMPLEMENTATIONS[name][2](float(alpha), int(size), dtype, mode, int(batch))

  def milliseconds():
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3

  first = milliseconds()
  usual = statistics.median(milliseconds() for _ in range(3 if first < SLOW_MS else 1))
  print(json.dumps({'compile_s': max(first - usual, 0) / 1e3, 'warm_ms': usual}), file=answers, flush=True)
  for line in sys.stdin:
    waited = milliseconds()  # not counted, because caches and memory are as the other process left them
    while waited < WARM_UP_MS:
      waited += milliseconds()
    times = [milliseconds() for _ in range(int(line))]
    print(json.dumps({'ms': times, 'peak_mb': _peak_mb(name)}), file=answers, flush=True)


if __name__ == '__main__':
  main()
