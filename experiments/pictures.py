"""Draws a row of pictures of the embedded dataset: one of each of the first classes.

    python -m experiments.pictures --out=experiments/results
"""

from pathlib import Path

import numpy as np
from PIL import Image

from mobilenet_jax.data.drawn import fabrics
from mobilenet_jax.runtime import command_line

COUNT, SCALE, GAP = 12, 2, 4  # pictures, pixels for one of theirs, pixels between two


def row_of_pictures() -> np.ndarray:
  """Returns uint8 RGB, (height, width, 3): the first test example of each of COUNT classes."""
  drawn = [fabrics.draw(label, np.random.default_rng([fabrics.SEED, 1, label])).repeat(SCALE, 0).repeat(SCALE, 1)
           for label in range(COUNT)]
  gap = np.full((drawn[0].shape[0], GAP, 3), 255, np.uint8)
  return np.concatenate([part for picture in drawn for part in (picture, gap)][:-1], axis=1)


def main(args) -> None:
  args.out.mkdir(parents=True, exist_ok=True)
  path = args.out / 'fabrics_pictures.png'
  Image.fromarray(row_of_pictures()).save(path, optimize=True)
  print(f'pictures {path}')


if __name__ == '__main__':
  parser = command_line.Parser(__doc__)
  parser.add_argument('--out', type=Path, required=True, help='folder to write to')
  command_line.run_with(parser, main)
