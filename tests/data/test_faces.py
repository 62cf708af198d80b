import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from mobilenet_jax.data.drawn import faces


# The rows within which each attribute changes a picture taken from the front.
WHERE = {
    'Bangs': (6, 32), 'Beard': (26, 53), 'Eyeglasses': (18, 36), 'Eyes_Closed': (20, 34), 'Freckles': (24, 42),
    'Gray_Hair': (4, 34), 'Long_Hair': (26, 58), 'Mouth_Slightly_Open': (32, 50), 'Mustache': (28, 44),
    'Rosy_Cheeks': (24, 42), 'Smiling': (28, 50), 'Wearing_Earrings': (27, 42), 'Wearing_Hat': (0, 28),
    'Wearing_Lipstick': (30, 50), 'Wearing_Necktie': (46, 64), 'Wearing_Scarf': (40, 60), 'Wrinkles': (10, 48),
}
PIXELS = {'Gray_Hair': 1100, 'Wearing_Hat': 750, 'Beard': 500, 'Long_Hair': 500}  # the most that may change; 300 for the others
FINE = ('Eyes_Closed', 'Freckles', 'Wearing_Earrings', 'Wrinkles')
COARSE = ('Bangs', 'Beard', 'Gray_Hair', 'Long_Hair', 'Rosy_Cheeks', 'Wearing_Hat', 'Wearing_Necktie')


def changes(name: str, bare: bool = False) -> np.ndarray:
  """Returns what turning the attribute on changes in otherwise equal images of eight people, (n, h, w, 3)."""
  found = []
  for number in range(8):
    who = faces.person(number)
    others = faces.sample_attributes(who, np.random.default_rng(number))
    others = dict.fromkeys(others, False) if bare else others
    off, on = (faces.draw(who, {**others, name: value}, np.random.default_rng(number)) for value in (False, True))
    found.append(on.astype(np.float32) - off)
  return np.stack(found)


