"""The files in a run's folder: their names, and how to read and write the config, the metrics and the run's row.

    config.json      the complete config
    inputs.json      digests of what it was made from besides, see training/inputs.py
    metrics.jsonl    one row per logging step and per evaluation, and one for the teacher
    tensorboard/     the same values for TensorBoard
    checkpoints/     the two newest and the best
    progress.json    how far it is and what it does, for `sweep status`, until it has finished
    result.json      the run's row, once it has finished
    lock             held by the process that trains
"""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import write_whole

CONFIG_FILE, INPUTS_FILE, METRICS_FILE = 'config.json', 'inputs.json', 'metrics.jsonl'
PROGRESS_FILE, RESULT_FILE = 'progress.json', 'result.json'
UNFINISHED = 'orbax-checkpoint-tmp'  # is in the name of a checkpoint that Orbax has not finished
CHECKPOINTS, TENSORBOARD = 'checkpoints', 'tensorboard'
# The columns of every row. The metrics of the task stand between the two groups.
MODEL_COLUMNS = ('name', 'model', 'width_multiplier', 'height', 'width', 'mult_adds', 'params')
RUN_COLUMNS = ('eval_examples', 'examples_seen', 'seconds', 'dataset', 'seed', 'commit', 'device')
# All others are numbers.
TEXT_COLUMNS = ('name', 'model', 'measured_against', 'teacher', 'dataset', 'commit', 'device', 'extended')
# Fields that may change when a run is started again. They only say how to handle faults.
WITHOUT_TRACE = ('nonfinite_loss', 'data.bad_images', 'data.max_bad_images', 'data.stall_seconds')


def write_row(folder: Path, row: dict) -> None:
  """Writes a run's row, whole or not at all."""
  assert {*MODEL_COLUMNS, *RUN_COLUMNS} <= set(row), {*MODEL_COLUMNS, *RUN_COLUMNS} - set(row)
  write_whole(folder / RESULT_FILE, json.dumps(row, indent=2, allow_nan=False) + '\n')
  (folder / PROGRESS_FILE).unlink(missing_ok=True)


def write_progress(folder: Path, progress: dict) -> None:
  """Writes what a run does: 'doing', a line of text, and, once they are known, 'step', 'total_steps' and 'seconds_left'.

  The 'time' of writing is added, in seconds since 1970.
  """
  with contextlib.suppress(OSError):  # nothing depends on it
    write_whole(folder / PROGRESS_FILE, json.dumps({**progress, 'time': time.time()}, allow_nan=False) + '\n')


def read_progress(folder: Path) -> dict:
  """Returns what `write_progress` wrote last; {} if nothing can be read."""
  try:
    found = dict(json.loads((folder / PROGRESS_FILE).read_bytes()))
  except (OSError, ValueError, TypeError):
    return {}
  kinds = {'doing': str, 'step': int, 'total_steps': int, 'seconds_left': int | float, 'time': int | float}
  return {name: value for name, value in found.items() if isinstance(value, kinds.get(name, ()))}


def read_row(folder: Path) -> dict | None:
  """Returns the row of a finished run; None if the run has not finished, or the file is damaged."""
  try:
    row = dict(json.loads((folder / RESULT_FILE).read_bytes(), parse_int=_whole_number))
  except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
    return None
  kinds = {name: str if name in TEXT_COLUMNS else int | float for name in row}
  whole = {*MODEL_COLUMNS, *RUN_COLUMNS} <= set(row) and all(isinstance(row[name], kind) for name, kind in kinds.items())
  return row if whole else None


def _whole_number(text: str) -> int:
  """Returns an integer that arithmetic with floats can take; a damaged file may have hundreds of digits."""
  if math.isinf(float(text)):
    raise ValueError(f'{text[:20]}...: too large a number')
  return int(text)


