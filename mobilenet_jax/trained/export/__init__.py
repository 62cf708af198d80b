"""Exports trained models to files that run elsewhere. Each file is run there and compared before it is kept."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mobilenet_jax.errors import UserError, describe, is_of_the_user
from mobilenet_jax.trained.export import card, check, keras, onnx, stablehlo, target, tensorflow
from mobilenet_jax.trained.export.check import Check
from mobilenet_jax.trained.export.network import Network, Tensor

__all__ = ['Check', 'FORMATS', 'Format', 'Network', 'check_request', 'export', 'quiet', 'warning']

REQUIREMENTS = 'requirements-export.txt'
_LONGEST_REASON = 200  # characters of a converter's message


@dataclasses.dataclass(frozen=True)
class Format:
  """A kind of file.

  Attributes:
    suffix: suffix of the file name.
    write: a function (network, path, calibration images or None) that writes the file.
    run: a function (path, images) -> outputs that runs the file in its own runtime.
    tensors: a function path -> (input, output) that asks the file's own runtime for them.
    precision: 'float32', or a key of check.MAX_DISTANCE.
    refuse: a function (network, whether there are calibration images) that raises UserError if the format cannot hold the
      network.
  """

  suffix: str
  write: Callable[[Network, Path, np.ndarray | None], None]
  run: Callable[[Path, np.ndarray], np.ndarray]
  tensors: Callable[[Path], tuple[Tensor, Tensor]]
  precision: str = 'float32'
  refuse: Callable[[Network, bool], None] = lambda network, calibrated: None

  def path(self, folder: Path, name: str) -> Path:
    """Returns the path of a file that is called `name`."""
    return folder / f'{name}{"" if self.precision == "float32" else f"-{self.precision}"}{self.suffix}'


def _tflite(precision, **options):
  write = functools.partial(tensorflow.write_tflite, precision=precision)
  return Format('.tflite', write, tensorflow.run_tflite, tensorflow.tflite_tensors, precision, **options)


FORMATS = {
    'tflite': _tflite('float32'),
    'tflite-float16': _tflite('float16'),
    'tflite-dynamic': _tflite('dynamic'),
    'tflite-int8': _tflite('int8', refuse=tensorflow.refuse_int8),
    'onnx': Format('.onnx', onnx.write, onnx.run, onnx.tensors),
    'stablehlo': Format('.stablehlo', stablehlo.write, stablehlo.run, stablehlo.tensors),
    'saved_model': Format('.saved_model', tensorflow.write_saved_model, tensorflow.run_saved_model,
                          tensorflow.saved_model_tensors),
    'keras': Format('.h5', keras.write, keras.run, keras.tensors, refuse=keras.refuse),
}


def check_request(network: Network, formats: Sequence[str], folder: Path, calibrated: bool = False,
                  name: str | None = None) -> None:
  """Checks what can be checked before anything is converted or written; the arguments are those of `export`.

  Raises:
    UserError: if one of the formats cannot hold the network, the name is not that of a file, or one of the files is there
      already and is not of the same model.
  """
  name = target.default_name(network.model) if name is None else name
  target.check_name(name)
  target.check_folder(folder)
  for form in formats:
    FORMATS[form].refuse(network, calibrated)
    target.check_free(FORMATS[form].path(folder, name), target.origin_of(network.model))


def export(network: Network, form: str, folder: Path, images: np.ndarray | None = None,
           calibration: np.ndarray | None = None, name: str | None = None) -> tuple[Path, Check]:
  """Writes a file, and next to it a JSON file that says how to use it, if the file passes its check.

  Args:
    network: the network to export.
    form: the format, a key of FORMATS.
    folder: the folder to write to. An earlier file of the same model is replaced.
    images: images for the check, as TrainedModel.prepare returns them; generated ones by default.
    calibration: images for 'tflite-int8', in the same form.
    name: name of the file without its suffix; by default that of the model's folder or file, or of the published model.

  Returns:
    The path of the file, and its check.

  Raises:
    UserError: as in `check_request`, and if the converter is not installed or fails, or the check fails. Nothing is left then,
      and an earlier file stays as it was.
  """
  check_request(network, [form], folder, calibration is not None, name)
  kind = FORMATS[form]
  path = kind.path(folder, target.default_name(network.model) if name is None else name)
  images = check.generated_images(network) if images is None else images
  several = images if len(images) > 1 else images.repeat(2, 0)  # on one image, a file for one image alone would pass
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder, prefix='.export') as scratch:
    written, described = Path(scratch) / f'model{kind.suffix}', Path(scratch) / 'card.json'
    with _one_line_errors(form), quiet():
      kind.write(network, written, None if calibration is None else network.inputs(calibration))
      outputs, tensors = kind.run(written, network.inputs(several)), kind.tensors(written)
    found = check.compare(network.reference(images), outputs[:len(images)], network)
    check.raise_if_off(found, kind.precision, form)
    content = card.describe(network, form, kind.precision, tensors, found)
    described.write_text(json.dumps(content, indent=2, allow_nan=False) + '\n')
    target.put(written, described, path)
  return path, found


def warning(form: str, found: Check) -> str:
  """Returns one line that says how far a file is from its model, and what to try, or '' if it is near enough."""
  return check.warning(found, FORMATS[form].precision, form)


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
def _one_line_errors(form):
  """Turns what converters and runtimes raise, which may be anything, into a UserError that is chained to it."""
  try:
    yield
  except ModuleNotFoundError as error:
    raise UserError(f'{form}: {error.name} is not installed; install {REQUIREMENTS}: pip install -r {REQUIREMENTS}'
                    ) from error
  except Exception as error:
    if is_of_the_user(error):
      raise
    reason = textwrap.shorten(describe(error), _LONGEST_REASON, placeholder=' ...')
    raise UserError(f'{form}: the file cannot be written or run ({reason}); export to another format') from error
