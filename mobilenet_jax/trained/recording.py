"""Records the outputs of a trained model for a whole dataset. Each image is cropped centrally, as in evaluation."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np

from mobilenet_jax.data import Source, description, digest, eval_batches, ids_digest
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime.pace import progress
from mobilenet_jax.storage.files import whole_file, write_whole
from mobilenet_jax.trained.model import TrainedModel

BATCH = 100
PART_FILE = re.compile(r'(\d+\.npy|of\.sha256)(\..*\.tmp)?')  # the names of the files that `record` writes
PART = 20 * BATCH  # the number of examples that are written at a time


def record(model: TrainedModel, source: Source, folder: Path) -> tuple[list[str], np.ndarray]:
  """Returns the names and the raw outputs (n, d) of all examples: logits or embeddings.

  The outputs are written to `folder` in parts. Parts that are already there are not computed again. The caller sees to it that
  no other process works in the folder.

  Raises:
    UserError: if outputs are not finite; the error names an example. Or if the parts that are there are of another model, other
      examples or another preprocessing.
  """
  source = dataclasses.replace(source, labelled=False)
  folder.mkdir(parents=True, exist_ok=True)
  _claim(folder / 'of.sha256', model, source)
  paths = [folder / f'{first:09}.npy' for first in range(0, len(source), PART)]
  done = next((i for i, path in enumerate(paths) if not path.exists()), len(paths))
  say = progress(f'recording the outputs of {model.origin}', len(source), first=done * PART)
  found = _outputs(model, source, done * PART // BATCH, say)
  for path in paths[done:]:
    rows = np.concatenate(list(itertools.islice(found, PART // BATCH)))
    with whole_file(path) as file:
      np.save(file, rows)
  return list(source.ids), np.concatenate([np.load(path) for path in paths])


def outputs_for(model: TrainedModel, source: Source) -> np.ndarray:
  """Returns the raw outputs (n, d) of all examples, cropped as in evaluation. Raises UserError if they are not finite."""
  return np.concatenate(list(_outputs(model, dataclasses.replace(source, labelled=False))))


def _outputs(model, source, start=0, on_progress=lambda count: None):
  batches = eval_batches(source, model.config.data, BATCH, _no_skipping, start, transform=model.task.transform)
  for number, batch in enumerate(batches, start=start + 1):
    yield model.outputs(batch['image'], source.ids[(number - 1) * BATCH:number * BATCH])[batch['mask'] > 0]
    on_progress(min(number * BATCH, len(source)))


def _claim(path, model, source):
  """Records the weights, preprocessing and examples that the parts belong to, or checks that these are the same as before."""
  preprocessing = json.dumps(description(model.config.data), sort_keys=True, allow_nan=False)
  now = digest(model.digest, preprocessing, ids_digest(source))
  if not path.exists():
    write_whole(path, now)
  elif path.read_text() != now:
    raise UserError(f'{path.parent}: holds outputs of another teacher, for other examples or with other preprocessing, or '
                    'those of an earlier version of this code; remove the folder, or give another --out')


def _no_skipping(error):
  raise error
