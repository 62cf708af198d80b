"""A page of one or several sweeps: one HTML file that needs nothing else and asks for nothing else.

    contents.py   the runs, read from their folders, and what differs between their configs
    points.py     the points of the charts: means over seeds, fits
    panels.py     the charts of a task, what they draw, and the same as a table
    charts.py     the charts themselves, with Altair
    page.html     the page, a template of Jinja, which escapes what is filled in; its style and its script are beside it

`write` is the public interface.
"""

import base64
import collections
import hashlib
import json
import time
from pathlib import Path

import jinja2
from markupsafe import Markup

from mobilenet_jax import tasks
from mobilenet_jax.storage.files import write_whole
from mobilenet_jax.sweeps import status
from mobilenet_jax.sweeps.page import charts, contents, panels, points
from mobilenet_jax.sweeps.page.contents import shown
from mobilenet_jax.sweeps.page.panels import Cell, Table, field_cell, millions, title

__all__ = ['write']

MOST_RUNS, MOST_BYTES = 200, 3_000_000  # of a page with learning curves


def write(folders: list[Path], path: Path) -> tuple[str, list[str]]:
  """Writes the page of sweeps, whole or not at all.

  Args:
    folders: the folders of sweeps, and of single runs.
    path: the file to write. Its folder is made if need be.

  Returns:
    How many runs are in which state, and remarks on what is missing. The page has both, too.

  Raises:
    UserError: if a folder is neither that of a sweep nor that of a run.
  """
  runs, missing = contents.read(folders)
  text, remarks = build(runs, missing)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, text)
  return _counts(runs), remarks


def build(runs: list[contents.Run], remarks: list[str]) -> tuple[str, list[str]]:
  """Returns the text of the page of some runs, and all remarks on what is missing: those given, and further ones."""
  if len(runs) <= MOST_RUNS:
    text, found = _build(runs, remarks, True)
    if len(text.encode()) <= MOST_BYTES:
      return text, found
  return _build(runs, remarks, False)


def _build(runs, remarks, with_curves) -> tuple[str, list[str]]:
  differences = contents.differences(runs)
  found = [panels.panel(task, runs, differences) for task in tasks.TASKS if any(run.task == task for run in runs)]
  remarks = [*remarks, *(remark for panel in found for remark in panel.remarks)]
  if not with_curves:
    remarks.append(f'The learning curves are left out, as the page would be too large: it has them of up to {MOST_RUNS} runs, '
                   f'in up to {MOST_BYTES / 1e6:.0f} MB.')
  sweeps = list(dict.fromkeys(run.sweep for run in runs))
  data = {'panels': [{'task': panel.task, **panel.data} for panel in found],
          'runs': [_drawn(run, len(sweeps) > 1) if with_curves else {} for run in runs]}
  style, script, library = _asset('page.css'), _asset('page.js'), charts.bundle()
  text = _environment().get_template('page.html').render(
      sweeps=sweeps, written=time.strftime('%Y-%m-%d %H:%M'), counts=_counts(runs), remarks=remarks, panels=found,
      runs=_table(runs, differences.varied, found, len(sweeps) > 1), with_curves=with_curves,
      curve_points=contents.CURVE_POINTS,
      unfinished=[run for run in runs if run.state != status.FINISHED], differences=_differences(runs, sweeps, differences),
      shared=differences.shared, title=title, style=Markup(style), script=Markup(script), library=Markup(library),
      data=Markup(json.dumps(data, separators=(',', ':'), allow_nan=False).replace('<', '\\u003c')),
      policy=f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; img-src data:; "
             "base-uri 'none'; form-action 'none'")
  return text.encode(errors='backslashreplace').decode(), remarks  # the name of a folder need not be UTF-8


def _counts(runs) -> str:
  counts = collections.Counter(run.state for run in runs)
  return ', '.join(f'{count} {state}' for state, count in counts.items()) + f' of {len(runs)} runs'


def _drawn(run, several) -> dict:
  """Returns the learning curves of a run as page.js takes them."""
  factor = points.measure_of(run.task).factor if run.task else 1
  return {'name': f'{run.name} ({run.sweep})' if several else run.name, 'task': run.task, 'losses': run.losses,
          'evaluations': [(step, contents.round_to(factor * value, contents.CURVE_DIGITS)) for step, value in run.evaluations]}


def _table(runs, varied, found, several) -> Table:
  """Returns a row for each run, finished or not."""
  metrics = {name: headline for panel in found for name, headline in tasks.TASKS[panel.task].headlines.items()
             if any(name in run.row for run in runs)}
  titles = ['name', *(['sweep'] if several else []), 'state', *map(title, varied), 'Mult-Adds', 'parameters',
            *(text for text, _ in metrics.values()), 'seconds']
  return Table(titles, [[
      Cell(run.name), *([Cell(run.sweep)] if several else []), Cell(run.state),
      *(field_cell(name, run.config.get(name)) for name in varied),
      *(_cell(run.row, name, millions) for name in ('mult_adds', 'params')),
      *(_cell(run.row, name, form) for name, (_, form) in metrics.items()), _cell(run.row, 'seconds', '.1f')] for run in runs])


def _cell(row, name, form) -> Cell:
  value = row.get(name)
  if not isinstance(value, int | float):
    return Cell(contents.MISSING)
  if not contents.is_number(value):
    return Cell(str(value))
  return Cell(form(value) if callable(form) else format(value, form), value)


def _differences(runs, sweeps, differences) -> list[tuple[str, list[str]]]:
  """Returns for each field that differs its name, and for each sweep its values, with the number of runs of each."""
  rows = []
  for name in (*differences.varied, *differences.between):
    cells = []
    for sweep in sweeps:
      configs = [run.config for run in runs if run.sweep == sweep and run.config]
      counts = collections.Counter(shown(name, config.get(name)) for config in configs)
      values = [shown(name, value) for value in contents.order(config.get(name) for config in configs)]
      cells.append(', '.join(f'{value} ({counts[value]} runs)' if len(values) > 1 else value for value in values))
    rows.append((name, cells))
  return rows


def _environment():
  environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                                   lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  environment.filters['breakable'] = lambda name: Markup.escape(name).replace('_', Markup('_<wbr>'))  # on a phone
  return environment


def _asset(name) -> str:
  return (Path(__file__).parent / name).read_text(encoding='utf-8')


def _hash(text) -> str:
  """Returns what a Content-Security-Policy calls an inline script or style sheet, so that the page runs no other."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
