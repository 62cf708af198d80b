import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLAGS, ROOT, images_of, random_images, tiny_config

from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks
from mobilenet_jax.data import from_images, train_batches
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.storage import checkpoints as checkpoints_lib
from mobilenet_jax.storage.checkpoints import Checkpoints
from mobilenet_jax.storage.run_files import read_metrics
from mobilenet_jax.training import checked, optimizer, train
from mobilenet_jax.training.state import init_state
from mobilenet_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures('tiny_model')


def make(config, classes=4):
  task = tasks.create(config)
  model = models.create(config.model, classes, devices.AXIS)
  tx = optimizer.create(config.optim, lambda step: config.optim.learning_rate)
  state = init_state(jax.random.key(0), model, tx, config)
  return model, tx, state, make_train_step(model, task, tx, config)


def batches(config, count):
  stream = train_batches(random_images(64), config.data, config.batch_size, 0, 0, pytest.fail)
  return [next(stream) for _ in range(count)]


def assert_trees_close(actual, expected, **tolerance):
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


def test_step_equals_the_same_step_written_by_hand():
  """Loss, gradient, L2, RMSprop, batch statistics and averages, each written out."""
  config = tiny_config(**{'ema_decay': 0.9, 'label_smoothing': 0.1, 'optim.weight_decay': 0.01})
  model, _, state, step = make(config)
  batch, = batches(config, 1)
  params, stats = state.params, state.batch_stats

  images = batch['image'].astype(np.float32) / 127.5 - 1
  targets = np.eye(4, dtype=np.float32)[batch['label']] * 0.9 + 0.1 / 4

  def loss(params):
    logits, updates = model.clone(lowering='grouped').apply(
        {'params': params, 'batch_stats': stats}, images, train=True, mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(5)})
    cross_entropy = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
    l2 = sum((p['kernel'] ** 2).sum() / 2 for name, p in params.items() if 'kernel' in p and 'dw' not in name)
    return cross_entropy + 0.01 * l2, (updates['batch_stats'], logits)

  gradient, (new_stats, logits) = jax.jit(jax.grad(loss, has_aux=True))(params)
  squares = jax.tree.map(lambda g: 0.9 + 0.1 * g**2, gradient)  # the accumulator starts at 1
  new_params = jax.tree.map(lambda p, g, v: p - 0.01 * g / jnp.sqrt(v + 1e-3), params, gradient, squares)
  decay = 2 / 11  # (1 + 1) / (10 + 1) at the first step
  averages = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, {'params': params, 'batch_stats': stats},
                          {'params': new_params, 'batch_stats': new_stats})

  new, sums = devices.pmap_step(step)(devices.replicate(state), devices.split(batch), jax.random.key(1), {})
  assert int(new.step) == 1
  assert_trees_close(new.params, new_params, rtol=1e-5, atol=1e-5)
  assert_trees_close(new.batch_stats, new_stats, rtol=1e-5, atol=1e-5)
  assert_trees_close(new.ema, averages, rtol=1e-5, atol=1e-5)
  assert sums['count'] == 8
  assert sums['top1'] == (np.asarray(logits).argmax(-1) == batch['label']).sum()
  unsmoothed = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).sum()
  np.testing.assert_allclose(sums['loss'], unsmoothed, rtol=1e-5)


def test_accumulated_parts_equal_the_whole_batch():
  """If all parts have the same batch statistics, four parts give the gradient of the whole batch."""
  config = tiny_config(**{'optim.learning_rate': 0.001})
  batch, = batches(config, 1)
  same = {k: np.tile(v[:2], (4,) + (1,) * (v.ndim - 1)) for k, v in batch.items()}  # every part has the same statistics
  states = []
  for parts in (1, 4):
    config.accumulate_steps = parts
    _, _, state, step = make(config)
    state, sums = devices.pmap_step(step)(devices.replicate(state), devices.split(same), jax.random.key(1), {})
    assert sums['count'] == 8
    states.append(state.params)
  assert_trees_close(*states, rtol=1e-4, atol=1e-6)


