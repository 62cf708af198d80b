"""Folders as people have them: names, splits, labels.csv, ImageNet; what is left out is said."""

import dataclasses
import hashlib

import numpy as np
import pytest
from conftest import data_config, folder, named, save, tiny_config

from mobilenet_jax import config as config_lib
from mobilenet_jax import trained
from mobilenet_jax.data import eval_batches, load, load_whole, splits, walk
from mobilenet_jax.errors import UserError
from mobilenet_jax.training import checked, load_inputs


def config_of(root, **changes):
  return data_config(name=f'folder:{root}', **changes)


# Names of classes.


def test_a_class_has_the_same_number_in_both_splits(tmp_path):
  folder(tmp_path, [f'train/{name}/{i}.png' for name in 'abcd' for i in range(2)] + [f'test/{name}/0.png' for name in 'acd'])
  train, test = load(config_of(tmp_path))
  assert train.class_names == test.class_names == tuple('abcd') and train.num_classes == test.num_classes == 4
  for source in (train, test):
    for example in source:
      assert example.targets['label'] == example.image[0, 0, 0] == 'abcd'.index(example.id.split('/')[1])
  assert load_inputs(checked(tiny_config(**{'data.name': f'folder:{tmp_path}'}))).train.remarks == (
      '1 of the 4 classes have no example to evaluate on: b',)
  whole = load_whole(config_of(tmp_path))
  assert whole.class_names == test.class_names and whole.labels.tolist() == test.labels.tolist()
  model = lambda labels: trained.TrainedModel(config_lib.base(), {'params': {'classifier': {'bias': np.zeros(4)}}}, labels, 'm')
  assert model(None).outputs_of(whole).tolist() == [0, 1, 2, 3]  # also by number, although b is missing
  assert model(tuple('dcxa')).outputs_of(whole)[whole.labels].tolist() == [3, 1, 0]
  with pytest.raises(UserError, match=r'm: has 4 classes \(d, c, x, ...\), the data has 4; the model lacks b'):
    model(tuple('dcxa')).outputs_of(whole, every=True)


def inputs_of(data, **changes):
  return load_inputs(checked(tiny_config(**{'data.name': data, **changes})))


def test_a_class_that_is_not_trained_on_is_named_unless_classes_are_people(tmp_path):
  folder(tmp_path, [f'train/{name}/{i}.png' for name in 'ab' for i in range(8)] + [f'test/{name}/0.png' for name in 'acz'])
  with pytest.raises(UserError, match='2 of the 3 classes to evaluate on have no example to train on: c, z; expected the classes of'):
    inputs_of(f'folder:{tmp_path}')
  train, test = load(config_of(tmp_path))  # for people, and to record outputs
  assert train.class_names == test.class_names == tuple('abcz') and named(test)['test/c/0.png'] == 'c'


def test_the_tenth_of_a_set_may_have_classes_of_its_own(tmp_path):
  lone = next(f'{i}.png' for i in range(1000) if in_tenth(f'lone/{i}.png'))
  folder(tmp_path, [f'lone/{lone}', *(f'{name}/{i}.png' for name in ('cat', 'dog') for i in range(20))])
  assert 'held out with all of their images, and not trained on: lone (1)' in inputs_of(f'folder:{tmp_path}').train.remarks


def test_numbers_of_npz_are_compared_too(tmp_path):
  images = np.zeros((6, 32, 32, 3), np.uint8)
  arrays = {'train_images': images, 'train_labels': np.arange(6) % 3, 'test_images': images, 'test_labels': np.arange(6) % 2}
  np.savez(tmp_path / 'a.npz', **arrays)
  for kind in (np.uint8, np.uint64, np.int64):
    arrays['train_labels'] = arrays['train_labels'].astype(kind)
    np.savez(tmp_path / 'a.npz', **arrays, coarse_labels=['p', 'q'])
    train = inputs_of(f'npz:{tmp_path}/a.npz').train
    assert train.remarks == ('1 of the 3 classes have no example to evaluate on: class 2',) and train.class_names is None
  np.savez(tmp_path / 'a.npz', **arrays, class_names=['x', 'y', 'z'])
  inputs = inputs_of(f'npz:{tmp_path}/a.npz')
  assert inputs.evaluation.class_names == ('x', 'y', 'z')
  assert inputs.train.remarks == ('1 of the 3 classes have no example to evaluate on: z',)
  np.savez(tmp_path / 'a.npz', **{**arrays, 'train_labels': np.arange(6) % 2, 'test_labels': np.arange(6) % 3})
  with pytest.raises(UserError, match='1 of the 3 classes to evaluate on have no example to train on: class 2'):
    inputs_of(f'npz:{tmp_path}/a.npz')
  for wrong, message in ((-3, 'train/1: the label is -3; expected one of 3 classes, 0 to 2'),
                         (-1, r'train/1: there is no label \(-1\); expected one of 3 classes')):
    np.savez(tmp_path / 'a.npz', **{**arrays, 'train_labels': np.array([0, wrong, 2, 1, 1, 1])})
    with pytest.raises(UserError, match=message):
      load(data_config(name=f'npz:{tmp_path}/a.npz'))[0][1]


