"""labels.csv: the labels of the images in a folder, in columns."""

import csv
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilenet_jax.data.examples import ATTRIBUTES, UNKNOWN
from mobilenet_jax.data.image_files import Walk
from mobilenet_jax.errors import UserError

NAME = 'labels.csv'
NUMBER = 'number'  # name in a batch: a number () float32
# The columns with a meaning of their own, and what else they may be called. Every other column is an attribute.
COLUMNS = {
    'file': ('file', 'filename', 'file_name', 'image', 'image_id', 'path'),
    'label': ('label', 'class'),
    'identity': ('identity', 'person'),
    'number': ('number',),
    'split': ('split',),
}
_NUMBER = re.compile(r'-?\d{1,9}(\.0*)?')  # some programs write 3 as 3.0
_ATTRIBUTE = {'0': 0, '1': 1, '0.0': 0, '1.0': 1, '': UNKNOWN}


class Labels(NamedTuple):
  """The content of a labels.csv with n lines.

  Attributes:
    files: the image of each line, as Walk.images or, outside of the folder, an absolute path.
    classes: the name of the class, or of the person, of each line; None if there is no such column.
    people: whether `classes` are people.
    splits: the split of each line; None if there is no such column.
    targets: 'attributes' (n, a) and 'number' (n,), if there are such columns.
    attributes: the names of the attributes.
  """
  files: list[str]
  classes: list[str] | None
  people: bool
  splits: list[str] | None
  targets: dict[str, np.ndarray]
  attributes: tuple[str, ...]


def read(path: Path, walk: Walk) -> Labels:
  """Reads a labels.csv, UTF-8 text whose columns are separated by commas, semicolons or tabs.

  Args:
    path: the file.
    walk: the images in its folder.

  Raises:
    UserError: if a line cannot be read, or there is no image for it; it names the line.
  """
  header, lines = _table(path)
  columns = _columns(path, header, lines)
  given = [name for name in columns if name in COLUMNS]
  attributes = [name for name in columns if name not in COLUMNS]
  if 'label' in given and 'identity' in given:
    raise UserError(f'{path}: has the columns label and identity; expected one of the two, as each is the label of an image')
  if 'file' not in given or not set(columns) - {'file', 'split'}:
    raise UserError(f'{path}, line 1: {", ".join(header)}: expected the header of the columns: file, and label, identity, '
                    'number or attributes')
  if not lines:
    raise UserError(f'{path}: has no line after the header; expected one for each image')
  for number, cells in lines:
    if len(cells) != len(header):
      raise UserError(f'{path}, line {number}: {len(cells)} cells; expected {len(header)}, as in the header')

  def column(name, read, expected):
    """Returns what `read` makes of each cell of a column, unless it is None."""
    values = []
    for number, cells in lines:
      values.append(read(cell := cells[columns[name]]))
      if values[-1] is None:
        raise UserError(f'{path}, line {number}: {name} is {cell!r}; expected {expected}')
    return values

  text = lambda name: column(name, lambda cell: cell or None, 'a value, or no such column') if name in given else None
  classes = text('identity') or text('label')
  if 'label' in given:
    numbers = all(map(_NUMBER.fullmatch, classes))
    read_class = _number_of_class if numbers else lambda cell: None if cell == str(UNKNOWN) else cell
    classes = column('label', read_class, 'the number of a class, counted from 0, or its name')
  kinds = f'0, 1, or nothing if it is not known, as each column besides {", ".join(COLUMNS)} is an attribute'
  targets = {}
  if attributes:
    targets[ATTRIBUTES] = np.array([column(name, _ATTRIBUTE.get, kinds) for name in attributes], np.int32).T
  if 'number' in given:
    targets[NUMBER] = np.array(column('number', _finite, 'a finite number'), np.float32)
  return Labels(_files(path, text('file'), [number for number, _ in lines], walk), classes, 'identity' in given, text('split'),
                targets, tuple(attributes))


def _table(path):
  """Returns the header, and the number and the cells of each line below it that is not empty."""
  try:
    text = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: {error}; save it as UTF-8') from error
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}') from error
  first, _, rest = text.partition('\n')
  skipped = int(first.startswith('sep='))  # a line of Excel's
  text = rest if skipped else text
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=max(',;\t', key=text.partition('\n')[0].count), strict=True)
  lines = []
  try:
    for cells in reader:
      if any(cell.strip() for cell in cells):
        lines.append((reader.line_num + skipped, [cell.strip() for cell in cells]))
  except csv.Error as error:
    raise UserError(f'{path}, line {reader.line_num + skipped}: {error}; expected text in columns') from error
  if not lines:
    raise UserError(f'{path}: is empty; expected a header such as file,label and then one line for each image')
  return lines[0][1], lines[1:]


def _columns(path, header, lines):
  """Returns the place of each column by its name, which is a key of COLUMNS or the name of an attribute."""
  meaning = {alias: name for name, aliases in COLUMNS.items() for alias in aliases}
  columns = {}
  for place, title in enumerate(header):
    if not title and [cells[place:place + 1] for _, cells in lines] == [[str(i)] for i in range(len(lines))]:
      continue  # the index that pandas writes
    name = meaning.get(title.lower(), title)
    if not title or name in columns:
      raise UserError(f'{path}, line 1: column {place + 1} is {title!r}; expected another name for each column')
    columns[name] = place
  return columns


def _number_of_class(cell):
  """Returns the digits of 3 or 3.0; None of a negative number."""
  return None if cell.startswith('-') else cell.partition('.')[0]


def _finite(cell):
  """Returns the number in a cell, which some languages write as 0,5; None if it is no number that fits into float32."""
  try:
    value = float(cell.replace(',', '.'))
  except ValueError:
    return None
  return value if abs(value) <= np.finfo(np.float32).max else None


def _files(path, given, numbers, walk):
  """Returns the image that each line names by its path, or by its name wherever it is below the folder."""
  folder, known, by_name = path.parent, set(walk.images), {}
  for image in walk.images:
    by_name.setdefault(image.rpartition('/')[2], []).append(image)
  files, missing, lines = [], [], {}
  for number, file in zip(numbers, given):
    where, file = f'{path}, line {number}', os.path.normpath(file.replace('\\', '/'))
    named = by_name.get(file, ())
    if file not in known and len(named) > 1:
      raise UserError(f'{where}: {file} is in several folders: {", ".join(named[:3])}; expected the path from {folder}')
    if file not in known and named:
      file = named[0]
    elif file not in known and not (folder / file).is_file():
      missing.append(f'{file} (line {number})')
    if file in lines:
      raise UserError(f'{where}: {file} has a line already, line {lines[file]}; expected one for each image')
    lines[file] = number
    files.append(file)
  if missing:
    raise UserError(f'{path}: {len(missing)} of its {len(given)} images are not in {folder}, such as {missing[0]}')
  return files