def test_the_mean_gradient_is_clipped_not_those_of_devices_or_parts():
  """On two devices, and in two parts on each, a step of SGD equals the one without clipping, scaled by its norm."""
  config = tiny_config(batch_size=16, accumulate_steps=2)
  config = config_lib.changed(config, {'optim.name': 'sgd', 'optim.clip_norm': 0.5, 'optim.weight_decay': 0.0})
  plain = config_lib.changed(config, {'optim.clip_norm': 0.0})
  batch = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batches(config, 1)[0])
  moved = {}
  for name, config in (('clipped', config), ('plain', plain)):
    _, _, state, step = make(config)
    step = jax.vmap(step, (None, 0, None, None), None, axis_name=devices.AXIS)  # stands in for pmap on several devices
    after, _ = devices.run_once(step, state, batch, jax.random.key(1), {})
    moved[name] = jax.tree.map(lambda new, old: np.asarray(new - old, np.float64), after.params, state.params)
  norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved['plain']))) / config.optim.learning_rate
  assert norm > 0.6
  assert_trees_close(moved['clipped'], jax.tree.map(lambda x: x * 0.5 / norm, moved['plain']), rtol=1e-3, atol=1e-7)


def test_frozen_statistics_stay_the_same_to_the_bit():
  """Also in three parts: the mean of three equal numbers is rounded."""
  config = tiny_config(**{'batch_size': 24, 'accumulate_steps': 3, 'model.freeze_batch_stats': True})
  _, _, state, step = make(config)
  rng = np.random.default_rng(0)
  random = lambda x: jnp.asarray(rng.uniform(0.5, 2, x.shape), jnp.float32)
  state = state.replace(batch_stats=jax.tree.map(random, state.batch_stats))
  before = jax.device_get(state.batch_stats)
  new, _ = devices.pmap_step(step)(devices.replicate(state), devices.split(batches(config, 1)[0]), jax.random.key(1), {})
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before, jax.device_get(new.batch_stats)))


DEVICES_SCRIPT = '''
import sys
sys.path[:0] = ['tests/training', 'tests', '.']
import jax, numpy as np
from conftest import TinyMobileNet
from mobilenet_jax import models
import test_train
models.MODELS['mobilenet'] = TinyMobileNet
assert jax.local_device_count() == int(sys.argv[1])
pmap, jit = test_train.devices.pmap_step, test_train.jit_step
cases = (('pmap', True, pmap),) if sys.argv[1] == '2' else (('pmap', True, pmap), ('jit', True, jit), ('alone', False, pmap))
for name, sync, map_step in cases:
  np.savez(f'{sys.argv[2]}/{name}_{sys.argv[1]}.npz', *test_train.four_steps(map_step, **{'model.sync_batch_norm': sync}))
'''


def four_steps(map_step=devices.pmap_step, **changes):
  """Returns the loss of the last step, then the parameters and the statistics."""
  config = tiny_config(**{'batch_size': 16, 'optim.learning_rate': 0.001, 'ema_decay': 0.9, **changes})
  _, _, state, step = make(config)
  step, state = map_step(step), devices.replicate(state)
  for batch in batches(config, 4):
    state, sums = step(state, devices.split(batch), jax.random.key(1), {})
  return [np.asarray(leaf) for leaf in jax.tree.leaves((sums['loss'], state.params, state.batch_stats, state.ema))]


def jit_step(step):
  """Maps a step as devices.pmap_step does, but without pmap and without collectives: vmap makes plain sums of them.

  The batch is an array that is sharded over the devices, and it is XLA that divides the sums among them.
  """
  compiled = jax.jit(jax.vmap(step, (None, 0, None, None), None, axis_name=devices.AXIS))

  def call(state, batch, rng, frozen):
    assert len(batch['image'].sharding.device_set) == jax.device_count()
    return compiled(state, batch, rng, frozen)

  return call


