"""The 16 models that TF-slim published, and Keras's copies of them: names, addresses and a cache.

    mobilenet_0.25_128          TF-slim's release of August 2018
    keras:mobilenet_0.25_128    the same network and weights without the background class, as Keras distributes it
"""

import contextlib
import errno
import hashlib
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import InUse, UserError
from mobilenet_jax.storage.files import expanded, lock, whole_file

SIZES = (224, 192, 160, 128)
NAMES = tuple(f'mobilenet_{alpha}_{size}' for alpha in config_lib.WIDTH_MULTIPLIERS for size in SIZES)
KERAS = 'keras:'
CHECKSUMS_FILE = 'SHA256SUMS'  # in the format that sha256sum writes and checks

# The first is the one that TensorFlow's own build expects; the graphs are of the release of 2017.
DIGESTS = {
    'mobilenet_v1_1.0_224.tgz': '2fadeabb9968ec6833bee903900dda6e61b3947200535874ce2fe42a8493abc0',
    'mobilenet_v1_0.25_128_frozen.pb': '76fec915bb13a76014a1863ff0976f848d8506388a76fe571e7b366541cc812f',
    'mobilenet_v1_0.25_224_frozen.pb': 'bf56de7d43277493cbf251dc97e5ce3332725f2d134cf62418d666278f9b5ff7',
}

_SLIM_ADDRESS = ('https://storage.googleapis.com/download.tensorflow.org/models/mobilenet_v1_2018_08_02/'
                 'mobilenet_v1_{alpha}_{size}.tgz')
_KERAS_ADDRESS = ('https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/'
                  'mobilenet_{alpha}_{size}_tf{top}.h5')
_KERAS_ALPHAS = {'1.0': '1_0', '0.75': '7_5', '0.5': '5_0', '0.25': '2_5'}
_TIMEOUT_SECONDS = 30
_LOCK_SECONDS = 1800  # for another process, which may be downloading


def address(name: str) -> str:
  """Returns the address of a published model; 'keras:..._no_top' is the one without a classifier.

  Raises:
    UserError: if there is no model with that name.
  """
  alpha, size, top = _parts(name)
  if name.startswith(KERAS):
    return _KERAS_ADDRESS.format(alpha=_KERAS_ALPHAS[alpha], size=size, top=top)
  return _SLIM_ADDRESS.format(alpha=alpha, size=size)


def width_and_size(name: str) -> tuple[float, int]:
  """Returns the width multiplier and the image size of a published model; raises UserError as in `address`."""
  alpha, size, _ = _parts(name)
  return float(alpha), int(size)


def _parts(name):
  bare = name.removeprefix(KERAS)
  top = '_no_top' if name.startswith(KERAS) and bare.endswith('_no_top') else ''
  bare = bare.removesuffix(top)
  if bare not in NAMES:
    raise UserError(f'{name}: neither a file, a folder nor a published model; the published models are {", ".join(NAMES)}, '
                    f'and each of them with the prefix {KERAS}')
  return *bare.split('_')[1:], top


def cache_folder() -> Path:
  """Returns MOBILENET_JAX_CACHE, or ~/.cache/mobilenet_jax/published if it is not set."""
  return expanded(os.environ.get('MOBILENET_JAX_CACHE') or '~/.cache/mobilenet_jax/published')


def cached(name: str) -> Path | None:
  """Returns the file of a published model if the cache has it, or only its frozen graph; otherwise returns None."""
  file_name = address(name).rpartition('/')[2]
  names = (file_name, file_name.replace('.tgz', '_frozen.pb'))
  return next((path for path in map(cache_folder().joinpath, names) if path.exists()), None)


@contextlib.contextmanager
def cache_lock():
  """Gives the cache to this process for writing; other processes wait, and say so."""
  folder = cache_folder()
  folder.mkdir(parents=True, exist_ok=True)
  try:
    held = lock(folder)
  except InUse:
    print(f'waiting for another process that works in {folder}', file=sys.stderr, flush=True)
    held = lock(folder, seconds=_LOCK_SECONDS)
  with held:
    yield


@contextlib.contextmanager
def unless_read_only():
  """Leaves out the rest of what it encloses if the cache cannot be written, as where several people share it."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
      raise


def fetch(name: str) -> tuple[Path, str]:
  """Returns the file of a published model, which is downloaded on first use, and its SHA-256.

  The SHA-256 is compared with that in DIGESTS or, if there is none, with that which `record` wrote.

  Raises:
    UserError: if the file cannot be downloaded, or has another SHA-256.
  """
  url, path = address(name), cached(name)
  if not path:
    with cache_lock():
      path = cached(name) or _download(name, url)
  digest = _sha256(path)
  _check(path, digest, f'remove the file, so that it is fetched again, or, if it is the right one, load it by its path, or '
                         f'remove its line from {cache_folder() / CHECKSUMS_FILE}')
  return path, digest


def record(path: Path, digest: str) -> None:
  """Records the SHA-256 of a file of the cache, once it has been found to be the model of its name.

  What is recorded stays: it is that of the file's first arrival, whether it was downloaded or a person put it there.
  """
  if _known_digest(path.name):
    return
  with cache_lock():
    if not _known_digest(path.name):
      with (cache_folder() / CHECKSUMS_FILE).open('a') as file:
        file.write(f'{digest}  {path.name}\n')


def _download(name, url):
  path = cache_folder() / url.rpartition('/')[2]
  print(f'fetching {url} into {path.parent}', flush=True)
  try:
    with whole_file(path) as file, urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
      content = hashlib.sha256()
      while part := answer.read(2**20):
        file.write(part)
        content.update(part)
      length = answer.headers.get('Content-Length')
      if length and file.tell() != int(length):
        raise OSError(f'{file.tell()} of {length} bytes were received')
      _check(path, content.hexdigest(), f'that is what {url} gives; put the right one there')
  except (OSError, urllib.error.URLError) as error:
    raise UserError(f'{name}: cannot be fetched from {url} ({getattr(error, "reason", error)}); fetch it by other means '
                    f'and put it into {path.parent}, or give the path of the file') from error
  return path


def _check(path, digest, advice):
  known = _known_digest(path.name)
  if known and digest != known:
    where = 'the published one' if path.name in DIGESTS else f'the one in {CHECKSUMS_FILE}, of when it first came'
    raise UserError(f'{path}: not the file that is expected, as its SHA-256 is not {where}; {advice}')


def _known_digest(file_name: str) -> str | None:
  return DIGESTS.get(file_name) or _checksums().get(file_name)


def _checksums() -> dict[str, str]:
  path = cache_folder() / CHECKSUMS_FILE
  lines = path.read_text().splitlines() if path.exists() else []
  return {name: digest for digest, _, name in (line.partition('  ') for line in lines)}


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
