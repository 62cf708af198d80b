"""The choice of a model: compared with its definition, worked out by hand on the published models, and run as a command."""

import csv
import math
import os
import random

import ml_collections
import pytest
from conftest import assert_one_line, command

from mobilenet_jax import models
from mobilenet_jax.commands import choose as choose_command
from mobilenet_jax.errors import UserError
from mobilenet_jax.sweeps import choice, choice_figure
from mobilenet_jax.trained import measure_latency

HEADER = 'name,model,width_multiplier,height,width,mult_adds,params,top1\n'
SMALL = HEADER + 'small,mobilenet,0.25,32,32,1000000,200000,0.5\nlarge,mobilenet,0.25,64,64,4000000,200000,0.6\n'


def random_rows(seed):
  """Returns forty models with many ties in cost and in accuracy."""
  rng = random.Random(seed)
  return [{'name': str(i), 'mult_adds': rng.randint(1, 12), 'params': rng.randint(1, 12),
           'top1': rng.randint(0, 12) / 12} for i in range(40)]


def names(rows):
  return sorted(row['name'] for row in rows)


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('cost', ('mult_adds', 'params'))
def test_the_front_is_what_no_other_row_beats(seed, cost):
  rows = random_rows(seed)
  beats = lambda a, b: (a['top1'] >= b['top1'] and a[cost] <= b[cost]
                        and (a['top1'] > b['top1'] or a[cost] < b[cost]))
  front = choice.pareto_front(rows, cost)
  assert names(front) == names(b for b in rows if not any(beats(a, b) for a in rows))
  assert [row[cost] for row in front] == sorted(row[cost] for row in front)


@pytest.mark.parametrize('seed', range(20))
def test_no_row_within_the_limits_is_better_than_the_chosen_one(seed):
  rows = random_rows(seed)
  rng = random.Random(100 + seed)
  limits = {'mult_adds': rng.randint(3, 12), 'params': rng.randint(3, 12), 'top1': rng.randint(0, 8) / 12}
  fitting = [row for row in rows if row['mult_adds'] <= limits['mult_adds'] and row['params'] <= limits['params']
             and row['top1'] >= limits['top1']]
  if not fitting:
    with pytest.raises(UserError, match='there is no model'):
      choice.choose(rows, limits)
    return
  picked = choice.choose(rows, limits)
  assert picked in fitting
  assert not any((row['top1'], -row['mult_adds']) > (picked['top1'], -picked['mult_adds']) for row in fitting)


@pytest.mark.parametrize('limits, expected', (
    # 0.5_160 (76.5 M, 59.1 %) is followed by 0.75_128 (106.8 M) and 0.5_192 (110.0 M), both over 100 M.
    ({'mult_adds': 100e6}, 'mobilenet_0.5_160'),
    ({'mult_adds': 106_770_432}, 'mobilenet_0.75_128'),  # exactly its Mult-Adds: a budget includes its limit
    ({'mult_adds': 106_770_431}, 'mobilenet_0.5_160'),
    # Only the widths 0.25 and 0.5 fit (0.5 has 1.33 M parameters, 0.75 has 2.59 M).
    ({'params': 2e6}, 'mobilenet_0.5_224'),
    # 0.75_160 (166.4 M, 65.3 %) would fit, but it has 2.59 M parameters.
    ({'params': 2e6, 'mult_adds': 180e6}, 'mobilenet_0.5_224'),
    ({'mult_adds': 180e6}, 'mobilenet_0.75_160'),
    ({}, 'mobilenet_1.0_224')))
def test_picks_of_the_published_models(limits, expected):
  assert choice.choose(choice.read('published')[0], limits)['name'] == expected


def test_the_published_front_lacks_two_models():
  """0.5_192 (110.0 M, 61.7 %) is beaten by 0.75_128 (106.8 M, 62.1 %); 1.0_128 (186.4 M, 65.2 %) by 0.75_160."""
  rows, _ = choice.read('published')
  beaten = set(names(rows)) - set(names(choice.pareto_front(rows, 'mult_adds')))
  assert beaten == {'mobilenet_0.5_192', 'mobilenet_1.0_128'}


