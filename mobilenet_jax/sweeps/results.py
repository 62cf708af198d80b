"""The results of a sweep: the rows of its runs, in one CSV file."""

import csv
import io
import json
from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import UserError, describe
from mobilenet_jax.storage.files import lock, write_whole
from mobilenet_jax.storage.run_files import CONFIG_FILE, MODEL_COLUMNS, RESULT_FILE, RUN_COLUMNS, read_row
from mobilenet_jax.sweeps import naming
from mobilenet_jax.sweeps.tables import CSV_FILE, SWEEP_FILE

IN_ROW = (*naming.IN_MODEL_NAME, 'data.name', 'seed')  # fields that are columns of every row, by other names


def runs_so_far(workdir: Path) -> list[str]:
  """Returns the names of the runs of all sweeps in a folder, which may be none.

  If the file of the names is damaged, they are the names of the folders of runs.
  """
  try:
    return read_sweep(workdir)
  except UserError:
    found = workdir.glob(f'*/{CONFIG_FILE}') if (workdir / SWEEP_FILE).exists() else []
    return sorted(config.parent.name for config in found)


def add_runs(workdir: Path, names: list[str]) -> list[str]:
  """Adds the names of a sweep's runs to those in its folder, and returns those of other sweeps that it also has."""
  before = runs_so_far(workdir)
  together = [*before, *(name for name in names if name not in before)]
  write_whole(workdir / SWEEP_FILE, json.dumps({'runs': together}, indent=2, allow_nan=False) + '\n')
  return [name for name in before if name not in names]


def read_sweep(workdir: Path) -> list[str]:
  """Returns the names of the runs of all sweeps in a folder, in the order in which `add_runs` added them.

  Raises:
    UserError: if the folder is not the folder of a sweep.
  """
  path = workdir / SWEEP_FILE
  try:
    names = json.loads(path.read_bytes())['runs']
  except OSError:
    raise UserError(f'{workdir}: no sweep in this folder; expected the --workdir of mobilenet_jax sweep') from None
  except (ValueError, TypeError, KeyError):
    names = None
  if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise UserError(f'{path}: damaged; start the sweep again, which writes it anew')
  return names


def rows(workdir: Path, names: list[str]) -> list[dict]:
  """Returns the rows of those of the given runs that have finished, with a column for each field that the folder's runs vary.

  Its name is that of the field, such as optim.learning_rate. A row lacks it if the run has no such field. The fields that
  are columns of every row anyway have no second one.
  """
  configs = {name: config_lib.flat(config) for name, config in naming.existing(workdir, runs_so_far(workdir)).items()}
  fields = [field for field in naming.varied(configs.values()) if field not in IN_ROW]
  found = []
  for name in names:
    if row := read_row(workdir / name):
      config = configs.get(name, {})
      values = {field: config_lib.text(config[field]) if isinstance(config[field], tuple) else config[field]
                for field in fields if field in config}
      found.append({'name': name, **values, **{column: value for column, value in row.items() if column != 'name'}})
  return found


def collect(workdir: Path) -> str:
  """Writes the rows of a sweep's finished runs into its CSV file. Several processes may do so at the same time.

  Nothing depends on it, as each row is also in the folder of its run. So it raises no error, which would end the jobs.

  Returns:
    Why the file could not be written, on one line; '' if it was.
  """
  try:
    with lock(workdir, 'results.lock', seconds=60):  # the last process to hold it reads the rows of all runs
      write_csv(workdir / CSV_FILE, rows(workdir, read_sweep(workdir)))
  except (UserError, OSError, ValueError) as error:
    return (f'{workdir / CSV_FILE} is not up to date: {describe(error)}. Each row is in {RESULT_FILE} in the folder of '
            'its run; mobilenet_jax sweep status collects them again')
  return ''


def write_csv(path: Path, rows: list[dict]) -> None:
  """Writes rows as CSV, whole or not at all."""
  text = io.StringIO()
  columns = list(max(rows, key=len)) if rows else [*MODEL_COLUMNS, *RUN_COLUMNS]
  columns += dict.fromkeys(name for row in rows for name in row if name not in columns)  # rows may be of several versions
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())
