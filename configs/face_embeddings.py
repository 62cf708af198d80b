"""Face embeddings, distilled (section 4.7, Table 14) or learnt with FaceNet's triplet loss.

    mobilenet_jax train --config=configs/face_embeddings.py:model=nn2 --workdir=runs/teacher
    mobilenet_jax train --config=configs/face_embeddings.py:alpha=0.75,res=48,teacher=runs/teacher --workdir=runs/student
    mobilenet_jax train --workdir=runs/lfw \\
        --config=configs/face_embeddings.py:data=folder:lfw160,pairs=lfw160/pairs.txt,fold=0,recorded=e.npz,res=128

`data` is faces (embedded) or a folder of people. The teacher is a model (`teacher`) or its recorded outputs (`recorded`).
The student minimises the squared difference between its outputs and the teacher's, both scaled to unit length. Without a
teacher it minimises the triplet loss, on batches with four images of each person. `pairs` is LFW's pairs.txt. The people in
the pairs of `fold` are not trained on, and that fold is tested.
"""

from mobilenet_jax import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, data='faces', model='mobilenet', alpha=float, res=64, teacher='', recorded='', pairs='',
                             fold=-1)
  config = config_lib.base()
  config.task = 'embedding'

  config.data.name = arg.data
  config.data.split_by = 'class'
  config.data.pairs = arg.pairs
  config.data.held_out_folds = (arg.fold,) if arg.fold >= 0 else ()
  config.data.recorded = arg.recorded
  config.data.recorded_missing = 'skip' if arg.recorded else 'error'
  config.data.image_size = config_lib.square(arg.res)
  config.data.crop_min_area = 0.8
  config.data.crop_max_aspect = 1.05
  config.data.eval_crop = 0.95
  config.eval_batch_size = 200

  config.model.name = arg.model
  if arg.alpha is not None:  # nn2 has none
    config.model.width_multiplier = arg.alpha
  config.model.batch_norm_decay = 0.99

  if arg.teacher or arg.recorded:
    config.batch_size = 32
    config.optim.learning_rate = 3e-3
    config.optim.decay_rate = 0.7
    config.optim.warmup = '200 steps'
    config.distill.model = arg.teacher
    config.distill.hard_weight = 0.0
    config.distill.unit_embedding_weight = 1.0
  else:
    config.batch_size = 64
    config.data.per_identity = 4
    config.optim.learning_rate = 1e-3  # at a higher rate all embeddings collapse to one point for epochs
    config.optim.decay_rate = 0.8
    config.optim.warmup = '50 steps'

  config.ema_decay = 0.99
  config.train_for = '8 epochs'
  config.optim.epsilon = 1e-6
  config.optim.decay_every = '1 epoch'
  config.optim.weight_decay = 0.0
  return config
