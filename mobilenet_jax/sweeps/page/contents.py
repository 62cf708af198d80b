"""What a page shows: the runs of one or several sweeps, read from their folders, and what can be said of them as a whole."""

import collections
import math
from pathlib import Path
from typing import NamedTuple

from mobilenet_jax import config as config_lib
from mobilenet_jax import tasks
from mobilenet_jax.errors import UserError, counted
from mobilenet_jax.storage.run_files import CONFIG_FILE, read_config, read_metrics, read_row
from mobilenet_jax.sweeps import naming, results, status, tables

SINGLE = 'single runs'
TITLES = {'model.name': 'model', 'model.width_multiplier': 'α', 'data.image_size': 'input'}
CURVE_POINTS, CURVE_DIGITS = 150, 4  # of a curve: its points, at most, and the significant digits of a value
MISSING = '–'


class Run(NamedTuple):
  """A run of a sweep.

  Attributes:
    sweep: the label of its sweep.
    name: its name in the sweep.
    state: as status.table has it.
    so_far: how far it is, or why it failed.
    config: the fields of its config by dotted name; {} if it cannot be read.
    row: its row; {} until it has finished.
    evaluations, losses: lists of (step, value): its main metric on the evaluation set, and its training loss.
  """
  sweep: str
  name: str
  state: str
  so_far: str
  config: dict
  row: dict
  evaluations: list
  losses: list

  @property
  def task(self) -> str:
    """The name of its task; '' if it is not known."""
    if self.config.get('task') in tasks.TASKS:
      return self.config['task']
    return next((name for name, task in tasks.TASKS.items() if task.main_metric in self.row), '')


def read(folders: list[Path]) -> tuple[list[Run], list[str]]:
  """Reads the runs of sweeps.

  Args:
    folders: the folders of sweeps, and of single runs.

  Returns:
    The runs, and remarks on what is missing or cannot be used.

  Raises:
    UserError: if a folder is neither that of a sweep nor that of a run.
  """
  labels = _labels(folders)
  runs, remarks = [], []
  for folder in folders:
    label, workdir, names = labels[folder], folder, []
    try:
      names = results.read_sweep(folder)
    except UserError as error:
      if (folder / CONFIG_FILE).exists():
        label, workdir, names = SINGLE, folder.resolve().parent, [folder.resolve().name]
      elif names := results.runs_so_far(folder):
        remarks.append(f'{error}. Shown are the runs whose folders are there.')
      elif not (folder / results.CSV_FILE).exists():
        raise UserError(f'{folder}: neither a sweep nor a run is in this folder; expected the --workdir of mobilenet_jax '
                        'sweep or of mobilenet_jax train') from error
    gone, more = [], []
    if not names or not all((workdir / name).exists() for name in names):
      gone, more = _read_table(label, folder, names)
    left = [name for name in names if name not in {run.name for run in gone}]
    for line in status.table(workdir, left) if left else []:
      run, problems = _read_run(label, workdir / line['run'], line)
      runs.append(run if workdir == folder else run._replace(name=labels[folder]))
      remarks += problems
    runs += gone
    remarks += more
  return runs, remarks


def _read_table(label, folder, names) -> tuple[list[Run], list[str]]:
  """Returns the runs of a sweep whose folders are gone, but whose rows are in its results.csv, and remarks on them."""
  path = folder / results.CSV_FILE
  if not path.exists():
    return [], []
  try:
    if names and not tables.lines(path):  # none has finished
      return [], []
    table = tables.read(path)
  except UserError as error:
    if not names:
      raise
    return [], [f'{error}.']
  rows = [row for row in table.rows if not (folder / row['name']).exists()]
  runs = [Run(label, row['name'], status.FINISHED, '', _config_of(row), row, [], []) for row in rows]
  remarks = [f'{path}: of {counted(len(runs), "run")} there is only the row in this table: no curves, and not the whole config.']
  return runs, [*(f'{remark}.' for remark in table.remarks), *(remarks if runs else [])]