def write_inputs(folder: Path, inputs: dict) -> None:
  """Writes the digests of a run's inputs, whole or not at all."""
  write_whole(folder / INPUTS_FILE, json.dumps(inputs, indent=2, allow_nan=False) + '\n')


def read_inputs(folder: Path) -> dict | None:
  """Returns the digests of a run's inputs; None if there are none, as in the folders of earlier versions.

  Raises:
    UserError: if the file is damaged.
  """
  path = folder / INPUTS_FILE
  try:
    found = dict(json.loads(path.read_bytes()))
    if not all(isinstance(value, str | dict) for value in found.values()):
      raise ValueError('expected digests')
    return found
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (ValueError, TypeError) as error:
    raise UserError(f'{path}: damaged; remove it to go on without a check of the data') from error


def read_config(folder: Path) -> ml_collections.ConfigDict:
  """Returns the config of a run or a saved model.

  Raises:
    UserError: if there is none, or it is damaged.
  """
  path = folder / CONFIG_FILE
  try:
    return config_lib.from_dict(json.loads(path.read_bytes()))
  except FileNotFoundError as error:
    raise UserError(f'{path}: there is no such file; expected the folder of a run') from error
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f'{path}: damaged ({error}); expected the config of a run') from error


def read_metrics(folder: Path) -> tuple[list[dict], int]:
  """Returns the rows of metrics.jsonl that can be read, and how many cannot.

  A damaged last line is not counted: the process was killed while it wrote that line. A NaN, as earlier versions wrote it, is
  None.
  """
  path = folder / METRICS_FILE
  lines = path.read_bytes().splitlines() if path.exists() else []
  rows, damaged = [], 0
  for i, line in enumerate(lines):
    try:
      row = json.loads(line, parse_constant=lambda constant: None)
      row['step'] + 0, row['split'] + ''  # raises TypeError if they are of other types
      rows.append(row)
    except (ValueError, TypeError, KeyError):
      damaged += i < len(lines) - 1
  return rows, damaged


def write_metrics(folder: Path, rows: list[dict]) -> None:
  """Replaces metrics.jsonl, whole or not at all."""
  write_whole(folder / METRICS_FILE, ''.join(json.dumps(row, allow_nan=False) + '\n' for row in rows))


def checkpoint_steps(folder: Path) -> list[int]:
  """Returns the steps of the checkpoints of a run or a saved model, damaged or not, in order."""
  checkpoints = folder / CHECKPOINTS
  if not checkpoints.is_dir():
    return []
  return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())


def newest_checkpoint(folder: Path) -> int:
  """Returns the step of a run's newest checkpoint, damaged or not; 0 if it has none."""
  return max(checkpoint_steps(folder), default=0)


def checkpoint_metrics(folder: Path, metric: str) -> dict[int, float]:
  """Returns the metric of each checkpoint that was evaluated, by step. Those whose metrics are damaged are left out."""
  found = {}
  for step in checkpoint_steps(folder):
    try:
      value = json.loads((folder / CHECKPOINTS / str(step) / 'metrics' / 'metrics').read_bytes())[metric]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
      continue
    if value == value:  # a NaN is no best value
      found[step] = value
  return found


def check_is_for_a_model(folder: Path) -> None:
  """Checks that a model may be saved in a folder: it is new or empty, or holds a saved model, which is replaced.

  Raises:
    UserError: if it is anything else, such as the folder of a run.
  """
  if folder.is_dir():
    names = {path.name for path in folder.iterdir()}
    if not names or names == {CONFIG_FILE, CHECKPOINTS} or names == {CHECKPOINTS} and all(
        path.name.isdecimal() or UNFINISHED in path.name for path in (folder / CHECKPOINTS).iterdir()):
      return
    held = 'a run' if names & {METRICS_FILE, INPUTS_FILE, RESULT_FILE, TENSORBOARD} else f'other files, such as {min(names)}'
    raise UserError(f'{folder}: holds {held}; expected a new or an empty folder, or that of a saved model, which is replaced')
  if folder.exists():
    raise UserError(f'{folder}: is a file; expected a new or an empty folder, or that of a saved model, which is replaced')


