"""Mult-Adds and parameters of any model, read from its traced computation.

The counts follow the convention of the paper: they include the multiply-accumulates and the weights of convolutions and
matrix products at batch size 1, and exclude batch norm, biases and activations.
"""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp

CONVENTION = 'convolution and classifier weights and their multiply-accumulates; no batch norm, no bias'
BATCH_NORM = '_bn'  # follows the name of a layer in that of its batch norm, see layers.conv_bn


@dataclasses.dataclass(frozen=True)
class Layer:
  """One convolution or matrix product of the traced computation."""

  name: str  # path of the module that runs it
  kind: str  # as in Table 2: conv 3x3, conv dw 3x3, conv 1x1, fully connected
  output: tuple[int, ...]  # without the batch
  mult_adds: int
  params: int  # number of weights
  variables: int  # every number stored for it: weights, bias, batch norm with its statistics


@dataclasses.dataclass(frozen=True)
class Complexity:
  """The cost of a model. `params` follows the paper; `trainable` and `batch_stats` count every stored number."""

  layers: tuple[Layer, ...]
  trainable: int
  batch_stats: int

  @property
  def mult_adds(self) -> int:
    return sum(layer.mult_adds for layer in self.layers)

  @property
  def params(self) -> int:
    return sum(layer.params for layer in self.layers)

  @property
  def variables(self) -> int:
    return self.trainable + self.batch_stats

  def shares(self) -> dict[str, tuple[float, float]]:
    """Returns, for each kind of layer, its share of the Mult-Adds and of the weights in percent, as in Table 2."""
    totals = collections.defaultdict(lambda: [0, 0])
    for layer in self.layers:
      totals[layer.kind][0] += layer.mult_adds
      totals[layer.kind][1] += layer.params
    return {kind: (100 * m / self.mult_adds, 100 * p / self.params) for kind, (m, p) in totals.items()}


def measure(model, input_shape: tuple[int, ...], **kwargs) -> Complexity:
  """Counts the Mult-Adds and parameters of `model` by tracing it on one float32 input, without computing anything.

  Args:
    model: any Flax module. Its depthwise convolutions are traced as grouped convolutions, whatever its `lowering`,
      because the count describes the network and not the way in which it is run.
    input_shape: shape of the input without the batch, such as (224, 224, 3).
    **kwargs: arguments of the module's call, such as train=False.
  """
  if getattr(model, 'lowering', 'grouped') != 'grouped':
    model = model.clone(lowering='grouped')
  inputs = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **kwargs), inputs)
  jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, **kwargs))(variables, inputs)
  size = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
  stored = collections.Counter()  # by the path of the module, without the root
  for collection in ('params', 'batch_stats'):
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get(collection, {})):
      stored[jax.tree_util.keystr(path[:-1], simple=True, separator='/').removesuffix(BATCH_NORM)] += math.prod(leaf.shape)
  layers = tuple(dataclasses.replace(layer, variables=stored.pop(layer.name.partition('/')[2], 0))
                 for layer in _layers(jaxpr.jaxpr))
  return Complexity(layers, size(variables['params']), size(variables.get('batch_stats', {})))


def table(complexity: Complexity) -> str:
  """Returns the layers, one per line, and the totals."""
  rows = [('layer', 'kind', 'output', 'Mult-Adds', 'weights', 'all parameters')]
  rows += [(layer.name, layer.kind, 'x'.join(map(str, layer.output)), f'{layer.mult_adds:,}', f'{layer.params:,}',
            f'{layer.variables:,}') for layer in complexity.layers]
  if others := complexity.variables - sum(layer.variables for layer in complexity.layers):
    rows.append(('(others)', '', '', '', '', f'{others:,}'))
  rows.append(('total', '', '', f'{complexity.mult_adds:,}', f'{complexity.params:,}', f'{complexity.variables:,}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ['  '.join(f'{cell:{"<" if i < 3 else ">"}{width}}' for i, (cell, width) in enumerate(zip(row, widths)))
           for row in rows]
  lines += ['', f'Mult-Adds and weights: {CONVENTION}',
            f'all parameters: {complexity.trainable:,} trainable and {complexity.batch_stats:,} batch-norm statistics']
  return '\n'.join(lines)


def _layers(jaxpr, path: str = '', times: int = 1):
  """Yields the convolutions and matrix products of a jaxpr and of the jaxprs inside it."""
  for eqn in jaxpr.eqns:
    name = '/'.join(filter(None, (path, str(eqn.source_info.name_stack))))
    if eqn.primitive.name in ('conv_general_dilated', 'dot_general'):
      kind, mult_adds, params = _cost(eqn)
      yield Layer(name, kind, tuple(eqn.outvars[0].aval.shape[1:]), times * mult_adds, params, 0)
      continue
    inner_times = times * eqn.params.get('length', 1) if eqn.primitive.name == 'scan' else times
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _layers(inner, name, inner_times)


def _cost(eqn) -> tuple[str, int, int]:
  """Returns the kind, the multiply-accumulates and the number of weights of one equation."""
  lhs, weights = (v.aval.shape for v in eqn.invars[:2])
  output = eqn.outvars[0].aval.shape
  if eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    kind = 'fully connected' if len(lhs) == 2 else 'conv 1x1'
    return kind, math.prod(output) * math.prod(lhs[i] for i in contracted), math.prod(weights)
  features, _, *window = (weights[i] for i in eqn.params['dimension_numbers'].rhs_spec)
  depthwise = 'dw ' if eqn.params['feature_group_count'] > 1 else ''
  kind = f'conv {depthwise}{"x".join(map(str, window))}'
  return kind, math.prod(output) * math.prod(weights) // features, math.prod(weights)
