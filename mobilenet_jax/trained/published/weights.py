"""The names and shapes of the published weights, and their conversion to ours.

TF-slim and Keras use the same shapes but different names. Our shapes differ from theirs in two cases: a depthwise kernel is
(3, 3, 1, c) here and (3, 3, c, 1) there; a classifier is (c, classes) here and a 1x1 convolution (1, 1, c, classes) there.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.models import BODY, MobileNet

Path = tuple[str, str, str]  # collection, layer, variable, such as ('params', 'conv_bn', 'scale')

_SLIM_BATCH_NORM = {'scale': 'gamma', 'bias': 'beta', 'mean': 'moving_mean', 'var': 'moving_variance'}
_MAX_TOLD = 8  # the number of mismatches that an error lists


def slim_name(path: Path) -> str:
  """Returns TF-slim's name of a variable, such as MobilenetV1/Conv2d_1_depthwise/BatchNorm/gamma."""
  _, layer, variable = path
  if layer == 'classifier':
    return f'MobilenetV1/Logits/Conv2d_1c_1x1/{"weights" if variable == "kernel" else "biases"}'
  kind, index = _kind_and_index(layer)
  scope = f'MobilenetV1/Conv2d_{index}' + {'conv': '', 'dw': '_depthwise', 'pw': '_pointwise'}[kind]
  if layer.endswith('_bn'):
    return f'{scope}/BatchNorm/{_SLIM_BATCH_NORM[variable]}'
  return f'{scope}/depthwise_weights' if kind == 'dw' else f'{scope}/weights'


def keras_name(path: Path) -> str:
  """Returns the layer of keras.applications.MobileNet and the index among its weights, such as conv_dw_1_bn/0."""
  _, layer, variable = path
  layer = {'conv': 'conv1', 'conv_bn': 'conv1_bn', 'classifier': 'conv_preds'}.get(layer, layer)
  return f'{layer}/{("kernel", "bias").index(variable) if not layer.endswith("_bn") else list(_SLIM_BATCH_NORM).index(variable)}'


def to_theirs(path: Path, value) -> np.ndarray:
  """Returns one of our arrays in the shape that TF-slim and Keras use."""
  _, layer, variable = path
  value = np.asarray(value)
  if variable == 'kernel' and layer.startswith('conv_dw'):
    return value.transpose(0, 1, 3, 2)
  return value[None, None] if path[1:] == ('classifier', 'kernel') else value


def shapes(model: MobileNet) -> dict[Path, tuple[int, ...]]:
  """Returns the shape of every variable of `model` by its path."""
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  return {path: leaf.shape for path, leaf in flatten(variables).items()}


def flatten(variables: dict) -> dict[Path, np.ndarray]:
  """Flattens params and batch_stats: {'params': {'conv': {'kernel': x}}} -> {('params', 'conv', 'kernel'): x}."""
  return {(collection, layer, name): value for collection in ('params', 'batch_stats')
          for layer, values in variables[collection].items() for name, value in values.items()}


def unflatten(values: dict[Path, np.ndarray]) -> dict:
  """Inverts `flatten`."""
  variables = {'params': {}, 'batch_stats': {}}
  for (collection, layer, name), value in values.items():
    variables[collection].setdefault(layer, {})[name] = value
  return variables


def from_theirs(arrays: dict[str, np.ndarray], name_of, origin: str) -> tuple[dict, float, int]:
  """Converts the arrays of a published model to ours.

  Args:
    arrays: arrays by name, all of which are used.
    name_of: slim_name or keras_name.
    origin: the name of the model in errors.

  Returns:
    {'params', 'batch_stats'}, the width multiplier, and the number of outputs, which is 0 if there is no classifier.

  Raises:
    UserError: if batch norm is folded, or arrays are missing, left over or of another shape; the error lists all of them.
  """
  last = arrays.get(name_of(('params', f'conv_pw_{len(BODY)}', 'kernel')))
  if last is None or last.ndim != 4:
    raise UserError(f'{origin}: not the weights of a MobileNet V1: there is no '
                    f'{name_of(("params", f"conv_pw_{len(BODY)}", "kernel"))} among the {len(arrays)} arrays')
  bias = arrays.get(name_of(('params', 'classifier', 'bias')))
  width_multiplier = _width_multiplier(last.shape[-1])
  num_classes = 0 if bias is None else bias.size
  model = MobileNet(num_classes, width_multiplier)

  values, wrong, rest, expected_shapes = {}, [], dict(arrays), shapes(model)
  if not any(name_of(path) in arrays for path in expected_shapes if path[1].endswith('_bn')):
    raise UserError(f'{origin}: has no batch norm, which is folded into its weights; expected them as they were trained')
  for path, shape in expected_shapes.items():
    name = name_of(path)
    expected = to_theirs(path, np.zeros(shape, np.float32)).shape
    array = rest.pop(name, None)
    if array is None:
      wrong.append(f'{name} is missing')
    elif array.shape != expected:
      wrong.append(f'{name} is {array.shape}, expected {expected}')
    else:
      values[path] = _to_ours(path, array)
  wrong += [f'{name} {array.shape} is unexpected' for name, array in rest.items()]
  if wrong:
    told = '; '.join(wrong[:_MAX_TOLD]) + (f'; and {len(wrong) - _MAX_TOLD} more' if len(wrong) > _MAX_TOLD else '')
    raise UserError(f'{origin}: not the weights of a MobileNet V1 of width {width_multiplier:g}: {told}')
  return unflatten(values), width_multiplier, num_classes


def _to_ours(path, array):
  _, layer, variable = path
  array = np.asarray(array, np.float32)
  if variable == 'kernel' and layer.startswith('conv_dw'):
    return array.transpose(0, 1, 3, 2)
  return array[0, 0] if path[1:] == ('classifier', 'kernel') else array


def _width_multiplier(channels: int) -> float:
  """Returns the width multiplier of a last layer with this many channels, rounded if that gives the same channels."""
  widest = BODY[-1][1]
  rounded = round(channels / widest, 2)
  return rounded if int(widest * rounded) == channels else channels / widest


def _kind_and_index(layer: str) -> tuple[str, int]:
  parts = layer.removesuffix('_bn').split('_')
  return ('conv', 0) if len(parts) == 1 else (parts[1], int(parts[2]))
