"""Counts the Mult-Adds and parameters of a model, layer by layer.

    mobilenet_jax complexity --config=configs/imagenet.py:alpha=0.75,res=192 [--json]
    mobilenet_jax complexity runs/mine

The model is what a recipe describes, or a run folder, a file of published weights, or the name of a published model.
"""

import dataclasses
import json

from mobilenet_jax import config as config_lib
from mobilenet_jax import data, models, tasks, trained
from mobilenet_jax.commands import model_argument
from mobilenet_jax.commands import recipe as recipe_lib
from mobilenet_jax.errors import UserError


def main(argv: list[str]) -> None:
  parser = recipe_lib.parser(__doc__, 'complexity')
  parser.add_argument('--json', action='store_true', help='print one JSON object instead of a table')
  model_argument.add_arguments(parser, required=False)
  args, recipe = recipe_lib.parse(parser, argv, required=False)
  if bool(recipe) == bool(args.model):
    raise UserError('complexity: expected either a recipe, --config=configs/fabrics.py, or a model, such as a run folder')
  if recipe and (args.image_size or args.checkpoint != trained.NEWEST):
    raise UserError('--image-size and --checkpoint are for a model; a recipe has --config.data.image_size')
  if recipe:
    config = recipe.config
    config.model = models.complete(config.model)
    module = _module(config)
  else:
    model = model_argument.load(args)
    config, module = model.config, model.module
  complexity = models.measure(module, (*config.data.image_size, 3), train=False)
  if not args.json:
    print(models.table(complexity))
    return
  print(json.dumps({
      'model': config_lib.model_name(config), 'mult_adds': complexity.mult_adds, 'params': complexity.params,
      'trainable': complexity.trainable, 'batch_stats': complexity.batch_stats, 'convention': models.CONVENTION,
      'layers': [dataclasses.asdict(layer) for layer in complexity.layers]}, allow_nan=False))


def _module(config):
  """Returns the network that a recipe's config describes."""
  task = tasks.create(config)
  known = task.kind == 'classes' and config.model.num_classes  # if so, no data is needed
  return models.create(config.model, known or task.outputs(data.load(config.data)[0])[0])
