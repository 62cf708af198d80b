"""A teacher's outputs, recorded beforehand in a .npz file with these arrays:

    names       (n,) the id of each example: '<folder>/<file>' or '<file>' for a folder of images, '<split>/<number>' for an
                embedded dataset, a TFDS dataset or arrays
    logits      (n, d) float32, of classes or attributes; or probs, probabilities of attributes; or embeddings
    attributes  (d,) the name of each output, if the outputs have names; or labels

Alternatively, a feature of a TFDS dataset may hold the outputs; data/tfds_sets.py reads it.
"""

import dataclasses
import zipfile
from pathlib import Path

import ml_collections
import numpy as np

from mobilenet_jax.data.examples import TEACHER, Source
from mobilenet_jax.errors import UserError

OUTPUTS = ('logits', 'probs', 'embeddings')
COLUMNS = ('attributes', 'labels')
SMALLEST = 1e-7  # because a probability of 0 would give a logit of minus infinity


def join(source: Source, config: ml_collections.ConfigDict) -> Source:
  """Returns `source` with the outputs that data.recorded has for its examples.

  Raises:
    UserError: if the file is not valid, has NaN, or lacks some of the examples while data.recorded_missing='error'.
  """
  names, outputs, columns = read(config.recorded)
  if not any('/' in name for name in names[:100]):  # the names are file names without folders
    ids = [name.rpartition('/')[2] for name in source.ids]
  else:
    ids = source.ids
  if len(set(ids)) < len(ids):
    raise UserError(f'data.recorded={config.recorded}: the names are file names without folders, and '
                    f'{len(ids) - len(set(ids))} of the {len(ids)} files of {config.name} have the same name as another; '
                    'expected names <folder>/<file>')
  places = {name: i for i, name in enumerate(names)}
  rows = np.array([places.get(name, -1) for name in ids])
  missing = np.flatnonzero(rows < 0)
  if len(missing) and config.recorded_missing == 'error' or len(missing) == len(rows):
    few = ', '.join(ids[i] for i in missing[:3]) + (', ...' if len(missing) > 3 else '')
    raise UserError(f'data.recorded={config.recorded}: no outputs for {len(missing)} of {len(rows)} examples of '
                    f'{config.name} ({few}); record them, or leave them out with --config.data.recorded_missing=skip')
  kept = np.flatnonzero(rows >= 0)
  source = source.subset(kept) if len(missing) else source
  return dataclasses.replace(source, extra={**source.extra, TEACHER: outputs[rows[kept]]},
                             extra_names={**source.extra_names, **({TEACHER: columns} if columns else {})})


def read(path: str) -> tuple[list[str], np.ndarray, tuple[str, ...] | None]:
  """Reads the names, the logits or embeddings, and the column names from a file.

  Raises:
    UserError: if the file lacks something; the error names it.
  """
  try:
    with np.load(Path(path).expanduser()) as file:
      arrays = {name: file[name] for name in file.files}
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(f'data.recorded={path}: not a readable .npz file ({error})') from error
  kind = next((name for name in OUTPUTS if name in arrays), None)
  outputs, names = arrays.get(kind), arrays.get('names')
  if names is None or outputs is None or outputs.ndim != 2 or len(names) != len(outputs):
    shapes = ', '.join(f'{name} {array.shape}' for name, array in arrays.items())
    raise UserError(f'data.recorded={path}: has {shapes or "nothing"}; expected names (n,) and {" or ".join(OUTPUTS)} (n, d)')
  bad = np.flatnonzero(~np.isfinite(outputs).all(1))
  if len(bad):
    raise UserError(f'data.recorded={path}: {len(bad)} of {len(names)} examples have outputs that are not finite, such as '
                    f'{names[bad[0]]}; record them again')
  if kind == 'probs':
    if outputs.min() < 0 or outputs.max() > 1:
      raise UserError(f'data.recorded={path}: probs range from {outputs.min():.3g} to {outputs.max():.3g}; expected '
                      'probabilities in [0, 1]; use the name logits for other values')
    probs = np.clip(outputs.astype(np.float64), SMALLEST, 1 - SMALLEST)
    outputs = np.log(probs) - np.log1p(-probs)
  if doubled := len(names) - len(set(map(str, names))):
    raise UserError(f'data.recorded={path}: {doubled} of {len(names)} examples have the same name as another; expected each '
                    'name once')
  columns = next((tuple(map(str, arrays[name])) for name in COLUMNS if name in arrays), None)
  return list(map(str, names)), outputs.astype(np.float32), columns
