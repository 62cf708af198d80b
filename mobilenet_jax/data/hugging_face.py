"""Hugging Face datasets on disk: what `save_to_disk` wrote, or a folder of Parquet files. Only this file uses `datasets`."""

import dataclasses
from pathlib import Path

import ml_collections
import numpy as np

from mobilenet_jax.data import splits
from mobilenet_jax.data.examples import UNKNOWN, Source, from_images
from mobilenet_jax.errors import UserError


def load(path: str, config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source of a dataset, of which a tenth is held out if it has no splits.

  Raises:
    UserError: if there is no such dataset or split, or it has no image or label.
  """
  parts = _parts(path)
  evaluation = splits.evaluation_split(parts, config)
  if evaluation is None:
    if len(parts) > 1:
      raise UserError(f'data.name=hf:{path}: has the splits {", ".join(parts)}; expected data.eval_split={config.eval_split}')
    return splits.hold_out(_source(parts, *parts, config), config)
  both = (_source(parts, split, config) for split in (config.train_split, evaluation))
  return splits.said(splits.checked(*both, config), config, evaluation)


def load_whole(path: str, config: ml_collections.ConfigDict, split: str) -> Source:
  """Returns the examples of `split` or, if that is '', of the evaluation split, or of the only one."""
  parts = _parts(path)
  name = split or splits.evaluation_split(parts, config) or next(iter(parts))
  return splits.said([_source(parts, name, config)], config, name)[0]


class _Images:
  """The encoded images of a dataset, which are read when they are asked for."""

  def __init__(self, part, column):
    self._part, self._column = part, column

  def __len__(self):
    return len(self._part)

  def __getitem__(self, i):
    image = self._part[int(i)][self._column]
    return image['bytes'] if image['bytes'] is not None else Path(image['path']).read_bytes()


def _parts(path):
  """Returns the splits by name."""
  try:
    import datasets
  except ImportError as error:
    raise UserError(f'data.name=hf:{path}: needs the package datasets; install it with: pip install datasets') from error
  folder = Path(path).expanduser()
  if not folder.is_dir():
    raise UserError(f'data.name=hf:{path}: there is no such folder')
  datasets.disable_progress_bars()
  try:
    if parquet := sorted(map(str, folder.rglob('*.parquet'))):
      files = {}
      for file in parquet:  # train-00000-of-00002.parquet, as on the Hub
        files.setdefault(Path(file).stem.partition('-')[0], []).append(file)
      return dict(datasets.load_dataset('parquet', data_files=files))
    found = datasets.load_from_disk(str(folder))
  except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
    raise UserError(f'data.name=hf:{path}: {" ".join(str(error).split())}; expected a dataset that save_to_disk wrote, or Parquet '
                    'files') from error
  return dict(found) if isinstance(found, datasets.DatasetDict) else {'train': found}


def _source(parts, split, config):
  import datasets
  if split not in parts:
    raise UserError(f'data.name={config.name}: has no split {split!r}; it has {", ".join(parts)}')
  part = parts[split]
  image = next((name for name, feature in part.features.items() if isinstance(feature, datasets.Image)), None)
  label = next((name for name in ('label', 'labels', 'fine_label') if name in part.features), None)
  if image is None or label is None:
    raise UserError(f'data.name={config.name}: has the columns {", ".join(part.features)}; expected an image and a label')
  names = getattr(part.features[label], 'names', None)
  given, known = part[label][:], {value for other in parts.values() for value in other[label] if value is not None}
  if any(isinstance(value, str) for value in known):
    names = sorted(known)
    given = [value and names.index(value) for value in given]
  labels = np.array([UNKNOWN if value is None else value for value in given])
  classes = len(names) if names else 1 + max(known, default=0)
  images = _Images(part.cast_column(image, datasets.Image(decode=False)).select_columns([image]), image)
  source = from_images(images, labels, classes, tuple(names) if names else None, ids=[f'{split}/{i}' for i in range(len(part))])
  return dataclasses.replace(source, upright=config.exif_orientation)
