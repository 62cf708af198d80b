"""The results of a sweep: the rows of its runs, in one CSV file."""

import csv
import io
import json
from pathlib import Path

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import lock, write_whole
from mobilenet_jax.storage.run_files import MODEL_COLUMNS, RUN_COLUMNS, read_row

SWEEP_FILE, CSV_FILE = 'sweep.json', 'results.csv'


def write_sweep(workdir: Path, names: list[str]) -> None:
  """Writes the names of a sweep's runs, in order, into its folder."""
  write_whole(workdir / SWEEP_FILE, json.dumps({'runs': names}, indent=2) + '\n')


def is_sweep(workdir: Path) -> bool:
  """Returns whether the folder is that of a sweep, of which the names can be read."""
  try:
    return bool(read_sweep(workdir))
  except UserError:
    return False


def read_sweep(workdir: Path) -> list[str]:
  """Returns the names that `write_sweep` wrote.

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


def collect(workdir: Path) -> None:
  """Writes the rows of a sweep's finished runs into its CSV file. Several processes may do so at the same time."""
  names = read_sweep(workdir)
  with lock(workdir, 'results.lock', seconds=60):  # the last process to hold it reads the rows of all runs
    rows = [row for name in names if (row := read_row(workdir / name))]
    write_csv(workdir / CSV_FILE, rows)


def write_csv(path: Path, rows: list[dict]) -> None:
  """Writes rows as CSV, whole or not at all."""
  text = io.StringIO()
  columns = list(max(rows, key=len)) if rows else [*MODEL_COLUMNS, *RUN_COLUMNS]
  columns += dict.fromkeys(name for row in rows for name in row if name not in columns)  # rows may be of several versions
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())
