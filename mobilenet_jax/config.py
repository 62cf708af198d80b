"""The schema of a config, with every field and its default, and the functions that read and change configs."""

import ast
import difflib
import json
import re
from collections.abc import Iterable

import ml_collections

from mobilenet_jax.errors import UserError

RESOLUTION_MULTIPLIERS = (1, 6 / 7, 5 / 7, 4 / 7)  # 224, 192, 160, 128 (section 3.4 of the paper)
WIDTH_MULTIPLIERS = (1.0, 0.75, 0.5, 0.25)
MIN_SIZE = 32  # five strides of two


def base() -> ml_collections.ConfigDict:
  """Returns a config with every field. If the TF-slim release has a value for a field, it is the default."""
  config = ml_collections.ConfigDict(dict(
      task='classification',
      seed=0,
      model=dict(  # also the fields of the network, see models/; a field that a recipe does not set has the network's default
          name='mobilenet',  # one of models.MODELS
          num_classes=0,  # 0: as many as the dataset has
      ),
      data=dict(
          name='fabrics',  # fabrics or faces (embedded), any TFDS name, folder:/path, npz:/path or hf:/path
          data_dir='',  # the folder of TFDS data; '' for TFDS's own default
          train_split='train',
          eval_split='test',
          image_size=(224, 224),  # height, width of the network's input
          stream_size=(0, 0),  # height, width of crops before a device resizes them to image_size; (0, 0): image_size
          crop_min_area=0.35,  # fraction of the image, in training: "limiting the size of small crops" (section 3.2)
          crop_max_aspect=4 / 3,
          flip=True,
          split_by='',  # image, or class if classes are people: what a folder without splits holds out a tenth of; '': by task
          pairs='',  # LFW's pairs.txt for a folder of people; the evaluation uses its images, see held_out_folds
          held_out_folds=(),  # folds of the pairs, from 0, whose people are not trained on; (): all folds
          recorded='',  # a teacher's outputs: an .npz file, see data/recorded.py, or feature:NAME of a TFDS dataset
          recorded_missing='error',  # or skip: leave out examples that the file lacks
          per_identity=0,  # images of each identity in a training batch; 0: no fixed number
          color_distortion=0.0,  # strength; 0 is off, 1 is Inception's
          eval_crop=0.875,
          exif_orientation=True,  # turn images in folders as their EXIF says; False for benchmarks that ignore it
          bad_images='error',  # or skip: report, count and leave them out
          max_bad_images=100,  # that are left out; more are an error
          stall_seconds=300.0,  # without a batch, until a stall is reported
      ),
      init=dict(
          model='',  # the model to start from, as trained.load takes it, such as mobilenet_1.0_224; '' for random weights
          keep_head=False,  # also start from its classifier, for the classes of the data
          freeze_body=False,  # train the classifier only
      ),
      distill=dict(
          model='',  # a teacher that runs beside the student, as trained.load takes it; or use data.recorded
          hard_weight=1.0,  # weight of the task's own loss, against labels
          sigmoid_weight=0.0,  # cross-entropy of each attribute against the teacher's probability (section 4.6)
          softmax_weight=0.0,  # softened cross-entropy against the teacher's classes
          temperature=1.0,  # of the softened cross-entropy
          embedding_weight=0.0,  # squared difference of the outputs (section 4.7)
          unit_embedding_weight=0.0,  # the same, with both outputs scaled to unit length
          features_weight=0.0,  # mean squared difference of features, the student's projected to the teacher's channels
          features='',  # their names, student:teacher, such as block_11:inception_4e
      ),
      embedding=dict(
          size=128,
          margin=0.2,  # of the triplet loss
          folds=10,  # of the pairs that are drawn if data.pairs is ''
          pairs_per_fold=600,
      ),
      batch_size=64,  # over all devices
      eval_batch_size=250,
      accumulate_steps=1,  # parts in which a batch is processed if it does not fit into memory
      train_for='90 epochs',  # durations: 'N steps', 'N epochs' or 'N examples'
      log_every='50 steps',
      eval_every='1 epoch',
      checkpoint_every='1 epoch',
      label_smoothing=0.0,
      ema_decay=0.0,  # 0 is off; 0.9999 in the release
      nonfinite_loss='stop',  # or skip: go back to the last checkpoint and leave out that batch
      optim=dict(
          learning_rate=0.045,
          warmup='0 steps',
          decay_rate=0.94,
          decay_every='2 epochs',  # staircase
          rms_decay=0.9,
          momentum=0.9,
          epsilon=1.0,
          weight_decay=4e-5,  # L2 on convolution and classifier weights
          depthwise_weight_decay=0.0,  # "very little or no weight decay" (section 3.2)
      ),
  ))
  config.lock()  # a recipe that sets an unknown field fails
  config.model.unlock()  # models.complete checks the names in it
  return config


