"""Several hosts, as processes on this machine: they train the same run as one host, and all end if one dies."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import FLAGS, ROOT, images_of, random_images, tiny_config
from PIL import Image

from mobilenet_jax.storage import checkpoints, run_files
from mobilenet_jax.sweeps import results
from mobilenet_jax.training import train

SCRIPT = '''
import json
import os
import sys
from pathlib import Path
sys.path[:0] = ['tests', '.']
from conftest import TinyMobileNet, kill_at, random_images, tiny_config
from mobilenet_jax import models
from mobilenet_jax.runtime import command_line, devices
from mobilenet_jax.sweeps.sweep import sweep
from mobilenet_jax.training import train
models.MODELS['mobilenet'] = TinyMobileNet
folder, address, hosts, host, steps, dies_at, npz, images = sys.argv[1:]
opened = []  # the images that this host opens, with their size


def on_open(event, args):
  if event == 'open' and isinstance(args[0], str) and images and args[0].startswith(images):
    opened.append((args[0].removeprefix(images), os.stat(args[0]).st_size))


def main(args):
  devices.join_hosts(address, int(hosts), int(host))
  if int(dies_at):
    kill_at(int(dies_at), [])
  config = tiny_config(**{'train_for': f'{steps} steps', 'model.sync_batch_norm': True, 'checkpoint_every': '4 steps'})
  with devices.ending_with_the_others():
    if npz:
      config.data.name = f'npz:{npz}'
      sweep(config, [{'model.width_multiplier': width} for width in (0.25, 0.5)], folder, grouping='all', launcher='here')
    elif images:
      sys.addaudithook(on_open)
      config.data.name = f'folder:{images}'
      train(config, folder)
      Path(folder, f'opened_{host}.json').write_text(json.dumps(opened))
    else:
      train(config, folder, (random_images(40), random_images(21, seed=1)))

sys.argv[1:] = []
command_line.run(lambda: main(None))
'''


def start(folder, hosts, devices, steps=8, dies_at=None, npz='', images=''):
  """Starts one process per host, each with `devices` virtual devices."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}' if hosts > 1 else ''
  environment = {**os.environ, 'XLA_FLAGS': f'{FLAGS} --xla_force_host_platform_device_count={devices}', 'GLIBC_TUNABLES': ''}
  return [subprocess.Popen(
      [sys.executable, '-c', SCRIPT, str(folder), address, str(hosts if address else 0), str(host if address else -1),
       str(steps), str((dies_at or {}).get(host, 0)), str(npz), str(images)],
      cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for host in range(hosts)]


def ends(processes, seconds=120):
  outputs = [process.communicate(timeout=seconds)[0] for process in processes]
  return [process.returncode for process in processes], outputs


def arrays(folder):
  return jax.tree.leaves(checkpoints.read(folder)[0])


def test_hosts_and_devices_make_no_difference(tiny_model, tmp_path):
  """Two hosts of two devices, one of four and one of one: equal parameters to 1e-5, and every example is evaluated once."""
  for name, hosts, devices in (('two', 2, 2), ('four', 1, 4)):
    codes, outputs = ends(start(tmp_path / name, hosts, devices))
    assert codes == [0] * hosts, outputs
    assert sum('evaluated on 21' in output for output in outputs) == 1  # one host prints
  assert jax.device_count() == 1
  config = tiny_config(**{'train_for': '8 steps', 'model.sync_batch_norm': True, 'checkpoint_every': '4 steps'})
  train(config, tmp_path / 'one', (random_images(40), random_images(21, seed=1)))
  rows = {name: run_files.read_metrics(tmp_path / name)[0] for name in ('two', 'four', 'one')}
  for name in ('four', 'one'):
    for a, b in zip(arrays(tmp_path / name), arrays(tmp_path / 'two'), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(rows[name], rows['two'], strict=True):
      assert {**ours, 'split': 0} == pytest.approx({**theirs, 'split': 0}, rel=1e-4)
  row = json.loads((tmp_path / 'two' / 'result.json').read_text())
  assert row['eval_examples'] == 21 and row['device'].startswith('4 x ')


def test_where_a_host_dies_the_others_end_and_all_continue(tmp_path):
  """The run continues with another number of devices."""
  processes = start(tmp_path, 2, 2, steps=12, dies_at={0: 6})
  started = time.monotonic()
  codes, outputs = ends(processes)
  # Either our own check or JAX's check of its peers comes first.
  assert codes[0] == -9 and codes[1] in (75, -6), codes
  assert 'another host has ended' in outputs[1] or 'another task died' in outputs[1], outputs[1]
  assert time.monotonic() - started < 60 + 30  # a minute, and the time to start
  codes, outputs = ends(start(tmp_path, 1, 4, steps=12))
  assert codes == [0] and 'continuing at step 4' in outputs[0], outputs


@pytest.mark.parametrize('hosts', (2, pytest.param(4, marks=pytest.mark.slow)))
def test_each_host_opens_its_share_of_the_files(hosts, tiny_model, tmp_path):
  """Of each batch its part, up to five batches ahead, and of the evaluation its part; together they train as one host does."""
  for split, count, seed in (('train', 120, 0), ('test', 21, 1)):
    for i, (_, image, targets) in enumerate(random_images(count, seed=seed)):
      path = tmp_path / 'data' / split / str(targets['label']) / f'{i:03}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(path)
  codes, outputs = ends(start(tmp_path / 'several', hosts, 1, images=tmp_path / 'data'))
  assert codes == [0] * hosts, outputs
  opened = [json.loads((tmp_path / 'several' / f'opened_{host}.json').read_text()) for host in range(hosts)]
  steps, share, whole = 8, 8 // hosts, sum(path.stat().st_size for path in (tmp_path / 'data').rglob('*.png'))
  trained, evaluated = ([[name for name, _ in files if name.startswith(split)] for files in opened] for split in ('/train', '/test'))
  for files in trained:
    assert steps * share <= len(files) <= (steps + 5) * share and len(set(files)) == len(files)
  assert len(set().union(*trained)) == sum(map(len, trained))  # of one epoch, no two hosts open the same file
  assert [len(set(files)) for files in evaluated] == [sum(i % 8 // share == host for i in range(21)) for host in range(hosts)]
  assert all(sum(size for _, size in files) < 2 * whole / hosts for files in opened)  # the evaluation is made twice

  config = tiny_config(**{'data.name': f'folder:{tmp_path}/data', 'train_for': '8 steps', 'model.sync_batch_norm': True,
                          'checkpoint_every': '4 steps'})
  train(config, tmp_path / 'one')
  for a, b in zip(arrays(tmp_path / 'one'), arrays(tmp_path / 'several'), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_sweep_of_a_group_on_two_hosts(tmp_path):
  """Works as on a TPU slice; the rows are those of one host with the same number of devices."""
  first, second = random_images(40), random_images(21, seed=1)
  np.savez(tmp_path / 'set.npz', train_images=images_of(first), train_labels=first.labels, test_images=images_of(second),
           test_labels=second.labels)
  rows = []
  for hosts in (2, 1):
    folder = tmp_path / f'of_{hosts}'
    codes, outputs = ends(start(folder, hosts, 2 // hosts, npz=tmp_path / 'set.npz'))
    assert codes == [0] * hosts, outputs
    assert sum('2 to do on 2 x cpu' in output and 'mobilenet_0.5_32: top-1' in output for output in outputs) == 1
    rows.append([run_files.read_row(folder / f'mobilenet_{width}_32') for width in (0.25, 0.5)])
    assert len((folder / results.CSV_FILE).read_text().splitlines()) == 3
  for ours, theirs in zip(*rows):
    assert ours['eval_examples'] == 21 and ours['loss'] == pytest.approx(theirs['loss'], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('mpirun'), reason='Open MPI is not installed')
def test_hosts_that_open_mpi_starts_find_each_other(tmp_path):
  environment = {**os.environ, 'GLIBC_TUNABLES': '', 'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'}
  command = [sys.executable, '-c', SCRIPT, str(tmp_path / 'run'), '', '0', '-1', '8', '0', '', '']
  done = subprocess.run(['mpirun', '-np', '2', '--oversubscribe', *command], cwd=ROOT, env=environment, capture_output=True,
                        text=True, timeout=200)
  assert done.returncode == 0, done.stdout + done.stderr
  row = run_files.read_row(tmp_path / 'run')
  assert row['eval_examples'] == 21 and row['device'].startswith('2 x ')