# Ids and what is held out.


def test_ids_begin_with_the_split_and_are_unique(tmp_path):
  folder(tmp_path, ['train/a/0.png', 'train/b/0.png', 'test/a/0.png', 'test/b/0.png'])
  train, test = load(config_of(tmp_path))
  assert (*train.ids, *test.ids) == ('train/a/0.png', 'train/b/0.png', 'test/a/0.png', 'test/b/0.png')
  assert load_whole(config_of(tmp_path)).ids == test.ids
  plain = folder(tmp_path / 'plain', ['a/0.png', 'a/1.png', 'b/0.png'])
  assert sorted(id for source in load(config_of(plain)) for id in source.ids) == ['a/0.png', 'a/1.png', 'b/0.png']


def in_tenth(key):
  return int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 16**16 < 0.1


def test_adding_images_moves_no_other_into_the_held_out_part(tmp_path):
  ids = [f'{name}/{i}.png' for name in ('cat', 'dog') for i in range(60)]
  folder(tmp_path, ids)
  before = [set(source.ids) for source in load(config_of(tmp_path))]
  assert before[1] == {id for id in ids if in_tenth(id)} and before[0] == set(ids) - before[1] and 3 < len(before[1]) < 25
  folder(tmp_path, [f'ant/{i}.png' for i in range(9)] + [f'cat/a{i}.png' for i in range(9)])
  train, test = load(config_of(tmp_path))
  assert before[0] <= set(train.ids) and before[1] <= set(test.ids) and test.held_out and train.held_out
  assert f'{len(test):,} of 138 images are held out, by a hash of the names of the images' in train.remarks


def test_adding_people_moves_no_other_into_the_held_out_part(tmp_path):
  people = [f'person_{i}' for i in range(40)]
  folder(tmp_path, [f'{name}/{i}.png' for name in people for i in range(2)])
  train, test = load(config_of(tmp_path, split_by='class'))
  out = {name for name in people if in_tenth(name)}
  assert set(named(test).values()) == out and set(named(train).values()) == set(people) - out
  folder(tmp_path, [f'p{i}/0.png' for i in range(9)])
  assert out <= set(named(load(config_of(tmp_path, split_by='class'))[1]).values())


def test_each_part_has_an_example_however_small_the_set():
  for count in range(2, 30):
    for seed in range(5):
      out = splits.held_out([f'{seed} {i}' for i in range(count)])
      assert 0 < out.sum() < count
      assert out.sum() == 1 or (out == [in_tenth(f'{seed} {i}') for i in range(count)]).all()
  assert splits.held_out(['a', 'a', 'b', 'b', 'b']).tolist() in ([True] * 2 + [False] * 3, [False] * 2 + [True] * 3)


def test_one_class_is_too_few(tmp_path):
  save(tmp_path / 'single' / 'a' / '0.png')
  with pytest.raises(UserError, match='1 sub-folders; expected one per class, at least 2'):
    load(config_of(tmp_path / 'single'))


# How a folder is walked.


