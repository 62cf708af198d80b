"""Exports trained models to files that run elsewhere. Each file is run there and compared before it is kept."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax.data import crop, description, stream_size
from mobilenet_jax.errors import UserError
from mobilenet_jax.trained.export import keras, onnx, stablehlo, tensorflow
from mobilenet_jax.trained.export.network import Network

REQUIREMENTS = 'requirements-export.txt'
CHECK_IMAGES = 32  # the number of generated images, if none are given
MAX_DIFFERENCE = 1e-4  # of a float32 file, relative to the largest output if that is above 1
# For the other precisions: the mean distance between the outputs, from 0, if they agree, to 1. It is the total variation
# distance of class probabilities, the difference of attribute probabilities, or half the distance of unit vectors.
MAX_DISTANCE = {'float16': 0.05, 'dynamic': 0.35, 'int8': 0.35}


@dataclasses.dataclass(frozen=True)
class Format:
  """A kind of file.

  Attributes:
    suffix: suffix of the file name.
    write: a function (network, path, calibration images or None) that writes the file.
    run: a function (path, images) -> outputs that runs the file in its own runtime.
    precision: 'float32', or a key of MAX_DISTANCE.
  """

  suffix: str
  write: Callable[[Network, Path, np.ndarray | None], None]
  run: Callable[[Path, np.ndarray], np.ndarray]
  precision: str = 'float32'


def _tflite(precision):
  write = functools.partial(tensorflow.write_tflite, precision=precision)
  return Format('.tflite', write, tensorflow.run_tflite, precision)


FORMATS = {
    'tflite': _tflite('float32'),
    'tflite-float16': _tflite('float16'),
    'tflite-dynamic': _tflite('dynamic'),
    'tflite-int8': _tflite('int8'),
    'onnx': Format('.onnx', onnx.write, onnx.run),
    'stablehlo': Format('.stablehlo', stablehlo.write, stablehlo.run),
    'saved_model': Format('.saved_model', tensorflow.write_saved_model, tensorflow.run_saved_model),
    'keras': Format('.h5', keras.write, keras.run),
}


@dataclasses.dataclass(frozen=True)
class Check:
  """The comparison of a file's outputs with those of the Flax model."""

  images: int
  max_difference: float
  top1_agreement: float
  distance: float  # see MAX_DISTANCE


def export(network: Network, name: str, folder: Path, images: np.ndarray | None = None,
           calibration: np.ndarray | None = None) -> tuple[Path, Check]:
  """Writes a file, and next to it a JSON file with labels and preprocessing, if the file passes its check.

  Args:
    network: the network to export.
    name: a key of FORMATS.
    folder: the folder to write to; files with the same name are replaced.
    images: images for the check, as TrainedModel.prepare returns them; generated ones by default.
    calibration: images for 'tflite-int8', in the same form.

  Returns:
    The path of the file, and its check.

  Raises:
    UserError: if the converter is not installed or does not know the network, or the check fails; no file is left.
  """
  kind = FORMATS[name]
  images = generated_images(network) if images is None else images
  folder.mkdir(parents=True, exist_ok=True)
  stem = config_lib.model_name(network.model.config) + (f'-{kind.precision}' if kind.precision != 'float32' else '')
  with tempfile.TemporaryDirectory(dir=folder, prefix='.export') as scratch, _converter_errors(name), quiet():
    written = Path(scratch) / f'model{kind.suffix}'
    kind.write(network, written, None if calibration is None else network.inputs(calibration))
    check = compare(network.reference(images), kind.run(written, network.inputs(images)), network)
    _raise_if_off(check, kind.precision, name, images)
    card = Path(scratch) / 'card.json'
    card.write_text(json.dumps(_card(network, name, kind, written, check), indent=2) + '\n')
    path = folder / f'{stem}{kind.suffix}'
    if path.is_dir():
      shutil.rmtree(path)
    written.replace(path)
    card.replace(folder / f'{path.name}.json')
  return path, check


