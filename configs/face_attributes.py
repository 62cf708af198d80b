"""Face attributes, distilled (section 4.6, Table 12).

    mobilenet_jax train --config=configs/face_attributes.py:alpha=0.5,res=48,teacher=runs/teacher --workdir=runs/student
    mobilenet_jax train --config=configs/face_attributes.py:data=folder:lfw160,recorded=probs.npz,res=128,alpha=0.5 \\
        --workdir=runs/lfw

`data` is faces (embedded), celeb_a, or, with `recorded`, a folder of people. `model` may be nn2, which has no `alpha`.
The teacher is a model (`teacher`) or its recorded outputs (`recorded`). Without a teacher, or with soft=0, the student learns
from the labels or, if there are none, from the recorded teacher's decisions. As in the paper, a student is trained without
regularisation and without early stopping.
"""

from mobilenet_jax import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, data='faces', model='mobilenet', alpha=float, res=64, teacher='', recorded='', soft=1)
  config = config_lib.base()
  config.task = 'attributes'

  config.data.name = arg.data
  config.data.split_by = 'class'  # for a folder: an evaluation on people seen in training would prove nothing
  config.data.recorded = arg.recorded
  config.data.recorded_missing = 'skip' if arg.recorded else 'error'
  config.data.image_size = config_lib.square(arg.res)
  config.data.crop_min_area = 0.7
  config.data.crop_max_aspect = 1.1
  config.data.eval_crop = 0.9
  config.batch_size = 32
  config.eval_batch_size = 200

  config.model.name = arg.model
  if arg.alpha is not None:
    config.model.width_multiplier = arg.alpha
  config.model.batch_norm_decay = 0.99

  if (arg.teacher or arg.recorded) and arg.soft:
    config.distill.model = arg.teacher
    config.distill.hard_weight = 0.0
    config.distill.sigmoid_weight = 1.0

  config.ema_decay = 0.99
  config.train_for = '8 epochs'
  config.optim.learning_rate = 3e-3
  config.optim.epsilon = 1e-6
  config.optim.warmup = '200 steps'
  config.optim.decay_rate = 0.7
  config.optim.decay_every = '1 epoch'
  config.optim.weight_decay = 0.0
  return config
