"""MobileNet on CIFAR-10, enlarged from 32x32: the recipe of Figures 4 and 5 on real photographs.

    mobilenet_jax train --config=configs/cifar10.py:alpha=0.5,res=40 --workdir=runs/cifar10_0.5_40
    make figures DATA=cifar10

`data` is the TFDS name, or folder:/path with the images in {train,test}/<class>/.
RMSprop, mirrored images and no weight decay are those of section 3.2 of the paper. The rest is for five epochs: an epsilon so
small that the gradient's own scale sets the step size, a learning rate that falls to 0 along a cosine, weights that are averaged
over the last 100 steps or so, and large crops, as a network that sees each image five times underfits rather than overfits.
"""

from mobilenet_jax import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, data='cifar10', alpha=float, res=56)
  config = config_lib.base()

  config.data.name = arg.data
  config.data.image_size = config_lib.square(arg.res)
  config.data.crop_min_area = 0.8
  config.data.eval_crop = 1.0
  config.data.flip = True
  config.batch_size = 64
  config.eval_batch_size = 200

  if arg.alpha is not None:  # a network may have no width multiplier
    config.model.width_multiplier = arg.alpha
  config.model.batch_norm_decay = 0.99

  config.ema_decay = 0.99
  config.train_for = '5 epochs'
  config.optim.learning_rate = 5e-4
  config.optim.epsilon = 1e-6
  config.optim.warmup = '100 steps'
  config.optim.schedule = 'cosine'
  config.optim.weight_decay = 0.0
  return config