def test_no_seed_is_chosen_for_its_luck(tmp_path):
  """The best single run is of the model that is worse on average."""
  header = 'name,model,width_multiplier,height,width,mult_adds,params,top1,seed'
  lines = [f'{width}_s{seed},mobilenet,{width},96,96,{mult_adds},1000,{top1},{seed}'
           for width, mult_adds, accuracies in ((0.5, 2000, (0.9, 0.2)), (0.25, 1000, (0.6, 0.7))) for seed, top1 in
           enumerate(accuracies)]
  (tmp_path / 'results.csv').write_text('\n'.join([header, *lines]))
  rows, remarks = choice.read(str(tmp_path / 'results.csv'))
  assert not remarks and sorted((row['name'], round(row['top1'], 6)) for row in rows) == [
      ('0.25 (mean of 2 seeds)', 0.65), ('0.5 (mean of 2 seeds)', 0.55)]
  assert choice.choose(rows, {})['width_multiplier'] == 0.25


@pytest.mark.parametrize('name, remark', (
    ('a', 'several rows have one name, so no seeds are averaged'),
    ('b', '2 rows agree in everything, a seed included, and are not averaged: a, b')))
def test_where_seeds_cannot_be_averaged_it_is_said(tmp_path, name, remark):
  header = 'name,model,width_multiplier,height,width,mult_adds,params,top1,seed'
  path = tmp_path / 'results.csv'
  path.write_text(f'{header}\na,mobilenet,0.5,96,96,2000,1000,0.9,0\n{name},mobilenet,0.5,96,96,2000,1000,0.7,0\n')
  rows, remarks = choice.read(str(path))
  assert len(rows) == 2 and remarks == [f'{path}: {remark}']


def test_what_is_missed_and_by_how_much():
  rows, _ = choice.read('published')
  with pytest.raises(UserError) as error:
    choice.choose(rows, {'mult_adds': 100e6, 'top1': 0.61})
  # 0.5_160 is 0.019 short. 0.75_128 is accurate enough, but over the budget by 0.068 of it.
  assert str(error.value) == ('there is no model within 100 M Mult-Adds with at least 61% top-1 among 16 models; the nearest, '
                              'mobilenet_0.5_160, reaches 59.1% top-1 (1.9 points short); relax the limits that it misses')


@pytest.mark.parametrize('text, expected', (('100e6', 100e6), ('100M', 100e6), ('1.5G', 1.5e9), ('470k', 470e3)))
def test_amounts(text, expected):
  assert choose_command.parse_amount(text) == expected


def test_a_percentage_is_the_number_of_the_table():
  """0.709 and 70.9 / 100 may round differently, but a model must meet its own accuracy."""
  for tenths in range(1001):
    assert choose_command.parse_fraction(f'{tenths / 10}%') == float(f'{tenths / 1000:.3f}')


def test_latency_is_measured(tiny_model):
  """It is really measured, for two models that are one block deep."""
  network = models.complete(ml_collections.ConfigDict({'name': 'mobilenet', 'num_classes': 0, 'width_multiplier': 0.25}))
  latencies = measure_latency([(network, (32, 32)), (network, (32, 48))])
  assert len(latencies) == 2 and all(0 < latency < math.inf for latency in latencies)


def test_the_command():
  done = command('choose', '--max-mult-adds=100M')
  assert done.returncode == 0 and done.stderr == '', done.stderr
  lines = done.stdout.splitlines()
  assert lines[0] == 'Pareto front of top-1 against Mult-Adds: 14 of 16 models'
  assert lines[1].split('  ')[0] == 'model' and len({line.find('0.47') for line in lines[2:6]}) == 1  # aligned
  assert [line.split()[0] for line in lines if line.endswith(' picked')] == ['mobilenet_0.5_160']
  assert lines[-2] == 'pick: mobilenet_0.5_160, 59.1% top-1, 76.52 M Mult-Adds, 1.332 M parameters'
  assert lines[-1] == ('mobilenet_0.5_160: the most accurate of the 6 models within 100 M Mult-Adds; the nearest that '
                       'is more accurate, mobilenet_0.75_128 (62.1% top-1), needs 106.8 M Mult-Adds')


