"""The points of the charts: the runs of one task, with those that differ only in their seed taken together."""

import re
import statistics
from typing import NamedTuple

import numpy as np

from mobilenet_jax import tasks
from mobilenet_jax.errors import counted, few
from mobilenet_jax.storage.run_files import WITHOUT_TRACE
from mobilenet_jax.sweeps.naming import SEEDS
from mobilenet_jax.sweeps.page.contents import Run, is_number


class Measure(NamedTuple):
  """The main metric of a task: its name, its title, the format of a value, and the factor with which it is drawn."""
  name: str
  title: str
  form: str
  factor: int

  def text(self, value: float) -> str:
    return format(value, self.form)


class Point(NamedTuple):
  """Runs that differ in nothing but their seed.

  Attributes:
    name: their common name.
    sweep: the label of their sweep.
    runs: the numbers of the runs, among all of the page.
    config: the fields of the first one's config.
    mult_adds, params: for one image, and of the network.
    value, deviation: mean and sample standard deviation of the measure; the deviation of one run is None.
    seconds: the mean; None if it is not known.
  """
  name: str
  sweep: str
  runs: list[int]
  config: dict
  mult_adds: int
  params: int
  value: float
  deviation: float | None
  seconds: float | None


class Fit(NamedTuple):
  """The least-squares fit value = intercept + slope log10(mult_adds) of a sweep's points, or why there is none."""
  sweep: str
  intercept: float
  slope: float
  r_squared: float
  problem: str = ''


def measure_of(task: str) -> Measure:
  """Returns the main metric of a task."""
  name = tasks.TASKS[task].main_metric
  title, form = tasks.TASKS[task].headlines[name]
  return Measure(name, f'{title} (%)' if '%' in form else title, form, 100 if '%' in form else 1)


def points_of(runs: list[Run], task: str) -> tuple[list[Point], list[str]]:
  """Returns the points of the finished runs of a task, in the order of the runs, and remarks on the runs left out.

  Args:
    runs: all runs of the page, those of other tasks included.
    task: the name of the task.
  """
  measure, groups, remarks = measure_of(task), {}, []
  for i, run in enumerate(runs):
    if run.row and run.task == task:
      if wrong := [name for name in (measure.name, 'mult_adds', 'params') if not is_number(run.row.get(name))
                   or name != measure.name and run.row[name] <= 0]:
        values = ', '.join(f'{name} is {run.row[name]}' if name in run.row else f'{name} is missing' for name in wrong)
        remarks.append(f'{run.name} is in no chart: {values}.')
        continue
      fields = [(name, value) for name, value in run.config.items() if name not in (*SEEDS, *WITHOUT_TRACE)]
      key = run.sweep, repr(fields) if fields else run.name
      groups.setdefault(key, []).append(i)
  return [_point([runs[i] for i in group], group, measure) for group in groups.values()], remarks


def _point(runs, numbers, measure) -> Point:
  values = [run.row[measure.name] for run in runs]
  seconds = [run.row['seconds'] for run in runs if is_number(run.row.get('seconds'))]
  return Point(_common_name([run.name for run in runs]), runs[0].sweep, numbers, runs[0].config, runs[0].row['mult_adds'],
               runs[0].row['params'], statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None,
               statistics.fmean(seconds) if seconds else None)


def _common_name(names) -> str:
  """Returns the name of runs without their seeds, see naming.py."""
  without = {re.sub(r'(_data-seed\d+)?(_s\d+)?$', '', name) if len(names) > 1 else name for name in names}
  return without.pop() if len(without) == 1 else few(names)


def fit(sweep: str, points: list[Point], measure: Measure) -> Fit:
  """Fits value = a + b log10(mult_adds) to the points of a sweep, in the units of the chart."""
  costs, values = [point.mult_adds for point in points], [point.value for point in points]
  if (different := len(set(costs))) < 3:
    return Fit(sweep, 0, 0, 0, f'no fit, as there {"is" if different == 1 else "are"} {counted(different, "cost")} only')
  if np.allclose(values, values[0], rtol=1e-9, atol=0):
    return Fit(sweep, 0, 0, 0, 'no fit, as all values are equal')
  x, y = np.log10(np.asarray(costs, float)), measure.factor * np.asarray(values)
  slope, intercept = np.polyfit(x, y, 1)
  r_squared = 1 - ((y - intercept - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
  return Fit(sweep, float(intercept), float(slope), float(r_squared))
