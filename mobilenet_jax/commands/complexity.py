"""Counts the Mult-Adds and parameters of a model, layer by layer.

    mobilenet_jax complexity --config=configs/imagenet.py:alpha=0.75,res=192 [--json]
"""

import dataclasses
import json

from mobilenet_jax import config as config_lib
from mobilenet_jax import data, models, tasks
from mobilenet_jax.commands import recipe as recipe_lib


def main(argv: list[str]) -> None:
  parser = recipe_lib.parser(__doc__, 'complexity')
  parser.add_argument('--json', action='store_true', help='print one JSON object instead of a table')
  args, (_, _, config) = recipe_lib.parse(parser, argv)
  config.model = models.complete(config.model)
  task = tasks.create(config)
  known = task.kind == 'classes' and config.model.num_classes  # if so, no data is needed
  num_outputs = known or task.outputs(data.load(config.data)[0])[0]
  complexity = models.measure(models.create(config.model, num_outputs), (*config.data.image_size, 3), train=False)
  if not args.json:
    print(table(complexity))
    return
  print(json.dumps({
      'model': config_lib.model_name(config), 'mult_adds': complexity.mult_adds, 'params': complexity.params,
      'trainable': complexity.trainable, 'batch_stats': complexity.batch_stats, 'convention': models.CONVENTION,
      'layers': [dataclasses.asdict(layer) for layer in complexity.layers]}))


def table(complexity: models.Complexity) -> str:
  """Returns the layers, one per line, and the totals."""
  rows = [('layer', 'kind', 'output', 'Mult-Adds', 'weights')]
  rows += [(layer.name, layer.kind, 'x'.join(map(str, layer.output)), f'{layer.mult_adds:,}', f'{layer.params:,}')
           for layer in complexity.layers]
  rows.append(('total', '', '', f'{complexity.mult_adds:,}', f'{complexity.params:,}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ['  '.join(f'{cell:{"<" if i < 3 else ">"}{width}}' for i, (cell, width) in enumerate(zip(row, widths)))
           for row in rows]
  lines += ['', f'counted: {models.CONVENTION}',
            f'all trainable: {complexity.trainable:,}; batch-norm statistics: {complexity.batch_stats:,}']
  return '\n'.join(lines)
