"""Files of pairs of face images, in the forms in which people have them.

    10 300                       LFW's pairs.txt: the number of folds, and of pairs of each kind in a fold; then, for each fold,
    Ann 1 4                      images 1 and 4 of one person, as often as announced,
    Ann 1 Bob 2                  and as many of two people
    1100                         LFW's pairsDevTrain.txt and pairsDevTest.txt: the same with one fold
    Ann,1,4 or Ann,1,Bob,2       the same lines without counts, as in Kaggle's matchpairsDevTest.csv and pairs.csv
    Ann/1.jpg Bob/2.jpg 0 [7]    two images, whether they show one person (1 or 0, True or False, 1 or -1) and, if given, the
                                 fold, counted from 0
    0 Ann/1.jpg Bob/2.jpg        the same, the other way round

Cells are separated by tabs, commas or semicolons, or else by spaces. Empty lines are skipped, and so is a line of titles.
"""

from pathlib import Path

import numpy as np

from mobilenet_jax.data.images import SUFFIXES
from mobilenet_jax.data.pairs import Pairs
from mobilenet_jax.errors import UserError, counted

FOLDS = 10  # into which pairs without folds are divided
_SAME = {'1': True, 'true': True, '0': False, 'false': False, '-1': False}


def read_pairs(path: Path) -> Pairs:
  """Reads a file of pairs.

  Pairs without folds are divided into FOLDS folds in the order of the file, each with its share of both kinds.

  Raises:
    UserError: if there is no such file or a line is not valid; the error names the line.
  """
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; expected LFW's pairs.txt") from error
  lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
  if not lines:
    raise UserError(f'{path}: is empty; expected pairs of images')
  first = _cells(lines[0][1])
  if all(cell.isdecimal() for cell in first) and len(first) <= 2:
    return _with_counts(path, first, lines)
  if not any('/' in cell or '.' in cell or cell.isdecimal() for cell in first):  # titles
    lines = lines[1:]
  read = [_pair(line, f'{path}, line {number}') for number, line in lines]
  if not read:
    raise UserError(f'{path}: has no pair after its header')
  first, second, same, folds = zip(*read)
  same = np.array(same)
  if len({fold is None for fold in folds}) > 1:
    raise UserError(f'{path}, line {lines[folds.index(None)][0]}: there is no fold, which other lines have; expected one in '
                    'each')
  if folds[0] is not None:
    return Pairs(first, second, same, np.array(folds))
  return Pairs(first, second, same, _divided(same))


def _divided(same):
  """Returns the fold of each pair, (n,), if a file has none: each kind is divided in its order."""
  fold = np.empty(len(same), int)
  for kind in (same, ~same):
    fold[kind] = np.arange(kind.sum()) * FOLDS // max(kind.sum(), 1)
  return fold


def _with_counts(path, first, lines):
  """Reads a file that begins with the number of folds and of the pairs of each kind in a fold."""
  folds, count = map(int, first if len(first) == 2 else (1, *first))
  where = f'{path}, line {lines[0][0]}: {lines[0][1]!r}'
  if not folds or not count:
    raise UserError(f'{where}: expected the number of folds and the number of pairs of each kind per fold, such as 10 300')
  if len(lines) != 1 + folds * 2 * count:
    raise UserError(f'{path}: {len(lines)} lines; expected {1 + folds * 2 * count}, as the first line announces '
                    f'{counted(folds, "fold")} of twice {count} pairs')
  same = np.arange(folds * 2 * count) % (2 * count) < count
  pairs = []
  for (number, line), one in zip(lines[1:], same):
    pair = _numbered(_cells(line), f'{path}, line {number}: {line!r}')
    if pair is None or pair[2] != one:
      expected = "two images of one person, 'person i j'" if one else "images of two people, 'person i person j'"
      raise UserError(f'{path}, line {number}: {line!r}: expected {expected}')
    pairs.append(pair[:2])
  names = tuple(zip(*pairs))
  return Pairs(*names, same, np.arange(len(same)) // (2 * count) if folds > 1 else _divided(same))


def _cells(line):
  separator = next((character for character in '\t,;' if character in line), None)
  cells = [cell.strip() for cell in line.split(separator)]
  while cells and not cells[-1]:  # a line of Kaggle's ends with a comma
    cells.pop()
  return cells


def _pair(line, where):
  """Returns the two images of a line, whether they show one person, and the fold or None."""
  cells, where = _cells(line), f'{where}: {line!r}'
  if numbered := _numbered(cells, where):
    return *numbered, None
  match cells:
    case (a, b, same) if _are_images(a, b) and same.lower() in _SAME:
      fold = None
    case (same, a, b) if _are_images(a, b) and same.lower() in _SAME:
      fold = None
    case (a, b, same, fold) if _are_images(a, b) and same.lower() in _SAME and fold.isdecimal():
      fold = int(fold)
    case _:
      raise UserError(f"{where}: expected 'person i j', 'person i person j', or two images and 1 or 0 for the same person")
  first, second = _name(a), _name(b)
  if first == second:
    raise UserError(f'{where}: the same image twice, or two that differ in nothing but the suffix; expected two images')
  return first, second, _SAME[same.lower()], fold


def _are_images(*cells):
  return all('/' in cell or '\\' in cell or cell.lower().endswith(SUFFIXES) for cell in cells)


def _numbered(cells, where):
  """Returns the two images and whether they show one person, of 'person i j' or 'person i person j'; None for other lines."""
  match cells:
    case (person, i, j) if i.isdecimal() and '/' not in person:
      other = person
    case (person, i, other, j) if i.isdecimal() and person != other and '/' not in person:
      pass
    case _:
      return None
  if not (i.isdecimal() and j.isdecimal()) or (person, int(i)) == (other, int(j)):
    raise UserError(f'{where}: expected the numbers of two different images, such as 1 and 4')
  return f'{person}/{person}_{int(i):04d}', f'{other}/{other}_{int(j):04d}', person == other


def _name(image):
  """Returns the name of an image as data.image_names has it: its folder and its file, without a suffix."""
  name = '/'.join(image.replace('\\', '/').split('/')[-2:])
  return name.rpartition('.')[0] if name.lower().endswith(SUFFIXES) else name
