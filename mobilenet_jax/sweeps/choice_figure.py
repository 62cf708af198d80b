"""Draws accuracy against cost for the models that `choice` chose from, and writes their table."""

import csv
import io
import math
from pathlib import Path

from mobilenet_jax.sweeps import looks
from mobilenet_jax.sweeps.choice import COLUMNS, pareto_front, within


def draw(rows: list[dict], limits: dict[str, float], picked: dict):
  """Returns a Matplotlib figure of accuracy against latency, if measured, beside accuracy against Mult-Adds."""
  from matplotlib.colors import to_rgb
  from matplotlib.figure import Figure
  from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

  pale = lambda color: tuple(0.3 * part + 0.7 for part in to_rgb(color))
  costs = {'latency_ms': ('latency, one image (ms)', 1), 'mult_adds': ('Mult-Adds (millions)', 1e6)}
  costs = {cost: look for cost, look in costs.items() if any(cost in row for row in rows)}
  figure = Figure(figsize=(7.2, 4.2) if len(costs) > 1 else (4.8, 4.4), layout='constrained')
  panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
  for axes, (cost, (title, unit)) in zip(panels, costs.items()):
    plot = lambda members, *style, **options: axes.plot(
        [row[cost] / unit for row in members], [100 * row['top1'] for row in members], *style, **options)
    shown = [row for row in rows if cost in row]
    for size, look in looks.marks((row['height'], row['width']) for row in rows).items():
      members = [row for row in shown if (row['height'], row['width']) == size]
      plot([row for row in members if within(row, limits)], **look, zorder=3, label='{} × {}'.format(*size))
      colors = {'markerfacecolor': pale(look['color']), 'markeredgecolor': '0.55'}
      plot([row for row in members if not within(row, limits)], **look | colors, zorder=3)
    plot(pareto_front(shown, cost), color='0.45', linewidth=0.8, zorder=1, label='Pareto front')
    plot([picked], 'o', markersize=13, markerfacecolor='none', markeredgecolor='black', markeredgewidth=1.2, zorder=4,
         label=f'picked: {picked["name"]}')
    axes.set_xscale('log')
    axes.margins(0.1)
    axes.set_xlabel(title)
    axes.grid(True, color='0.88', linewidth=0.6)
    axes.set_axisbelow(True)
  for axes, (cost, (_, unit)) in zip(panels, costs.items()):  # after the shared axis has the accuracies of all panels
    _budget(axes.axvline, axes.get_xlim, axes.set_xlim, limits.get(cost, math.inf) / unit)
    _budget(axes.axhline, axes.get_ylim, axes.set_ylim, 100 * limits.get('top1', math.inf))
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter('{x:.3g}')
  panels[0].set_ylabel('top-1 accuracy (%)')
  handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
  figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=4 if len(costs) > 1 else 3,
                fontsize=8, title='input; labels are α; pale: not within the budget', title_fontsize=8)
  figure.draw_without_rendering()  # fixes the layout, which looks.label needs
  for axes, (cost, (_, unit)) in zip(panels, costs.items()):
    labels = []
    for row in sorted(rows, key=lambda row: row['top1']):
      if cost in row:
        kind = row['model'].removesuffix('mobilenet').rstrip('_')
        labels.append(((row[cost] / unit, 100 * row['top1']), f'{kind} {row["width_multiplier"]:g}'.strip()))
    looks.label(axes, labels)
  return figure


def _budget(span, get_limits, set_limits, value):
  """Draws a limit if it is on the axis or near it. A limit far off would add nothing to what the points show."""
  low, high = get_limits()
  if low / 1.5 < value < 1.5 * high:
    span(value, color='#b30000', linewidth=0.9, linestyle='--', zorder=2, label='budget')
    set_limits(min(low, value / 1.05), max(high, value * 1.05))


def write(folder: Path, rows: list[dict], limits: dict[str, float], picked: dict) -> None:
  """Writes choose.png, choose.svg and candidates.csv. If one of them cannot be written, none is."""
  table = io.StringIO()
  writer = csv.DictWriter(table, COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows({**row, 'within': int(within(row, limits)), 'picked': int(row is picked)} for row in rows)
  figure, png, svg = draw(rows, limits, picked), io.BytesIO(), io.BytesIO()
  figure.savefig(png, format='png', dpi=160)
  figure.savefig(svg, format='svg', metadata={'Date': None})
  contents = {'choose.png': png.getvalue(), 'choose.svg': svg.getvalue(), 'candidates.csv': table.getvalue().encode()}

  folder.mkdir(parents=True, exist_ok=True)
  try:
    for name, content in contents.items():
      (folder / f'{name}.tmp').write_bytes(content)
    for name in contents:
      (folder / f'{name}.tmp').replace(folder / name)
  finally:
    for name in contents:
      (folder / f'{name}.tmp').unlink(missing_ok=True)
