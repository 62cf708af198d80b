"""Results as plain rows: one a finished run, in its folder; a sweep's rows together in a CSV file."""

import csv
import io
import json
from pathlib import Path

from mobilenet_jax.files import write_whole

RESULT_FILE = 'result.json'
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


def write_csv(path: Path, rows: list[dict]) -> None:
  text = io.StringIO()
  columns = list(rows[0]) if rows else [*MODEL_COLUMNS, *RUN_COLUMNS]
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())
