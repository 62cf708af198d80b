"""Every field of a config, with its default, its comment and its range.

If the TF-slim release has a value for a field, it is the default. The fields of a network are in its own file, see models/;
those of an optimiser and of a schedule are in optim.py.
"""

from collections.abc import Mapping

import ml_collections

from mobilenet_jax.config.fields import TEXT, Field, duration, number, one_of, whole_numbers
from mobilenet_jax.config.optim import CHOICES, OPTIMIZERS, SCHEDULES

MIN_SIZE, MAX_SIZE = 32, 4096  # of images: five strides of two, and a limit beyond which no memory is large enough
_WEIGHT = number(at_least=0)
_FRACTION = number(above=0, at_most=1)
_DECAY = number(at_least=0, below=1)
_COUNT = number(at_least=1, at_most=2**20)
_ERROR_OR_SKIP = one_of('error', 'skip')
_SIZE = f'(height, width), each from {MIN_SIZE} to {MAX_SIZE}, such as (64, 64)'

SCHEMA = {
    'task': Field('classification', 'what is learned: classification, attributes or embedding'),
    'seed': Field(0, 'of everything: the weights, dropout, the order of the examples and their crops',
                  number(at_least=0, below=2**31 - 1)),
    'model': {  # and the fields of the network
        'name': Field('mobilenet', 'the network, see models/; its own fields follow'),
        'num_classes': Field(0, '0: as many as the dataset has', number(at_least=0, at_most=10**7)),
    },
    'data': {
        'name': Field('fabrics', 'fabrics or faces (embedded), any TFDS name, folder:/path, npz:/path or hf:/path', TEXT),
        'data_dir': Field('', "the folder of TFDS data; '' for TFDS's own default"),
        'seed': Field(-1, 'of the order of the examples and their crops alone; -1: as seed', number(at_least=-1, below=2**31 - 1)),
        'train_split': Field('train', 'the examples to train on', TEXT),
        'eval_split': Field('test', 'the examples to evaluate on', TEXT),
        'image_size': Field((224, 224), "height, width of the network's input", whole_numbers(MIN_SIZE, MAX_SIZE, 2, _SIZE)),
        'stream_size': Field((0, 0), 'height, width of crops before a device resizes them to image_size; (0, 0): image_size',
                             whole_numbers(0, MAX_SIZE, 2, f'(0, 0), or {_SIZE}')),
        'crop_min_area': Field(0.35, 'fraction of the image, in training: "limiting the size of small crops" (section 3.2)',
                               _FRACTION),
        'crop_max_aspect': Field(4 / 3, 'of a crop: its longer side by its shorter one', number(at_least=1, at_most=100)),
        'flip': Field(True, 'mirror half of the images in training'),
        'split_by': Field('', 'image, or class if classes are people: what a folder without splits holds out a tenth of; '
                          "'': by task", one_of('', 'image', 'class')),
        'pairs': Field('', "LFW's pairs.txt for a folder of people; the evaluation uses its images, see held_out_folds"),
        'held_out_folds': Field((), 'folds of the pairs, from 0, whose people are not trained on; (): all folds',
                                whole_numbers(0, 10**6, None, 'the numbers of folds, from 0, such as (0, 1)')),
        'recorded': Field('', "a teacher's outputs: an .npz file, see data/recorded.py, or feature:NAME of a TFDS dataset"),
        'recorded_missing': Field('error', 'or skip: leave out examples that the file lacks', _ERROR_OR_SKIP),
        'per_identity': Field(0, 'images of each identity in a training batch; 0: no fixed number', number(at_least=0)),
        'color_distortion': Field(0.0, "strength; 0 is off, 1 is Inception's", number(at_least=0, at_most=10)),
        'eval_crop': Field(0.875, 'the central fraction of an image that is evaluated', _FRACTION),
        'exif_orientation': Field(True, 'turn images in folders as their EXIF says; False for benchmarks that ignore it'),
        'bad_images': Field('error', 'or skip: report, count and leave them out', _ERROR_OR_SKIP),
        'max_bad_images': Field(100, 'that are left out; more are an error', number(at_least=0)),
        'stall_seconds': Field(300.0, 'without a batch, until a stall is reported', number(above=0)),
    },
    'init': {
        'model': Field('', "the model to start from, as trained.load takes it, such as mobilenet_1.0_224; '' for random "
                       'weights'),
        'keep_head': Field(False, 'also start from its classifier, for the classes of the data'),
        'freeze_body': Field(False, 'train the classifier only; batch statistics do not move either'),
    },
    'distill': {
        'model': Field('', 'a teacher that runs beside the student, as trained.load takes it; or use data.recorded'),
        'hard_weight': Field(1.0, "weight of the task's own loss, against labels", _WEIGHT),
        'sigmoid_weight': Field(0.0, "cross-entropy of each attribute against the teacher's probability (section 4.6)",
                                _WEIGHT),
        'softmax_weight': Field(0.0, "softened cross-entropy against the teacher's classes", _WEIGHT),
        'temperature': Field(1.0, 'of the softened cross-entropy', number(above=0)),
        'embedding_weight': Field(0.0, 'squared difference of the outputs (section 4.7)', _WEIGHT),
        'unit_embedding_weight': Field(0.0, 'the same, with both outputs scaled to unit length', _WEIGHT),
        'features_weight': Field(0.0, "mean squared difference of features, the student's projected to the teacher's "
                                 'channels', _WEIGHT),
        'features': Field('', 'their names, student:teacher, such as block_11:inception_4e'),
    },
    'embedding': {
        'size': Field(128, 'numbers in an embedding', number(at_least=1, at_most=2**16)),
        'margin': Field(0.2, 'of the triplet loss', number(at_least=0)),
        'folds': Field(10, "of the pairs that are drawn if data.pairs is ''", number(at_least=2, at_most=1000)),
        'pairs_per_fold': Field(600, 'half of them of the same person', number(at_least=2, at_most=10**6)),
    },
    'batch_size': Field(64, 'over all devices', _COUNT),
    'eval_batch_size': Field(250, 'over all devices; does not affect the result', _COUNT),
    'accumulate_steps': Field(1, 'parts in which a batch is processed if it does not fit into memory; batch norm sees a part',
                              _COUNT),
    'train_for': Field('90 epochs', "a duration: 'N steps', 'N epochs' or 'N examples'", duration(above_0=True)),
    'log_every': Field('50 steps', 'between two lines of progress; 0 steps: only at the end', duration()),
    'eval_every': Field('1 epoch', 'between two evaluations; 0 steps: only at the end', duration()),
    'checkpoint_every': Field('1 epoch', 'between two checkpoints, each after an evaluation; 0 steps: only at the end',
                              duration()),
    'label_smoothing': Field(0.0, 'share of the target that all classes divide equally', _DECAY),
    'ema_decay': Field(0.0, 'of the averaged weights; 0 is off; 0.9999 in the release', _DECAY),
    'nonfinite_loss': Field('stop', 'or skip: go back to the last checkpoint and leave out that batch', one_of('stop', 'skip')),
    'optim': {  # and the fields of the optimiser and of the schedule, see optim.py
        'name': Field('rmsprop', "the optimiser: rmsprop, as in the paper, sgd or adamw; its own fields follow",
                      one_of(*OPTIMIZERS)),
        'learning_rate': Field(0.045, 'after the warm-up', number(at_least=0)),
        'warmup': Field('0 steps', 'over which the learning rate rises from 0; 0 steps is off', duration()),
        'schedule': Field('staircase', 'of the learning rate: staircase, cosine, linear or constant; its own fields follow',
                          one_of(*SCHEDULES)),
        'weight_decay': Field(4e-5, 'on convolution and classifier weights; L2 for rmsprop and sgd, decoupled for adamw',
                              _WEIGHT),
        'depthwise_weight_decay': Field(0.0, 'the same on depthwise weights: "very little or no weight decay" (section 3.2)',
                                        _WEIGHT),
        'clip_norm': Field(0.0, 'largest norm of the gradient of all trained weights; 0 is off', number(at_least=0)),
    },
}


def flat_schema(optim: Mapping | None = None) -> dict[str, Field]:
  """Returns every field by its dotted name. With `optim`, only those of the optimiser and the schedule that it names."""
  found = {}
  for name, entry in SCHEMA.items():
    for inner, field in ({'': entry} if isinstance(entry, Field) else entry).items():
      found['.'.join(filter(None, (name, inner)))] = field
      if name == 'optim' and inner in CHOICES:
        options = CHOICES[inner]
        for own in options.values() if optim is None else [options.get(optim.get(inner), {})]:
          for other, content in own.items():
            found.setdefault(f'optim.{other}', content)
  return found


def base() -> ml_collections.ConfigDict:
  """Returns a config with every field at its default, but without those of a network, an optimiser and a schedule."""
  return ml_collections.ConfigDict({
      name: entry.default if isinstance(entry, Field) else {inner: e.default for inner, e in entry.items()}
      for name, entry in SCHEMA.items()})