def compare(expected: np.ndarray, actual: np.ndarray, network: Network) -> Check:
  """Compares the expected with the actual outputs, both (n, outputs)."""
  def probabilities(outputs):
    if network.output != 'logits' or network.model.task.kind != 'classes':
      return outputs
    exp = np.exp(outputs - outputs.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)
  differences = np.abs(probabilities(expected) - probabilities(actual))
  if network.output == 'embeddings':
    distance = np.linalg.norm(differences, axis=-1).mean() / 2
  elif network.model.task.kind == 'classes' and network.output != 'features':
    distance = differences.sum(-1).mean() / 2
  else:
    distance = differences.mean()
  scale = max(1.0, float(np.abs(expected).max()))
  return Check(len(expected), float(np.abs(expected - actual).max()) / scale,
               float((expected.argmax(-1) == actual.argmax(-1)).mean()), float(distance))


def generated_images(network: Network, count: int = CHECK_IMAGES) -> np.ndarray:
  """Returns images of smooth colour fields with some noise, no two alike: uint8 (count, *stream_size, 3)."""
  rng = np.random.default_rng(0)
  size = stream_size(network.model.config.data)
  images = []
  for _ in range(count):
    coarse = rng.integers(0, 256, (*rng.integers(2, 12, 2), 3)).astype(np.uint8)
    image = crop(coarse, (0, 0, *coarse.shape[:2]), False, size)
    images.append(np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8))
  return np.stack(images)


@contextlib.contextmanager
def quiet():
  """Silences the messages of the converters, some of which bypass Python. Failures are still raised."""
  sys.stdout.flush()
  kept = [os.dup(1), os.dup(2)]
  with warnings.catch_warnings(), open(os.devnull, 'w') as nowhere:
    warnings.simplefilter('ignore')
    logging.getLogger('tf2onnx').setLevel(logging.ERROR)
    try:
      os.dup2(nowhere.fileno(), 1)
      os.dup2(nowhere.fileno(), 2)
      yield
    finally:
      for number, copy in enumerate(kept, start=1):
        os.dup2(copy, number)
        os.close(copy)


@contextlib.contextmanager
def _converter_errors(name):
  try:
    yield
  except ImportError as error:
    raise UserError(f'{name}: {error.name} is not installed; install {REQUIREMENTS}: pip install -r {REQUIREMENTS}'
                    ) from error


def _raise_if_off(check, precision, name, images):
  if precision == 'float32':
    if not check.max_difference <= MAX_DIFFERENCE:  # `not <=`, so that NaN fails too
      raise UserError(f'{name}: the file differs from the model by up to {check.max_difference:.2g} on {len(images)} '
                      f'images, more than {MAX_DIFFERENCE:.0e}; it is not kept')
  elif not check.distance <= MAX_DISTANCE[precision]:
    raise UserError(f'{name}: the outputs of the file are {check.distance:.2f} away from those of the model on {len(images)} '
                    f'images, more than {MAX_DISTANCE[precision]} on a scale from 0 to 1 (the largest output agrees on '
                    f'{check.top1_agreement:.0%}); it is not kept; try another precision or other calibration images')


def _card(network, name, kind, path, check):
  """Returns what a user of the file must know."""
  model = network.model
  numbers = tensorflow.quantization(path) if kind.suffix == '.tflite' else {}
  input_range = [0, 255] if network.preprocessing else [-1.0, 1.0]
  return {
      'model': config_lib.model_name(model.config), 'origin': model.origin, 'format': name, 'precision': kind.precision,
      'input': {'shape': [None, *network.input_shape], 'dtype': np.dtype(network.input_dtype).name, 'range': input_range,
                'channels': 'RGB'},
      'output': network.output, 'quantization': numbers,
      'preprocessing': description(model.config.data), 'labels': model.labels,
      'check': dataclasses.asdict(check)}
