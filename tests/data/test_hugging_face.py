"""Hugging Face datasets on disk, where the package is installed: pip install datasets."""

import numpy as np
import pytest
from conftest import data_config
from PIL import Image

from mobilenet_jax.data import load, load_whole
from mobilenet_jax.errors import UserError

datasets = pytest.importorskip('datasets', reason='needs the package datasets')


def part(first, count, label=None):
  label = label or datasets.ClassLabel(names=['x', 'y', 'z'])
  images = [Image.fromarray(np.full((40, 36, 3), 8 * i, np.uint8)) for i in range(first, first + count)]
  labels = ['xyz'[i % 3] if isinstance(label, datasets.Value) else i % 3 for i in range(first, first + count)]
  return datasets.Dataset.from_dict({'image': images, 'label': labels},
                                    features=datasets.Features({'image': datasets.Image(), 'label': label}))


def parquet(path):
  for name, data in (('train', part(0, 20)), ('test', part(20, 9))):
    path.mkdir(exist_ok=True)
    data.to_parquet(path / f'{name}-00000-of-00001.parquet')


def arrow(path, label=None):
  datasets.DatasetDict({'train': part(0, 20, label), 'test': part(20, 9, label)}).save_to_disk(path)


@pytest.mark.parametrize('write', (parquet, arrow, lambda path: arrow(path, datasets.Value('string'))))
def test_a_dataset_is_read_by_position(write, tmp_path):
  write(tmp_path / 'set')
  config = data_config(name=f'hf:{tmp_path}/set')
  both = load(config)
  assert [source.ids for source in both] == [tuple(f'train/{i}' for i in range(20)), tuple(f'test/{i}' for i in range(9))]
  for source, first in zip(both, (0, 20)):
    assert source.class_names == ('x', 'y', 'z')
    for i, example in enumerate(source, start=first):
      assert example.image.shape == (40, 36, 3) and example.image[0, 0, 0] == 8 * i and example.targets['label'] == i % 3
  assert load_whole(config).ids == both[1].ids and load_whole(config, 'train').ids == both[0].ids


def test_a_folder_whose_name_looks_like_a_pattern_is_read(tmp_path):
  (tmp_path / 'w[x]*?').mkdir()
  parquet(tmp_path / 'set')
  (tmp_path / 'set').rename(tmp_path / 'w[x]*?' / 'set')
  assert [len(source) for source in load(data_config(name=f'hf:{tmp_path}/w[x]*?/set'))] == [20, 9]


def test_what_is_missing_is_one_line(tmp_path):
  part(0, 20).save_to_disk(tmp_path / 'one')
  train, test = load(data_config(name=f'hf:{tmp_path}/one'))
  assert len(train) + len(test) == 20 and test.held_out
  with pytest.raises(UserError, match="has no split 'dev'; it has train"):
    load_whole(data_config(name=f'hf:{tmp_path}/one'), 'dev')
  datasets.DatasetDict({'train': part(0, 9), 'dev': part(9, 9)}).save_to_disk(tmp_path / 'dev')
  for read in (load, load_whole):
    with pytest.raises(UserError, match="splits train, dev, not test|no split 'test'; it has train, dev"):
      read(data_config(name=f'hf:{tmp_path}/dev'))
  (tmp_path / 'empty').mkdir()
  for name, message in (('nowhere', 'there is no such folder'), ('empty', 'expected a dataset that save_to_disk wrote, or Parquet')):
    with pytest.raises(UserError, match=message):
      load(data_config(name=f'hf:{tmp_path}/{name}'))
  datasets.Dataset.from_dict({'text': ['a']}).save_to_disk(tmp_path / 'text')
  with pytest.raises(UserError, match='has the columns text; expected an image and a label'):
    load(data_config(name=f'hf:{tmp_path}/text'))
  datasets.Dataset.from_dict({'image': [Image.new('RGB', (9, 9))] * 2, 'label': [0, None]}, features=datasets.Features(
      {'image': datasets.Image(), 'label': datasets.Value('int64')})).save_to_disk(tmp_path / 'unlabelled')
  with pytest.raises(UserError, match=r'train/1: there is no label \(-1\)'):
    load_whole(data_config(name=f'hf:{tmp_path}/unlabelled')).labels
