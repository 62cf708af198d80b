"""Tests face verification against brute force, closed forms, and LFW with a recorded model."""

import csv
import dataclasses
import functools
import itertools
import math
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, SHARED, experiment

from experiments import roc as figure
from mobilenet_jax.data import Pairs, pairs as pairs_lib, read_pairs
from mobilenet_jax.errors import UserError
from mobilenet_jax.tasks import verification

needs_lfw = pytest.mark.skipif(not (SHARED / 'lfw160.tar').exists(), reason=f'LFW is not here: {SHARED}')
RNG = np.random.default_rng


def scores(seed, count=60, levels=None):
  """Returns distances in [0, 4], smaller for same pairs, and which are same. Few levels give many ties; None gives none."""
  rng = RNG(seed)
  same = np.arange(count) % 3 == 0
  distances = np.clip(rng.normal(np.where(same, 1.2, 2.2), 0.7), 0, 4)
  return (np.round(distances * levels) / levels if levels else distances), same


CASES = [scores(seed, levels=levels) for seed in range(4) for levels in (None, 10, 2)]
every_case = pytest.mark.parametrize('distances, same', CASES)


def rates(distances, same, threshold):
  """Returns (FAR, VAL) by their definition."""
  accepted = [d < threshold for d in distances]
  return tuple(np.mean([a for a, s in zip(accepted, same) if s == kind]) for kind in (False, True))


@every_case
def test_roc_has_every_threshold(distances, same):
  curve = verification.roc(distances, same)
  for far, val, threshold in zip(curve.far, curve.val, curve.threshold):
    assert (far, val) == pytest.approx(rates(distances, same, threshold))
  # Each point that is left out is on a horizontal or vertical line between points that are kept.
  for threshold in (*distances, math.inf):
    far, val = rates(distances, same, threshold)
    assert any(a[0] <= far <= b[0] and a[1] <= val <= b[1] and (a[0] == b[0] or a[1] == b[1] or (far, val) in (a, b))
               for a, b in itertools.pairwise(zip(curve.far, curve.val)))
  assert (curve.far[0], curve.val[0], curve.far[-1], curve.val[-1]) == (0, 0, 1, 1)


@every_case
def test_auc_is_the_share_of_couples_in_order(distances, same):
  couples = [(d < e) + 0.5 * (d == e) for d, s in zip(distances, same) if s for e, t in zip(distances, same) if not t]
  assert verification.auc(distances, same) == pytest.approx(np.mean(couples), abs=1e-12)
  curve = verification.roc(distances, same)
  assert np.trapezoid(curve.val, curve.far) == pytest.approx(np.mean(couples), abs=1e-12)


@every_case
def test_validation_rate_is_at_the_largest_threshold_within_the_target(distances, same):
  for far in (0.5, 0.3, 0.1, 0.05, 0.025):
    found = verification.validation_rate(distances, same, far)
    assert found.different == 40 and found.false_accepts == math.floor(round(far * 40, 9)) > 0
    assert rates(distances, same, found.threshold)[0] <= far
    assert rates(distances, same, np.nextafter(found.threshold, 9))[0] > far
    assert found.val == rates(distances, same, found.threshold)[1]


@every_case
def test_equal_error_rate_is_where_the_curve_crosses(distances, same):
  points = [rates(distances, same, threshold) for threshold in (*np.unique(distances), math.inf)]
  crossings = []
  for (far0, val0), (far1, val1) in itertools.pairwise(points):
    at = (1 - far0 - val0) / (far1 - far0 + val1 - val0)  # the fraction of the way at which far + val is 1
    if 0 <= at <= 1:
      crossings.append(far0 + at * (far1 - far0))
  assert crossings and verification.equal_error_rate(verification.roc(distances, same)) == pytest.approx(crossings[0])


@pytest.mark.parametrize('same_at, different_at, area, error, val', (
    (1.0, 3.0, 1, 0, 1), (3.0, 1.0, 0, 1, 0), (2.0, 2.0, 0.5, 0.5, 0)))