def half_size_share(difference: np.ndarray) -> float:
  """Returns the fraction of a change's energy that is left at half the resolution."""
  n, h, w, _ = difference.shape
  half = difference.reshape(n, h // 2, 2, w // 2, 2, 3).mean((2, 4))
  return np.mean(half**2) / np.mean(difference**2)


@pytest.fixture(scope='module')
def labels():
  """Returns, by split, the attributes (n, attributes) and the person (n,) of every example, without drawing the images."""
  people, found = {}, {}
  for split in faces.NUM_PEOPLE:
    count = faces.NUM_PEOPLE[split] * faces.IMAGES_PER_PERSON[split]
    numbers = [faces.identity(split, i) for i in range(count)]
    people.update({number: faces.person(number) for number in numbers})
    rows = [faces.sample_attributes(people[number], np.random.default_rng(i)) for i, number in enumerate(numbers)]
    found[split] = np.array([list(row.values()) for row in rows]), np.array(numbers)
  return found


def test_examples_are_deterministic_and_a_person_keeps_its_face():
  first, again, other = (faces.example('train', i) for i in (3, 3, 3 + faces.NUM_PEOPLE['train']))
  np.testing.assert_array_equal(first['image'], again['image'])
  assert first['attributes'] == again['attributes'] and tuple(first['attributes']) == faces.ATTRIBUTES
  assert first['image'].shape == (64, 64, 3) and first['image'].dtype == np.uint8
  assert first['identity'] == other['identity'] == 3
  assert np.abs(first['image'].astype(int) - other['image']).mean() > 5  # another picture of the same person

  one, same, another = (faces.person(number) for number in (3, 3, 4))
  for name in faces.PERSON:
    assert getattr(one, name) == getattr(same, name) != getattr(another, name)
  np.testing.assert_array_equal(one.freckles, same.freckles)
  assert one.rates == same.rates != another.rates


@pytest.mark.parametrize('name', faces.ATTRIBUTES)
def test_an_attribute_is_visible_and_where_it_belongs(name):
  for difference in np.abs(changes(name)):
    assert difference.mean() > 0.05 and difference.max() > 30
    assert 8 <= (difference.max(-1) > 12).sum() <= PIXELS.get(name, 300)


@pytest.mark.parametrize('name', faces.ATTRIBUTES)
def test_an_attribute_changes_only_its_part_of_the_face(name, monkeypatch):
  for nuisance in ('roll', 'turn', 'right', 'down'):
    monkeypatch.setitem(faces.PICTURE, nuisance, (0, 0))
  power = (changes(name, bare=True)**2).sum((0, 2, 3))  # by row
  assert power[slice(*WHERE[name])].sum() > 0.97 * power.sum()


def test_small_attributes_need_resolution():
  fine, coarse = ([half_size_share(changes(name)) for name in names] for names in (FINE, COARSE))
  assert max(fine) < 0.65 < 0.75 < min(coarse), (fine, coarse)


def test_rates(labels):
  train, test = labels['train'][0], labels['test'][0]
  for values in (train, test):
    assert (0.08 < values.mean(0)).all() and (values.mean(0) < 0.5).all()
  together = train.T.astype(float) @ train / train.sum(0)[:, None]  # the rate of one attribute among examples with another
  np.fill_diagonal(together, 0.5)
  assert together.min() > 0.005 and together.max() < 0.9


def test_attributes_go_together_as_in_life_and_belong_to_people(labels):
  values, numbers = labels['train']
  matrix = np.corrcoef(values.T.astype(float))
  correlation = lambda *names: matrix[tuple(map(faces.ATTRIBUTES.index, names))]
  for names in (('Smiling', 'Mouth_Slightly_Open'), ('Gray_Hair', 'Wrinkles'), ('Wearing_Lipstick', 'Long_Hair'),
                ('Wearing_Hat', 'Wearing_Scarf')):
    assert correlation(*names) > 0.05, names
  assert correlation('Beard', 'Wearing_Lipstick') < -0.05

  by_person = np.stack([values[numbers == number].mean(0) for number in np.unique(numbers)])
  between = by_person.var(0) / values.var(0)  # 1/16 by chance
  for name in ('Beard', 'Freckles', 'Gray_Hair', 'Long_Hair', 'Mustache', 'Wrinkles'):
    assert between[faces.ATTRIBUTES.index(name)] > 0.6, name
  for name in ('Eyes_Closed', 'Mouth_Slightly_Open', 'Smiling', 'Wearing_Hat', 'Wearing_Scarf'):
    assert between[faces.ATTRIBUTES.index(name)] < 0.25, name


def test_people_of_the_splits_are_disjoint(labels):
  people = {}
  for split, (_, numbers) in labels.items():
    people[split], counts = np.unique(numbers, return_counts=True)
    assert len(people[split]) == faces.NUM_PEOPLE[split] and (counts == faces.IMAGES_PER_PERSON[split]).all()
  assert not set(people['train']) & set(people['test'])


READ = '''
import sys
import numpy as np
from mobilenet_jax.data.drawn import faces
faces.NUM_PEOPLE, faces.IMAGES_PER_PERSON = {'train': 4, 'test': 3}, {'train': 3, 'test': 2}
builder = faces.Faces(data_dir=sys.argv[1], file_format='array_record')
for split, count in (('train', 12), ('test', 6)):
  read = sorted(builder.as_data_source(split), key=lambda example: example['image'].tobytes())
  drawn = sorted((faces.example(split, i) for i in range(count)), key=lambda example: example['image'].tobytes())
  for a, b in zip(read, drawn, strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])
    assert a['attributes'] == b['attributes'] and a['identity'] == b['identity']
'''


def test_prepared_and_read_without_tensorflow(tmp_path, monkeypatch):
  pytest.importorskip('tensorflow')  # TFDS uses it to write
  monkeypatch.setattr(faces, 'NUM_PEOPLE', {'train': 4, 'test': 3})
  monkeypatch.setattr(faces, 'IMAGES_PER_PERSON', {'train': 3, 'test': 2})
  faces.Faces(data_dir=str(tmp_path / 'data'), file_format='array_record').download_and_prepare()
  (tmp_path / 'tensorflow.py').write_text('raise ModuleNotFoundError("no TensorFlow here", name="tensorflow")')
  done = subprocess.run([sys.executable, '-c', READ, str(tmp_path / 'data')], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, 'PYTHONPATH': str(tmp_path)})
  assert done.returncode == 0, done.stderr
