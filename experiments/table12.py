"""Table 12: face attributes. A teacher, students that emulate it, and the same students trained on its decisions or labels.

    python -m experiments.table12 --out=runs/table12                         # embedded faces; trains the teacher, NN2
    python -m experiments.table12 --data=folder:lfw160 --recorded=probs.npz --res=128 --out=runs/lfw_attributes

The students are the paper's six: 1.0, 0.5 and 0.25 at --res and at 4/7 of it. --widths and --sizes choose others. If it is
started again, it continues. It writes table12.csv, table12.md and table12.png. The average precision of each attribute is in
table12_attributes.csv and .md.
"""

import argparse

from configs import face_attributes
from experiments import distillation
from mobilenet_jax.runtime import command_line
from mobilenet_jax.storage.run_files import read_metrics
from mobilenet_jax.tasks.attributes import by_attribute

# Mean AP, million Mult-Adds and million parameters as the paper prints them, by width and fraction of the largest size.
PAPER = {(1.0, 1): (0.887, 568, 3.2), (0.5, 1): (0.881, 149, 0.8), (0.25, 1): (0.872, 45, 0.2),
         (1.0, 4 / 7): (0.881, 185, 3.2), (0.5, 4 / 7): (0.877, 48, 0.8), (0.25, 4 / 7): (0.864, 15, 0.2)}
PAPER_TEACHER = (0.869, 1600, 7.5)
FIELDS = ('mean_ap', 'emulation', 'mult_adds', 'params', 'attributes_counted', 'eval_examples', 'examples_seen', 'dataset',
          'seed', 'commit', 'device')
MARKDOWN = {'name': ('', ''), 'targets': ('learns from', ''), 'mean_ap': ('mean AP', '.1%'),
            'emulation': ('emulation', '.4f'), 'mult_adds': ('Mult-Adds', ',d'), 'params': ('parameters', ',d'),
            'paper_mean_ap': ('the paper: mean AP', '.1%'), 'paper_million_mult_adds': ('M Mult-Adds', 'd'),
            'paper_million_params': ('M parameters', '.1f')}


def run(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
  """Trains the models that are missing. Returns the table's rows, and a row per attribute with each run's average precision."""
  recipe = lambda options: distillation.with_given(
      face_attributes.get_config(f'data={args.data},res={args.res},{options}'), args.set)
  rows, folders, recorded = [], {}, args.recorded
  if not recorded:
    row, folder, recorded = distillation.train_teacher(recipe(''), args.out / 'nn2')
    rows.append(_row(row, 'labels', PAPER_TEACHER, 'the teacher, NN2'))
    folders['the teacher'] = folder
  sizes = args.sizes or [args.res, round(args.res * 4 / 7)]
  for targets, options in (('teacher', f'recorded={recorded}'), ('labels', f'recorded={recorded},soft=0')):
    for row in distillation.train_students(recipe(options), sizes, args.widths, args.out / targets):
      part = next((part for part in (1, 4 / 7) if row['height'] == round(args.res * part)), None)
      rows.append(_row(row, targets, PAPER.get((row['width_multiplier'], part))))
      folders[f'{row["name"]}, {targets}'] = args.out / targets / row['name']
  return rows, _by_attribute(folders)


def _by_attribute(folders):
  found = {name: by_attribute(read_metrics(folder)[0][-1]) for name, folder in folders.items()}
  blank = lambda precision: '' if precision is None else precision  # undefined: no positive example
  return [{'attribute': attribute, 'positives': positives, **{name: blank(run[attribute][0]) for name, run in found.items()}}
          for attribute, (_, positives) in next(iter(found.values())).items()]


def _row(row, targets, paper, name=None):
  paper = dict(zip(('paper_mean_ap', 'paper_million_mult_adds', 'paper_million_params'), paper or ('', '', '')))
  return {'name': name or row['name'], 'targets': targets, **{field: row.get(field, '') for field in FIELDS}, **paper}


def main(args: argparse.Namespace) -> None:
  rows, attributes = run(args)
  runs = {name: (name, '.1%') for name in attributes[0] if name not in ('attribute', 'positives')}
  distillation.write_table(args.out / 'table12_attributes', attributes,
                           {'attribute': ('', ''), 'positives': ('positive', ',d'), **runs})
  distillation.write_table(args.out / 'table12', rows, MARKDOWN)
  teachers, students = ([row for row in rows if row['name'].startswith('the teacher') == own] for own in (True, False))
  series = {f'learns from {targets}': [row for row in students if row['targets'] == targets]
            for targets in ('teacher', 'labels')}
  distillation.draw(args.out / 'table12', series, teachers, {
      'mean_ap': ('mean AP (%)', 100), 'emulation': ('emulation, cross-entropy (nats)', 1)})


if __name__ == '__main__':
  parser = command_line.Parser(__doc__)
  distillation.add_arguments(parser, widths=[1.0, 0.5, 0.25])
  command_line.run_with(parser, main)