def test_what_is_left_out_is_counted_and_said(tmp_path):
  folder(tmp_path, [f'{name}/{i}.{kind}' for name in ('a', 'b') for i, kind in enumerate(
      ('jpg', 'JPEG', 'png', 'bmp', 'gif', 'webp', 'tif', 'tiff'))])
  folder(tmp_path, ['beside.png', 'a/below/1.png', 'a/below/2.png', '.ipynb_checkpoints/1.png', 'a/.hidden/1.png', 'a/.hidden.png'])
  (tmp_path / 'a' / 'notes.txt').write_text('x')
  (tmp_path / 'README').write_text('x')
  train, test = load(config_of(tmp_path))
  assert len(train) + len(test) == 16 and train.class_names == ('a', 'b')
  assert ('left out: 2 files of another type (1 without a suffix, 1 .txt), 3 hidden names, 1 image beside the class folders, '
          '2 images in folders below the class folders') in train.remarks
  assert len(walk(tmp_path).images) == 19  # as predict takes a folder


def test_a_walk_follows_links_but_not_in_circles(tmp_path):
  folder(tmp_path / 'images', ['a/0.png', 'b/0.png'])
  (tmp_path / 'linked').mkdir()
  for name in 'ab':
    (tmp_path / 'linked' / name).symlink_to(tmp_path / 'images' / name)
  assert walk(tmp_path / 'linked').images == ('a/0.png', 'b/0.png')
  (tmp_path / 'images' / 'a' / 'up').symlink_to(tmp_path / 'images')
  with pytest.raises(UserError, match='a/up: a link to a folder that contains it'):
    walk(tmp_path / 'images')


def test_a_split_under_another_usual_name_is_taken_and_said(tmp_path):
  folder(tmp_path, [f'{split}/{name}/0.png' for split in ('train', 'val') for name in 'ab'])
  _, evaluation = load(config_of(tmp_path))
  assert evaluation.ids == ('val/a/0.png', 'val/b/0.png')
  assert evaluation.remarks == ('evaluating on the split val, as there is no test',)
  assert load_whole(config_of(tmp_path)).ids == evaluation.ids
  assert load(config_of(tmp_path, eval_split='val'))[1].remarks == ()
  with pytest.raises(UserError, match='has the splits train, val, not tset; name one with --config.data.eval_split'):  # no guess
    load(config_of(tmp_path, eval_split='tset'))
  save(tmp_path / 'test' / '1.png')  # as ImageNet's, which has no labels
  assert load(config_of(tmp_path))[1].remarks == ('evaluating on the split val, as test has no labels',
                                                  'not used, beside the splits: test/')
  assert load_whole(config_of(tmp_path), 'train').ids == ('train/a/0.png', 'train/b/0.png')
  with pytest.raises(UserError, match='there is no split dev; expected one of test, train, val'):
    load_whole(config_of(tmp_path), 'dev')


def test_a_folder_of_one_split_says_what_is_missing(tmp_path):
  folder(tmp_path, [f'train/{name}/{i}.png' for name in 'ab' for i in range(9)])
  with pytest.raises(UserError, match=r'has the splits train, not test; .*eval_split, or give data.name=folder:.*/train to hold'):
    load(config_of(tmp_path))
  assert sum(map(len, load(config_of(tmp_path / 'train')))) == 18


def test_what_is_beside_the_splits_is_said(tmp_path):
  folder(tmp_path, [f'{split}/{name}/0.png' for split in ('train', 'test', 'extra') for name in 'ab'] + ['1.png'])
  (tmp_path / 'notes.txt').touch()
  assert load(config_of(tmp_path))[0].remarks == (
      'not used, beside the splits: extra/, 1 file of another type (1 .txt), 1 image beside the class folders',)
  rows = [f'{name},x,{"train" if i < 20 else "tset" if i == 20 else "test"}' for i, name in enumerate(IMAGES)]
  config = with_labels(tmp_path / 'csv', 'file,label,split\n' + '\n'.join(rows))
  assert load(config)[0].remarks == ('not used, beside the splits: 1 of the split tset',)


@pytest.mark.parametrize('names, changes, message', (
    (('Train', 'Val'), {}, 'expected a folder of images per class; Train/ has images only in folders of its own; if Train, Val are'),
    (('trian', 'test'), {}, 'trian, are|test/ has images only in folders of its own; if test, trian are splits, name those to use'),
    (('train', 'val'), {'train_split': 'trian'}, 'if train, val are splits, name those to use .*, now trian and test'),
    (('train', 'val'), {'pairs': 'pairs.txt'}, 'data.pairs needs a folder of people without splits')))
def test_splits_under_other_names_are_not_taken_for_classes(names, changes, message, tmp_path):
  folder(tmp_path, [f'{split}/{name}/0.png' for split in names for name in 'ab'])
  with pytest.raises(UserError, match=message):
    load(config_of(tmp_path, **changes))


