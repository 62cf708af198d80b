"""The judgement of the fuzzer: what is right passes, and each rule that is broken is named."""

import os
import random

import pytest

from experiments import fuzz_cases, fuzz_files
from experiments.fuzz_verdict import LONGEST_MESSAGE, Ended, contents, faults

CRASH = '''Traceback (most recent call last):
  File "/x/mobilenet_jax/__main__.py", line 3, in main
  File "/x/mobilenet_jax/data/npz.py", line 28, in opened
  File "/lib/python3/zipfile.py", line 9, in read
zipfile.BadZipFile: damaged
'''


def judged(folder, *argv, status=0, out='done\n', err='', where='', late=False, valid=False, before=None):
  case = fuzz_cases.Case('arguments', list(argv), valid, False)
  return faults(case, Ended(status, late, out, err, where, 1.0), folder, contents(folder) if before is None else before)


@pytest.mark.parametrize('ended, expected', (
    ({'argv': ['choose']}, ''),
    ({'argv': ['choose'], 'status': 1, 'err': 'note\nerror: --table=x: expected a table\n'}, ''),
    ({'argv': ['train', '--workdir=new'], 'status': 75, 'late': True}, ''),
    ({'argv': ['choose'], 'out': ''}, 'nothing is printed'),
    ({'argv': ['choose'], 'status': 1, 'err': 'wrong\n'}, 'the last line is no error'),
    ({'argv': ['choose'], 'status': 1, 'err': 'error: \x1b[31m is wrong\n'}, 'control character'),
    ({'argv': ['choose'], 'status': 1, 'err': f'error: {"x" * 1200}\n'}, f'more than {LONGEST_MESSAGE} characters'),
    ({'argv': ['choose'], 'status': 1, 'err': CRASH}, 'zipfile.BadZipFile in mobilenet_jax/data/npz.py:28 (opened)'),
    ({'argv': ['choose'], 'status': 2}, 'status 2'),
    ({'argv': ['choose'], 'status': -11}, 'SIGSEGV'),
    ({'argv': ['choose'], 'status': -15, 'late': True}, 'a hang of choose'),
    ({'argv': ['choose'], 'status': 1, 'err': 'error: something is wrong\n', 'valid': True}, 'a valid choose'),
    ({'argv': ['evaluate', 'run', '--json'], 'out': '{"top1": NaN}'}, 'not JSON'),
    ({'argv': ['train', '--workdir=new']}, 'no row'),
    ({'argv': ['sweep', '--workdir', 'new']}, 'no row'),
    ({'argv': ['export', 'run', 'onnx', '--out=new']}, 'nothing in --out'),
    ({'argv': ['predict', 'run', 'photo.png'], 'before': {'photo.png': 'content'}}, "has removed a file of the user: 'photo.png'"),
    ({'argv': ['train', '--workdir=run'], 'status': 1, 'err': 'error: is damaged\n', 'before': {'run/lock': ''}}, '')))
def test_each_rule_is_checked(ended, expected, tmp_path):
  ended = dict(ended)
  found = judged(tmp_path, *ended.pop('argv'), **ended)
  assert len(found) == bool(expected), found
  assert not expected or expected in found[0]


def test_a_number_gives_the_same_case_and_files(tmp_path, monkeypatch):
  """Of all kinds, on files that need no TensorFlow."""
  write = lambda folder: (folder / f'slim_{fuzz_files.SIZE}.pb').write_bytes(b'123456')
  monkeypatch.setattr(fuzz_files, '_write_weights', write)
  drawn, kinds = [], set()
  for again in 'ab':
    for seed in range(40):
      folder = tmp_path / again / str(seed)
      folder.mkdir(parents=True)
      fuzz_files.make(folder)
      for name in ('run', 'sweep'):
        (folder / name).mkdir()
        (folder / name / 'result.json').write_text('{"name": "x", "top1": 0.5}\n')
      (folder / 'sweep' / 'results.csv').write_text('name,top1\nx,0.5\n')
      case = fuzz_cases.draw(seed, folder)
      drawn.append((case, {name: digest for name, digest in contents(folder).items() if not name.endswith('.npz')}))
      kinds.add(case.kind)
      for name in ('locked', 'readonly'):
        if (folder / name).is_dir():
          os.chmod(folder / name, 0o700)
  assert drawn[:40] == drawn[40:]
  assert kinds == set(fuzz_cases.KINDS)


def test_spoiling_changes_a_file(tmp_path):
  path = tmp_path / 'file'
  changed = 0
  for seed in range(30):
    path.write_bytes(b'content' * 9)
    fuzz_files.spoil(random.Random(seed), path)
    changed += not path.is_file() or path.read_bytes() != b'content' * 9
    if path.is_dir():
      path.rmdir()
    else:
      path.unlink(missing_ok=True)
  assert changed == 30
