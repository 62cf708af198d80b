"""MobileNet on ImageNet (section 4; Tables 4 to 9, Figures 4 and 5).

    mobilenet_jax train --config=configs/imagenet.py:alpha=0.75,res=192 --workdir=runs/imagenet_0.75_192

Expected, from the paper: 70.6 % top-1 for 1.0 at 224, 50.6 % for 0.25 at 224. Not run here yet. The recipe is RMSprop, as in
section 3.2, with Inception's values: decay 0.9, momentum 0.9, epsilon 1, a learning rate of 0.045 per 96 images x 0.94 every
2 epochs, and averaged weights. Prepare the data once with `tfds build imagenet2012`, or name a folder with the images as they
are distributed, `data=folder:/imagenet`: train/<synset>/ and val/, sorted into synsets or flat beside the devkit.
"""

from mobilenet_jax import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, data='imagenet2012', alpha=float, res=224, batch=96, model='mobilenet')
  config = config_lib.base()

  config.data.name = arg.data
  config.data.eval_split = 'validation' if arg.data == 'imagenet2012' else 'val'
  config.data.exif_orientation = False  # as published figures are read
  config.data.image_size = config_lib.square(arg.res)
  config.batch_size = arg.batch

  config.model.name = arg.model
  config.model.num_classes = 1000
  if arg.alpha is not None:  # some networks have no width multiplier
    config.model.width_multiplier = arg.alpha

  config.train_for = '90 epochs'
  config.log_every = '100 steps'
  config.eval_every = '1 epoch'
  config.checkpoint_every = '1 epoch'
  config.ema_decay = 0.9999
  config.optim.learning_rate = 0.045 * arg.batch / 96
  config.optim.warmup = '1 epoch'
  config.optim.decay_rate = 0.94
  config.optim.decay_every = '2 epochs'
  return config
