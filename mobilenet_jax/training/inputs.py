"""What a run is made from besides its config: examples, recorded outputs, pairs, and the weights of other models.

A digest of each is kept in the run's folder, so that a run does not go on, and is not evaluated, with others.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import data as data_lib
from mobilenet_jax import tasks, trained
from mobilenet_jax.data import (
    TEACHER, Source, common, digest, fingerprint, ids_digest, keep_in_memory, known_targets, read_pairs)
from mobilenet_jax.errors import UserError, counted, few
from mobilenet_jax.storage import run_files
from mobilenet_jax.storage.files import expanded
from mobilenet_jax.training import distillation

TO_TRAIN_ON, TO_EVALUATE_ON = 'examples to train on', 'examples to evaluate on'
GIVEN = 'given'  # among the digests if the data was given in Python, so that its config does not name it
NOT_KNOWN = 'It is not known whether the model was trained on these examples'


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The inputs that the runs of a group share.

  Attributes:
    train, evaluation: the examples, with recorded outputs as the task needs them.
    teacher: the teacher that runs beside the students, or None.
    digests: what identifies them, see `changes`.
  """

  train: Source
  evaluation: Source
  teacher: distillation.Teacher | None
  digests: dict


def load_inputs(config: ml_collections.ConfigDict, data: tuple[Source, Source] | None = None,
                teacher: distillation.Teacher | None = None) -> Inputs:
  """Loads the inputs of a run.

  Args:
    config: a complete config, to which checks.checked has been applied.
    data: the training and the evaluation source; by default those that config.data names.
    teacher: by default the teacher that config.distill names.

  Raises:
    UserError: if they cannot be loaded, or do not fit the task.
  """
  task = tasks.create(config)
  both = data or tuple(map(keep_in_memory, data_lib.load(config.data)))
  teacher = teacher or distillation.load_teacher(config)
  known = tuple(map(known_targets, both))  # read once, as a dataset may not have them in memory
  digests = {what: fingerprint(source, targets) for what, source, (targets, _) in zip(
      (TO_TRAIN_ON, TO_EVALUATE_ON), both, known)}
  digests |= {**_pairs(config), **({GIVEN: 'in Python'} if data else {})}
  if teacher:
    digests['teacher'] = trained.digest_of(teacher.variables, teacher.labels)
    both = tuple(distillation.named(source, teacher) for source in both)
  outputs = task.outputs(both[0])
  both = _compared(*both, known, task, config)
  both = tuple(distillation.selected(source, task, *outputs) for source in both)
  task.check(both[1])
  taught = distillation.is_soft(config) or task.measured_against(both[0]) == tasks.DECISIONS
  if (teacher or TEACHER in both[0].target_shapes) and not taught:
    remark = 'nothing is learned from the teacher, as no term of distill has a weight'
    both = tuple(dataclasses.replace(source, remarks=(*source.remarks, remark)) for source in both)
  return Inputs(*both, teacher, digests)


def check_inputs(config: ml_collections.ConfigDict, inputs: Inputs) -> None:
  """Raises UserError if a run cannot train on its inputs: an epoch has no batch, or a term of distill has no teacher."""
  data_lib.steps_per_epoch(inputs.train, config.batch_size)
  distillation.check(config, inputs.teacher is not None, TEACHER in inputs.train.target_shapes)


def _pairs(config):
  pairs = config.data.pairs
  return {'pairs': digest(repr(read_pairs(expanded(pairs))))} if pairs else {}


def _compared(train, evaluation, targets, task, config):
  """Returns the sources as the task needs their labels, with remarks on what both have, or only one of them."""
  (known, complete), (asked, _) = targets
  known, asked = known['label'], asked['label']
  # Without the task's own loss, a student learns from images without labels, too.
  needed = task.needs_labels and (config.distill.hard_weight > 0 or config.data.per_identity > 0)
  train = dataclasses.replace(train, labelled=needed or (known >= 0).all())
  evaluation = dataclasses.replace(evaluation, labelled=task.needs_labels)
  for source, labels in ((train, known), (evaluation, asked)):
    if source.labelled and (labels < 0).any():
      _ = source.labels  # raises an error that names the example, before anything is trained
  known, asked = known[known >= 0], asked[asked >= 0]
  remarks = []
  if not config.data.pairs and (shared := len(set(evaluation.ids).intersection(train.ids))):
    remarks.append(f'{shared:,} of the {len(evaluation):,} examples to evaluate on are trained on, too')
  elif task.kind == 'vector' and not config.data.pairs:
    name = lambda source, label: source.class_names[label] if source.class_names else f'person {label}'
    people, tested = ({name(source, label) for label in set(labels.tolist())}
                      for source, labels in ((train, known), (evaluation, asked)))
    if shared := sorted(people & tested):
      remarks.append(f'{len(shared)} of the {len(tested)} people to evaluate on are trained on, too ({few(shared)}): '
                     'the evaluation says little about other people')
  both = tuple(dataclasses.replace(source, remarks=(*source.remarks, *remarks)) for source in (train, evaluation))
  if task.kind == 'classes' and train.labelled and complete:
    both = data_lib.with_classes_checked(*both, config.data, known, asked)
  return both


