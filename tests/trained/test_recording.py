"""Recording: parts are joined only if they are of the same model, examples and preprocessing, and by one process at a time."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import assert_one_line, command, random_images, tiny_config

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, trained
from mobilenet_jax.data import from_images
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage import files
from mobilenet_jax.training import checked


def model_of(seed=0, **changes):
  config = checked(tiny_config(**changes))
  module = models.create(config.model, 4)
  variables = models.variables_of(module.init(jax.random.key(seed), np.zeros((1, 32, 32, 3)), train=False))
  return trained.TrainedModel(config, variables, None, 'teacher')


def test_parts_of_anything_else_are_not_joined(tiny_model, tmp_path):
  model, source = model_of(), random_images(5)
  names, outputs = trained.record(model, source, tmp_path)
  made = (tmp_path / '000000000.npy').stat().st_mtime_ns
  again = trained.record(model, source, tmp_path)
  np.testing.assert_array_equal(again[1], outputs)
  relabelled = from_images([example.image for example in source], (source.labels + 1) % 4, 4)  # labels are not recorded
  np.testing.assert_array_equal(trained.record(model, relabelled, tmp_path)[1], outputs)
  assert (tmp_path / '000000000.npy').stat().st_mtime_ns == made  # it was not computed again
  change = lambda **changes: dataclasses.replace(model, config=config_lib.changed(
      model.config, {f'data.{name}': value for name, value in changes.items()}))
  others = ((change(eval_crop=0.5), source), (change(image_size=(48, 48)), source), (change(stream_size=(64, 64)), source),
            (change(exif_orientation=False), source), (model_of(seed=1), source),
            (dataclasses.replace(model, labels=tuple('abcd')), source),
            (model, source.subset(np.arange(4))))
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  for other, examples in others:
    with pytest.raises(UserError, match='holds outputs of another teacher, for other examples or with other preprocessing, or'):
      trained.record(other, examples, tmp_path)
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_processes_do_not_record_to_one_file(tiny_model, tmp_path):
  model, source = model_of(), random_images(8)
  model.save(tmp_path / 'teacher')
  images = np.stack([example.image for example in source])
  np.savez(tmp_path / 'set.npz', train_images=images, train_labels=source.labels, test_images=images[:3],
           test_labels=source.labels[:3])
  record = lambda: command('record', tmp_path / 'teacher', f'--data=npz:{tmp_path}/set.npz', f'--out={tmp_path}/t.npz')
  (tmp_path / 't.parts').mkdir()
  with files.lock(tmp_path / 't.parts'):
    assert_one_line(record(), 't.parts: another process works in it (process ')
  assert not (tmp_path / 't.npz').exists()
  assert record().returncode == 0 and not (tmp_path / 't.parts').exists()
  assert_one_line(record(), 't.npz: already exists')


def test_a_process_that_waited_for_the_other_does_not_record_again(tiny_model, tmp_path, monkeypatch):
  """The other one finishes between the first look at the file and the lock."""
  from mobilenet_jax.commands import record
  model_of().save(tmp_path / 'teacher')
  source = random_images(4)
  monkeypatch.setattr(record.data, 'load', lambda config: (source, source))

  def late(folder):
    (tmp_path / 't.npz').write_text('of the other process')
    return files.lock(folder)

  monkeypatch.setattr(record, 'lock', late)
  with pytest.raises(UserError, match='t.npz: already exists'):
    record.main([str(tmp_path / 'teacher'), '--data=x', f'--out={tmp_path}/t.npz'])
  assert (tmp_path / 't.npz').read_text() == 'of the other process'