def from_dict(values: dict) -> ml_collections.ConfigDict:
  """Returns a complete config from a run's config.json. Missing fields, as in older runs, get their defaults."""
  config = base()
  with config.unlocked():
    config.update(values)
  config.model.unlock()
  return config


def changed(config: ml_collections.ConfigDict, change: dict) -> ml_collections.ConfigDict:
  """Returns a copy of `config` with other values, given by dotted name.

  Raises:
    UserError: if there is no such field. models.complete checks the fields of the model.
  """
  known = flat(config)
  for name in change:
    if name not in known and not name.startswith('model.'):
      raise UserError(unknown_field(name, known))
  copy = ml_collections.ConfigDict(config.to_dict())
  in_model = {name.removeprefix('model.'): value for name, value in change.items() if name.startswith('model.')}
  copy.update_from_flattened_dict({name: value for name, value in change.items() if not name.startswith('model.')})
  copy.model = ml_collections.ConfigDict({**copy.model, **in_model})  # whose types models.complete checks
  return copy


def overridden(config: ml_collections.ConfigDict, given: dict[str, str],
               model_fields: dict | None = None) -> ml_collections.ConfigDict:
  """Returns a copy of `config` with values given as text, such as {'train_for': '5 epochs', 'data.flip': 'False'}.

  Args:
    config: a complete config.
    given: texts by dotted name. Each is read as a value of the field's type.
    model_fields: the fields of the network with their defaults, see models.fields.

  Raises:
    UserError: if there is no such field, or if a text is not a value of the field's type.
  """
  known = {**flat(config), **{f'model.{name}': value for name, value in (model_fields or {}).items()}}
  values = {}
  for name, text in given.items():
    if name not in known:
      raise UserError(unknown_field(name, known))
    kind = type(known[name])
    try:
      values[name] = text if kind is str else _read(text, kind)
    except (ValueError, SyntaxError, TypeError):
      raise UserError(f'{name}={text}: expected {kind.__name__}, such as {known[name]}') from None
  return changed(config, values)


def _read(text, kind):
  if kind is bool and text.lower() in ('true', 'false', '1', '0'):
    return text.lower() in ('true', '1')
  value = ast.literal_eval(text)
  if kind is float and type(value) is int:
    return float(value)
  if kind is tuple and type(value) is list:
    return tuple(value)
  if kind is tuple and type(value) is int:
    return (value,)
  if type(value) is not kind:
    raise ValueError(text)
  return value


def unknown_field(name: str, known: Iterable[str]) -> str:
  """Returns a message that a config has no field `name`, and which fields it has instead."""
  group, _, field = name.rpartition('.')
  inside = f'{group}.' if group else ''
  others = [other.removeprefix(inside).partition('.')[0] for other in known if other.startswith(inside)]
  if field in others:
    return f'{name}: a part of a config, not a field; expected a field in it, such as {name}.NAME'
  near = difflib.get_close_matches(field, others, 1)
  hint = f'; did you mean {inside}{near[0]}?' if near else ''
  if not others:
    return f'{name}: a config has no part {group}; it has {", ".join(dict.fromkeys(n.partition(".")[0] for n in known))}'
  return f'{name}: {group or "a config"} has no field {field!r}{hint or "; it has " + ", ".join(dict.fromkeys(others))}'


def flat(config: ml_collections.ConfigDict) -> dict:
  """Returns every field by its dotted name."""
  fields = {}
  for name, value in config.items():
    fields.update({f'{name}.{inner}': v for inner, v in flat(value).items()}
                  if isinstance(value, ml_collections.ConfigDict) else {name: value})
  return fields


