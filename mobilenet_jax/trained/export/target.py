"""Where an exported file goes: its name, the model that it is of, and how it takes the place of an earlier one."""

import json
import os
import tempfile
from pathlib import Path

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded
from mobilenet_jax.trained.model import TrainedModel
from mobilenet_jax.trained.published import readers

LONGEST_NAME = 200  # in bytes; most file systems allow 255, and a suffix follows


def origin_of(model: TrainedModel) -> str:
  """Returns what tells the model from others: the absolute path of its folder or file, or the name of a published model."""
  path = expanded(model.origin)
  return str(path.resolve()) if readers.is_file(path) else model.origin


def default_name(model: TrainedModel) -> str:
  """Returns the name of the model's folder, that of its file without the suffix, or the name of a published model."""
  path = Path(os.path.abspath(expanded(model.origin)))
  if path.is_dir():
    return path.name
  return readers.stem(path) if readers.is_file(path) else model.origin.replace(':', '_')


def check_name(name: str) -> None:
  """Raises UserError if a file cannot have this name."""
  if (not name.strip() or name.startswith('.') or not name.isprintable() or any(c in name for c in '/\\')
      or len(os.fsencode(name)) > LONGEST_NAME):
    raise UserError(f'--name={name}: expected a name for files, without folder and suffix, of at most {LONGEST_NAME} bytes; '
                    'give another --name, such as --name=flowers')


def check_folder(folder: Path) -> None:
  """Raises UserError if there is a file where the folder, or one above it, is to be."""
  there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
  if not there.is_dir():
    raise UserError(f'--out={folder}: {there} is not a folder; give another --out')


def check_free(path: Path, origin: str) -> None:
  """Raises UserError if `path` exists, unless the card beside it says that it is of the same origin."""
  if not os.path.lexists(path) and not os.path.lexists(card_of(path)):
    return
  try:
    theirs = json.loads(card_of(path).read_text())['origin']
  except (OSError, ValueError, LookupError, TypeError):
    raise UserError(f'{path}: is there already, without a {card_of(path).name} that says which model it is of; remove it, or '
                    'give another --name or --out') from None
  if theirs != origin:
    raise UserError(f'{path}: is there already, of another model ({theirs}); give another --name or --out, or remove it and '
                    'its .json')


def card_of(path: Path) -> Path:
  """Returns the path of the JSON file that describes an exported file."""
  return path.with_name(f'{path.name}.json')


def put(written: Path, card: Path, path: Path) -> None:
  """Moves a file or folder, and its card, to their place, where earlier ones are replaced."""
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export') as scratch:
    if path.is_dir():  # unlike a file, it cannot be replaced in one step
      path.rename(Path(scratch) / path.name)
    written.replace(path)
    card.replace(card_of(path))
