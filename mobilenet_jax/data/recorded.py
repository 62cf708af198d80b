"""A teacher's outputs, recorded beforehand in a .npz file with these arrays:

    names       (n,) the id of each example, see docs/data.md; leading folders may be missing if the rest tells examples apart
    logits      (n, d) float32, of classes or attributes; or probs, the probabilities; or embeddings
    attributes  (d,) the name of each output, if the outputs have names; or labels
    teacher     () a digest of the teacher's weights, if it is known

Alternatively, a feature of a TFDS dataset may hold the outputs; data/tfds_sets.py reads it.
"""

import collections
import dataclasses
from pathlib import Path

import ml_collections
import numpy as np

from mobilenet_jax.data import npz
from mobilenet_jax.data.examples import TEACHER, Source
from mobilenet_jax.errors import UserError, few

OUTPUTS = ('logits', 'probs', 'embeddings')
COLUMNS = ('attributes', 'labels')


def join(sources: tuple[Source, Source], config: ml_collections.ConfigDict) -> tuple[Source, Source]:
  """Returns the training and the evaluation source with the outputs that data.recorded has for their examples.

  Raises:
    UserError: if the file is not valid, has NaN, or lacks some of the examples while data.recorded_missing='error'; or if one
      of its names stands for several examples.
  """
  names, kind, outputs, columns = read(config.recorded)
  places = {name: i for i, name in enumerate(names)}
  rows = _rows(places, [id for source in sources for id in source.ids], config.recorded)
  joined = []
  for source, rows, part in zip(sources, np.split(rows, [len(sources[0])]), ('train', 'evaluate')):
    kept, missing = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
    remarks = source.remarks
    if len(missing):
      lacking = (f'data.recorded={config.recorded}: no outputs for {len(missing):,} of {len(rows):,} examples to {part} on '
                 f'({few([source.ids[i] for i in missing[:4]])})')
      if config.recorded_missing == 'error' or not len(kept):
        raise UserError(f'{lacking}; record them, or leave them out with --config.data.recorded_missing=skip')
      remarks = (*remarks, f'{lacking}, which are left out')
      source = source.subset(kept)
    joined.append(dataclasses.replace(
        source, extra={**source.extra, TEACHER: outputs[rows[kept]]}, outputs_kind=kind, remarks=remarks,
        extra_names={**source.extra_names, **({TEACHER: columns} if columns else {})}))
  return tuple(joined)


def _rows(places, ids, path):
  """Returns the row in the file of each example, or -1: by its id or, if no id is there, by its last parts."""
  for dropped in range(max(id.count('/') for id in ids) + 1):
    keys = [id.split('/', min(dropped, id.count('/')))[-1] for id in ids]
    rows = np.array([places.get(key, -1) for key in keys])
    if (rows >= 0).any():
      if len(set(keys)) == len(set(ids)):  # the same example may be in both sources
        break
      meant = collections.defaultdict(set)
      for key, id in zip(keys, ids):
        meant[key].add(id)
      if doubled := [key for key, own in meant.items() if len(own) > 1 and key in places]:
        raise UserError(f'data.recorded={path}: {len(doubled)} of its names stand for several examples each, such as '
                        f'{doubled[0]} for {few(sorted(meant[doubled[0]]))}; expected names in full')
      break
  return rows


def read(path: str) -> tuple[list[str], str, np.ndarray, tuple[str, ...] | None]:
  """Reads the names, the kind of outputs, which is one of OUTPUTS, the outputs and the column names from a file.

  Raises:
    UserError: if the file lacks something; the error names it.
  """
  with npz.opened(path, f'data.recorded={path}') as file:
    arrays = {name: file[name] for name in file.files}
  kinds = [name for name in OUTPUTS if name in arrays]
  if len(kinds) > 1:
    raise UserError(f'data.recorded={path}: has {" and ".join(kinds)}; expected one of them')
  kind = kinds[0] if kinds else ''
  outputs, names = arrays.get(kind), _texts(arrays.get('names'))
  if names is None or outputs is None or outputs.ndim != 2 or not outputs.size or len(names) != len(outputs):
    shapes = ', '.join(f'{name} {array.dtype} {array.shape}' for name, array in arrays.items())
    raise UserError(f'data.recorded={path}: has {shapes or "nothing"}; expected names (n,) of text and {" or ".join(OUTPUTS)} '
                    '(n, d)')
  if outputs.dtype.kind not in 'fiu':
    raise UserError(f'data.recorded={path}: {kind} are {outputs.dtype}; expected real numbers')
  with np.errstate(over='ignore'):  # checked next
    outputs = outputs.astype(np.float32)
  bad = np.flatnonzero(~np.isfinite(outputs).all(1))
  if len(bad):
    raise UserError(f'data.recorded={path}: {len(bad)} of {len(names)} examples have outputs that are not finite in float32, '
                    f'such as {names[bad[0]]}; record them again')
  if kind == 'probs' and (outputs.min() < 0 or outputs.max() > 1):
    raise UserError(f'data.recorded={path}: probs range from {outputs.min():.3g} to {outputs.max():.3g}; expected '
                    'probabilities in [0, 1]; use the name logits for other values')
  if doubled := len(names) - len(set(names)):
    raise UserError(f'data.recorded={path}: {doubled} of {len(names)} examples have the same name as another; expected each '
                    'name once')
  given = next((name for name in COLUMNS if name in arrays), None)
  columns = _texts(arrays[given]) if given else None
  if given and (columns is None or len(columns) != outputs.shape[1] or len(set(columns)) < len(columns)):
    raise UserError(f'data.recorded={path}: {given} is {arrays[given].dtype} {arrays[given].shape} for {outputs.shape[1]} '
                    'outputs; expected a different name for each')
  return list(names), kind, outputs, columns


def _texts(array):
  """Returns the texts in an array (n,), or None."""
  if array is None or array.ndim != 1 or array.dtype.kind not in 'US':
    return None
  try:
    return tuple((np.char.decode(array, 'utf-8') if array.dtype.kind == 'S' else array).tolist())
  except UnicodeDecodeError:
    return None


def teacher_of(path: Path) -> str:
  """Returns the digest of the weights of the teacher whose outputs are in a file; '' if the file has none."""
  with npz.opened(path, str(path)) as file:
    return str(file['teacher']) if 'teacher' in file else ''
