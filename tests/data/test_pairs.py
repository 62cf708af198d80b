"""Files of pairs, as people have them."""

import pytest
from conftest import data_config, tiny_config
from PIL import Image

from mobilenet_jax.data import load, read_pairs
from mobilenet_jax.errors import UserError
from mobilenet_jax.training import checked, load_inputs

GOOD = ['2\t1', 'Ann\t1\t4', 'Ann\t1\tBob\t2', 'Cy\t3\t12', 'Cy\t2\tDi\t1']


def test_pairs_file(tmp_path):
  (tmp_path / 'pairs.txt').write_text('\n'.join(GOOD) + '\n')
  pairs = read_pairs(tmp_path / 'pairs.txt')
  assert pairs.first == ('Ann/Ann_0001', 'Ann/Ann_0001', 'Cy/Cy_0003', 'Cy/Cy_0002')
  assert pairs.second == ('Ann/Ann_0004', 'Bob/Bob_0002', 'Cy/Cy_0012', 'Di/Di_0001')
  assert pairs.same.tolist() == [True, False, True, False] and pairs.fold.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize('line, text, message', (
    (1, '300', '5 lines; expected 601, .* 1 fold of twice 300 pairs'), (1, '2\tx', "line 1: '2"), (1, '0\t1', "line 1: '0"),
    (1, '3\t1', '5 lines; expected 7, .* 3 folds of twice 1 pairs'), (3, 'Ann\t1\t2', 'line 3: .*images of two people'),
    (3, 'Ann\t1\tAnn\t2', 'line 3: .*images of two people'), (4, 'Cy\t2\tDi\t1', 'line 4: .*two images of one person'),
    (4, '', '4 lines; expected 5'), (2, 'Ann\t1\tx', 'line 2: .*two different images'),
    (2, 'Ann\t3\t03', 'line 2: .*two different images')))
def test_a_bad_line_is_named(tmp_path, line, text, message):
  path = tmp_path / 'pairs.txt'
  path.write_text('\n'.join([*GOOD[:line - 1], text, *GOOD[line:]]) + '\n')
  with pytest.raises(UserError, match=message) as caught:
    read_pairs(path)
  assert str(caught.value).startswith(str(path)) and '\n' not in str(caught.value)


FOUR = (('Ann/Ann_0001', 'Ann/Ann_0004', True), ('Ann/Ann_0001', 'Bob/Bob_0002', False),
        ('Cy/Cy_0003', 'Cy/Cy_0012', True), ('Cy/Cy_0002', 'Di/Di_0001', False))


@pytest.mark.parametrize('lines', (
    ['2', 'Ann\t1\t4', 'Cy\t3\t12', 'Ann\t1\tBob\t2', 'Cy\t2\tDi\t1'],  # LFW's pairsDevTrain.txt
    ['name,imagenum1,imagenum2,', 'Ann,1,4,', 'Ann,1,Bob,2', 'Cy,3,12,', 'Cy,2,Di,1'],  # Kaggle's pairs.csv
    ['Ann 1 4', '', 'Cy 3 12', 'Ann 1 Bob 2', 'Cy 2 Di 1', ''],
    [' '.join((f'{a}.jpg', f'{b}.jpg', '01'[same])) for a, b, same in FOUR],
    [','.join(('01'[same], f'lfw/{a}.png', f'/data/lfw/{b}.png')) for a, b, same in FOUR],
    [f'{a}.jpg\t{b}.jpg\t{same}' for a, b, same in FOUR],
    ['one,other,same', *(f'{a},{b},{1 if same else -1}' for a, b, same in FOUR)],
    ['image_a;image_b;same;fold', *(f'{a};{b};{int(same)};{i // 2}' for i, (a, b, same) in enumerate(FOUR))]))
def test_pairs_as_people_have_them(lines, tmp_path):
  (tmp_path / 'pairs.txt').write_text('\ufeff' + '\r\n'.join(lines))
  pairs = read_pairs(tmp_path / 'pairs.txt')
  assert set(zip(pairs.first, pairs.second, pairs.same.tolist())) == set(FOUR)
  for fold in (0, 1) if 'fold' in lines[0] else (0, 5):  # without folds, each kind is divided into tenths
    assert sorted(pairs.same[pairs.fold == fold].tolist()) == [False, True]


