"""Hugging Face datasets on disk: what `save_to_disk` wrote, or a folder of Parquet files. Only this file uses `datasets`."""

import glob
from pathlib import Path

import ml_collections
import numpy as np

from mobilenet_jax.data import splits
from mobilenet_jax.data.examples import UNKNOWN, Source, from_images
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import expanded


def load(path: str, config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source of a dataset, of which a tenth is held out if it has no splits.

  Raises:
    UserError: if there is no such dataset or split, or it has no image or label.
  """
  parts = _parts(path)
  if len(parts) == 1:
    return splits.hold_out(_source(parts, *parts, config), config)
  names = splits.both(parts, config, f'data.name=hf:{path}')
  other = ', '.join(f'the split {name}' for name in parts if name not in names)
  return splits.with_remarks([_source(parts, name, config) for name in names], config, names[1], parts, other)


def load_whole(path: str, config: ml_collections.ConfigDict, split: str) -> Source:
  """Returns the examples of `split` or, if that is '', of the evaluation split, or of the only one."""
  parts = _parts(path)
  if split:
    return _source(parts, split, config)
  if len(parts) == 1:
    return _source(parts, *parts, config)
  name = splits.evaluation_split(parts, config) or config.eval_split
  return splits.with_remarks([_source(parts, name, config)], config, name, parts)[0]


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
  folder = expanded(path)
  if not folder.is_dir():
    raise UserError(f'data.name=hf:{path}: there is no such folder')
  datasets.disable_progress_bars()
  try:
    if parquet := sorted(folder.rglob('*.parquet')):
      if len({file.parent for file in parquet}) > 1:
        raise UserError(f'data.name=hf:{path}: has Parquet files in several folders; name one, such as {parquet[0].parent}')
      files = {}
      for file in parquet:  # train-00000-of-00002.parquet, as on the Hub
        files.setdefault(file.stem.partition('-')[0], []).append(glob.escape(str(file)))
      return dict(datasets.load_dataset('parquet', data_files=files))
    found = datasets.load_from_disk(str(folder))
  except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
    raise UserError(f'data.name=hf:{path}: {" ".join(str(error).split())}; expected a dataset that save_to_disk wrote, or '
                    'Parquet files') from error
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
  if not isinstance(part.features[label], (datasets.ClassLabel, datasets.Value)):
    raise UserError(f'data.name={config.name}: {label} is {part.features[label]}; expected one class for each image')
  known = sorted({value for other in parts.values() for value in other[label] if value not in (None, '')})
  texts = {name: number for number, name in enumerate(known)} if known and isinstance(known[0], str) else {}
  names = tuple(texts or getattr(part.features[label], 'names', ())) or None
  labels = np.array([UNKNOWN if value in (None, '') else texts.get(value, value) for value in part[label]])
  images = _Images(part.cast_column(image, datasets.Image(decode=False)).select_columns([image]), image)
  return from_images(images, labels, len(names) if names else 1 + max(known, default=0), names,
                     ids=[f'{split}/{i}' for i in range(len(part))], upright=config.exif_orientation,
                     content=str(part.data.nbytes))