def parse_arg(arg: str | None, **defaults):
  """Parses the part of --config after the colon, `key=value,...`.

  Args:
    arg: that part.
    **defaults: the default of each key, which also gives its type. If a type such as float is given in place of a default,
      the default is None, and the recipe does not set the field.

  Raises:
    UserError: on an unknown key, or a value of another type.
  """
  kinds = {key: default if isinstance(default, type) else type(default) for key, default in defaults.items()}
  values = {key: None if default is kinds[key] else default for key, default in defaults.items()}
  for item in filter(None, (arg or '').split(',')):
    key, sep, value = item.partition('=')
    if not sep or key not in defaults:
      known = ', '.join(f'{key}={"" if default is kinds[key] else default}' for key, default in defaults.items())
      raise UserError(f'--config: {item!r} is not one of {known}')
    try:
      values[key] = kinds[key](value)
    except ValueError:
      example = '' if defaults[key] is kinds[key] else f', such as {defaults[key]}'
      raise UserError(f'--config: {key}={value}: expected {kinds[key].__name__}{example}') from None
  return ml_collections.ConfigDict(values)


def square(size: int) -> tuple[int, int]:
  return (size, size)


def steps(duration: str, field: str, steps_per_epoch: int, batch_size: int) -> int:
  """Converts '3 epochs', '500 steps' or '64000 examples' to optimiser steps. The result is at least 1, or 0 for zero.

  Raises:
    UserError: on any other text. It names `field`.
  """
  match = re.fullmatch(r'\s*([0-9.]+)\s*(step|epoch|example)s?\s*', str(duration))
  try:
    amount = float(match[1])
  except (TypeError, ValueError):
    raise UserError(
        f"{field}={duration!r}: expected a number and one unit: 'N steps', 'N epochs' or 'N examples'") from None
  count = {'step': amount, 'epoch': amount * steps_per_epoch, 'example': amount / batch_size}[match[2]]
  return max(round(count), 1) if count > 0 else 0


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks what can be checked before anything is built.

  Raises:
    UserError: if a field has a wrong value. It names the field, what was given and what is expected.
  """
  def expect(ok, field, given, expected):
    if not ok:
      raise UserError(f'{field}={given}: expected {expected}')

  expect(config.seed >= 0, 'seed', config.seed, 'a number of at least 0')
  data = config.data
  size = tuple(data.image_size)
  expect(len(size) == 2 and min(size) >= MIN_SIZE, 'data.image_size', size,
         f'(height, width), each at least {MIN_SIZE}')
  stream = tuple(data.stream_size)
  expect(stream == (0, 0) or len(stream) == 2 and all(a >= b for a, b in zip(stream, size)), 'data.stream_size', stream,
         f'(0, 0), or (height, width) of at least image_size={size}')
  choices = {
      'data.split_by': (data.split_by, ('', 'image', 'class')),
      'data.recorded_missing': (data.recorded_missing, ('error', 'skip')),
      'nonfinite_loss': (config.nonfinite_loss, ('stop', 'skip')),
      'data.bad_images': (data.bad_images, ('error', 'skip')),
  }
  for field, (given, known) in choices.items():
    expect(given in known, field, repr(given), 'one of ' + ', '.join(filter(None, known)))
  expect(0 <= config.ema_decay < 1, 'ema_decay', config.ema_decay, 'a number in [0, 1); 0 is off')
  expect(data.stall_seconds > 0, 'data.stall_seconds', data.stall_seconds, 'a number of seconds above 0')
  for field in ('crop_min_area', 'eval_crop'):
    expect(0 < data[field] <= 1, f'data.{field}', data[field], 'a fraction of the image in (0, 1]')
  expect(config.data.per_identity >= 0 and not (config.data.per_identity and config.batch_size % config.data.per_identity),
         'data.per_identity', config.data.per_identity, f'a divisor of batch_size={config.batch_size}, or 0')
  for field in ('batch_size', 'eval_batch_size', 'accumulate_steps'):
    expect(config[field] >= 1, field, config[field], 'at least 1')


def to_json(config: ml_collections.ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def difference(old: str, new: str) -> str:
  """Returns what changed between two configs given as JSON, on one line; '' if they are equal."""
  lines = difflib.ndiff(old.splitlines(), new.splitlines())
  return ', '.join(' '.join(line.rstrip(',').split()) for line in lines if line[0] in '+-')


def model_name(config: ml_collections.ConfigDict) -> str:
  """Returns a name like the paper's, such as mobilenet_0.75_192.

  If height and width differ, the name has both. If the network has no width multiplier, the name has none, as in nn2_224.

  Args:
    config: a complete config, to which models.complete has been applied.
  """
  height, width = config.data.image_size
  parts = [config.model.name, f'{height}' if height == width else f'{height}x{width}']
  if 'width_multiplier' in config.model:
    alpha = config.model.width_multiplier
    parts.insert(1, '1.0' if alpha == 1 else f'{alpha:g}')
  return '_'.join(parts)
