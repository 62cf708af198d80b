"""The commands, as a user runs them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_line, command, images_of, random_images

import mobilenet_jax
from mobilenet_jax import config as config_lib
from mobilenet_jax.__main__ import COMMANDS
from mobilenet_jax.commands import recipe
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime.environment import MEMORY_SETTING
from mobilenet_jax.training import checked

SMALL = ['--config.train_for=4 steps', '--config.log_every=2 steps', '--config.eval_every=4 steps',
         '--config.batch_size=8', '--config.eval_batch_size=8']


@pytest.fixture(scope='module')
def npz(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'set.npz'
  train, test = random_images(40, size=36), random_images(21, size=36, seed=1)
  np.savez(path, train_images=images_of(train), train_labels=train.labels, test_images=images_of(test),
           test_labels=test.labels)
  return path


def start(*args, **environment):
  """Runs a command in a process of its own."""
  return subprocess.run([sys.executable, '-m', 'mobilenet_jax', *map(str, args)], cwd=ROOT,
                        env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_run_without_tensorflow(npz, tmp_path):
  """A run trains, evaluates and reports without TensorFlow, and prints nothing else."""
  (tmp_path / 'tensorflow.py').write_text('raise ModuleNotFoundError("no TensorFlow here", name="tensorflow")')
  workdir, recipe = tmp_path / 'run', tmp_path / 'recipe.py'
  recipe.write_text('from mobilenet_jax import models\n'
                    'class Small(models.MobileNet):\n'
                    '  body = ((1, 64), (2, 128))\n'
                    "models.MODELS['mobilenet'] = Small\n"  # compiled in two seconds
                    'from configs.small_images import get_config\n')
  done = start('train', f'--config={recipe}:data=npz:{npz},alpha=0.25,res=32', f'--workdir={workdir}',
               *SMALL, PYTHONPATH=str(tmp_path))
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''
  lines = done.stdout.splitlines()
  assert lines[:3] == [f'reading npz:{npz}', f'npz:{npz}: 40 examples to train on, 21 to evaluate on, 4 classes', 'compiling']
  assert lines[3].startswith("optim.warmup='500 steps': longer than the run of 4 steps")
  assert lines[4].startswith('model.batch_norm_decay=0.99: after 4 steps, 96% of the running statistics are still their first')
  lines = [line for line in lines[5:] if 'left' not in line or 'loss' in line]  # others are those of a slow machine
  assert [line.split()[1] for line in lines[:3]] == ['2/4', '4/4', '4/4']
  assert 'images/s' in lines[0] and 'left' in lines[0] and 'evaluated on 21' in lines[2]
  assert lines[3].startswith('mobilenet_0.25_32: top-1 ')
  row = json.loads((workdir / 'result.json').read_text())
  assert row['eval_examples'] == 21 and row['examples_seen'] == 32 and row['dataset'] == f'npz:{npz}'
  assert {'config.json', 'inputs.json', 'metrics.jsonl', 'tensorboard', 'checkpoints', 'result.json', 'lock'} == {
      path.name for path in workdir.iterdir()}
  assert list((workdir / 'tensorboard').glob('events.*'))


def test_complexity_json():
  done = command('complexity', '--config=configs/imagenet.py:alpha=0.75,res=192', '--json')
  values = json.loads(done.stdout)
  assert (values['mult_adds'], values['trainable']) == (239_273_472, 2_585_560)
  assert sum(layer['params'] for layer in values['layers']) == values['params']
  table = command('complexity', '--config=configs/imagenet.py:alpha=0.75,res=192').stdout
  assert '239,273,472' in table and 'conv_dw_13' in table and 'no batch norm, no bias' in table


@pytest.mark.parametrize('group', (pytest.param('alone', marks=pytest.mark.slow), 'all'))
def test_a_sweep_survives_a_failing_run_and_continues(group, npz, tmp_path):
  """One of two runs fails, and the other gets its row. Without the failed run, the same command has nothing to do."""
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
      'from configs import small_images\n'
      'get_config = small_images.get_config\n'
      "def sweep(config):\n"
      "  return [{'model.width_multiplier': 0.25}, {'model.width_multiplier': 0.5, 'model.num_classes': 2}]\n")
  arguments = ['sweep', f'--config={recipe}:data=npz:{npz},res=32', f'--workdir={tmp_path / "runs"}',
             f'--group={group}', *SMALL]
  done = start(*arguments)
  assert_one_line(done, '1 of 2 runs failed')
  assert_one_line(done, 'mobilenet_0.5_32_num_classes2 (model.num_classes=2: npz:')
  assert '2 runs in' in done.stdout and '0 finished, 2 to do' in done.stdout
  assert done.stdout.count('model.batch_norm_decay=0.99: after 4 steps, 96% of the running statistics are') == 1
  with (tmp_path / 'runs' / 'results.csv').open() as file:
    assert [row['name'] for row in csv.DictReader(file)] == ['mobilenet_0.25_32_num_classes0']

  recipe.write_text(recipe.read_text().replace(", {'model.width_multiplier': 0.5, 'model.num_classes': 2}", ''))
  done = start(*arguments)
  assert done.returncode == 0 and '\n1 run finished' in f'\n{done.stdout}'


BAD_INPUT = (
    (['--config=configs/grid.py', '--config.bach_size=3'], 'bach_size'),
    (['--config=configs/grid.py', '--config.batch_size=three'], 'batch_size'),
    (['--config=configs/grid.py:colour=red'], "'colour=red' is not one of data=fabrics"),
    (['--config=configs/none.py'], 'configs/none.py'),
    ([], '--config is missing'),
    (['--config=configs/grid.py', '--wrkdir=x'], 'wrkdir'),
    (['--config=configs/grid.py', 'x'], 'unrecognized arguments: x; --help lists the arguments'),
    (['--config=configs/grid.py', '--config.model.activation=tanh'], "model.activation='tanh': expected one of relu"),
    (['--config=configs/grid.py', '--config.task=poetry'], "task='poetry': expected one of classification"),
    (['--config=configs/grid.py', '--config.data.image_size=48'], 'expected'),
    (['--config=configs/grid.py', '--config.model.dropout_rate=1.5'], 'model.dropout_rate=1.5: expected'),
    (['--config=configs/grid.py:data=folder:/nowhere'], 'folder:/nowhere: there is no such folder'))


@pytest.mark.parametrize('module, args, message', [
    *(('train', *case) for case in BAD_INPUT), *(('sweep', *case) for case in BAD_INPUT[-2:])])
def test_bad_input_is_one_line(module, args, message, tmp_path):
  done = command(module, *args, *([] if '--wrkdir=x' in args else [f'--workdir={tmp_path / "run"}']))
  assert_one_line(done, message)


@pytest.mark.parametrize('args, message', (
    (['--config=configs/fabrics.py:alpha=0'], 'model.width_multiplier=0.0: expected a number above 0'),
    (['--config=configs/fabrics.py:alpha=wide'], 'alpha=wide: expected float'),
    (['--config=configs/fabrics.py:res=31'], 'data.image_size=(31, 31): expected (height, width), each from 32 to 4096')))
def test_impossible_models_are_one_line(args, message, tmp_path):
  assert_one_line(command('train', *args, f'--workdir={tmp_path}'), message)
  assert_one_line(command('complexity', *args), message)


@pytest.mark.parametrize('args, message', (
    (['--group=pairs'], '--group=pairs: expected auto, all, alone, or fields in which the runs of a group agree'),
    (['--group=data.imagesize'], "--group=data.imagesize: data.imagesize: data has no field 'imagesize'; did you mean"),
    (['--slurm=partition=gpu'], '--slurm with --launcher=local: expected --launcher=slurm with it')))
def test_flags_of_a_sweep_that_do_not_fit_are_one_line(args, message, tmp_path):
  assert_one_line(command('sweep', '--config=configs/grid.py', f'--workdir={tmp_path}', *args), message)


def test_batch_not_divisible_by_the_devices(npz, tmp_path):
  done = start('train', f'--config=configs/small_images.py:data=npz:{npz},alpha=0.25,res=32', f'--workdir={tmp_path}/a',
               '--config.batch_size=10', XLA_FLAGS='--xla_force_host_platform_device_count=4')
  assert_one_line(done, 'batch_size=10 is not divisible by 4 devices; batch_size=8 would be')


def test_another_config_in_the_folder(npz, tiny_model, tmp_path):
  arguments = ['train', f'--config=configs/small_images.py:data=npz:{npz},alpha=0.25,res=32', f'--workdir={tmp_path}/a',
             *SMALL]
  assert command(*arguments).returncode == 0
  before = (tmp_path / 'a' / 'result.json').read_bytes()
  assert_one_line(command(*arguments, '--config.optim.momentum=0.5'), '- "momentum": 0.9, + "momentum": 0.5')
  assert (tmp_path / 'a' / 'result.json').read_bytes() == before


def test_full_disk(npz, tmp_path):
  """The disk is real and has one page."""
  mount = f'mount -t tmpfs -o size=4k tmpfs {tmp_path} && exec "$@"'
  small_disk = ['unshare', '--map-root-user', '--mount', 'sh', '-c', mount, 'sh']
  if not shutil.which('unshare') or subprocess.run([*small_disk, 'true'], capture_output=True).returncode:
    pytest.skip('users of this system may not mount a disk')
  done = subprocess.run([*small_disk, sys.executable, '-m', 'mobilenet_jax', 'train', f'--workdir={tmp_path / "run"}',
                         f'--config=configs/small_images.py:data=npz:{npz},alpha=0.25,res=32', '--config.batch_size=8'],
                        cwd=ROOT, capture_output=True, text=True)
  assert_one_line(done, 'No space left on device; free some space')


@pytest.mark.skipif(sys.platform != 'linux', reason='a setting of glibc')
def test_a_command_starts_itself_again_with_huge_pages():
  code = ('import os, sys; from mobilenet_jax.runtime import environment; environment.use_huge_pages(); '
          'print(os.getpid(), sys.argv[1:], os.environ["GLIBC_TUNABLES"])')
  environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  with subprocess.Popen([sys.executable, '-c', code, '--a b'], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                        text=True) as process:
    output = process.communicate()[0]
  assert output == f"{process.pid} ['--a b'] {MEMORY_SETTING['GLIBC_TUNABLES']}\n"  # the same process


def test_a_command_that_does_not_exist_and_none():
  assert_one_line(command('trian'), "'trian' is not a command; expected one of train, sweep, report, evaluate")
  for args in ((), ('--help',)):
    done = command(*args)
    assert done.returncode == 0 and 'complexity' in done.stdout and 'usage: mobilenet_jax COMMAND' in done.stdout
  assert command('--version').stdout == f'mobilenet_jax {mobilenet_jax.__version__}\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_help(name):
  done = command(name, '--help')
  assert done.returncode == 0 and done.stdout.startswith(f'usage: mobilenet_jax {name} ') and not done.stderr
  assert f'    mobilenet_jax {name} ' in done.stdout  # an example


def test_the_installed_command_from_another_folder(tmp_path):
  """Recipes are found beside the package and in the folder itself, and there they import each other."""
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'other.py').write_text('from configs.fabrics import get_config\n')
  (tmp_path / 'configs' / 'mine.py').write_text('from configs.other import get_config\n')
  script = Path(sys.executable).with_name('mobilenet_jax')
  for name in ('configs/imagenet.py', 'configs/mine.py'):
    done = subprocess.run([script, 'complexity', f'--config={name}', '--config.model.num_classes=20', '--json'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert json.loads(done.stdout)['model'] == {'configs/imagenet.py': 'mobilenet_1.0_224'}.get(name, 'mobilenet_1.0_63')


@pytest.mark.parametrize('fields, expected', (
    (['--config.model.width_multiplier=0.5'], {'model.width_multiplier': 0.5}),  # a float, although the recipe has an int
    (['--config.train_for', '3 epochs'], {'train_for': '3 epochs'}),
    (['--config.data.name=folder:/a=b'], {'data.name': 'folder:/a=b'}),
    (['--config.data.flip=false'], {'data.flip': False}),
    (['--config.data.flip=1'], {'data.flip': True}),
    (['--config.data.held_out_folds=3'], {'data.held_out_folds': (3,)}),
    (['--config.data.image_size=[40, 48]'], {'data.image_size': (40, 48)}),
    (['--config.optim.learning_rate', '2'], {'optim.learning_rate': 2.0}),
    (['--config.data.recorded='], {'data.recorded': ''}),
    (['--config.model=nn2'], 'model: a part of a config, not a field; expected a field in it, such as model.NAME'),
    (['--config.batch_size=3.5'], 'batch_size=3.5: expected int'),
    (['--config.data.flip=perhaps'], 'data.flip=perhaps: expected bool'),
    (['--config.train_for'], '--config.train_for: expected a value')))
def test_fields_on_the_command_line(fields, expected, tmp_path):
  (tmp_path / 'recipe.py').write_text(
      'import numpy as np\nfrom mobilenet_jax import config as config_lib\n'
      'def get_config():\n  config = config_lib.base()\n  config.model.width_multiplier = 1\n'
      '  config.model.dropout_rate = np.float32(0.25)\n  return config\n')
  parser = recipe.parser('', 'train')
  parse = lambda: recipe.parse(parser, [f'--config={tmp_path}/recipe.py', *fields])[1].config
  if isinstance(expected, str):
    with pytest.raises(UserError) as error:
      parse()
    assert expected in str(error.value)
  else:
    config = checked(config_lib.changed(parse(), {'optim.learning_rate': 0.1} if 'learning_rate' in fields[0] else {}))
    values = config_lib.flat(parse())
    assert {name: values[name] for name in expected} == expected
    assert config.model.dropout_rate == 0.25
