"""The points of the charts: the runs of one task, with those that differ only in their seed taken together."""

from typing import NamedTuple

from mobilenet_jax import tasks
from mobilenet_jax.storage.run_files import WITHOUT_TRACE
from mobilenet_jax.sweeps import tables
from mobilenet_jax.sweeps.page.contents import Run, is_number


class Measure(NamedTuple):
  """The main metric of a task: its name, its title, the format of a value, and the factor with which it is drawn."""
  name: str
  title: str
  form: str
  factor: int


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
  measure, sweeps, remarks = measure_of(task), {}, []
  for i, run in enumerate(runs):
    if run.row and run.task == task:
      if problem := _problem(run.row, measure):
        remarks.append(f'{run.name} is in no chart: {problem}.')
      else:
        sweeps.setdefault(run.sweep, {})[run.name] = i
  points = []
  for numbers in sweeps.values():
    found, more = tables.over_seeds([_with_config(runs[i]) for i in numbers.values()])
    points += [_point(point, [numbers[name] for name in point.names], runs, measure) for point in found]
    remarks += [f'{remark}.' for remark in more]
  return points, remarks


def _problem(row, measure) -> str:
  """Returns why a row has no point, or ''."""
  for name in (measure.name, 'mult_adds', 'params'):
    if name not in row:
      return f'{name} is missing'
    if not is_number(row[name]) or name != measure.name and row[name] <= 0:
      return f'{name} is {row[name]}'
  return f'{measure.name} is {row[measure.name]}, which is no fraction' if (
      measure.factor > 1 and not 0 <= row[measure.name] <= 1) else ''


def _with_config(run) -> dict:
  """Returns the row of a run with every field of its config, as far as the results depend on it."""
  row = {name: value for name, value in run.row.items() if isinstance(value, str) or is_number(value)}
  return {**row, **{name: value for name, value in run.config.items() if name not in WITHOUT_TRACE}, 'name': run.name}


def _point(point, numbers, runs, measure) -> Point:
  first = runs[numbers[0]]
  return Point(point.name, first.sweep, numbers, first.config, first.row['mult_adds'], first.row['params'],
               point.means[measure.name], point.deviations.get(measure.name), point.means.get('seconds'))


def fit(points: list[Point], measure: Measure) -> tables.Fit:
  """Fits value = a + b log10(mult_adds) to some points, in the units of the chart."""
  return tables.log_linear_fit([point.mult_adds for point in points], [measure.factor * point.value for point in points])
