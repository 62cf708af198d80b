"""The charts of a page, as Vega-Lite: this is the only file that uses Altair, and vl-convert, which has the JavaScript.

A chart has no data of its own. It names the data that page.js gives it: `points`, `ends` of the fits, `lines` and `ticks` of
the parallel coordinates, `evaluations` and `losses`. Fields are named f0, f1, ..., as a name with a dot would be a path.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import altair as alt
import vl_convert

LOOKS = 8  # colours of page.css, --c1 to --c8; more values share a scale of colours if they are numbers
SHAPES = ('circle', 'square', 'triangle-up', 'diamond', 'cross', 'triangle-down', 'triangle-right', 'triangle-left')
HEIGHT = 300


class Column(NamedTuple):
  """A column of `points`.

  Attributes:
    field: its name in `points`, where it is a text. If it has numbers, those have this name with an n.
    title: what it is called.
    values: its distinct values in order, as texts.
    numbers: whether they are numbers.
    of_fits: whether it sets fits apart, so that `ends` has the column, too.
  """
  field: str
  title: str
  values: Sequence[str]
  numbers: bool
  of_fits: bool


@functools.cache
def bundle() -> str:
  """Returns the JavaScript of Vega, Vega-Lite and Vega-Embed, which includes the interpreter that needs no eval."""
  version = '.'.join(alt.SCHEMA_VERSION.removeprefix('v').split('.')[:2])
  return vl_convert.javascript_bundle(vl_version=version)


def costs(measure: str, columns: list[Column], colour: Column | None, shape: Column | None, bars: bool, lines: bool) -> dict:
  """Returns Figures 4 and 5 side by side. What is brushed in one is marked in the other.

  Args:
    measure: the title of the vertical axis.
    columns: what the tooltip shows of what varied.
    colour, shape: the columns that colour and shape stand for; None if all are the same.
    bars: whether there are deviations, from `low` to `high`.
    lines: whether there are fits, in `ends`.
  """
  # A finger scrolls the page.
  brush = alt.selection_interval(name='brush', zoom=False, mark=alt.BrushConfig(fill='var(--ink)', fillOpacity=0.1), on=(
      '[pointerdown[event.pointerType !== "touch"], window:pointerup] > window:pointermove!'))
  tooltip = [alt.Tooltip(f'{field}:N', title=title) for field, title in (
      ('name', 'title'), *((column.field, column.title) for column in columns), ('mult_adds_text', 'Mult-Adds'),
      ('params_text', 'parameters'), ('value_text', measure), ('seconds_text', 'seconds'))]
  look = {**_colour(colour), **_shape(shape)}
  figures = []
  for number, x, title in ((4, 'mult_adds', 'Mult-Adds (millions)'), (5, 'params', 'parameters (millions)')):
    across = alt.X(f'{x}:Q', title=title, scale=alt.Scale(type='log', nice=False, padding=18),
                   axis=alt.Axis(format='~g', tickCount=6, labelOverlap='greedy'))
    up = {'title': measure, 'scale': alt.Scale(zero=False, nice=False, padding=14)}
    base = alt.Chart(alt.NamedData('points')).encode(
        x=across, y=alt.Y('value:Q', **up), opacity=alt.condition(brush, alt.value(1), alt.value(0.18)))
    layers = [base.mark_point(filled=True, size=90).encode(
        tooltip=tooltip, description='description:N', stroke=alt.condition('datum.chosen', alt.value('var(--ink)'),
                                                                           alt.value('var(--paper)')),
        strokeWidth=alt.condition('datum.chosen', alt.value(2.5), alt.value(0.6)), **look)]
    if bars:
      layers.insert(0, base.transform_filter('isNumber(datum.low)').mark_rule(strokeWidth=1.5, aria=False).encode(
          y=alt.Y('low:Q', **up), y2='high:Q', color=look['color']))
    if lines and x == 'mult_adds':
      layers.insert(0, alt.Chart(alt.NamedData('ends')).mark_line(
          strokeDash=[5, 4], strokeWidth=1.3, aria=False).encode(
              x=across, y=alt.Y('value:Q', **up), detail='fit:N',
              color=look['color'] if colour and colour.of_fits else alt.value('var(--quiet)')))
    figures.append(alt.layer(*layers).properties(height=HEIGHT, title=alt.Title(f'Figure {number}', anchor='start')))
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Automatically deduplicated')  # one brush for both is what is meant
    return _finished(alt.concat(*(figure.add_params(brush) for figure in figures), columns=2))


def _colour(column) -> dict:
  """Returns the encoding of colour."""
  if not column:
    return {'color': alt.value('var(--c1)')}
  if len(column.values) > LOOKS and column.numbers:
    return {'color': _gradient(f'{column.field}n', column.title)}
  return {'color': alt.Color(f'{column.field}:N', title=column.title, scale=alt.Scale(
      domain=column.values, range=_cycled([f'var(--c{i + 1})' for i in range(LOOKS)], column)), legend=_legend())}


def _shape(column) -> dict:
  """Returns the encoding of shape. More values than there are shapes are not shown by it."""
  if not column or len(column.values) > len(SHAPES):
    return {}
  return {'shape': alt.Shape(f'{column.field}:N', title=column.title, scale=alt.Scale(
      domain=column.values, range=_cycled(SHAPES, column)), legend=_legend(symbolFillColor='var(--ink)'))}


def _cycled(looks, column):
  return [looks[i % len(looks)] for i in range(len(column.values))]


def _legend(**options):
  return alt.Legend(orient='bottom', symbolOpacity=1, symbolStrokeWidth=0, symbolLimit=40, **options)


def _gradient(field, title):
  """Returns the encoding of colour for a number. CSS cannot change these colours, so they do on light and on dark paper."""
  return alt.Color(f'{field}:Q', title=title, scale=alt.Scale(range=['#3b7dd8', '#b0559f', '#f0862c']),
                   legend=alt.Legend(orient='bottom', gradientLength=200))


def parallel(measure: str, axes: list[str]) -> dict:
  """Returns parallel coordinates: an axis for each varied field and one for the measure, a line for each point.

  Args:
    measure: the title of the last axis.
    axes: the titles of all axes, the last one included.
  """
  over = alt.selection_point(name='over', on='pointerover', clear='pointerout', fields=['id'], empty=False)
  across = alt.X('axis:N', title=None, sort=None, scale=alt.Scale(domain=axes, padding=0.5),
                 axis=alt.Axis(orient='top', labelLimit=150, domain=False, ticks=False, grid=True, labelPadding=8))
  up = alt.Y('at:Q', axis=None, scale=alt.Scale(domain=[0, 1], padding=8))
  lines = alt.Chart(alt.NamedData('lines')).mark_line(interpolate='monotone').encode(
      x=across, y=up, detail='id:N', tooltip=[alt.Tooltip('name:N', title='title'), alt.Tooltip('value_text:N', title=measure)],
      color=_gradient('value', measure),
      strokeWidth=alt.condition(over, alt.value(4), alt.value(1.6)),
      opacity=alt.condition('datum.chosen', alt.value(1), alt.value(0.6))).add_params(over)
  ticks = alt.Chart(alt.NamedData('ticks')).encode(x=across, y=up, text='text:N')
  texts = ticks.mark_text(align='left', dx=6, fontSize=10, color='var(--ink)', stroke='var(--paper)', strokeWidth=3, aria=False)
  return _finished(alt.layer(lines, texts).properties(height=HEIGHT))


def curves(measure: str) -> dict:
  """Returns the learning curves of chosen runs: the measure beside the training loss."""
  name = alt.Color('run:N', title=None, sort=None, scale=alt.Scale(range=[f'var(--c{i + 1})' for i in range(LOOKS)]),
                   legend=alt.Legend(orient='bottom', columns=1, symbolType='stroke'))
  shapes = []
  for data, title in (('evaluations', measure), ('losses', 'training loss')):
    base = alt.Chart(alt.NamedData(data)).encode(
        x=alt.X('step:Q', title='step', scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=5)), color=name,
        y=alt.Y('value:Q', title=title, scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip('run:N', title='title'), 'step:Q', alt.Tooltip('value:Q', title=title, format='.4~g')])
    line = base.mark_line(strokeWidth=1.8)
    marks = base.mark_point(filled=True, size=30 if data == 'evaluations' else 60, opacity=1 if data == 'evaluations' else 0)
    shapes.append(alt.layer(line, marks).properties(height=HEIGHT - 60))
  return _finished(alt.concat(*shapes, columns=2))


def _finished(chart) -> dict:
  """Returns a chart as Vega-Lite, in the colours of page.css, so that a style sheet alone changes them."""
  text = dict(labelColor='var(--ink)', titleColor='var(--ink)', labelFontSize=11, titleFontSize=12, titleFontWeight='normal')
  chart = chart.configure(background='transparent', font='inherit').configure_view(stroke=None)
  chart = chart.configure_title(color='var(--ink)', fontSize=12, fontWeight='bold', offset=4)
  chart = chart.configure_axis(gridColor='var(--grid)', domainColor='var(--quiet)', tickColor='var(--quiet)', **text)
  return chart.configure_legend(**text).to_dict()