def test_the_command_with_latency_and_figure(tiny_model, tmp_path):
  """One of two models is over the budget of Mult-Adds, so its latency is not measured."""
  (tmp_path / 'results.csv').write_text(SMALL)
  out = tmp_path / 'new' / 'out'
  done = command('choose', f'--table={tmp_path / "results.csv"}', '--max-mult-adds=2M', '--max-latency-ms=1e6',
             f'--out={out}')
  assert done.returncode == 0 and done.stderr == '', done.stderr
  assert done.stdout.startswith('measuring the latency of 1 models, one image per call, on ')
  assert 'Pareto front of top-1 against latency: 1 of 1 models' in done.stdout
  assert 'small: the only one of the 2 models within 2 M Mult-Adds and 1e+06 ms; ' in done.stdout
  assert {path.name for path in out.iterdir()} == {'choose.png', 'choose.svg', 'candidates.csv'}
  assert (out / 'choose.png').read_bytes().startswith(b'\x89PNG')
  svg = (out / 'choose.svg').read_text()
  assert svg.rstrip().endswith('</svg>') and '<dc:date>' not in svg
  with (out / 'candidates.csv').open() as file:
    small, large = csv.DictReader(file)
  assert (small['name'], small['within'], small['picked']) == ('small', '1', '1') and small['device']
  assert 0 < float(small['latency_ms']) < math.inf
  assert (large['name'], large['within'], large['picked'], large['latency_ms']) == ('large', '0', '0', '')


def test_the_figure_has_every_model_once_and_labels_apart():
  rows, _ = choice.read('published')
  for row in rows:
    row['latency_ms'] = row['mult_adds'] / 1e8
  limits = {'mult_adds': 200e6, 'latency_ms': 1.2, 'top1': 0.5}
  panels = choice_figure.draw(rows, limits, choice.choose(rows, limits)).axes
  assert [axes.get_xscale() for axes in panels] == ['log', 'log'] and len({axes.get_ylim() for axes in panels}) == 1
  for axes, cost, unit in zip(panels, ('latency_ms', 'mult_adds'), (1, 1e6)):
    points = [tuple(point) for line in axes.lines if line.get_linestyle() == 'None' and line.get_markersize() == 7
              for point in line.get_xydata()]
    assert sorted(points) == sorted((row[cost] / unit, 100 * row['top1']) for row in rows)
    assert sum(line.get_label() == 'budget' for line in axes.lines) == 2
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 16
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.skipif(not os.access('/dev/full', os.W_OK), reason='needs /dev/full, which stands in for a full disk')
def test_nothing_is_written_on_a_full_disk(tmp_path):
  (tmp_path / 'candidates.csv.tmp').symlink_to('/dev/full')
  assert_one_line(command('choose', f'--out={tmp_path}'), 'No space left on device; free some space')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('args, message', (
    (['--table=theirs'], '--table=theirs: expected published, paper, or the path of a results.csv'),
    (['--table={empty}'], 'no model in it; let a run of the sweep finish first'),
    (['--table=Makefile'], 'row 1: has no model; expected the columns of a results.csv'),
    (['--table={strange}'], "row 1: model.name='resnet': expected one of mobilenet"),
    (['--table={broken}'], 'row 1: mult_adds=many: expected a number'),
    (['--max-mult-adds=ten'], '--max-mult-adds: ten: expected a number above 0, such as 100e6 or 100M'),
    (['--max-params=-2M'], '--max-params: -2M: expected a number above 0'),
    (['--max-latency-ms=nan'], '--max-latency-ms: nan: expected milliseconds above 0'),
    (['--min-accuracy=60'], '--min-accuracy: 60: expected a fraction from 0 to 1 or a percentage, such as 0.6 or 60%'),
    (['--max-mult-adds=10M'], 'the nearest, mobilenet_0.25_128, needs 13.57 M Mult-Adds (3.57 M over)'),
    (['--min-accuracy=80%'], 'the nearest, mobilenet_1.0_224, reaches 70.9% top-1 (9.1 points short)'),
    (['--out=Makefile/out'], '--out=Makefile/out: expected a folder')))
def test_bad_input_is_one_line(args, message, tmp_path):
  line = 'x,mobilenet,0.25,32,32,1000000,200000,0.5\n'
  tables = {'empty': HEADER, 'strange': HEADER + line.replace('mobilenet', 'resnet'),
            'broken': HEADER + line.replace('1000000', 'many')}
  for name, text in tables.items():
    (tmp_path / f'{name}.csv').write_text(text)
  paths = {name: tmp_path / f'{name}.csv' for name in tables}
  assert_one_line(command('choose', *(arg.format(**paths) for arg in args)), message)


def test_an_impossible_latency_names_the_nearest(tiny_model, tmp_path):
  (tmp_path / 'results.csv').write_text(SMALL)
  done = command('choose', f'--table={tmp_path / "results.csv"}', '--max-mult-adds=2M', '--max-latency-ms=1e-6',
             f'--out={tmp_path / "out"}')
  assert_one_line(done, 'the nearest, small, takes ')
  assert not (tmp_path / 'out').exists()
