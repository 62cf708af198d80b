"""What the runs of a sweep change: a recipe's sweep(config), and --sweep and --seeds on the command line."""

import itertools
import re

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.commands import recipe as recipe_lib
from mobilenet_jax.commands.recipe import Recipe
from mobilenet_jax.errors import UserError, few

EXAMPLE = '--sweep optim.learning_rate=1e-3,3e-3'


def changes(recipe: Recipe, given: list[str], seeds: int) -> tuple[list[dict], list[str]]:
  """Returns what each run changes in the recipe's config, and remarks on it.

  Every combination of the values of the recipe's sweep, of each --sweep and of the seeds is a run. Values on the command line
  take the place of those that the recipe's sweep has for a field.

  Args:
    recipe: a recipe. It need not have a function sweep(config) if there is anything else to vary.
    given: each --sweep, FIELD=VALUE,VALUE,...
    seeds: the number of seeds, from the config's on; 0 leaves the seed alone.

  Raises:
    UserError: if there is nothing to vary, a field or value is wrong, or a field is set in two ways.
  """
  values = _values(recipe, given)
  if seeds:
    if 'seed' in values:
      raise UserError(f'--seeds={seeds} and --sweep seed: expected one of them')
    values['seed'] = [recipe.config.seed + i for i in range(seeds)]
  if recipe_lib.has_sweep(recipe):
    own = recipe_lib.changes(recipe)
    for change in own:
      config_lib.changed(recipe.config, change)  # raises UserError
  elif values:
    own = [{}]
  else:
    raise UserError(f'{recipe.path} has no sweep(config); expected what to vary, such as {EXAMPLE} or --seeds=3; '
                    'mobilenet_jax train trains a single run')
  if seeds and any('seed' in change for change in own):
    raise UserError(f'--seeds={seeds}: the sweep of {recipe.path} has seeds of its own; expected --sweep seed=0,1,... to '
                    'replace them')
  remarks = [f'{field}: {_words(values[field])} in place of the {_words(before)} of {recipe.path.name}' for field in values
             if (before := list(dict.fromkeys(_frozen(change[field]) for change in own if field in change)))]
  kept = [{field: value for field, value in change.items() if field not in values} for change in own]
  if any(field in change for change in own for field in values):  # what differed in a field that is replaced is the same now
    kept = [change for i, change in enumerate(kept) if change not in kept[:i]]
  found = [{**change, **dict(zip(values, combination))}
           for change in kept for combination in itertools.product(*values.values())]
  of_runs = [config_lib.flat(config_lib.changed(recipe.config, change)) for change in found]
  for field in recipe.given:
    if not any(field in values for values in of_runs):
      raise UserError(f'--config.{field} has no effect, as no run of the sweep has the field; remove it')
    if all(field in change for change in found) and not _depends(recipe, field, own):
      raise UserError(f'--config.{field} has no effect, as the sweep of {recipe.path} sets it to '
                      f'{_words(list(dict.fromkeys(_frozen(change[field]) for change in found)))}; expected --sweep {field}=...')
  return found, remarks


def _depends(recipe, field, changes) -> bool:
  """Returns whether the changes that a recipe lists depend on the value that the command line gives a field.

  They are compared with those for the recipe's own value. If that is what the command line gives, they may depend on it.
  """
  own, given = (config_lib.flat(config) for config in (recipe.own, recipe.config))
  if field not in own:
    return False
  if own[field] == given[field]:
    return True
  try:
    return changes != recipe_lib.changes(recipe._replace(config=config_lib.changed(recipe.config, {field: own[field]})))
  except UserError:
    return True


def _values(recipe, given) -> dict[str, list]:
  """Returns the values of each field in --sweep."""
  texts = {}
  for argument in given:
    field, separator, text = argument.partition('=')
    field = field.strip()
    if not separator or not field:
      raise UserError(f'--sweep {argument}: expected a field and its values, such as {EXAMPLE}')
    if field in texts or field in recipe.given:
      raise UserError(f'--sweep {field}: is given twice' + (f', also as --config.{field}' if field in recipe.given else ''))
    texts[field] = _items(text)
    if not all(texts[field]):
      raise UserError(f'--sweep {argument}: expected values between the commas, such as {EXAMPLE}')
  networks = [recipe.config.model.name, *texts.get('model.name', [])]
  known = config_lib.all_fields({name: field for network in networks for name, field in models.fields(network).items()})
  if unknown := [field for field in texts if field not in known]:
    raise UserError(f'--sweep {config_lib.unknown_field(unknown[0], known)}')
  found = {field: [known[field].read(field, item) for item in items] for field, items in texts.items()}
  for field, values in found.items():
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
      raise UserError(f'--sweep {field}: {twice[0]} is given twice; expected each value once')
  return found


def _items(text) -> list[str]:
  """Splits a text at its commas, but not within brackets or quotes; those around an item are taken off."""
  items = re.findall(r'''(?:\([^)]*\)|"[^"]*"|'[^']*'|[^,])+|(?<=,)(?=,|$)|^(?=,|$)''', text)
  return [item.strip()[1:-1] if re.fullmatch(r'''"[^"]*"|'[^']*\'''', item.strip()) else item.strip() for item in items]


def _frozen(value):
  return tuple(value) if isinstance(value, list) else value


def _words(values) -> str:
  return few([str(value) for value in values])
