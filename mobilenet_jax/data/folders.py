"""Folders of images: sorted into classes or people, with a labels.csv, ImageNet's, or images alone; with splits or without."""

import collections
import dataclasses
import os

import ml_collections
import numpy as np

from mobilenet_jax.data import imagenet, labels_file, splits
from mobilenet_jax.data.examples import ATTRIBUTES, UNKNOWN, Source, from_images
from mobilenet_jax.data.image_files import walk
from mobilenet_jax.data.images import SUFFIXES
from mobilenet_jax.data.pairs_file import read_pairs
from mobilenet_jax.errors import UserError, few
from mobilenet_jax.storage.files import expanded


@dataclasses.dataclass(frozen=True)
class _Listing:
  """n images as they are found, before their classes are numbered.

  Attributes:
    ids: the path of each image from the folder that data.name names, which is its id.
    paths: the path of each image.
    classes: the name of the class of each image, or None.
    people: whether classes are people.
    numbered: whether classes that are numbers are counted in their order; else it is the alphabetical order.
    targets, names: further targets, and the names of their columns.
    splits: the split of each image, or None.
    left_out: what is left out, as text.
  """

  ids: list[str]
  paths: list[str]
  classes: list[str] | None = None
  people: bool = False
  numbered: bool = False
  targets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  splits: list[str] | None = None
  left_out: str = ''

  def split(self, name: str) -> '_Listing':
    """Returns the images of one split."""
    rows = [i for i, split in enumerate(self.splits) if split == name]
    pick = lambda values: values and [values[i] for i in rows]
    return dataclasses.replace(self, ids=pick(self.ids), paths=pick(self.paths), classes=pick(self.classes), splits=None,
                               targets={target: values[rows] for target, values in self.targets.items()})


