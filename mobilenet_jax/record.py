"""Records a teacher's outputs for a dataset, once, so that a slow teacher is paid for once; interrupted, it continues.

    python -m mobilenet_jax.record runs/teacher --data=faces --out=teacher.npz
    python -m mobilenet_jax.main --config=configs/face_attributes.py:recorded=teacher.npz,alpha=0.5 --workdir=runs/student

Each image is seen as in evaluation, cropped centrally. The file is as data/recorded.py says.
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
import hashlib
import itertools
import shutil
from pathlib import Path

import jax
import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.data import pipeline, sources
from mobilenet_jax.data.sources import Source
from mobilenet_jax.errors import UserError
from mobilenet_jax.files import whole_file, write_whole

BATCH = 100
PART = 20 * BATCH  # examples that are written at a time


def record(model: trained.TrainedModel, source: Source, folder: Path) -> tuple[list[str], np.ndarray]:
  """Names and raw outputs (n, d) of all examples: logits, or embeddings; parts that `folder` has are not run again.

  Raises:
    UserError: where outputs are not finite, naming the example.
  """
  folder.mkdir(parents=True, exist_ok=True)
  _claim(folder / 'of.sha256', model, source)
  firsts = range(0, source.num_examples, PART)
  paths = [folder / f'{first:09}.npy' for first in firsts]
  done = next((i for i, path in enumerate(paths) if not path.exists()), len(paths))
  found = _outputs(model, source, start=done * PART // BATCH)
  for first, path in list(zip(firsts, paths))[done:]:
    rows = np.concatenate(list(itertools.islice(found, PART // BATCH)))
    if len(bad := np.flatnonzero(~np.isfinite(rows).all(1))):
      raise UserError(f'{model.origin}: gives outputs that are not finite for {len(bad)} of {len(rows)} images, such as '
                      f'{source.ids[first + bad[0]]}; expected a trained model')
    with whole_file(path) as file:
      np.save(file, rows)
    print(f'{first + len(rows)} of {source.num_examples}', flush=True)
  return list(source.ids), np.concatenate([np.load(path) for path in paths])


def outputs_for(model: trained.TrainedModel, source: Source) -> np.ndarray:
  """Raw outputs (n, d) of all examples, cropped as in evaluation."""
  return np.concatenate(list(_outputs(model, source, start=0)))


def _outputs(model, source, start):
  for batch in pipeline.eval_batches(source, model.config.data, BATCH, _no_skipping, start):
    yield model.outputs(batch['image'])[batch['mask'] > 0]


def _claim(path, model, source):
  """Notes whose parts these are, or checks that they are of the same weights and examples."""
  digest = hashlib.sha256('\n'.join(source.ids).encode())
  for leaf in jax.tree.leaves(model.variables):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  if not path.exists():
    write_whole(path, digest.hexdigest())
  elif path.read_text() != digest.hexdigest():
    raise UserError(f'{path.parent}: holds the outputs of another teacher, or for other examples; remove it, or give another '
                    '--out')


def _no_skipping(name):
  raise UserError(f'{name}: cannot be decoded; mend or remove it')


def main(args: argparse.Namespace) -> None:
  if args.out.suffix != '.npz':
    raise UserError(f'--out={args.out}: expected the name of a .npz file')
  if args.out.exists():
    raise UserError(f'--out={args.out}: is there already; remove it, or give another name')
  model = trained.load(args.model)
  config = config_lib.changed(model.config, {
      'data.name': args.data, 'data.data_dir': args.data_dir or model.config.data.data_dir, 'data.pairs': '',
      'data.recorded': ''})
  parts = args.out.with_suffix('.parts')
  names, outputs = [], []
  for split, source in zip(('train', 'test'), sources.load(config.data)):
    if source.ids is None:
      raise UserError(f'--data={args.data}: is of arrays, which have no names; expected a folder of images, or a set of TFDS')
    found = record(model, source, parts / split)
    names += found[0]
    outputs.append(found[1])
  kind = 'embeddings' if model.config.task == 'embedding' else 'logits'
  labels = {'labels': model.labels} if model.labels else {}
  with whole_file(args.out) as file:
    np.savez(file, names=names, **{kind: np.concatenate(outputs)}, **labels)
  shutil.rmtree(parts)
  print(f'{len(names)} examples in {args.out}')


if __name__ == '__main__':
  parser = cli.Parser(__doc__)
  parser.add_argument('model', help='a run folder, a file of published weights, or the name of a published model')
  parser.add_argument('--data', required=True, help='faces, another TFDS name, or folder:/path')
  parser.add_argument('--data_dir', default='', help='where TFDS data is')
  parser.add_argument('--out', type=Path, required=True, help='a .npz file')
  cli.run_with(parser, main)