def test_devices_do_not_matter(tmp_path):
  """Several steps end at the same parameters, statistics and averages, to 1e-5.

  With synchronised batch norm on 1, 2 and 4 devices, and on 4 also if jit maps the step instead of pmap; without, on 4 devices
  and in 4 parts on one.
  """
  processes = []
  for count in (2, 4):
    environment = {**os.environ, 'XLA_FLAGS': f'{FLAGS} --xla_force_host_platform_device_count={count}'}
    processes.append(subprocess.Popen(
        [sys.executable, '-c', DEVICES_SCRIPT, str(count), str(tmp_path)], env=environment, cwd=ROOT))
  assert jax.local_device_count() == 1
  whole = four_steps(**{'model.sync_batch_norm': True})
  parts = four_steps(accumulate_steps=4)
  assert [process.wait() for process in processes] == [0, 0]
  assert max(np.abs(a - b).max() for a, b in zip(whole, parts)) > 1e-3
  for name, ours in (('pmap_2', whole), ('pmap_4', whole), ('jit_4', whole), ('alone_4', parts)):
    with np.load(tmp_path / f'{name}.npz') as theirs:
      for a, b in zip(theirs.values(), ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)


def test_overfits_32_images(small_model, tmp_path):
  config = tiny_config(**{
      'batch_size': 32, 'train_for': '200 steps', 'log_every': '200 steps', 'eval_every': '200 steps',
      'checkpoint_every': '200 steps', 'data.crop_min_area': 1.0, 'data.flip': False, 'optim.learning_rate': 0.02})
  noise = np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)
  source = random_images(32)
  source = from_images(noise, source.labels, 4)  # there is nothing to learn but the images themselves
  train(config, tmp_path, (source, source))
  last = [row for row in read_metrics(tmp_path)[0] if row['split'] == 'train'][-1]
  final, *_ = [row for row in read_metrics(tmp_path)[0] if row['split'] == 'eval']
  assert last['step'] == 200 and final['examples'] == 32
  # Training sees the whole images, evaluation the central 87.5 %. The training images are those that are overfitted.
  state_top1 = _training_accuracy(config, tmp_path, source)
  assert state_top1 == 1.0


def _training_accuracy(config, workdir, source):
  model, _, state, _ = make(config)
  checkpoints = Checkpoints(workdir / 'checkpoints', 'top1')
  _, state, _ = checkpoints.restore(state)
  forward = jax.jit(lambda images: model.clone(lowering='grouped').apply(
      {'params': state.params, 'batch_stats': state.batch_stats}, images, train=True,
      mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})[0])
  logits = forward(images_of(source) / 127.5 - 1)
  return float((logits.argmax(-1) == source.labels).mean())


def test_two_newest_and_best_checkpoints_are_kept(tmp_path):
  """Each is written after a restart. A checkpoint from a stop before the evaluation is replaced by the evaluated one."""
  for step, top1 in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (4, 0.2), (5, 0.1)):
    checkpoints = Checkpoints(tmp_path, 'top1')
    metrics = None if top1 is None else {'top1': top1}
    checkpoints.save(step, {'x': np.full(3, step)}, metrics, {'step': step, 'evaluated': top1})
    checkpoints.close()
  checkpoints = Checkpoints(tmp_path, 'top1')
  assert checkpoints.steps() == [2, 4, 5]
  step, state, notes = checkpoints.restore({'x': np.zeros(3, int)})
  assert (step, notes) == (5, {'step': 5, 'evaluated': 0.1})
  np.testing.assert_array_equal(state['x'], [5, 5, 5])


def damaged(how, content):
  middle = len(content) // 2
  return {'truncated': content[:middle], 'empty': b'',
          'flipped': content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1:]}.get(how)


