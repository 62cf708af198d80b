"""MobileNet on a small dataset of your own: any TFDS name with images and labels, or a folder of images.

    mobilenet_jax train --config=configs/small_images.py:data=cifar100,res=56 --workdir=runs/cifar100
    mobilenet_jax train --config=configs/small_images.py:data=folder:/my/images --workdir=runs/mine

The optimiser is that of configs/fabrics.py, for a longer run. It has not been run at this length; configs/cifar10.py, which is
for five epochs, has been.
"""

from mobilenet_jax import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, data='cifar10', alpha=float, res=56)
  config = config_lib.base()

  config.data.name = arg.data
  config.data.eval_split = 'validation' if arg.data.startswith('imagenette') else 'test'
  config.data.image_size = config_lib.square(arg.res)
  config.data.crop_min_area = 0.5
  config.batch_size = 64
  config.eval_batch_size = 200

  if arg.alpha is not None:  # a network may have no width multiplier
    config.model.width_multiplier = arg.alpha
  config.model.batch_norm_decay = 0.99

  config.ema_decay = 0.99
  config.train_for = '60 epochs'
  config.optim.learning_rate = 5e-4
  config.optim.epsilon = 1e-6
  config.optim.warmup = '500 steps'
  config.optim.decay_every = '1 epoch'
  config.optim.weight_decay = 0.0
  return config
