"""Table 12: face attributes. A teacher, students that emulate it, and the same students on hard labels.

    python -m experiments.table12 --out=runs/table12                         # embedded faces; trains the teacher, NN2
    python -m experiments.table12 --data=folder:lfw160 --recorded=probs.npz --res=128 --out=runs/lfw_attributes

The students are the paper's six, 1.0, 0.5 and 0.25 at --res and at 4/7 of it; --widths and --sizes choose others. Started
again, it continues. Writes table12.csv, table12.md and table12.png.
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
import csv
import io
from pathlib import Path

from configs import face_attributes
from experiments import distillation_figure
from mobilenet_jax import config as config_lib
from mobilenet_jax.files import write_whole
from mobilenet_jax.sweep import sweep

# Mean AP, million Mult-Adds and million parameters as the paper prints them; by width and part of the largest size.
PAPER = {(1.0, 1): (0.887, 568, 3.2), (0.5, 1): (0.881, 149, 0.8), (0.25, 1): (0.872, 45, 0.2),
         (1.0, 4 / 7): (0.881, 185, 3.2), (0.5, 4 / 7): (0.877, 48, 0.8), (0.25, 4 / 7): (0.864, 15, 0.2)}
PAPER_TEACHER = (0.869, 1600, 7.5)
COLUMNS = ('name', 'targets', 'mean_ap', 'emulation', 'mult_adds', 'params', 'paper_mean_ap', 'paper_million_mult_adds',
           'paper_million_params', 'eval_examples', 'examples_seen', 'attributes_counted', 'dataset', 'seed', 'commit',
           'device')
ALONE, TOGETHER = {'alone': None}, {'all': ()}


def run(args: argparse.Namespace) -> list[dict]:
  """Trains what is not there yet; the rows of the table."""
  options = f'data={args.data},res={args.res},recorded={args.recorded}'
  changes = dict(change.split('=', 1) for change in args.set)
  rows = []
  teacher = ''
  if not args.recorded:
    config = config_lib.changed(face_attributes.get_config(options), {'model.name': 'nn2', 'model.activation': 'relu'})
    config.update_from_flattened_dict(_typed(config, changes))
    row, = sweep(config, [{}], args.out / 'teacher', groupings=ALONE)
    rows.append(_row(row, 'labels', PAPER_TEACHER, 'teacher, NN2'))
    teacher = str(args.out / 'teacher' / row['name'])
  sizes = args.sizes or [args.res, round(args.res * 4 / 7)]
  students = [{'model.width_multiplier': width, 'data.image_size': config_lib.square(size),
               'data.stream_size': config_lib.square(max(sizes))} for size in sizes for width in args.widths]
  for targets, soft in (('teacher', 1), ('labels', 0)):
    config = face_attributes.get_config(f'{options},teacher={teacher},soft={soft}')
    if not soft and not args.recorded:
      config.distill.model = teacher  # to measure how well it is emulated all the same
    config.update_from_flattened_dict(_typed(config, changes))
    for row in sweep(config, students, args.out / targets, groupings=TOGETHER):
      part = next((part for part in (1, 4 / 7) if row['height'] == round(args.res * part)), None)
      rows.append(_row(row, targets, PAPER.get((row['width_multiplier'], part))))
  return rows


def _typed(config, changes):
  """Values given as text, in the types of the fields that they are for."""
  flat = config_lib.flat(config)
  return {name: type(flat[name])(value) for name, value in changes.items()}


def _row(row, targets, paper, name=None):
  paper = dict(zip(('paper_mean_ap', 'paper_million_mult_adds', 'paper_million_params'), paper or ('', '', '')))
  return {**{column: row.get(column, '') for column in COLUMNS}, 'name': name or row['name'], 'targets': targets, **paper}


def markdown(rows: list[dict]) -> str:
  lines = ['| | learns from | mean AP | emulation | M Mult-Adds | M parameters | the paper: mean AP, M Mult-Adds, M parameters |',
           '|---|---|---|---|---|---|---|']
  for row in rows:
    paper = f'{100 * row["paper_mean_ap"]:.1f} %, {row["paper_million_mult_adds"]}, {row["paper_million_params"]}' if (
        row['paper_mean_ap'] != '') else ''
    emulation = f'{row["emulation"]:.4f}' if row['emulation'] != '' else ''
    lines.append(f'| {row["name"]} | {row["targets"]} | {100 * row["mean_ap"]:.1f} % | {emulation} | '
                 f'{row["mult_adds"] / 1e6:.1f} | {row["params"] / 1e6:.2f} | {paper} |')
  return '\n'.join(lines) + '\n'


def main(args: argparse.Namespace) -> None:
  rows = run(args)
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_whole(args.out / 'table12.csv', text.getvalue())
  write_whole(args.out / 'table12.md', markdown(rows))
  print(markdown(rows))
  series = {f'learns from {targets}': [row for row in rows if row['targets'] == targets and 'teacher,' not in row['name']]
            for targets in ('teacher', 'labels')}
  teachers = [row for row in rows if 'teacher,' in row['name']]
  distillation_figure.write(args.out / 'table12', series, teachers, {
      'mean_ap': ('mean AP (%)', 100), 'emulation': ('emulation, cross-entropy (nats)', 1)})


if __name__ == '__main__':
  parser = cli.Parser(__doc__)
  parser.add_argument('--data', default='faces', help='faces, celeb_a, or folder:/path of people')
  parser.add_argument('--recorded', default='', help="the teacher's outputs, recorded; by default NN2 is trained")
  parser.add_argument('--res', type=int, default=64, help='side of the largest input in pixels')
  parser.add_argument('--widths', type=float, nargs='+', default=[1.0, 0.5, 0.25], help='of the students')
  parser.add_argument('--sizes', type=int, nargs='+', help='of the students; by default --res and 4/7 of it')
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE', help='fields of the config, for all runs')
  parser.add_argument('--out', type=Path, required=True, help='folder of the runs and the table')
  cli.run_with(parser, main)