@pytest.mark.parametrize('how', ('truncated', 'empty', 'flipped', 'missing'))
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(how, tmp_path):
  """Whichever file is damaged, the restored state is right: this checkpoint's if its arrays are intact, else the other's."""
  whole = tmp_path / 'whole'
  checkpoints = Checkpoints(whole, 'top1')
  states = {step: {'x': np.random.default_rng(step).normal(size=1000)} for step in (1, 2)}
  for step, state in states.items():
    checkpoints.save(step, state, {'top1': 1 / step}, {'step': step})
  checkpoints.close()
  used = set()
  for i, file in enumerate(path for path in (whole / '2').rglob('*') if path.is_file()):
    folder, said = tmp_path / str(i), []
    shutil.copytree(whole, folder)
    copy = folder / file.relative_to(whole)
    content = damaged(how, copy.read_bytes())
    copy.unlink()
    if content is not None:
      copy.write_bytes(content)
    checkpoints = Checkpoints(folder, 'top1', said.append)
    step, state, notes = checkpoints.restore(states[1])
    np.testing.assert_array_equal(state['x'], states[step]['x'])
    assert notes['step'] == step and (step == 2 or 'the checkpoint of step 2 is damaged' in said[0])
    assert checkpoints.steps() == [1, 2][:step]
    checkpoints.close()
    used.add(step)
  assert used == {1, 2}


def test_full_disk_leaves_older_checkpoints_intact(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, 'top1')
  checkpoints.save(1, {'x': np.ones(3)}, {'top1': 0.1}, {})
  usage = checkpoints_lib.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(checkpoints_lib.shutil, 'disk_usage', lambda path: usage._replace(free=10))
  with pytest.raises(UserError, match='the disk is full: .* has 0 MiB left'):
    checkpoints.save(2, {'x': np.ones(3)}, {'top1': 0.2}, {})
  checkpoints.close()
  step, state, _ = Checkpoints(tmp_path, 'top1').restore({'x': np.zeros(3)})
  assert step == 1 and state['x'].sum() == 3


def test_checkpoint_carries_config_and_preprocessing(tmp_path):
  config = tiny_config()
  train(config, tmp_path, (random_images(40), random_images(20)))
  _, tx, like, _ = make(config)
  _, _, notes = Checkpoints(tmp_path / 'checkpoints', 'top1').restore(like)
  assert notes['preprocessing']['image_size'] == [32, 32] and notes['preprocessing']['range'] == [-1, 1]
  assert notes['config'] == json.loads(checked(config).to_json())


def test_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
  monkeypatch.setattr(optimizer, 'learning_rate', lambda *_: lambda step: jnp.where(step < 5, 0.01, jnp.nan))
  with pytest.raises(UserError, match='the update is not finite at step 6'):  # the loss itself becomes NaN only at step 7
    train(tiny_config(), tmp_path, (random_images(40), random_images(20)))
  assert Checkpoints(tmp_path / 'checkpoints', 'top1').steps() == [4]
  assert not (tmp_path / 'result.json').exists()


def test_changed_config_in_a_folder_shows_the_difference(tmp_path):
  train(tiny_config(), tmp_path, (random_images(40), random_images(20)))
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(UserError, match='- "batch_size": 8, \\+ "batch_size": 16'):
    train(tiny_config(batch_size=16), tmp_path)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_finished_run_is_not_trained_again(tmp_path):
  data = random_images(40), random_images(20)
  row = train(tiny_config(), tmp_path, data)
  assert train(tiny_config(), tmp_path, data) == row


def test_classes_that_do_not_fit(tmp_path):
  with pytest.raises(UserError, match='model.num_classes=2: fabrics has 4'):
    train(tiny_config(**{'model.num_classes': 2}), tmp_path, (random_images(40), random_images(20)))


def test_batch_larger_than_the_data(tmp_path):
  with pytest.raises(UserError, match='batch_size=8 is more than the 7'):
    train(tiny_config(), tmp_path, (random_images(7), random_images(20)))


def test_depthwise_lowering_does_not_change_the_checkpoint():
  trees = [jax.eval_shape(lambda: make(tiny_config(**{'model.lowering': lowering}))[2].params)
           for lowering in ('grouped', 'shifted')]
  assert trees[0] == trees[1]
