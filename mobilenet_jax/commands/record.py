"""Records a teacher's outputs for a dataset, so that a slow teacher runs only once.

    mobilenet_jax record runs/teacher --data=faces --out=teacher.npz
    mobilenet_jax train --config=configs/face_attributes.py:recorded=teacher.npz,alpha=0.5 --workdir=runs/student

Each image is cropped centrally, as in evaluation. data/recorded.py describes the file. If the command is interrupted, the
same command continues.
"""

import shutil
from pathlib import Path

import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax import data, trained
from mobilenet_jax.commands import model_argument
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line
from mobilenet_jax.storage.files import LOCK_FILE, lock, whole_file

SPLITS = ('train', 'test')


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'record')
  model_argument.add_arguments(parser)
  parser.add_argument('--data', required=True, help='a TFDS name, folder:/path, npz:/path or hf:/path')
  parser.add_argument('--data_dir', default='', help='folder of TFDS data')
  parser.add_argument('--out', type=Path, required=True, help='a .npz file')
  args = parser.parse_args(argv)

  parts = args.out.with_suffix('.parts')
  _check(args.out, parts)
  model = model_argument.load(args)
  config = config_lib.changed(model.config, {
      'data.name': args.data, 'data.data_dir': args.data_dir or model.config.data.data_dir, 'data.pairs': '',
      'data.recorded': ''})
  both = data.load(config.data)
  for remark in both[0].remarks:
    print(remark, flush=True)
  parts.mkdir(parents=True, exist_ok=True)
  with lock(parts):
    _check(args.out, parts)  # again: another process may have finished by now
    names, outputs = [], []
    for split, source in zip(SPLITS, both):
      found = trained.record(model, source, parts / split)
      names += found[0]
      outputs.append(found[1])
    kind = 'embeddings' if model.task.kind == 'vector' else 'logits'
    labels = {'labels': model.labels} if model.labels else {}
    with whole_file(args.out) as file:
      np.savez(file, names=names, **{kind: np.concatenate(outputs)}, teacher=model.digest, **labels)
    shutil.rmtree(parts)
  print(f'{len(names)} examples in {args.out}')


def _check(out: Path, parts: Path) -> None:
  """Raises UserError if the file cannot be written, or the folder of its parts has other files, as it is removed at the end."""
  if out.suffix != '.npz':
    raise UserError(f'--out={out}: expected the name of a .npz file')
  if out.exists():
    raise UserError(f'--out={out}: already exists; remove it, or give another name')
  files = [path.relative_to(parts) for path in parts.rglob('*') if not path.is_dir()]
  is_ours = lambda path: str(path) == LOCK_FILE or str(path.parent) in SPLITS and trained.PART_FILE.fullmatch(path.name)
  if others := [path for path in files if not is_ours(path)]:
    raise UserError(f'{parts}: is needed for an unfinished recording, but holds other files, such as {others[0]}; give another '
                    '--out')
