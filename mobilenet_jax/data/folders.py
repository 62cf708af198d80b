"""Folders of images: one folder per class or person, with or without splits; images with a labels.csv; images alone."""

import csv
import os
from pathlib import Path

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import Source, from_images
from mobilenet_jax.data.images import SUFFIXES
from mobilenet_jax.data.pairs import read_pairs
from mobilenet_jax.errors import UserError

LABELS_FILE = 'labels.csv'
HELD_OUT = 0.1  # the fraction of a folder without splits that is held out for evaluation


def load(path: str, config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source of a folder; `config` is the `data` section of a config.

  Raises:
    UserError: if there is no such folder, or a class has no images.
  """
  root = _existing_folder(path)
  if config.pairs:
    return _by_pairs(_classes(root, config), config)
  splits = (config.train_split, config.eval_split)
  if all((root / split).is_dir() for split in splits):
    return tuple(_classes(root / split, config) for split in splits)
  whole = _classes(root, config)
  # If the classes are people, an evaluation on people seen in training proves nothing.
  if config.split_by == 'class' and whole.num_classes > 1:
    order = np.random.default_rng(0).permutation(whole.num_classes)
    held_out = np.isin(whole.labels, order[:max(round(HELD_OUT * whole.num_classes), 1)])
  else:
    order = np.random.default_rng(0).permutation(len(whole))
    held_out = np.isin(np.arange(len(whole)), order[:max(round(HELD_OUT * len(whole)), 1)])
  return whole.subset(np.flatnonzero(~held_out)), whole.subset(np.flatnonzero(held_out))


def load_whole(path: str, config: ml_collections.ConfigDict) -> Source:
  """Returns the images in the labels.csv of a folder, or else those of its eval_split, or else all of its images."""
  root = _existing_folder(path)
  if (root / LABELS_FILE).exists():
    return _from_labels_file(root, config)
  return _classes(root / config.eval_split if (root / config.eval_split).is_dir() else root, config, minimum=1)


def _by_pairs(whole, config):
  """Returns a training source without the people in the held-out folds, and an evaluation source of all images in pairs.

  If no folds are held out, training leaves out the people in any pair.
  """
  pairs = read_pairs(Path(config.pairs).expanduser())
  missing = set(config.held_out_folds) - set(pairs.fold.tolist())
  if missing:
    raise UserError(f'data.held_out_folds={tuple(config.held_out_folds)}: {config.pairs} has the folds 0 to '
                    f'{pairs.fold.max()}')
  names = [image.rpartition('.')[0] for image in whole.ids]
  in_pairs = {*pairs.first, *pairs.second}
  held_out = np.isin(pairs.fold, config.held_out_folds or np.unique(pairs.fold))
  people = {name.partition('/')[0] for names in (pairs.first, pairs.second) for name, out in zip(names, held_out) if out}
  kept = [label for label, person in enumerate(whole.class_names) if person not in people]
  return (whole.subset(np.flatnonzero(np.isin(whole.labels, kept))),
          whole.subset(np.flatnonzero([name in in_pairs for name in names])))


def _existing_folder(path: str) -> Path:
  root = Path(path).expanduser().resolve()
  if not root.is_dir():
    raise UserError(f'data.name=folder:{path}: there is no such folder')
  return root


def _classes(root, config, minimum=2):
  classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
  if not classes and any(file.lower().endswith(SUFFIXES) for file in os.listdir(root)):
    root, classes = root.parent, [root.name]  # images without labels, which suffice if there is a teacher
  elif len(classes) < minimum:
    raise UserError(f'{root}: {len(classes)} sub-folders; expected one per class, at least {minimum}')
  images, labels = [], []
  for label, name in enumerate(classes):
    files = sorted(entry.name for entry in os.scandir(root / name)  # hidden files are none of the user's
                   if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith('.') and not entry.is_dir())
    if not files:
      raise UserError(f'{root / name}: no images in this class folder ({" ".join(SUFFIXES)}); add some or remove the '
                      'folder; if it is a split, give the name of your split, as in --config.data.eval_split=val')
    images += [f'{root}/{name}/{file}' for file in files]
    labels += [label] * len(files)
  return from_images(images, np.array(labels, np.int32), len(classes), tuple(classes), upright=config.exif_orientation)


def _from_labels_file(root, config):
  path = root / LABELS_FILE
  try:
    rows = list(csv.DictReader(path.read_text(encoding='utf-8-sig').splitlines()))
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: {error}; save it as UTF-8') from error
  if not rows or not all(row.get('file') and row.get('label') for row in rows):
    raise UserError(f'{path}: expected the header file,label and then one line per image')
  found = {file.name: file for file in root.rglob('*') if file.suffix.lower() in SUFFIXES}
  files = [root / row['file'] if (root / row['file']).exists() else found.get(row['file']) for row in rows]
  if missing := [row['file'] for row, file in zip(rows, files) if file is None]:
    raise UserError(f'{path}: {len(missing)} of its {len(rows)} images are not in {root}, such as {missing[0]}')
  labels = [row['label'] for row in rows]
  names = None if all(label.isdecimal() for label in labels) else tuple(sorted(set(labels)))
  numbers = [names.index(label) if names else int(label) for label in labels]
  labels = np.array(numbers, np.int32)
  return from_images([str(file) for file in files], labels, max(numbers) + 1, names, upright=config.exif_orientation)


def image_names(source: Source) -> list[str]:
  """Returns the names by which pairs refer to the examples of `source`: '<person>/<person>_0001', without a suffix."""
  return [name.rpartition('.')[0] if name.lower().endswith(SUFFIXES) else name for name in source.ids]
