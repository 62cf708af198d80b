"""MobileNet on the embedded dataset: a recipe that 2 CPU cores train in a minute or two.

    mobilenet_jax train --config=configs/fabrics.py:alpha=0.5,res=54 --workdir=runs/fabrics_0.5_54

The recipe is RMSprop, as in the paper, with settings for 600 steps: an epsilon so small that the gradient's own scale
sets the step size, batch norm and weight averages that forget quickly, and no weight decay. Images are not cropped, as that would
change how often a pattern repeats, and not mirrored, as one cloth would become another.
"""

from mobilenet_jax import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, alpha=float, res=63)
  config = config_lib.base()

  config.data.name = 'fabrics'
  config.data.image_size = config_lib.square(arg.res)
  config.data.crop_min_area = 1.0
  config.data.crop_max_aspect = 1.0
  config.data.flip = False
  config.data.eval_crop = 1.0
  config.batch_size = 32
  config.eval_batch_size = 200

  if arg.alpha is not None:  # a network may have no width multiplier
    config.model.width_multiplier = arg.alpha
  config.model.batch_norm_decay = 0.9

  config.ema_decay = 0.99
  config.train_for = '600 steps'
  config.eval_every = '300 steps'
  config.checkpoint_every = '300 steps'
  config.optim.learning_rate = 7e-4
  config.optim.epsilon = 1e-6
  config.optim.warmup = '50 steps'
  config.optim.decay_rate = 0.6
  config.optim.decay_every = '100 steps'
  config.optim.weight_decay = 0.0
  return config