def test_closed_forms(same_at, different_at, area, error, val):
  same = np.arange(40) % 2 == 0
  distances, pairs = np.where(same, same_at, different_at), Pairs((), (), same, np.arange(40) // 20)
  assert verification.auc(distances, same) == area
  assert verification.equal_error_rate(verification.roc(distances, same)) == error
  assert verification.validation_rate(distances, same, 0.1).val == val
  accuracies, thresholds = verification.fold_accuracies(distances, pairs, (0, 1))
  assert np.all(accuracies == (1 if area == 1 else 0.5)) and np.all(thresholds == (1.01 if area == 1 else 0))


def test_a_rate_below_one_pair_is_not_resolved():
  same = np.arange(400) < 100
  distances = RNG(0).uniform(0, 4, 400)
  found = verification.validation_rate(distances, same, 1e-3)
  assert math.isnan(found.val) and math.isnan(found.threshold)
  assert (found.false_accepts, found.different) == (0, 300)
  assert verification.validation_rate(distances, same, 1 / 300).false_accepts == 1
  # 0.29 * 100 is 28.999999999999996
  assert verification.validation_rate(distances[:200], same[:200], 0.29).false_accepts == 29


def random_set(seed=0, folds=5, per_fold=20, noise=1.0):
  """Returns embeddings of 60 people, each around its own direction and of any length, with their names and pairs."""
  rng = RNG(seed)
  people = np.repeat(np.arange(60), 3)
  names = [f'p{person}/p{person}_{i % 3 + 1:04d}' for i, person in enumerate(people)]
  embeddings = RNG(9).normal(size=(60, 16))[people] + rng.normal(0, noise, (180, 16))
  embeddings *= rng.uniform(0.1, 10, (180, 1))
  pairs = pairs_lib.draw_pairs(names, [name.split('/')[0] for name in names], folds, per_fold, seed)
  return names, embeddings, pairs


@pytest.mark.parametrize('test_folds', (None, (1,), (0, 3)))
def test_evaluate_equals_its_definition(test_folds):
  names, embeddings, pairs = random_set()
  result = verification.evaluate(names, embeddings, pairs, test_folds)
  unit = {name: vector / np.linalg.norm(vector) for name, vector in zip(names, embeddings)}
  distances = np.array([((unit[a] - unit[b])**2).sum() for a, b in zip(pairs.first, pairs.second)])
  np.testing.assert_allclose(verification.squared_distances(names, embeddings, pairs), distances, rtol=1e-12)

  def right(threshold, members):
    return np.mean([(distances[i] < threshold) == pairs.same[i] for i in members])

  folds = test_folds or range(5)
  for fold, accuracy, threshold in zip(folds, result.accuracies, result.thresholds):
    own, others = np.flatnonzero(pairs.fold == fold), np.flatnonzero(pairs.fold != fold)
    chosen = max(np.arange(0, 4, 0.01), key=lambda threshold: right(threshold, others))  # the first of the best
    assert (accuracy, threshold) == (right(chosen, own), chosen)
  assert result.folds == tuple(folds) and 0.5 < result.accuracy < 1
  assert result.accuracy == pytest.approx(np.mean(result.accuracies))
  assert result.accuracy_std == pytest.approx(np.sqrt(np.mean((result.accuracies - result.accuracy)**2)))
  tested = np.isin(pairs.fold, folds)
  assert result.auc == verification.auc(distances[tested], pairs.same[tested])
  assert [rate.different for rate in result.validation] == 4 * [10 * len(folds)]
  assert [rate.far for rate in result.validation] == [0.1, 0.01, 0.001, 0.0001]
  assert [math.isnan(rate.val) for rate in result.validation] == [False, True, True, True]


def test_the_pairs_of_a_fold_have_no_say_in_its_threshold():
  names, embeddings, pairs = random_set()
  changed = dataclasses.replace(pairs, same=np.where(pairs.fold == 2, ~pairs.same, pairs.same))
  before, after = (verification.evaluate(names, embeddings, each, (2,)) for each in (pairs, changed))
  assert before.thresholds == after.thresholds
  assert before.accuracy + after.accuracy == pytest.approx(1)


def test_drawn_pairs():
  counts = [1, 1, 1, 2, 3, 4, 5, 9, 2, 2, 30, 1, 2, 3]
  names = [f'{person}/{i}' for person, count in enumerate(counts) for i in range(count)]
  person_of = dict(zip(names, (name.split('/')[0] for name in names)))
  pairs = pairs_lib.draw_pairs(names, list(person_of.values()), 3, 8, seed=0)
  assert pairs.fold.tolist() == [0] * 8 + [1] * 8 + [2] * 8 and pairs.same.tolist() == 3 * ([True] * 4 + [False] * 4)
  assert [person_of[a] == person_of[b] for a, b in zip(pairs.first, pairs.second)] == pairs.same.tolist()
  assert len({frozenset(pair) for pair in zip(pairs.first, pairs.second)}) == 24
  assert all(a != b for a, b in zip(pairs.first, pairs.second))
  people = [{person_of[name] for i in np.flatnonzero(pairs.fold == fold) for name in (pairs.first[i], pairs.second[i])}
            for fold in range(3)]
  assert not any(a & b for a, b in itertools.combinations(people, 2))

  order = RNG(1).permutation(len(names))
  shuffled = [names[i] for i in order]
  again = pairs_lib.draw_pairs(shuffled, [person_of[name] for name in shuffled], 3, 8, seed=0)
  assert (again.first, again.second) == (pairs.first, pairs.second)
  assert pairs_lib.draw_pairs(names, list(person_of.values()), 3, 8, seed=1).first != pairs.first


def test_every_pair_there_is_can_be_drawn():
  """Two people with three images each, as in both folds, give six pairs of one person and nine of two people."""
  names = [f'{person}/{i}' for person in 'abcd' for i in range(3)]
  draw = functools.partial(pairs_lib.draw_pairs, names, [name[0] for name in names], 2, seed=0)
  pairs = draw(12)
  assert len({frozenset(pair) for pair in zip(pairs.first, pairs.second)}) == 24
  with pytest.raises(UserError, match='has 2 people with 6 pairs of one person; expected 7; .*per_fold=12 at most'):
    draw(14)


@pytest.mark.parametrize('identities, folds, per_fold, message', (
    ('aabbcc', 1, 2, 'folds=1: expected at least 2'), ('aabbcc', 2, 3, 'per_fold=3: expected an even number'),
    ('aabbcc', 4, 2, 'fold 0 of 4 has 1 people with 0 pairs of two people; expected 1; .* fewer embedding.folds$'),
    ('aabbcc', 3, 2, 'fold 0 of 3 has 1 people with 0 pairs of two people; expected 1'),
    ('aabcde', 2, 2, 'fold 1 of 2 has 2 people with 0 pairs of one person; expected 1')))
def test_too_few_to_draw_from(identities, folds, per_fold, message):
  with pytest.raises(UserError, match=message):
    pairs_lib.draw_pairs([f'{i}' for i in range(6)], list(identities), folds, per_fold, seed=0)


def test_images_of_one_name():
  with pytest.raises(UserError, match='2 of 4 images have the same name as another'):
    pairs_lib.draw_pairs('xxxy', 'aabb', 2, 2, seed=0)
  names, embeddings, pairs = random_set()
  with pytest.raises(UserError, match='1 of 181 embeddings have the same name as another'):
    verification.evaluate([*names, names[0]], np.append(embeddings, embeddings[:1], axis=0), pairs)


@pytest.mark.parametrize('value', (np.nan, np.inf, 0.0))
def test_an_embedding_of_no_use_is_named(value):
  names, embeddings, pairs = random_set()
  index = names.index(pairs.second[7])
  embeddings[index] = value
  with pytest.raises(UserError, match=f'1 of the .* hold NaN or infinity, or are all zeros: {names[index]};'):
    verification.evaluate(names, embeddings, pairs)


@pytest.mark.parametrize('value', (np.nan, np.inf))
def test_distances_that_are_not_finite_are_an_error(value):
  distances, same = scores(0)
  distances[7] = value
  pairs = Pairs((), (), same, np.arange(60) // 20)
  for measure in (lambda: verification.auc(distances, same), lambda: verification.roc(distances, same),
                  lambda: verification.validation_rate(distances, same, 0.1),
                  lambda: verification.fold_accuracies(distances, pairs, (0,))):
    with pytest.raises(UserError, match='1 of 60 distances are not finite'):
      measure()


def test_images_without_an_embedding_are_counted_and_named():
  names, embeddings, pairs = random_set()
  wanted = list(dict.fromkeys(pairs.first + pairs.second))
  with pytest.raises(UserError) as caught:
    verification.evaluate([f'{name}.jpg' for name in names], embeddings, pairs)
  assert f'{len(wanted)} of the {len(wanted)} images' in str(caught.value)
  assert f'{", ".join(wanted[:3])}, ...' in str(caught.value) and "such as 'p0/p0_0001.jpg'" in str(caught.value)


def test_one_kind_of_pair_or_one_fold_only():
  names, embeddings, pairs = random_set()
  only = dataclasses.replace(pairs, same=np.full(100, True))
  with pytest.raises(UserError, match='no pair of different people among the 80 pairs of the folds other than fold 0'):
    verification.evaluate(names, embeddings, only)
  only = dataclasses.replace(pairs, same=np.where(pairs.fold == 1, False, pairs.same))
  with pytest.raises(UserError, match='no pair of the same person among the 20 pairs of the set'):
    verification.evaluate(names, embeddings, only, (1,))
  with pytest.raises(UserError, match='among the 0 pairs of the folds other than fold 0'):
    verification.evaluate(names, embeddings, dataclasses.replace(pairs, fold=np.zeros(100, int)))
  for folds in ((5,), ()):
    with pytest.raises(UserError, match=r'expected some of \[0, 1, 2, 3, 4\]'):
      verification.evaluate(names, embeddings, pairs, folds)


@pytest.fixture(scope='module')
def lfw(tmp_path_factory):
  path = tmp_path_factory.mktemp('lfw') / 'pairs.txt'
  with tarfile.open(SHARED / 'lfw160.tar') as archive:
    path.write_bytes(archive.extractfile('lfw160/pairs.txt').read())
    images = {name.removeprefix('lfw160/').removesuffix('.jpg') for name in archive.getnames()}
  return read_pairs(path), images


@needs_lfw
def test_lfws_own_pairs(lfw):
  pairs, images = lfw
  assert len(pairs.first) == len(pairs.second) == 6000 and pairs.same.sum() == 3000
  assert np.bincount(pairs.fold).tolist() == [600] * 10
  assert (pairs.first[0], pairs.second[0]) == ('Abel_Pacheco/Abel_Pacheco_0001', 'Abel_Pacheco/Abel_Pacheco_0004')
  assert {*pairs.first, *pairs.second} <= images
  people = [{name.split('/')[0] for i in np.flatnonzero(pairs.fold == fold)
             for name in (pairs.first[i], pairs.second[i])} for fold in range(10)]
  assert not any(a & b for a, b in itertools.combinations(people, 2))


@needs_lfw
@pytest.mark.skipif(not (SHARED / 'lfw_mobilefacenet_embeddings.npz').exists(), reason=f'no embeddings in {SHARED}')
def test_the_recorded_models_accuracy(lfw):
  """The accuracy recorded with the embeddings, which are MobileFaceNet's, is 97.68 %."""
  recorded = np.load(SHARED / 'lfw_mobilefacenet_embeddings.npz')
  names = [str(name).removesuffix('.jpg') for name in recorded['names']]
  result = verification.evaluate(names, recorded['embeddings'], lfw[0])
  assert f'{100 * result.accuracy:.2f}' == '97.68'
  assert [rate.false_accepts for rate in result.validation] == [300, 30, 3, 0]
  held_out = verification.evaluate(names, recorded['embeddings'], lfw[0], test_folds=(0, 1))
  np.testing.assert_array_equal(held_out.accuracies, result.accuracies[:2])
  np.testing.assert_array_equal(held_out.thresholds, result.thresholds[:2])


@pytest.fixture
def curve_file(tmp_path):
  names, embeddings, pairs = random_set(per_fold=60)
  result = verification.evaluate(names, embeddings, pairs)
  verification.write_roc(tmp_path / 'curve.csv', result)
  return tmp_path / 'curve.csv', result


def draw(*args):
  return experiment('roc', *args)


def test_curves_are_drawn_without_jax(curve_file, tmp_path):
  path, out = curve_file[0], tmp_path / 'figures' / 'roc.png'
  code = ("import sys; from experiments import roc; "
          f"sys.argv[1:] = ['--curve', 'one={path}', '--curve', 'α = 0.5={path}', '--out={out}']; roc.main(); "
          "assert not {'jax', 'tensorflow'} & set(sys.modules)")
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)
  assert out.read_bytes().startswith(b'\x89PNG')
  svg = out.with_suffix('.svg').read_text()
  assert '</svg>' in svg and '<dc:date>' not in svg


def test_a_curve_file_has_what_was_measured(curve_file):
  path, result = curve_file
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [float(row['threshold']) for row in rows] == result.roc.threshold.tolist()
  curve = figure.read('mine', path)
  assert curve.far.tolist() == result.roc.far.tolist() and curve.val.tolist() == result.roc.val.tolist()
  for rate in result.validation[:2]:
    assert curve.val_at(rate.far) == rate.val
  assert math.isnan(curve.val_at(1e-3))
  assert curve.label(1e-3) == f'mine: {100 * result.accuracy:.2f} %, VAL not resolved'


def test_the_figure_shows_each_curve_from_its_first_false_accept(curve_file, tmp_path):
  path, result = curve_file
  (tmp_path / 'small.csv').write_text('far,val\n0,0\n0,0.7\n0.0005,0.7\n0.0005,0.9\n0.2,0.9\n1,1\n')
  drawn = figure.draw([figure.read('mine', path), figure.read('small', tmp_path / 'small.csv')])
  axes = drawn.axes[0]
  assert axes.get_xscale() == 'log' and axes.get_xlim() == (1e-4, 1)
  assert axes.lines[0].get_xdata()[0] == result.roc.far[result.roc.far > 0][0]
  np.testing.assert_allclose(axes.lines[1].get_xydata(), [(0.0005, 90), (0.2, 90), (1, 100)])
  assert drawn.legends[0].get_texts()[1].get_text() == 'small: VAL 90.0 %'


@pytest.mark.parametrize('text, message', (
    (None, 'No such file'), ('far\n0\n', "columns far and val ('val')"), ('far,val\n0,x\n', "to float: 'x'"),
    ('far,val\n', 'in ascending order'), ('far,val\n0,0\n1,nan\n', 'in ascending order'),
    ('far,val\n0,0.5\n1,0.4\n', 'in ascending order'), ('far,val\n0,0\n', 'far to end above 0')))
def test_a_bad_curve_is_one_line(tmp_path, text, message):
  if text:
    (tmp_path / 'c.csv').write_text(text)
  with pytest.raises(UserError) as caught:
    figure.read('c', tmp_path / 'c.csv')
  assert f'--curve c={tmp_path}/c.csv: ' in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize('args, message', (
    (['--curve', 'x.csv', '--out=r.png'], '--curve x.csv: expected NAME=PATH'),
    (['--curve', 'a=nowhere.csv', '--out=r.png'], '--curve a=nowhere.csv: No such file'),
    (['--curve', 'a=nowhere.csv', '--out=r.pdf'], '--out=r.pdf: expected the name of a PNG file')))
def test_bad_arguments_are_one_line(args, message):
  done = draw(*args)
  assert done.returncode == 1 and message in done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