def test_a_split_that_is_asked_for_must_be_there(tmp_path):
  folder(tmp_path, [f'{name}/{i}.png' for name in 'ab' for i in range(9)])
  for changes in ({'train_split': 'trian'}, {'eval_split': 'dev'}):
    with pytest.raises(UserError, match='has no splits, and data.train_split=.*expected folders of these names'):
      load(config_of(tmp_path, **changes))


def test_classes_may_be_called_like_splits(tmp_path):
  folder(tmp_path, [f'{name}/{i}.png' for name in ('bus', 'car', 'train') for i in range(4)])
  assert load(config_of(tmp_path))[0].class_names == ('bus', 'car', 'train')
  folder(tmp_path / 'two', [f'{name}/{i}.png' for name in ('valid', 'invalid') for i in range(4)])
  assert load(config_of(tmp_path / 'two'))[0].class_names == ('invalid', 'valid')


# labels.csv.


IMAGES = [f'{i}.png' for i in range(30)]


def with_labels(root, text, images=IMAGES):
  folder(root, images)
  (root / 'labels.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
  return config_of(root)


def test_labels_csv_is_a_set_to_train_on(tmp_path):
  config = with_labels(tmp_path, 'file,label\n' + ''.join(f'{name},{"xyz"[i % 3]}\n' for i, name in enumerate(IMAGES)))
  train, test = load(config)
  assert {**named(train), **named(test)} == {name: 'xyz'[i % 3] for i, name in enumerate(IMAGES)} and test.held_out
  assert named(load_whole(config)) == {**named(train), **named(test)}


@pytest.mark.parametrize('separator', ',;\t')
def test_a_table_as_a_spreadsheet_saves_it(separator, tmp_path):
  rows = ['Filename,Split,Class'] + [f'{name},{"train" if i < 20 else "test"},{"b c" if i % 2 else "é"}'
                                     for i, name in enumerate(IMAGES)]
  config = with_labels(tmp_path, b'\xef\xbb\xbf' + '\r\n'.join(rows).replace(',', separator).encode() + b'\r\n\r\n')
  train, test = load(config)
  assert (len(train), len(test), train.class_names) == (20, 10, ('b c', 'é')) and not test.held_out
  assert load_whole(config).ids == test.ids and load_whole(config, 'train').ids == train.ids


def test_numbers_are_the_names_of_classes(tmp_path):
  config = with_labels(tmp_path, 'file,label\n' + ''.join(f'{name},{i % 12}.0\n' for i, name in enumerate(IMAGES)))
  source = load_whole(config)
  assert source.class_names == tuple(map(str, range(12))) and source.labels.tolist() == [i % 12 for i in range(30)]
  model = lambda labels, count=12: trained.TrainedModel(
      config_lib.base(), {'params': {'classifier': {'bias': np.zeros(count)}}}, labels, 'model')
  alphabetical = tuple(sorted(map(str, range(12))))
  assert model(alphabetical).outputs_of(source).tolist() == [alphabetical.index(str(i)) for i in range(12)]  # by name
  padded = tuple(f'{i:02}' for i in range(12))
  assert model(padded).outputs_of(source).tolist() == list(range(12)) and not model(padded).matches_by_number(source)
  assert model(None).outputs_of(source).tolist() == list(range(12)) and model(None).matches_by_number(source)
  synsets = ('background', *(f'n{i:08} word' for i in range(12)))
  assert model(synsets, 13).outputs_of(source).tolist() == list(range(1, 13))  # the numbers of ImageNet's
  assert model(synsets, 13).matches_by_number(source)
  with pytest.raises(UserError, match='model: has 10 classes, the data has 12, such as 10, counted from 0'):
    model(None, 10).outputs_of(source)
  with pytest.raises(UserError, match='has 10 classes .*, the data has 12; the model lacks 10, 11'):
    model(tuple(map(str, range(10))), 10).outputs_of(source)


def test_attributes_people_and_numbers_in_columns(tmp_path):
  rows = [f'{name};p{i % 9};{i % 2};{"" if i % 3 else i % 2};{i / 4}' for i, name in enumerate(IMAGES)]
  config = with_labels(tmp_path, 'image_id;identity;Smiling;Hat;number\n' + '\n'.join(rows))
  source = load_whole(config)
  assert source.extra_names == {'attributes': ('Smiling', 'Hat')} and source.num_classes == 0
  assert source.targets['attributes'].tolist() == [[i % 2, -1 if i % 3 else i % 2] for i in range(30)]
  assert source.targets['number'].tolist() == [i / 4 for i in range(30)]
  assert set(named(source).values()) == {f'p{i}' for i in range(9)}
  config.split_by = 'class'
  train, test = load(config)
  assert not set(named(train).values()) & set(named(test).values()) and len(train) + len(test) == 30
  batch, = eval_batches(source, config, 30, lambda error: pytest.fail(str(error)))
  assert batch['attributes'].dtype == np.int32 and batch['number'].dtype == np.float32


def test_tables_as_programs_write_them(tmp_path):
  """With the index of pandas, the first line of Excel, and numbers as some languages write them."""
  rows = [f'{i};{name};{i / 4}'.replace('.', ',', 2).replace(',png', '.png') for i, name in enumerate(IMAGES)]
  source = load_whole(with_labels(tmp_path, 'sep=;\n;file;number\n' + '\n'.join(rows)))
  numbers = dataclasses.replace(source, labelled=False).targets['number']
  assert numbers.tolist() == [i / 4 for i in range(30)] and source.extra_names == {}


def test_files_are_found_by_path_or_by_name(tmp_path):
  images = ['a/1.png', 'a/2.png', 'b/1.png', 'extra.png']
  config = with_labels(tmp_path, 'file,label\na/1.png,x\n2.png,y\nb\\1.png,x\n', images)
  source = load_whole(config)
  assert named(source) == {'a/1.png': 'x', 'a/2.png': 'y', 'b/1.png': 'x'}
  assert source.remarks == ('left out: 1 image without a line in labels.csv',)


@pytest.mark.parametrize('text, message', (
    ('', 'labels.csv: is empty'), ('file,label\n', 'no line after the header'),
    ('name,label\n0.png,a', 'line 1: name, label: expected the header of the columns: file, and label'),
    ('file\n0.png', 'line 1: file: expected the header'),
    ('file,label,file\n0.png,a,0.png', "line 1: column 3 is 'file'; expected another name"),
    ('file,label,identity\n0.png,a,b', 'has the columns label and identity; expected one of the two'),
    ('file,label\n0.png,a\n1.png\n', 'line 3: 1 cells; expected 2'), ('file,label\n0.png,a\n1.png,\n', "line 3: label is ''; expected a value"),
    ('file,label\n0.png,3\n\n1.png,-1\n', "line 4: label is '-1'; expected the number of a class, counted from 0, or its name"),
    ('file,label\n0.png,cat\n1.png,-1\n', "line 3: label is '-1'; expected the number of a class"),
    ('file,label\n0.png,a\n1.png,b\n0.png,a', 'line 4: 0.png has a line already, line 2'),
    ('file,label\n0.png,a\nno.png,b\n', r'1 of its 2 images are not in .*, such as no.png \(line 3\)'),
    ('file,hat\n0.png,1\n1.png,2\n', "line 3: hat is '2'; expected 0, 1, or nothing if it is not known, as each column besides file,"),
    ('file,number\n0.png,1e400\n', "line 2: number is '1e400'; expected a finite number"),
    ('file,label,split\n0.png,a,train\n1.png,a,\n', "line 3: split is ''; expected a value"),
    ('file,label,split\n0.png,a,one\n1.png,a,two\n', 'has the splits one, two, not train; name one with --config.data.train_split'),
    ('file,label\n"0.png,a\n', 'line 2: .*expected text in columns'), (b'file,label\n1.png,caf\xe9\n', 'save it as UTF-8')))
def test_a_line_that_cannot_be_read_is_named(text, message, tmp_path):
  with pytest.raises(UserError, match=message) as found:
    load(with_labels(tmp_path, text))
  assert '\n' not in str(found.value) and 'labels.csv' in str(found.value)


def test_a_name_in_two_folders_needs_a_path(tmp_path):
  with pytest.raises(UserError, match='line 2: 1.png is in several folders: a/1.png, b/1.png; expected the path from'):
    load_whole(with_labels(tmp_path, 'file,label\n1.png,x\n', ['a/1.png', 'b/1.png']))
