"""What the experiments on distillation have in common: a teacher, its students, their table and figure."""

import argparse
import csv
import io
import subprocess
import sys
from pathlib import Path

import ml_collections
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments import figures
from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.data import teacher_of
from mobilenet_jax.errors import UserError
from mobilenet_jax.models import fields
from mobilenet_jax.storage.files import write_whole
from mobilenet_jax.sweeps import looks
from mobilenet_jax.sweeps.sweep import sweep

LOOKS = (('#08306b', 'o'), ('#d94801', 's'))


def draw(path: Path, series: dict[str, list[dict]], teachers: list[dict], measures: dict[str, tuple[str, float]]) -> None:
  """Draws one panel per measure, as PNG and SVG.

  Args:
    path: path of the files without the suffix.
    series: for each kind of target, the rows of the students that learnt from it.
    teachers: rows that are drawn as stars.
    measures: for each column to draw, its title and a factor on its values.
  """
  figure = Figure(figsize=(4.2 * len(measures), 3.8), layout='constrained')
  panels, named = figure.subplots(1, len(measures), squeeze=False)[0], []
  for axes, (measure, (title, factor)) in zip(panels, measures.items()):
    labels = []
    for (name, rows), (color, marker) in zip(series.items(), LOOKS):
      rows = [row for row in rows if row[measure] != '']
      points = [(row['mult_adds'] / 1e6, factor * row[measure]) for row in rows]
      if rows:
        axes.plot(*zip(*points), marker, color=color, markeredgecolor='black', markeredgewidth=0.6, label=name)
      labels += zip(points, (short_name(row) for row in rows))
    for row in teachers:
      if row[measure] != '':
        axes.plot(row['mult_adds'] / 1e6, factor * row[measure], '*', color='0.3', markersize=11, label='the teacher')
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:.3g}')
    axes.xaxis.set_minor_formatter('')
    axes.set_xlabel('Mult-Adds (millions)')
    axes.set_ylabel(title)
    axes.margins(0.1)
    axes.grid(True, color='0.88', linewidth=0.6)
    axes.set_axisbelow(True)
    named.append((axes, labels))
  panels[0].legend(fontsize=8)
  figure.draw_without_rendering()  # fixes the layout, which looks.label needs
  for axes, labels in named:
    looks.label(axes, labels)
  figures.save(figure, path)
  print(f'figure {path.with_suffix(".png")} and .svg')


def short_name(row: dict) -> str:
  """Returns the short name of a student, such as '0.5 at 128', whatever else its name has. Other rows keep their names."""
  return ' at '.join(row['name'].removeprefix('mobilenet_').split('_')[:2])


def add_arguments(parser: argparse.ArgumentParser, widths: list[float]) -> None:
  parser.add_argument('--data', default='faces', help='faces, another TFDS name, or folder:/path of people')
  parser.add_argument('--recorded', default='', help="file of the teacher's recorded outputs; by default NN2 is trained")
  parser.add_argument('--res', type=int, default=56, help='side of the largest input in pixels')
  parser.add_argument('--widths', type=float, nargs='+', default=widths, help='width multipliers of the students')
  parser.add_argument('--sizes', type=int, nargs='+', help="input sizes; by default --res and the paper's fraction of it")
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE', help='fields of the config to set in all runs')
  parser.add_argument('--out', type=Path, required=True, help='folder of the runs and the table')


def with_given(config: ml_collections.ConfigDict, given: list[str]) -> ml_collections.ConfigDict:
  """Returns a config with the values that --set gives, converted to the types of its fields."""
  return config_lib.overridden(config, dict(change.partition('=')[::2] for change in given), fields(config.model.name))


def train_teacher(config: ml_collections.ConfigDict, folder: Path) -> tuple[dict, Path, Path]:
  """Trains NN2 as `config` would train a student. Returns its row, its folder, and the file of its recorded outputs."""
  teacher = {'model.name': 'nn2', 'model.activation': 'relu', 'model.dropout_rate': 0.001}
  row, = sweep(config_lib.changed(config, teacher), [{}], folder)
  outputs = folder / 'outputs.npz'
  if outputs.exists() and teacher_of(outputs) != trained.load(folder / row['name']).digest:
    raise UserError(f'{outputs}: holds the outputs of another teacher than the one in {folder / row["name"]} by now; remove it '
                    'to record them anew, and train the students in another --out')
  if not outputs.exists():
    command = [sys.executable, '-m', 'mobilenet_jax', 'record', folder / row['name'], f'--data={config.data.name}',
               f'--data_dir={config.data.data_dir}', f'--out={outputs}']
    if subprocess.run(command).returncode:
      raise UserError(f'the outputs of {folder / row["name"]} could not be recorded, see above; fix the cause and start again')
  return row, folder / row['name'], outputs


def train_students(config: ml_collections.ConfigDict, sizes: list[int], widths: list[float], folder: Path) -> list[dict]:
  """Trains a student of each size and width, all on one pass over the data, and returns their rows."""
  students = [{'model.width_multiplier': width, 'data.image_size': config_lib.square(size),
               'data.stream_size': config_lib.square(max(sizes))} for size in sizes for width in widths]
  return sweep(config, students, folder, grouping='all')


def write_table(path: Path, rows: list[dict], columns: dict[str, tuple[str, str]]) -> None:
  """Writes rows as CSV, with all their fields, and as Markdown. Also prints the Markdown.

  Args:
    path: path of the files without the suffix.
    rows: the rows; all have the same fields.
    columns: the columns of the Markdown: by field, the title and the format. If a field is '', its cell is empty.
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path.with_suffix('.csv'), text.getvalue())
  cells = [[title for title, _ in columns.values()], ['---'] * len(columns)]
  cells += [[format(row[name], form) if row[name] != '' else '' for name, (_, form) in columns.items()] for row in rows]
  table = ''.join(f'| {" | ".join(line)} |\n' for line in cells)
  write_whole(path.with_suffix('.md'), table)
  print(table)