def starting_weights(configs: Iterable[ml_collections.ConfigDict]) -> dict[str, dict]:
  """Returns, by init.model, the digest of the weights that runs start from, each loaded once.

  It is {} if a run starts from random weights, or if they are gone by now.
  """
  found = {}
  for name in {config.init.model for config in configs}:
    try:
      found[name] = {'starting weights': trained.load(name).digest} if name else {}
    except UserError:  # a run that has begun does not need them any more; one that has not says so itself
      found[name] = {}
  return found


def changes(before: dict, now: dict) -> str:
  """Returns in words how the inputs of a run differ from what they were; '' if they do not.

  Each has a fingerprint of the examples to train on and of those to evaluate on, and digests by name. What `now` lacks is
  not compared.
  """
  said = []
  for what, new in now.items():
    if what == GIVEN:  # the same examples may be named by a config, too
      continue
    old = before.get(what)
    old = old if type(old) is type(new) else type(new)()
    if old == new:
      continue
    if not isinstance(new, dict):
      said.append(f'other {what}')
    elif old.get('count') != new['count']:
      said.append(f'{new["count"]:,} {what} instead of {old.get("count", 0):,}')
    elif old.get('ids') != new['ids']:
      said.append(f'other {what}, though as many')
    elif old.get('targets') != new['targets']:
      said.append(f'other labels or classes of the {what}')
    else:
      said.append(f'other recorded outputs of the {what}')
  return ', '.join(said)


def difference(folder: Path, now: dict) -> str:
  """Returns why a run that was begun in `folder` cannot go on with the inputs `now`, on one line; '' if it can."""
  if not run_files.has_begun(folder):
    return ''  # nothing has come of other inputs yet
  before = run_files.read_inputs(folder)
  if before is None:
    held_out = now.get(TO_EVALUATE_ON, {}).get('held_out')
    return (f'{folder} was begun by an earlier version of this code, which held out other images; train it anew in another '
            '--workdir') if held_out else ''
  said = changes(before, now)
  return said and (f'{folder} was begun with other inputs: now there are {said}; bring the former back, or give another '
                   '--workdir')


def own_data(model: trained.TrainedModel, config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the examples that a run trains and evaluates on, which are checked to be those of its training.

  Args:
    model: the model of a run.
    config: its config; with another data.eval_split, only the examples to train on are checked.

  Raises:
    UserError: if there are other examples by now; it says in what they differ.
  """
  before = run_files.read_inputs(expanded(model.origin))
  advice = 'name the data to evaluate on with --data, which evaluates on all of a folder without splits'
  if GIVEN in (before or {}):
    raise UserError(f'{model.origin}: was trained on data that was given in Python, which its config does not name; {advice}')
  train, evaluation = data_lib.load(config.data)
  now = {TO_TRAIN_ON: fingerprint(train, known_targets(train)[0])}
  if config.data.eval_split == model.config.data.eval_split:
    now |= {TO_EVALUATE_ON: fingerprint(evaluation, known_targets(evaluation)[0]), **_pairs(config)}
  if before is None and evaluation.held_out:
    raise UserError(f'{model.origin}: trained by an earlier version of this code, which held out other images; {advice}')
  if before is not None and (said := changes(before, now)):
    raise UserError(f'{model.origin}: its inputs have changed since it was trained: now there are {said}; bring the former '
                    f'back, or {advice}')
  return train, evaluation


def trained_on(model: trained.TrainedModel, source: Source, config: ml_collections.ConfigDict,
               train: Source | None = None) -> tuple[int | None, str]:
  """Returns how many of the examples that a model is evaluated on it was trained on, and a remark for a person, or ''.

  The number is None if it is not known, as for models that are not runs. See data.common for which examples are the same.

  Args:
    model: the model.
    source: the examples that it is evaluated on.
    config: a complete config that names them.
    train: the examples that it was trained on, if both are from own_data. Then an example is told by its id.
  """
  path = expanded(model.origin)
  try:
    before = run_files.read_inputs(path)
  except (UserError, OSError):
    return None, f'{NOT_KNOWN}: {path / run_files.INPUTS_FILE} is damaged or cannot be read'
  if before is None:
    return None, ''
  copied = False
  if train:
    count = len(set(source.ids).intersection(train.ids))
  else:
    train, copied = _training_examples(model, before, config)
    if not train:
      return None, f'{NOT_KNOWN}: its training data has changed or cannot be read'
    count = common(source, train)
  if count is None:
    return None, f'{NOT_KNOWN}: they cannot be compared with its training data, which is of another kind or set'
  if not count:
    return 0, ''
  by_name = ', by their names' if copied and source.files else ''
  return count, (f'{count:,} of the {counted(len(source), "example")} to evaluate on were trained on{by_name}: the result says '
                 'little about other examples')


def _training_examples(model, before, config):
  """Returns the examples that a run was trained on, or None, and whether they are taken from a copy of their set.

  If the data of the training is gone, what `config` names to evaluate on may be a copy of it: it is if it has the same ids.
  """
  examples = before.get(TO_TRAIN_ON)
  ids = examples.get('ids') if isinstance(examples, dict) else None
  candidates = [(config_lib.changed(config, {'data.eval_split': model.config.data.eval_split}), True)]
  if GIVEN not in before:
    candidates.insert(0, (model.config, False))
  for candidate, copied in candidates:
    try:
      train, _ = data_lib.load(candidate.data)
    except (UserError, OSError):
      continue
    if ids_digest(train) == ids:
      return train, copied
  return None, False
