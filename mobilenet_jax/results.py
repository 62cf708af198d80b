"""Results as plain rows: one a finished run, in its folder; a sweep's rows together in a CSV file."""

import csv
import io
import json
from pathlib import Path

from mobilenet_jax.files import write_whole

RESULT_FILE = 'result.json'
COLUMNS = ('name', 'model', 'width_multiplier', 'height', 'width', 'mult_adds', 'params', 'top1', 'top5', 'loss',
           'eval_examples', 'examples_seen', 'seconds', 'dataset', 'seed', 'commit', 'device')


def write(folder: Path, row: dict) -> None:
  """Writes a run's row; it is there whole or not at all."""
  assert set(row) == set(COLUMNS), set(row) ^ set(COLUMNS)
  write_whole(folder / RESULT_FILE, json.dumps(row, indent=2) + '\n')


def read(folder: Path) -> dict | None:
  """The row of a finished run, else None."""
  path = folder / RESULT_FILE
  return json.loads(path.read_text()) if path.exists() else None


def write_csv(path: Path, rows: list[dict]) -> None:
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())
