"""Help, and what is refused before a command does anything. All in this process, as a command line would."""

import os

import pytest
from conftest import ROOT, experiment

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.__main__ import COMMANDS, _dispatch
from mobilenet_jax.data import read_image
from mobilenet_jax.errors import UserError, describe, is_of_the_user

RECIPES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
WITH_RECIPES = ('train', 'sweep', 'complexity')


def help_of(capsys, *argv):
  with pytest.raises(SystemExit) as exit_:
    _dispatch(list(argv))
  assert not exit_.value.code
  out, err = capsys.readouterr()
  assert not err and max(map(len, out.splitlines())) < 160
  return out


@pytest.mark.parametrize('name', COMMANDS)
def test_help_describes_a_command_with_an_example(name, capsys):
  text = help_of(capsys, name, '--help')
  assert f'\n    mobilenet_jax {name}' in text and text == help_of(capsys, name, '-h')
  assert all(f'{field}=' in text and content.comment in text for field, content in config_lib.all_fields(
      models.fields('mobilenet'), config_lib.base().optim).items()) == (name in WITH_RECIPES)
  if name == 'sweep':
    for command in ('status', 'logs', 'cancel'):
      own = help_of(capsys, name, command, '--help')
      assert f'\n    mobilenet_jax sweep {command} ' in own and ('--run' in own) == (command == 'logs')


@pytest.mark.parametrize('name', RECIPES)
def test_help_of_a_recipe_has_every_field_with_the_value_of_the_recipe(name, capsys):
  text = help_of(capsys, 'train', f'--config=configs/{name}.py', '--config.seed=77', '--help')
  config = config_lib.flat(__import__(f'configs.{name}', fromlist=['get_config']).get_config())
  for field, value in {**config, 'seed': 77}.items():
    assert f'  {field}={value!r}' in text
  assert __import__(f'configs.{name}').__dict__[name].__doc__.splitlines()[0] in text


@pytest.mark.parametrize('name', sorted(path.stem for path in (ROOT / 'experiments').glob('*.py')
                                        if 'command_line.run_with' in path.read_text()))
def test_help_of_an_experiment_has_its_command(name):
  done = experiment(name, '--help')
  assert done.returncode == 0 and not done.stderr
  assert f'python -m experiments.{name}' in done.stdout or f'make {name.replace("_", "-")}' in done.stdout
  assert experiment(name, '--nonsense').returncode == 1


def refused(argv, message):
  with pytest.raises(UserError) as error:
    _dispatch(argv)
  assert message in str(error.value) and len(str(error.value)) < 700, error.value


@pytest.mark.parametrize('argv, message', (
    (['train', '--workdir=a', '--workdir', 'b'], '--workdir is given twice'),
    (['train', '--config=configs/fabrics.py', '--config=configs/grid.py'], '--config is given twice'),
    (['train', '--config=configs/fabrics.py', '--config.seed=1', '--config.seed', '1'], '--config.seed is given twice'),
    (['train', '--config=configs/fabrics.py:res=40,res=48'], 'res is given twice'),
    (['predict', 'model', 'image', '--top=1', '--top=2'], '--top is given twice'),
    (['complexity', '--config=configs/fabrics.py', '--json', '--json'], '--json is given twice'),
    (['sweep', 'status', '--workdir=a', '--workdir=b'], '--workdir is given twice'),
    (['complexity', '--config=configs/fabrics.py', '--image-size=96'], '--image-size and --checkpoint are for a model'),
    (['complexity', '--config=configs/fabrics.py', '--checkpoint=best'], '--image-size and --checkpoint are for a model')))
def test_what_is_given_twice_or_to_no_effect_is_refused(argv, message):
  refused(argv, message)


def test_a_value_of_two_dashes_is_refused():
  refused(['import', 'x.pb', '--out=--'], '--out=--: expected a value')


BASE = 'from mobilenet_jax import config as c\n'


@pytest.mark.parametrize('content, message', (
    ('this is no Python', 'line 1: SyntaxError: invalid syntax'),
    ('x = "\0"', 'SyntaxError'),
    ('import nothing_like_this', "line 1: ModuleNotFoundError: No module named 'nothing_like_this'"),
    ('import sys\nsys.exit(0)', 'line 2: SystemExit: 0'),
    ('def get_config():\n  return get_config()', 'RecursionError'),
    ('def get_config():\n\n  return 1 / 0', 'line 3: ZeroDivisionError: division by zero'),
    ('def get_config():\n  assert False', 'line 2: AssertionError'),
    ('get_config = 3', 'has no get_config'),
    ('', 'has no get_config'),
    ('def get_config():\n  pass', 'returned NoneType; expected a config'),
    ('def get_config(a, b):\n  pass', 'TypeError: get_config() missing 2 required positional arguments'),
    ('import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({"seed": 1})', 'task: missing'),
    (BASE + 'def get_config():\n  x = c.base()\n  x.batch_size = "many"\n  return x', 'line 4: TypeError'),
    (BASE + 'def get_config():\n  x = c.base()\n  x.optim.nam = "sgd"\n  return x', "optim has no field 'nam'; did you mean optim.name?"),
    (BASE + 'def get_config():\n  x = c.base()\n  x.optim.lr\n  return x', 'line 4: AttributeError'),
    (BASE + 'def get_config():\n  x = c.base()\n  x.optm = dict(a=1)\n  return x', 'a config has no part optm'),
    (BASE + 'def get_config():\n  x = c.base()\n  del x.optim\n  return x', 'optim.name: missing')))
