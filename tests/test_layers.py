"""The structure of the code: which packages import which (Import-linter's contracts in pyproject.toml), and their sizes."""

import ast
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / 'mobilenet_jax'


def test_packages_import_only_what_is_below_them():
  done = subprocess.run([Path(sys.executable).with_name('lint-imports'), '--no-cache'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def test_at_most_twelve_entries_and_no_file_over_400_lines():
  entries = {path.name for path in PACKAGE.iterdir()} - {'__init__.py', '__main__.py', '__pycache__'}
  assert len(entries) <= 12, entries
  long = {str(path.relative_to(ROOT)): lines for folder in (PACKAGE, ROOT / 'experiments', ROOT / 'configs', ROOT / 'tests')
          for path in folder.rglob('*.py') if (lines := len(path.read_text().splitlines())) > 400}
  assert not long


def test_pmap_is_known_by_one_file():
  files = [path.name for path in PACKAGE.rglob('*.py') if 'jax.pmap(' in path.read_text()]
  assert files == ['devices.py']


def test_readme_is_one_page():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_json_is_strict():
  """NaN is no JSON, so that other programs could not read it."""
  calls = [(path.name, node) for path in PACKAGE.rglob('*.py') for node in ast.walk(ast.parse(path.read_text()))
           if isinstance(node, ast.Call) and ast.unparse(node.func) in ('json.dumps', 'json.dump')]
  loose = [(name, node.lineno) for name, node in calls if 'allow_nan=False' not in ast.unparse(node)]
  assert calls and not loose
