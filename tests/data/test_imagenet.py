"""ImageNet as people have it: sorted, or flat with the devkit's or Kaggle's ground truth."""

import numpy as np
import pytest
from conftest import data_config, folder, named, save

from mobilenet_jax import trained
from mobilenet_jax.data import load, load_whole
from mobilenet_jax.errors import UserError


def config_of(root, **changes):
  return data_config(name=f'folder:{root}', **changes)


WNIDS = ['n01440764', 'n01443537', 'n01484850', 'n02119789']
TRUTH = [3, 1, 0, 2, 1]  # of the five validation images, by the order of the WNIDS
NUMBERS = [2, 4, 3, 1]  # of the WNIDS in the devkit, which are not in their order


def imagenet(root, sort):
  folder(root, [f'train/{wnid}/{wnid}_{i}.JPEG' for wnid in WNIDS for i in range(2)])
  for i, label in enumerate(TRUTH, start=1):
    save(root / 'val' / (WNIDS[label] if sort else '') / f'ILSVRC2012_val_{i:08}.JPEG')


def devkit(folder):
  from scipy.io import savemat
  folder.mkdir(parents=True)
  synsets = np.zeros(len(WNIDS), [('ILSVRC2012_ID', object), ('WNID', object), ('words', object)])
  for row, number, wnid in zip(synsets, NUMBERS, WNIDS):
    row['ILSVRC2012_ID'], row['WNID'], row['words'] = float(number), wnid, 'word'
  savemat(folder / 'meta.mat', {'synsets': synsets})
  (folder / 'ILSVRC2012_validation_ground_truth.txt').write_text(''.join(f'{NUMBERS[label]}\n' for label in TRUTH))


@pytest.mark.parametrize('layout', ('sorted', 'devkit', 'devkit beside the images', 'Kaggle'))
def test_imagenet_is_read_by_naming_its_folder(layout, tmp_path):
  root = tmp_path / 'ILSVRC' / 'Data' / 'CLS-LOC'
  imagenet(root, layout == 'sorted')
  if layout == 'devkit':
    devkit(root / 'ILSVRC2012_devkit_t12' / 'data')
  elif layout == 'devkit beside the images':
    devkit(tmp_path / 'devkit')
    for file in (tmp_path / 'devkit').iterdir():
      file.rename(root / 'val' / file.name)
  elif layout == 'Kaggle':
    (tmp_path / 'LOC_val_solution.csv').write_text('ImageId,PredictionString\n' + ''.join(
        f'ILSVRC2012_val_{i:08},{WNIDS[TRUTH[i - 1]]} 1 2 3 4 \n' for i in (4, 2, 5, 1, 3)))
  train, evaluation = load(config_of(root, eval_split='validation'))
  assert train.class_names == evaluation.class_names == tuple(WNIDS)
  assert {id.rpartition('_')[2]: name for id, name in named(evaluation).items()} == {
      f'{i:08}.JPEG': WNIDS[label] for i, label in enumerate(TRUTH, start=1)}
  assert load_whole(config_of(root / 'val')).class_names == tuple(WNIDS)


def test_imagenet_without_ground_truth_says_what_is_missing(tmp_path):
  imagenet(tmp_path, False)
  with pytest.raises(UserError, match='val: has validation images of ImageNet without folders of classes; expected the devkit'):
    load(config_of(tmp_path))
  devkit(tmp_path / 'ILSVRC2012_devkit_t12' / 'data')
  (tmp_path / 'ILSVRC2012_devkit_t12' / 'data' / 'meta.mat').unlink()
  with pytest.raises(UserError, match='ground_truth.txt: expected meta.mat beside it'):
    load(config_of(tmp_path))


def test_the_classes_of_imagenet_are_in_the_order_of_the_published_models(tmp_path):
  wnids = trained.class_keys(trained.published.imagenet_labels(1000))
  for wnid in wnids:
    (tmp_path / wnid).mkdir()
    (tmp_path / wnid / '0.JPEG').touch()
  source = load_whole(config_of(tmp_path))
  assert source.class_names == tuple(wnids) == tuple(sorted(wnids)) and sorted(source.labels) == list(range(1000))
