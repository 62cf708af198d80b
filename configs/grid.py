"""The 16 models of Figures 4 and 5: width multipliers 1, 0.75, 0.5, 0.25 x four resolutions.

    mobilenet_jax sweep --config=configs/grid.py:data=cifar10,res=56 --workdir=runs/cifar10

`data` is fabrics (embedded), imagenet2012, cifar10, any other TFDS name, or folder:/path; it chooses the recipe. For a folder
with the images of ImageNet or CIFAR-10, add recipe=imagenet or recipe=cifar10. `res` is the largest resolution (0: the
recipe's own); the others are 6/7, 5/7 and 4/7 of it, as 192, 160 and 128 are of 224.
The images of all 16 models are cropped at the largest resolution and resized on the device, no matter which models train
together. Grouping therefore changes the time that a sweep takes, but not its results.
As in the paper, "all models train with the same parameters" (section 3.2): a field that is set on the command line, such as
--config.train_for='10 epochs', holds for all 16.
"""

from configs import cifar10, fabrics, imagenet, small_images
from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import UserError


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, data='fabrics', res=0, recipe='')
  size = f'res={arg.res}' if arg.res else ''
  recipe = arg.recipe or {'fabrics': 'fabrics', 'imagenet2012': 'imagenet', 'cifar10': 'cifar10'}.get(arg.data, 'small_images')
  if recipe == 'fabrics' == arg.data:
    return fabrics.get_config(size)
  recipes = {'imagenet': imagenet, 'cifar10': cifar10, 'small_images': small_images}
  if recipe not in recipes:
    raise UserError(f'recipe={recipe}: expected {", ".join(recipes)}, with data={arg.data}')
  return recipes[recipe].get_config(f'data={arg.data},{size}')


def sweep(config):
  """Returns what each of the 16 runs changes in `config`."""
  largest = max(config.data.image_size)
  sizes = [round(largest * rho) for rho in config_lib.RESOLUTION_MULTIPLIERS]
  if min(sizes) < config_lib.MIN_SIZE:
    raise UserError(f'res={largest}: the smallest of {sizes} is below {config_lib.MIN_SIZE}; expected res=56 or more')
  stream = {'data.stream_size': config_lib.square(largest)}
  return [{'model.width_multiplier': alpha, 'data.image_size': config_lib.square(size), **stream}
          for alpha in config_lib.WIDTH_MULTIPLIERS for size in sizes]
