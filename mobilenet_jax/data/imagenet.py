"""The classes of ImageNet's validation images where they are not sorted into folders: by the devkit, or by Kaggle's list."""

import csv
import re
from pathlib import Path

from mobilenet_jax.errors import UserError

GROUND_TRUTH, META = 'ILSVRC2012_validation_ground_truth.txt', 'meta.mat'  # of ILSVRC2012_devkit_t12
KAGGLE = 'LOC_val_solution.csv'
_IMAGE = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG', re.IGNORECASE)


def are_validation_images(files: tuple[str, ...]) -> bool:
  """Returns whether all files have names of ImageNet's validation images, as ILSVRC2012_val_00000001.JPEG."""
  return bool(files) and all(map(_IMAGE.fullmatch, files))


def classes(folder: Path, files: tuple[str, ...]) -> list[str]:
  """Returns the class of each validation image, such as n01440764.

  Args:
    folder: the folder of the images. The ground truth is looked for in it, in the folders above and in their devkit.
    files: the names of the images.

  Raises:
    UserError: if there is no ground truth, or it is damaged.
  """
  above = [folder, *folder.parents[:4]]
  if found := _first(above, [f'{place}{GROUND_TRUTH}' for place in ('*devkit*/data/', '*devkit*/', 'data/', '')]):
    truth = _devkit(found)
  elif found := _first(above, [KAGGLE]):
    truth = _kaggle(found)
  else:
    raise UserError(f'{folder}: has validation images of ImageNet without folders of classes; expected the devkit '
                    f'(ILSVRC2012_devkit_t12) or {KAGGLE} in {folder} or above, or a labels.csv')
  numbers = [int(_IMAGE.fullmatch(file)[1]) for file in files]
  if missing := [file for file, number in zip(files, numbers) if number not in truth]:
    raise UserError(f'{found}: has {len(truth)} classes of images, and none of {missing[0]}; expected one for each image')
  return [truth[number] for number in numbers]


def _first(folders, patterns):
  return next((path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _devkit(path):
  """Returns the class by the number of the image. A line has a class as the devkit numbers it, which is not alphabetical."""
  from scipy.io import loadmat
  meta = path.with_name(META)
  if not meta.is_file():
    raise UserError(f'{path}: expected {META} beside it, which says what its numbers mean')
  try:
    synsets = loadmat(meta, squeeze_me=True)['synsets']
    names = dict(zip(synsets['ILSVRC2012_ID'].tolist(), map(str, synsets['WNID'].tolist())))
    return {number: names[int(line)] for number, line in enumerate(path.read_text().split(), start=1)}
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise UserError(f'{path} or {meta}: damaged ({error}); expected those of ILSVRC2012_devkit_t12') from error


def _kaggle(path):
  """Returns the class by the number of the image. A line is 'ILSVRC2012_val_00000001,n01440764 0 0 9 9'."""
  try:
    with path.open(newline='') as file:
      return {int(row['ImageId'][-8:]): row['PredictionString'].split()[0] for row in csv.DictReader(file)}
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise UserError(f'{path}: damaged ({error}); expected the list that Kaggle gives') from error
