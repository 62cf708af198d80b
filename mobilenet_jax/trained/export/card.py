"""The JSON file beside an exported file: all that is needed to use it."""

import dataclasses

import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax.data import description, stream_size
from mobilenet_jax.trained.export.check import Check
from mobilenet_jax.trained.export.network import PIXEL_RANGE, Network, Tensor
from mobilenet_jax.trained.export.target import origin_of


def describe(network: Network, form: str, precision: str, tensors: tuple[Tensor, Tensor], check: Check) -> dict:
  """Returns the contents of the file; docs/export.md explains them.

  Args:
    network: the network that was exported.
    form: the format of the file.
    precision: the precision of the file.
    tensors: the input and the output of the file, as its own runtime describes them.
    check: the check of the file.
  """
  model, (source, target) = network.model, tensors
  return {
      'origin': origin_of(model), 'step': model.step, 'model': config_lib.model_name(model.config), 'task': model.config.task,
      'format': form, 'precision': precision,
      'input': {**dataclasses.asdict(source), 'layout': 'NHWC', 'channels': 'RGB', **_range(source)},
      'output': {**dataclasses.asdict(target), 'meaning': network.output},
      'preprocessing': _preprocessing(network), 'labels': model.labels, 'check': dataclasses.asdict(check)}


def _range(tensor):
  """Returns the numbers that the tensor holds for pixels from 0 to 255, and, if it is quantised, what they stand for."""
  if not np.issubdtype(tensor.dtype, np.integer):
    return {'range': list(PIXEL_RANGE)}
  limits = np.iinfo(tensor.dtype)
  whole = {'range': [limits.min, limits.max]}
  return {**whole, 'quantization': {**tensor.quantization, 'real_range': list(PIXEL_RANGE)}} if tensor.quantization else whole


def _preprocessing(network):
  """Returns what is to be done to an image before its pixels are scaled to the range of the input."""
  data = network.model.config.data
  whole = description(data)
  sizes = [list(stream_size(data)), list(network.input_shape[:2])]  # with preprocessing, both are the same
  return {**{key: whole[key] for key in ('exif_orientation', 'central_crop', 'resize')},
          'resize_to': sizes[:1] if sizes[0] == sizes[1] else sizes}
