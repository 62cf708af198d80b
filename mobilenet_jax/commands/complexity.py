"""Counts the Mult-Adds and parameters of a model, layer by layer.

    mobilenet_jax complexity --config=configs/imagenet.py:alpha=0.75,res=192 [--json]
    mobilenet_jax complexity runs/mine

The model is what a recipe describes, or a run folder, a file of published weights, or the name of a published model.
"""

import dataclasses
import json

from mobilenet_jax import config as config_lib
from mobilenet_jax import data, models, tasks
from mobilenet_jax.commands import model_argument
from mobilenet_jax.commands import recipe as recipe_lib
from mobilenet_jax.runtime import command_line


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'complexity')
  recipe_lib.add_arguments(parser)
  parser.add_argument('--json', action='store_true', help='print one JSON object instead of a table')
  if any(argument.startswith('--config') for argument in argv):
    args, (_, _, config) = recipe_lib.parse(parser, argv)
    module = _module(config)
  else:  # here, because the value of a --config.FIELD would look like a model
    model_argument.add_arguments(parser)
    args = parser.parse_args(argv)
    model = model_argument.load(args)
    config, module = model.config, model.module
  complexity = models.measure(module, (*config.data.image_size, 3), train=False)
  if not args.json:
    print(models.table(complexity))
    return
  print(json.dumps({
      'model': config_lib.model_name(config), 'mult_adds': complexity.mult_adds, 'params': complexity.params,
      'trainable': complexity.trainable, 'batch_stats': complexity.batch_stats, 'convention': models.CONVENTION,
      'layers': [dataclasses.asdict(layer) for layer in complexity.layers]}))


def _module(config):
  """Returns the network of a recipe's config, whose `model` it completes."""
  config_lib.validate(config)
  config.model = models.complete(config.model)
  task = tasks.create(config)
  known = task.kind == 'classes' and config.model.num_classes  # if so, no data is needed
  return models.create(config.model, known or task.outputs(data.load(config.data)[0])[0])