def _config_of(row) -> dict:
  """Returns the fields of a run's config that its row has."""
  named = {'model.name': row['model'], 'model.width_multiplier': row['width_multiplier'],
           'data.image_size': (row['height'], row['width']), 'data.name': row.get('dataset')}
  return {name: value for name, value in {**named, **row}.items() if value is not None and tables.is_field(name)}


def _labels(folders) -> dict[Path, str]:
  names = collections.Counter(folder.resolve().name for folder in folders)
  return {folder: folder.resolve().name if names[folder.resolve().name] == 1 else str(folder) for folder in folders}


def _read_run(label, folder, line) -> tuple[Run, list[str]]:
  remarks = []
  try:
    config = {name: _plain(value) for name, value in config_lib.flat(read_config(folder)).items()}
  except UserError as error:
    config = {}
    if folder.exists():  # it does not before its sweep has begun with it
      remarks.append(f'{error}. What {line["run"]} varies is not known.')
  row = read_row(folder) or {}
  run = Run(label, line['run'], line['state'], line['so far'], config, row, [], [])
  metrics, damaged = read_metrics(folder)
  if damaged:
    remarks.append(f'{run.name}: {counted(damaged, "line")} of its metrics.jsonl cannot be read.')
  if run.task:
    run.evaluations.extend(_curve(metrics, 'eval', tasks.TASKS[run.task].main_metric))
  run.losses.extend(_curve(metrics, 'train', 'loss'))
  if row and not run.evaluations:
    remarks.append(f'{run.name}: no evaluation in its metrics.jsonl, so it has no learning curve.')
  return run, remarks


def _plain(value):
  """Returns the value of a field, which may be anything in a damaged file, as one that can be compared and shown."""
  whole = isinstance(value, tuple) and all(isinstance(part, str | int | float) for part in value)
  return value if whole or isinstance(value, str | int | float) else str(value)


def _curve(metrics, split, name) -> list[tuple[float, float]]:
  found = [(row['step'], round_to(value, CURVE_DIGITS)) for row in metrics
           if row['split'] == split and is_number(value := row.get(name)) and is_number(row['step'])]
  every = -(-len(found) // CURVE_POINTS) or 1
  return found[::-1][::every][::-1]  # with the last one


def is_number(value) -> bool:
  """Returns whether a value of a file is a finite number."""
  try:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  except OverflowError:  # an integer with hundreds of digits
    return False


def round_to(value: float, digits: int = 5) -> float:
  """Returns a number with so many significant digits."""
  return float(f'{value:.{digits}g}')


def shown(field: str, value) -> str:
  """Returns the value of a field of a config, as a person reads it; that of a field that a config lacks is None."""
  if field == 'data.image_size' and isinstance(value, tuple) and len(set(value)) == 1:
    return str(value[0])
  return MISSING if value is None else repr(value) if value == '' else config_lib.text(value)


class Differences(NamedTuple):
  """What differs between the configs of runs.

  Attributes:
    varied: the fields that differ between runs of one sweep, by dotted name, in the order of the configs.
    between: those that differ only from sweep to sweep.
    shared: for each sweep the fields in which all of its runs agree, with their value.
  """
  varied: list[str]
  between: list[str]
  shared: dict[str, dict]


def differences(runs: list[Run]) -> Differences:
  """Returns what differs between the configs of runs. Those without a config are left out."""
  sweeps = {run.sweep: [other.config for other in runs if other.sweep == run.sweep and other.config] for run in runs}
  differing = naming.varied(run.config for run in runs if run.config)
  within = {name for configs in sweeps.values() for name in naming.varied(configs)}
  shared = {sweep: {name: shown(name, value) for name, value in configs[0].items()
                    if len({shown(name, config.get(name)) for config in configs}) == 1}
            for sweep, configs in sweeps.items() if configs}
  return Differences([name for name in differing if name in within], [name for name in differing if name not in within], shared)


def order(values) -> list:
  """Returns the distinct values of a field in order: numbers by size, then the others by their text."""
  found = {shown('', value): value for value in values}
  return sorted(found.values(), key=lambda value: (not is_number(value), value if is_number(value) else 0, str(value)))