def test_a_recipe_that_is_none_is_one_line(content, message, tmp_path):
  (tmp_path / 'recipe.py').write_text(content)
  for command in ('train', 'sweep', 'complexity'):
    refused([command, f'--config={tmp_path}/recipe.py', *([] if command == 'complexity' else [f'--workdir={tmp_path}/run'])],
            message)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('returned', ('None', '[]', '3', '"abc"', '[1, 2]', '[{1: 2}]', '{"seed": 1}', '[{}, None]'))
def test_a_sweep_that_is_none_is_one_line(returned, tmp_path):
  (tmp_path / 'recipe.py').write_text(f'{BASE}get_config = c.base\ndef sweep(config):\n  return {returned}\n')
  refused(['sweep', f'--config={tmp_path}/recipe.py', f'--workdir={tmp_path}/run'], 'returned')
  (tmp_path / 'recipe.py').write_text(f'{BASE}get_config = c.base\ndef sweep(config):\n  raise KeyError("x")\n')
  refused(['sweep', f'--config={tmp_path}/recipe.py', f'--workdir={tmp_path}/run'], "line 4: KeyError: 'x'")
  assert not (tmp_path / 'run').exists()


def test_groups_in_a_recipe_are_not_ignored(tmp_path):
  (tmp_path / 'recipe.py').write_text(f'{BASE}get_config = c.base\nGROUPS = {{}}\ndef sweep(config):\n  return [{{}}]\n')
  refused(['sweep', f'--config={tmp_path}/recipe.py', f'--workdir={tmp_path}/run'], 'has GROUPS, which are not read any more')
  assert not (tmp_path / 'run').exists()


def test_a_word_that_is_no_command_of_a_sweep_is_refused():
  refused(['sweep', 'stats', '--workdir=runs/x'], 'sweep stats: expected status, logs, cancel')


def test_files_that_cannot_be_used_and_too_little_memory_are_one_line(tmp_path):
  """Each as the command line says it, whatever the library that raises it."""
  jax_error = type('JaxRuntimeError', (RuntimeError,), {})
  (tmp_path / 'file').touch()
  (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')

  def raised(function):
    try:
      function()
    except Exception as error:
      return error

  for error, message in (
      (raised(lambda: (tmp_path / 'file' / 'x').mkdir()), 'file/x: Not a directory; give the path of another'),
      (raised(lambda: (tmp_path / 'link').mkdir()), 'link: File exists; give the path of another'),
      (raised(lambda: open(tmp_path, 'w')), 'Is a directory; give the path of another'),
      (raised(lambda: open(tmp_path / ('x' * 300), 'w')), 'File name too long; give the path of another'),
      (PermissionError(13, 'x', 'a'), 'a: Permission denied; give a file or a folder that you may use'),
      (OSError(28, 'x'), 'writing: No space left on device; free some space'),
      (MemoryError(), 'out of memory (MemoryError); try a'),
      (jax_error('RESOURCE_EXHAUSTED: 9 GB'), 'out of memory (RESOURCE_EXHAUSTED: 9 GB); try a smaller batch')):
    assert is_of_the_user(error) and message in describe(error)
  for error in (ValueError('x'), OSError('x'), jax_error('INTERNAL: x')):  # faults of the code, of which one wants to see more
    assert not is_of_the_user(error)


def test_a_message_is_one_line_of_printable_text_that_is_not_too_long():
  text = describe(UserError('a\x1b[31m\nb\t\u202e' + 'x' * 5000 + '\udcff'))
  assert text.isprintable() and len(text) < 1100 and text.startswith(r'a\x1b[31m b \u202e') and text.endswith(' ...')


def test_a_pipe_or_a_folder_is_no_image_and_nothing_waits(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  for name, message in (('pipe.png', 'no regular file'), ('.', 'Is a directory')):
    with pytest.raises(UserError, match=message):
      read_image(tmp_path / name, False)
  with pytest.raises(UserError, match='no user with this home folder'):
    read_image('~nobody_like_this/x.png', False)