def load(path: str, config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source of a folder; `config` is the `data` section of a config.

  Raises:
    UserError: if there is no such folder, or it is not as docs/data.md describes.
  """
  root = _existing_folder(path)
  if config.pairs:
    return _by_pairs(*_sources([_listing(root, config)], config), config)
  found = walk(root, depth=0)
  if folders := _split_folders(root, found, config):
    advice = f', or give data.name=folder:{root / folders[0]} to hold out a tenth of it'
    unlabelled = _unlabelled(root, folders, config)
    names = splits.both(folders, config, str(root), advice, unlabelled)
    listings = [_listing(root / name, config, f'{name}/', minimum) for name, minimum in zip(names, (2, 1))]
    others = [f'{name}/' for name in found.folders if name not in names and 'devkit' not in name]  # where classes may be from
    other = ', '.join(filter(None, (*others, found.left_out(beside=len(found.images)))))
    return splits.with_remarks(_sources(listings, config), config, names[1], folders, other)
  whole = _listing(root, config)
  if whole.splits:
    counts = collections.Counter(whole.splits)
    names = splits.both(list(counts), config, str(root / labels_file.NAME))
    other = ', '.join(f'{count:,} of the split {name}' for name, count in counts.items() if name not in names)
    return splits.with_remarks(_sources([whole.split(name) for name in names], config), config, names[1], list(counts), other)
  if config.train_split != 'train' or config.eval_split not in splits.EVALUATION:
    raise UserError(f'{root}: has no splits, and data.train_split={config.train_split}, data.eval_split={config.eval_split}; '
                    'expected folders of these names, or no such fields')
  return splits.hold_out(*_sources([whole], config), config)


def load_whole(path: str, config: ml_collections.ConfigDict, split: str = '') -> Source:
  """Returns the images of the evaluation split or, in a folder without splits, all of its images.

  Classes are numbered as in `load`, by those of all splits.

  Args:
    path, config: as in `load`.
    split: a split that there must be; by default it is data.eval_split, or what stands for it.

  Raises:
    UserError: as in `load`, or if there is no such split.
  """
  root = _existing_folder(path)
  folders = _split_folders(root, walk(root, depth=0), config)
  listing = None if folders else _listing(root, config, minimum=1)
  there = folders or list(dict.fromkeys(listing.splits or ()))
  if split and split not in there and (root / split).is_dir():  # under a name that is not usual
    there = folders = [*folders, split]
  name = split or splits.evaluation_split(there, config, _unlabelled(root, folders, config))
  if not there and not split:
    return _sources([listing], config)[0]
  if name not in there:
    raise UserError(f'data.name=folder:{path}: there is no split {name or config.eval_split}; expected '
                    + (f'one of {", ".join(there)}' if there else 'none, as the folder has no splits'))
  if folders:
    others = {known for other in folders if other != name for known in walk(root / other, depth=0).folders}
    sources = _sources([_listing(root / name, config, f'{name}/', minimum=1)], config, others)
  else:
    sources = _sources([listing.split(name)], config, set(listing.classes or ()))
  return sources[0] if split else splits.with_remarks(sources, config, name, there)[0]


def _existing_folder(path):
  root = expanded(path).resolve()
  if not root.is_dir():
    raise UserError(f'data.name=folder:{path}: there is no such folder')
  return root


def _split_folders(root, found, config):
  """Returns those of the folders found in `root` that are splits; none if they are classes, or if there is a labels.csv."""
  known = [name for name in found.folders if name in {config.train_split, config.eval_split, *splits.EVALUATION}]
  if os.path.isfile(root / labels_file.NAME):
    return []
  if known == list(found.folders):
    return known
  more = config.train_split in known and (len(known) > 1 or walk(root / config.train_split, depth=0).folders)
  return known if more else []


def _unlabelled(root, folders, config):
  """Returns those of the splits that hold nothing but images, unless the one to train on does, too."""
  def has_labels(name):
    found = walk(root / name, depth=0)
    return found.folders or os.path.isfile(root / name / labels_file.NAME) or imagenet.are_validation_images(found.images)

  unlabelled = [name for name in folders if not has_labels(name)]
  return [] if config.train_split in unlabelled else unlabelled


def _listing(folder, config, inside='', minimum=2):
  """Finds the images of a folder, and what its folders, a labels.csv or ImageNet's ground truth say of their classes.

  Args:
    folder: the folder.
    config: the `data` section of a config.
    inside: the beginning of the ids: '<split>/', or '' for a whole set.
    minimum: the number of folders of classes that there must be.
  """
  found = walk(folder, (labels_file.NAME, os.path.basename(config.pairs), imagenet.KAGGLE))
  if os.path.isfile(folder / labels_file.NAME):
    return _from_labels_file(folder, inside, found)
  beside = tuple(image for image in found.images if '/' not in image)
  images = [image for image in found.images if image.count('/') == 1]
  if imagenet.are_validation_images(beside) and not images:
    return _Listing([inside + file for file in beside], [f'{folder}/{file}' for file in beside],
                    imagenet.classes(folder, beside), left_out=found.left_out())
  if beside and not found.folders:  # images without labels, which suffice if there is a teacher
    inside = inside or f'{folder.name}/'
    return _Listing([inside + file for file in beside], [f'{folder}/{file}' for file in beside], left_out=found.left_out())
  if len(found.folders) < minimum:
    raise UserError(f'{folder}: {len(found.folders)} sub-folders; expected one per class, at least {minimum}')
  classes = [image.partition('/')[0] for image in images]
  if empty := sorted(set(found.folders) - set(classes)):
    if any(image.startswith(f'{empty[0]}/') for image in found.images):
      splits_are = 'data.pairs needs a folder of people without splits' if config.pairs else (
          f'if {few(found.folders)} are splits, name those to use with --config.data.train_split and '
          f'--config.data.eval_split, now {config.train_split} and {config.eval_split}')
      raise UserError(f'{folder}: expected a folder of images per class; {empty[0]}/ has images only in folders of its own; '
                      f'{splits_are}')
    raise UserError(f'{folder / empty[0]}: no images in this class folder ({" ".join(SUFFIXES)}); add some or remove the '
                    'folder')
  below = len(found.images) - len(beside) - len(images)
  return _Listing([inside + image for image in images], [f'{folder}/{image}' for image in images], classes,
                  left_out=found.left_out(len(beside), below))


def _from_labels_file(folder, inside, found):
  labels = labels_file.read(folder / labels_file.NAME, found)
  names = {ATTRIBUTES: labels.attributes} if labels.attributes else {}
  return _Listing([inside + file for file in labels.files], [str(folder / file) for file in labels.files], labels.classes,
                  labels.people, not labels.people, labels.targets, names, labels.splits,
                  found.left_out(unlisted=len(set(found.images) - set(labels.files))))


def _sources(listings, config, others=()):
  """Returns a source of each listing. All have the same numbers for the same names of classes, to which `others` are added."""
  names = {name for listing in listings for name in listing.classes or ()} | set(others)
  numbered = all(listing.numbered for listing in listings) and all(name.isdecimal() for name in names)
  classes = tuple(sorted(names, key=lambda name: (int(name), name) if numbered else name))
  numbers = {name: number for number, name in enumerate(classes)}
  people = any(listing.people for listing in listings)
  if len({tuple(listing.names.items()) for listing in listings}) > 1:
    raise UserError(f'data.name={config.name}: the attributes of its splits differ; expected the same columns in each '
                    f'{labels_file.NAME}')
  sources = []
  for listing in listings:
    labels = [numbers[name] for name in listing.classes] if listing.classes else [UNKNOWN] * len(listing.ids)
    source = from_images(listing.paths, np.array(labels, np.int32), 0 if people else len(classes), classes or None,
                         listing.targets, listing.ids, listing.names, config.exif_orientation)
    remarks = (f'left out: {listing.left_out}',) if listing.left_out else ()
    sources.append(dataclasses.replace(source, remarks=remarks))
  return sources


def _by_pairs(whole, config):
  """Returns a training source without the people in the held-out folds, and an evaluation source of all images in pairs.

  If no folds are held out, training leaves out the people in any pair.
  """
  pairs = read_pairs(expanded(config.pairs))
  missing = set(config.held_out_folds) - set(pairs.fold.tolist())
  if missing:
    raise UserError(f'data.held_out_folds={tuple(config.held_out_folds)}: {config.pairs} has the folds 0 to '
                    f'{pairs.fold.max()}')
  names = image_names(whole)
  in_pairs = {*pairs.first, *pairs.second}
  held_out = np.isin(pairs.fold, config.held_out_folds or np.unique(pairs.fold))
  tested = {name for side in (pairs.first, pairs.second) for name, out in zip(side, held_out) if out}
  people = whole.labels[[name in tested for name in names]]
  rows = np.flatnonzero(~np.isin(whole.labels, people)), np.flatnonzero([name in in_pairs for name in names])
  for part, what in zip(rows, ('of people outside of the pairs, to train on', 'of the pairs')):
    if not len(part):
      raise UserError(f'data.pairs={config.pairs}: {config.name} has no images {what}, among {len(names)} such as {names[0]}; '
                      'expected some; data.held_out_folds limits the pairs to folds')
  return tuple(whole.subset(part) for part in rows)


def image_names(source: Source) -> list[str]:
  """Returns the names by which pairs refer to the examples of `source`: '<person>/<person>_0001', without a suffix."""
  return [name.rpartition('.')[0] if name.lower().endswith(SUFFIXES) else name for name in source.ids]
