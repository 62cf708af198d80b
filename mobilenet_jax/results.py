"""Results as plain rows: one a finished run, in its folder; a sweep's rows together in a CSV file."""

import csv
import json
from pathlib import Path

RESULT_FILE = 'result.json'
COLUMNS = ('name', 'model', 'width_multiplier', 'height', 'width', 'mult_adds', 'params', 'top1', 'top5', 'loss',
           'eval_examples', 'examples_seen', 'seconds', 'dataset', 'seed', 'commit', 'device')


def write(folder: Path, row: dict) -> None:
  """Writes a run's row; it is there whole or not at all."""
  assert set(row) == set(COLUMNS), set(row) ^ set(COLUMNS)
  _replace(folder / RESULT_FILE, json.dumps(row, indent=2) + '\n')


def read(folder: Path) -> dict | None:
  """The row of a finished run, else None."""
  path = folder / RESULT_FILE
  return json.loads(path.read_text()) if path.exists() else None


def write_csv(path: Path, rows: list[dict]) -> None:
  lines = [','.join(COLUMNS)] + [','.join(_cell(row[column]) for column in COLUMNS) for row in rows]
  _replace(path, '\n'.join(lines) + '\n')


def read_csv(path: Path) -> list[dict]:
  """Rows with numbers as numbers."""
  with path.open(newline='') as file:
    return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _cell(value) -> str:
  text = str(value)
  return f'"{text}"' if ',' in text else text


def _number(text: str):
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      pass
  return text


def _replace(path: Path, text: str) -> None:
  temporary = path.with_suffix('.tmp')
  temporary.write_text(text)
  temporary.replace(path)
