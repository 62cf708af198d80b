"""Measures the latency of an exported TFLite file and of the same network converted from Keras, in turns.

    python -m experiments.benchmark_export [--alpha=1.0] [--res=224]     # needs requirements-export.txt

The weights are random. The LiteRT interpreter runs one image at a time, with one thread per core.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from mobilenet_jax import trained
from mobilenet_jax.runtime import command_line
from mobilenet_jax.runtime.devices import cpu_cores
from mobilenet_jax.trained.export import Network, export, quiet

ROUNDS, CALLS = 100, 5


def main(args: argparse.Namespace) -> None:
  import keras
  import tensorflow as tf
  from ai_edge_litert.interpreter import Interpreter
  theirs = keras.applications.MobileNet((args.res, args.res, 3), alpha=args.alpha, weights=None)
  with tempfile.TemporaryDirectory() as folder, quiet():
    theirs.save(Path(folder) / 'model.h5')
    path, _ = export(Network(trained.load(Path(folder) / 'model.h5')), 'tflite', Path(folder))
    files = {'ours': path.read_bytes(), 'from Keras': tf.lite.TFLiteConverter.from_keras_model(theirs).convert()}
    calls = {name: _call(Interpreter(model_content=content, num_threads=cpu_cores()), args.res)
             for name, content in files.items()}
  times = {name: [] for name in calls}
  for _ in range(ROUNDS):
    for name, call in calls.items():
      start = time.perf_counter()
      for _ in range(CALLS):
        call()
      times[name].append((time.perf_counter() - start) / CALLS * 1e3)
  for name, values in times.items():
    print(f'{name:10} {statistics.median(values):.3f} ms, {len(files[name]) / 1e6:.2f} MB')
  factor = statistics.median(ours / theirs for ours, theirs in zip(*times.values()))
  print(f'ours takes {factor:.3f} times as long as the one from Keras, the median of {ROUNDS} turns of {CALLS} images')


def _call(interpreter, size):
  interpreter.allocate_tensors()
  image = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
  interpreter.set_tensor(interpreter.get_input_details()[0]['index'], image)
  return interpreter.invoke


if __name__ == '__main__':
  parser = command_line.Parser(__doc__)
  parser.add_argument('--alpha', type=float, default=1.0, help='width multiplier')
  parser.add_argument('--res', type=int, default=224, help='side of the input in pixels')
  command_line.run_with(parser, main)
