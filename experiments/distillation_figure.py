"""Quality against Mult-Adds of distilled students; imports no JAX."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

LOOKS = (('#08306b', 'o', '-'), ('#d94801', 's', '--'))


def write(path: Path, series: dict[str, list[dict]], teachers: list[dict], measures: dict[str, tuple[str, float]]) -> None:
  """Draws a panel a measure, as PNG and SVG.

  Args:
    path: without its suffix.
    series: for each kind of target the rows of the students that learnt from it.
    teachers: rows drawn as a star.
    measures: column, its title and a factor.
  """
  figure = Figure(figsize=(4.2 * len(measures), 3.8), layout='constrained')
  panels = figure.subplots(1, len(measures), squeeze=False)[0]
  for axes, (measure, (title, factor)) in zip(panels, measures.items()):
    for (name, rows), (color, marker, line) in zip(series.items(), LOOKS):
      rows = sorted((row for row in rows if row[measure] != ''), key=lambda row: row['mult_adds'])
      if rows:
        axes.plot([row['mult_adds'] / 1e6 for row in rows], [factor * row[measure] for row in rows], line, color=color,
                  marker=marker, markeredgecolor='black', markeredgewidth=0.6, linewidth=1, label=name)
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
  panels[0].legend(fontsize=8)
  figure.savefig(path.with_suffix('.png'), dpi=160)
  figure.savefig(path.with_suffix('.svg'), metadata={'Date': None})
  print(f'figure {path.with_suffix(".png")} and .svg')
