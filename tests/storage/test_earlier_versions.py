"""Runs of earlier versions of the code: what still fits continues, and the rest is reported in one line."""

import json

import pytest
from conftest import random_images, tiny_config

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import run_files
from mobilenet_jax.training import checked, train


def write_config(folder, values):
  """Writes the config of a run of which something has come: it has a checkpoint."""
  (folder / run_files.CHECKPOINTS / '1').mkdir(parents=True)
  (folder / run_files.CONFIG_FILE).write_text(json.dumps(values))


def claim(folder, config):
  run_files.claim(folder, config, run_files.examine(folder, config, models.defaults(config.model.name)).longer)


def test_a_config_without_the_newest_fields_has_their_defaults(tmp_path):
  config = checked(tiny_config())
  old = json.loads(config_lib.to_json(config))
  del old['data']['stall_seconds'], old['embedding'], old['model']['padding']
  write_config(tmp_path, old)
  claim(tmp_path, config)
  with pytest.raises(UserError, match=r'- "size": 128, \+ "size": 64'):
    claim(tmp_path, config_lib.changed(config, {'embedding.size': 64}))


def test_a_run_from_before_optimisers_had_names_continues_and_is_no_run_of_another_one(tmp_path):
  config = checked(tiny_config())
  old = json.loads(config_lib.to_json(config))
  for field in ('name', 'schedule', 'clip_norm'):
    del old['optim'][field]
  assert set(old['optim']) == {'learning_rate', 'warmup', 'decay_rate', 'decay_every', 'rms_decay', 'momentum', 'epsilon',
                               'weight_decay', 'depthwise_weight_decay'}
  write_config(tmp_path, old)
  assert config_lib.to_json(run_files.read_config(tmp_path)) == config_lib.to_json(config)
  claim(tmp_path, config)
  with pytest.raises(UserError, match=r'belongs to another config \(- in the folder.* \+ "name": "sgd"'):
    claim(tmp_path, checked(config_lib.changed(config, {'optim.name': 'sgd'})))
  (tmp_path / 'sgd').mkdir()
  write_config(tmp_path / 'sgd', json.loads(config_lib.to_json(checked(config_lib.changed(config, {'optim.name': 'sgd'})))))
  with pytest.raises(UserError, match=r'belongs to another config \(- in the folder.* \+ "name": "rmsprop"'):
    claim(tmp_path / 'sgd', config)


def test_a_run_from_before_there_was_one_road_for_data_is_not_continued(tmp_path):
  config = checked(tiny_config())
  old = json.loads(config_lib.to_json(config))
  old['data']['shuffle_buffer'] = 16384
  write_config(tmp_path, old)
  with pytest.raises(UserError, match=r'another config, which an earlier version of this code wrote \(.*- "shuffle_buffer"'):
    claim(tmp_path, config)


def test_a_network_with_other_fields_is_reported(tiny_model, tmp_path):
  """Such as NN2 from when every network had a width multiplier."""
  config = checked(tiny_config())
  train(config, tmp_path, (random_images(16), random_images(8)))
  old = json.loads((tmp_path / run_files.CONFIG_FILE).read_text())
  old['model']['heads'] = 3
  (tmp_path / run_files.CONFIG_FILE).write_text(json.dumps(old))
  with pytest.raises(UserError, match=r'another config, which an earlier version of this code wrote \(.*- "heads": 3'):
    claim(tmp_path, config)
  with pytest.raises(UserError, match=r'another config \(.*- "batch_size": 8'):
    claim(tmp_path, config_lib.changed(config, {'batch_size': 16, 'model.heads': 3}))

  model = trained.load(tmp_path)
  model.config.model.heads = 3
  model.save(tmp_path / 'imported')
  with pytest.raises(UserError, match='imported: written by an earlier version of this code .*heads=3: mobilenet has no such'):
    trained.load(tmp_path / 'imported')