def has_begun(folder: Path) -> bool:
  """Returns whether something has come of a run: a checkpoint, damaged or not, or its row."""
  return bool(checkpoint_steps(folder) or read_row(folder))


class Claim(NamedTuple):
  """What a config means for a folder: whether its run becomes longer, and what is different from now on, in words."""
  longer: bool
  change: str


def examine(folder: Path, config: ml_collections.ConfigDict, model_fields: dict, in_use: bool = False) -> Claim:
  """Checks that a run folder is new or belongs to a config. Nothing is written.

  Another config may be replaced as long as nothing has come of it, and train_for may grow, unless the schedule of the learning
  rate depends on it: the run then goes on.

  Args:
    folder: the run's folder, which need not exist.
    config: the run's config, with every field of its network.
    model_fields: the defaults of the fields of the network. A config.json that lacks one, as from before the network had it,
      gets its default.
    in_use: whether another process trains the run.

  Raises:
    UserError: if the folder belongs to a run with another config. It names the differences.
  """
  path = folder / CONFIG_FILE
  begun = in_use or has_begun(folder)
  try:
    claimed = read_config(folder) if path.exists() else config
  except UserError as error:
    if begun:
      raise UserError(f'{path}: damaged; remove it to continue with the config given') from error
    claimed = config
  if claimed.model.name == config.model.name:
    claimed.model = {**model_fields, **claimed.model}
  given = config_lib.flat(config)
  before = config_lib.changed(claimed, {name: given[name] for name in WITHOUT_TRACE})
  difference = config_lib.difference(config_lib.to_json(before), config_lib.to_json(config))
  if not difference:
    return Claim(False, '')
  if not begun:
    return Claim(False, f'{path} is replaced, as nothing has come of it (- before, + now: {difference})')
  if in_use:
    raise UserError(f'{folder}: a job trains it with another config (- of the job, + given: {difference}); end it first, as '
                    'with mobilenet_jax sweep cancel, or give another --workdir')
  other_length = config_lib.to_json(config_lib.changed(before, {'train_for': config.train_for})) == config_lib.to_json(config)
  over_the_run = config.optim.schedule in config_lib.OVER_THE_RUN
  if other_length and not over_the_run and checkpoint_steps(folder) and _is_longer(before.train_for, config.train_for):
    return Claim(True, f'train_for grows from {before.train_for!r} to {config.train_for!r}')
  gone = [name for name in config_lib.flat(claimed) if name not in given]
  known = config_lib.all_fields(model_fields)
  earlier = any(claimed.model.name == config.model.name or not name.startswith('model.') for name in gone if name not in known)
  version = ', which an earlier version of this code wrote' if earlier else ''
  advice = 'train_for may only grow, in the same unit; ' if other_length else ''
  if other_length and over_the_run:
    advice = (f'with optim.schedule={config.optim.schedule}, train_for cannot change, as the learning rate of every step '
              'depends on it; ')
  raise UserError(f'{folder} belongs to another config{version} (- in the folder, + given: {difference}); {advice}'
                  'give another --workdir, or the config that is in the folder')


def _is_longer(before, now) -> bool:
  (amount, unit), (longer, same) = map(config_lib.parse_duration, (before, now))
  return unit == same and longer > amount


def claim(folder: Path, config: ml_collections.ConfigDict, longer: bool) -> None:
  """Writes config.json into a run folder that `examine` has let pass. If the run becomes longer, removes its row."""
  folder.mkdir(parents=True, exist_ok=True)
  if longer:
    (folder / RESULT_FILE).unlink(missing_ok=True)  # first, as it must not be taken for the row of the longer run
  path, text = folder / CONFIG_FILE, config_lib.to_json(config)
  if not path.exists() or path.read_bytes() != text.encode():
    write_whole(path, text)
