"""The documentation: its links lead somewhere, its commands exist, and the examples of a model and a task work as printed."""

import csv
import importlib
import itertools
import re
import types

import numpy as np
import pytest
from conftest import ROOT, command, random_images
from PIL import Image

from mobilenet_jax import __main__ as command_line
from mobilenet_jax import config as config_lib
from mobilenet_jax import models, tasks
from mobilenet_jax.training import train

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def blocks(page, language):
  return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)


def anchors(page):
  """GitHub's names of the headings."""
  titles = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
    if not target.startswith(('http:', 'https:')):
      path, _, anchor = target.partition('#')
      linked = (page.parent / path).resolve() if path else page
      assert linked.exists(), target
      assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page):
  assert not re.search(r'@[A-Z]+@|TODO|FIXME', page.read_text())


@pytest.mark.parametrize('page', PAGES[1:], ids=lambda page: page.name)
def test_a_page_opens_with_its_command_and_is_linked(page):
  title, command = re.match(r'# (.*)\n\n```(?:sh|python)\n(.*?)```', page.read_text(), re.DOTALL).groups()
  assert title and command
  assert f'(docs/{page.name})' in PAGES[0].read_text()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_and_files_exist(page):
  text = page.read_text()
  for name in re.findall(r'\bmobilenet_jax (?!COMMAND\b)([a-z]+)\b(?! \()', '\n'.join(blocks(page, 'sh'))):
    assert name in command_line.COMMANDS, name
  for name in re.findall(r'-m experiments\.(\w+)', text):
    assert name == 'NAME' or (ROOT / 'experiments' / f'{name}.py').exists(), name
  for target in re.findall(r'^make (\S+)', '\n'.join(blocks(page, 'sh')), re.MULTILINE):
    assert f'\n{target}:' in (ROOT / 'Makefile').read_text(), target
  for name in re.findall(r'`((?:tests|mobilenet_jax)/[\w/]+\.py)`', text):
    example = name.endswith(('small_cnn.py', 'regression.py'))
    assert example or (ROOT / name).exists(), name


def example(page, file):
  """Runs the block that begins with the name of a file, and returns its module."""
  code, = (code for code in blocks(ROOT / 'docs' / page, 'python') if code.startswith(f'# {file}\n'))
  module = types.ModuleType('example')
  exec(compile(code, file, 'exec'), module.__dict__)
  return module


def test_the_example_of_a_model(monkeypatch, tmp_path):
  monkeypatch.setitem(models.MODELS, 'small_cnn', example('add_a_model.md', 'mobilenet_jax/models/small_cnn.py').SmallCNN)
  config = example('add_a_model.md', 'configs/small_cnn.py').get_config('channels=4,res=32')
  monkeypatch.syspath_prepend(ROOT / 'tests' / 'models')
  importlib.import_module('test_model_contract').test_every_network_keeps_the_contract('small_cnn')
  config = config_lib.changed(config, {'batch_size': 8, 'eval_batch_size': 8, 'train_for': '2 steps'})
  row = train(config, tmp_path, (random_images(16), random_images(8)))
  assert row['name'] == 'small_cnn_32' and np.isfinite(row['loss'])


def test_the_example_of_a_task(tiny_model, monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(tasks.TASKS, 'regression', example('add_a_task.md', 'mobilenet_jax/tasks/regression.py').Regression)
  assert all(hasattr(tasks.TASKS['regression'], member) for member in tasks.Task.__annotations__ if member != 'transform')
  monkeypatch.chdir(tmp_path)
  row = example('add_a_task.md', 'a script of yours').row
  assert 0 <= row['absolute_error'] < 2 and 'within 0.1' in tasks.headline(row)
  assert 'within_a_tenth' in capsys.readouterr().out


def test_a_folder_with_numbers_trains_the_example_of_a_task(tiny_model, monkeypatch, tmp_path):
  monkeypatch.setitem(tasks.TASKS, 'regression', example('add_a_task.md', 'mobilenet_jax/tasks/regression.py').Regression)
  for i in range(24):
    Image.new('RGB', (40, 40), (10 * i,) * 3).save(tmp_path / f'{i}.png')
  (tmp_path / 'labels.csv').write_text('file,number\n' + ''.join(f'{i}.png,{i / 25}\n' for i in range(24)))
  options = {'task': 'regression', 'batch_size': 4, 'eval_batch_size': 4, 'train_for': '4 steps', 'eval_every': '4 steps'}
  done = command('train', f'--config=configs/small_images.py:data=folder:{tmp_path},alpha=0.25,res=32',
                 f'--workdir={tmp_path / "run"}', *(f'--config.{name}={value}' for name, value in options.items()))
  assert done.returncode == 0, done.stderr
  assert 'images are held out, by a hash of the names of the images' in done.stdout and 'absolute error' in done.stdout


def test_the_example_of_a_sweep(tiny_model, tmp_path):
  """The recipe as printed, on other data, and with a single seed."""
  page = ROOT / 'docs' / 'sweeps.md'
  code, = (code for code in blocks(page, 'python') if code.startswith('# configs/rates.py\n'))
  assert len(code.splitlines()) <= 11
  (tmp_path / 'rates.py').write_text(code)
  for i in range(8):
    for split in ('train', 'test'):
      path = tmp_path / 'set' / split / 'ab'[i % 2] / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (40, 40), (20 * i,) * 3).save(path)
  small = {'batch_size': 4, 'eval_batch_size': 4, 'train_for': '2 steps', 'data.image_size': (32, 32)}
  done = command('sweep', f'--config={tmp_path}/rates.py:data=folder:{tmp_path}/set,res=32', f'--workdir={tmp_path}/runs',
                 '--launcher=here', *(f'--config.{name}={value}' for name, value in small.items()))
  assert done.returncode == 0, done.stderr
  assert '4 to do on' in done.stdout and 'in 1 group of up to 4 that share each batch; 1 at once' in done.stdout
  with (tmp_path / 'runs' / 'results.csv').open() as file:
    rows = list(csv.DictReader(file))
  varied = {(row['width_multiplier'], row['optim.learning_rate']) for row in rows}
  assert varied == set(itertools.product(('0.5', '0.25'), ('0.001', '0.003')))
  assert {f'mobilenet_{width}_32_lr{rate}' for width, rate in varied} == {row['name'] for row in rows}
  assert len({row['loss'] for row in rows}) == 4  # none is a copy of another