@pytest.mark.parametrize('lines, message', (
    (['Ann/1.jpg Bob/1.jpg 2'], "line 1: 'Ann/1.jpg Bob/1.jpg 2': expected 'person i j'"),
    (['Ann/1.jpg Ann/1.png 1'], 'line 1: .*the same image twice'), (['7 Up 1 2'], "line 1: '7 Up 1 2': expected 'person i j'"),
     (['Ann 1 4', 'Ann 1'], "line 2: 'Ann 1': expected"),
    (['Ann/1 Ann/2 1 0', 'Ann/1 Ann/3 1'], 'line 2: there is no fold'), ([''], 'is empty'), (['name,imagenum1'], 'has no pair')))
def test_bad_lines_of_other_forms_are_named(lines, message, tmp_path):
  (tmp_path / 'pairs.txt').write_text('\n'.join(lines))
  with pytest.raises(UserError, match=message):
    read_pairs(tmp_path / 'pairs.txt')


def test_no_pairs_file(tmp_path):
  with pytest.raises(UserError, match='No such file.*; expected LFW'):
    read_pairs(tmp_path / 'pairs.txt')


def people(root, *pairs, images=('Ann/1', 'Ann/2', 'Bob/1', 'Cy/1', 'Cy/2')):
  """Makes a folder of people with pairs, and returns the changes of a config that names them."""
  for image in images:
    path = root / 'people' / (image if '.' in image else f'{image}.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (36, 36)).save(path)
  (root / 'pairs.txt').write_text('\n'.join(pairs))
  return {'task': 'embedding', 'data.name': f'folder:{root / "people"}', 'data.pairs': str(root / 'pairs.txt')}


def test_pairs_that_contradict_the_people_are_named(tmp_path):
  changes = people(tmp_path, 'Ann/1.png Ann/2.png 1 0', 'Ann/1.png Bob/1.png 1 1')
  with pytest.raises(UserError, match='1 of 2 pairs contradict the people of .*, such as Ann/1 and Bob/1; expected 1 for images of'):
    load_inputs(checked(tiny_config(**changes)))
  changes = people(tmp_path, *(f'Ann/1.png Ann/2.png 1 {fold}\nAnn/1.png Bob/1.png 0 {fold}' for fold in (0, 1)))
  assert load_inputs(checked(tiny_config(**changes))).evaluation.ids == ('Ann/1.png', 'Ann/2.png', 'Bob/1.png')


def test_pairs_that_choose_no_threshold_are_said_before_training(tmp_path):
  changes = people(tmp_path, 'Ann/1.png Ann/2.png 1 0', 'Ann/1.png Bob/1.png 0 1')
  with pytest.raises(UserError, match='pairs.txt: the folds other than fold 0 have 1 pairs, 0 of them of one person; expected pairs'):
    load_inputs(checked(tiny_config(**changes)))


def test_images_that_pairs_cannot_tell_apart_are_said(tmp_path):
  changes = people(tmp_path, 'Ann/1.png Bob/1.png 0', images=('Ann/1', 'Ann/1.jpg', 'Bob/1', 'Cy/1'))
  with pytest.raises(UserError, match='1 of 3 images have the same name as another but for the suffix'):
    load_inputs(checked(tiny_config(**changes)))


def test_pairs_of_everybody_or_of_others_leave_nothing(tmp_path):
  for pairs, message in ((('Ann/1.png Bob/1.png 0', 'Cy/1.png Cy/2.png 1'), 'has no images of people outside of the pairs, to train on'),
                         (('X/1.png Y/1.png 0',), 'has no images of the pairs, among 5 such as Ann/1')):
    changes = people(tmp_path, *pairs)
    with pytest.raises(UserError, match=message):
      load(data_config(**{name.removeprefix('data.'): value for name, value in changes.items() if name != 'task'}))
