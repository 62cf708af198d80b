"""Results as plain rows: one a finished run, in its folder; a sweep's rows together in a CSV file."""

import csv
import io
import json
from pathlib import Path

from mobilenet_jax.errors import UserError
from mobilenet_jax.files import lock, write_whole

RESULT_FILE = 'result.json'
SWEEP_FILE, CSV_FILE = 'sweep.json', 'results.csv'
# Of every row; the metrics of its task stand between the two.
MODEL_COLUMNS = ('name', 'model', 'width_multiplier', 'height', 'width', 'mult_adds', 'params')
RUN_COLUMNS = ('eval_examples', 'examples_seen', 'seconds', 'dataset', 'seed', 'commit', 'device')


def write(folder: Path, row: dict) -> None:
  """Writes a run's row; it is there whole or not at all."""
  assert {*MODEL_COLUMNS, *RUN_COLUMNS} <= set(row), {*MODEL_COLUMNS, *RUN_COLUMNS} - set(row)
  write_whole(folder / RESULT_FILE, json.dumps(row, indent=2) + '\n')


def read(folder: Path) -> dict | None:
  """The row of a finished run, else None; also where its file is damaged."""
  path = folder / RESULT_FILE
  try:
    row = json.loads(path.read_bytes())
    return row if {*MODEL_COLUMNS, *RUN_COLUMNS} <= set(row) else None
  except (FileNotFoundError, ValueError, TypeError):
    return None


def write_sweep(workdir: Path, names: list[str]) -> None:
  """Notes the runs of a sweep in its folder: the names of theirs, in order."""
  write_whole(workdir / SWEEP_FILE, json.dumps({'runs': names}, indent=2) + '\n')


def read_sweep(workdir: Path) -> list[str]:
  """The names that `write_sweep` noted.

  Raises:
    UserError: where the folder is none of a sweep.
  """
  try:
    return json.loads((workdir / SWEEP_FILE).read_bytes())['runs']
  except (OSError, ValueError, TypeError, KeyError):
    raise UserError(f'{workdir}: no sweep in this folder; expected one that mobilenet_jax.sweep has been given') from None


def collect(workdir: Path) -> None:
  """Writes the rows of a sweep's finished runs into its CSV file; any number of processes may do so at a time."""
  names = read_sweep(workdir)
  with lock(workdir, 'results.lock', seconds=60):  # so that whoever is last has read the rows of all
    rows = [row for name in names if (row := read(workdir / name))]
    write_csv(workdir / CSV_FILE, rows)


def write_csv(path: Path, rows: list[dict]) -> None:
  text = io.StringIO()
  columns = list(rows[0]) if rows else [*MODEL_COLUMNS, *RUN_COLUMNS]
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())
