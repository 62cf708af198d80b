"""Tests the cache of published models: fetching, checksums, what contradicts its name, and several processes at once."""

import concurrent.futures
import functools
import hashlib
import http.server
import shutil
import tarfile
import threading

import jax
import numpy as np
import pytest
from conftest import SHARED
from published_files import graph_of, random_variables, slim_arrays, write_checkpoint

from mobilenet_jax import trained
from mobilenet_jax.errors import UserError
from mobilenet_jax.trained.published import release

NAME, FILE = 'mobilenet_0.25_128', 'mobilenet_v1_0.25_128.tgz'


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
  """Returns an archive as TF-slim releases them, of random weights."""
  folder = tmp_path_factory.mktemp('archive')
  write_checkpoint(folder / 'mobilenet_v1_0.25_128.ckpt', slim_arrays(random_variables(1001, 0.25)))
  with tarfile.open(folder / FILE, 'w:gz') as archive:
    for part in folder.glob('*.ckpt.*'):
      archive.add(part, f'./{part.name}')
  return folder / FILE


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('MOBILENET_JAX_CACHE', str(tmp_path / 'cache'))
  (tmp_path / 'cache').mkdir()
  return tmp_path / 'cache'


@pytest.fixture
def server(archive, tmp_path, monkeypatch):
  """Serves the archive, and yields the folder that is served, the server, and the paths that were asked for."""
  files, asked = tmp_path / 'server', []
  files.mkdir()
  shutil.copy(archive, files)
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=files)
  monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda self, *args: asked.append(self.path))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://127.0.0.1:{server.server_port}/mobilenet_v1_{{alpha}}_{{size}}.tgz'
  monkeypatch.setattr(release, '_SLIM_ADDRESS', url)
  yield files, server, asked
  server.shutdown()


def sums_of(cache):
  return [line.split() for line in (cache / 'SHA256SUMS').read_text().splitlines()]


def test_fetching(server, cache):
  """A file from a local server is cached, and its checksum is recorded and compared; a partial file is never left."""
  files, server, _ = server
  model = trained.load(NAME)
  assert model.config.data.image_size == (128, 128) and model.num_classes == 1001
  cached = cache / FILE
  assert cached.read_bytes() == (files / FILE).read_bytes()
  digest = hashlib.sha256(cached.read_bytes()).hexdigest()
  assert sums_of(cache) == [[digest, FILE]]
  with pytest.raises(UserError, match='mobilenet_0.5_128: cannot be fetched from http.*not found.*give the path'):
    trained.load('mobilenet_0.5_128')
  server.shutdown()
  again = trained.load(NAME)  # offline, from what was imported before
  jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
  assert (again.labels, again.config.to_dict()) == (model.labels, model.config.to_dict())
  assert release.fetch(NAME) == (cached, digest)  # offline
  assert [path.name for path in cache.iterdir() if path.suffix == '.tmp'] == []


def test_a_file_that_was_replaced_is_noticed(server, cache):
  """Also after it has been imported, and if the server has another one once the file is gone."""
  files, _, _ = server
  shutil.copy(files / FILE, cache)  # put there by a person
  trained.load(NAME)
  recorded = sums_of(cache)
  (files / FILE).write_bytes((files / FILE).read_bytes() + b'\0')
  shutil.copy(files / FILE, cache)
  with pytest.raises(UserError, match='not the file that is expected, as its SHA-256 is not the one in SHA256SUMS.*remove'):
    trained.load(NAME)
  (cache / FILE).unlink()
  with pytest.raises(UserError, match=r'not the file that is expected.*that is what http://.* gives'):
    trained.load(NAME)
  assert sums_of(cache) == recorded and not (cache / FILE).exists()
  assert not list(cache.glob('*.tmp'))


@pytest.mark.parametrize('name, found', (('mobilenet_0.25_192', '0.25_128'), ('mobilenet_0.5_128', '0.25_128')))
def test_a_file_that_contradicts_its_name_is_refused(name, found, archive, cache):
  shutil.copy(archive, cache / f'{name.replace("mobilenet", "mobilenet_v1")}.tgz')
  for _ in range(2):
    with pytest.raises(UserError, match=f'is a mobilenet_{found}, expected {name}; remove the file'):
      trained.load(name)
  assert not (cache / 'SHA256SUMS').exists()  # so that the right file is not refused


def test_digests_of_published_files_are_known_from_the_start(cache):
  (cache / 'mobilenet_v1_0.25_128_frozen.pb').write_bytes(graph_of(slim_arrays(random_variables(1001, 0.25)), 128))
  with pytest.raises(UserError, match='mobilenet_v1_0.25_128_frozen.pb: not the file .* is not the published one; remove'):
    trained.load(NAME)
  assert not (cache / 'SHA256SUMS').exists()


@pytest.mark.skipif(not SHARED.exists(), reason=f'the published graphs are not here: {SHARED}')
def test_the_published_graphs_have_their_digests(cache):
  for path in (SHARED / 'mobilenet_v1_slim').iterdir():
    assert hashlib.sha256(path.read_bytes()).hexdigest() == release.DIGESTS[path.name]
  shutil.copy(SHARED / 'mobilenet_v1_slim' / 'mobilenet_v1_0.25_128_frozen.pb', cache)
  assert trained.load(NAME).config.data.image_size == (128, 128)


def test_several_fetch_and_import_the_same_model_at_once(server, cache):
  """A lock of one thread keeps out another one as it does a process: each opens the file for itself."""
  _, _, asked = server
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    digests = {model.digest for model in pool.map(trained.load, [NAME] * 4)}
  assert len(digests) == 1 and len(asked) == 1 and len(sums_of(cache)) == 1
  assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_addresses_are_the_official_ones():
  assert len(release.NAMES) == 16
  assert release.address('mobilenet_0.75_160') == (
      'https://storage.googleapis.com/download.tensorflow.org/models/mobilenet_v1_2018_08_02/mobilenet_v1_0.75_160.tgz')
  assert release.address('keras:mobilenet_1.0_224_no_top') == (
      'https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/mobilenet_1_0_224_tf_no_top.h5')
  assert release.width_and_size('keras:mobilenet_0.75_160_no_top') == (0.75, 160)
  with pytest.raises(UserError, match='mobilenet_2.0_224: neither a file, a folder nor a published model'):
    release.address('mobilenet_2.0_224')
