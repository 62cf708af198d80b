"""The 16 models that TF-slim published, and Keras's copies of them: names, addresses and a cache.

    mobilenet_0.25_128          TF-slim's release of August 2018
    keras:mobilenet_0.25_128    the same network and weights without the background class, as Keras distributes it
"""

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import write_whole

SIZES = (224, 192, 160, 128)
NAMES = tuple(f'mobilenet_{alpha}_{size}' for alpha in config_lib.WIDTH_MULTIPLIERS for size in SIZES)
KERAS = 'keras:'
CHECKSUMS_FILE = 'SHA256SUMS'  # in the format that sha256sum writes and checks

_SLIM_ADDRESS = 'http://download.tensorflow.org/models/mobilenet_v1_2018_08_02/mobilenet_v1_{alpha}_{size}.tgz'
_KERAS_ADDRESS = ('https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/'
                  'mobilenet_{alpha}_{size}_tf{top}.h5')
_KERAS_ALPHAS = {'1.0': '1_0', '0.75': '7_5', '0.5': '5_0', '0.25': '2_5'}
_TIMEOUT_SECONDS = 30


def address(name: str) -> str:
  """Returns the address of a published model; 'keras:..._no_top' is the one without a classifier.

  Raises:
    UserError: if there is no model with that name.
  """
  bare = name.removeprefix(KERAS)
  top = '_no_top' if name.startswith(KERAS) and bare.endswith('_no_top') else ''
  bare = bare.removesuffix(top)
  if bare not in NAMES:
    raise UserError(f'{name}: neither a file, a folder nor a published model; the published models are {", ".join(NAMES)}, '
                    f'and each of them with the prefix {KERAS}')
  _, alpha, size = bare.split('_')
  if name.startswith(KERAS):
    return _KERAS_ADDRESS.format(alpha=_KERAS_ALPHAS[alpha], size=size, top=top)
  return _SLIM_ADDRESS.format(alpha=alpha, size=size)


def cache_folder() -> Path:
  """Returns MOBILENET_JAX_CACHE, or ~/.cache/mobilenet_jax/published if it is not set."""
  return Path(os.environ.get('MOBILENET_JAX_CACHE') or '~/.cache/mobilenet_jax/published').expanduser()


def cached(name: str) -> Path | None:
  """Returns the file of a published model if the cache has it, or only its frozen graph; otherwise returns None."""
  file_name = address(name).rpartition('/')[2]
  names = (file_name, file_name.replace('.tgz', '_frozen.pb'))
  return next((path for path in map(cache_folder().joinpath, names) if path.exists()), None)


def fetch(name: str) -> Path:
  """Returns the file of a published model, which is downloaded on first use.

  Its checksum is recorded at the download and compared on every later use.

  Raises:
    UserError: if the file cannot be downloaded, or the file in the cache is no longer the one that was downloaded.
  """
  url = address(name)
  sums = _checksums()
  if path := cached(name):
    if path.name in sums and _sha256(path) != sums[path.name]:
      raise UserError(f'{path}: not the file that was fetched, as its checksum is not the one in {CHECKSUMS_FILE}; '
                      'remove the file, so that it is fetched again')
    return path
  path = cache_folder() / url.rpartition('/')[2]
  path.parent.mkdir(parents=True, exist_ok=True)
  print(f'fetching {url} into {path.parent}', flush=True)
  partial = path.with_name(path.name + '.tmp')
  try:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, partial.open('wb') as file:
      shutil.copyfileobj(answer, file)
      length = answer.headers.get('Content-Length')
    if length and partial.stat().st_size != int(length):
      raise OSError(f'{partial.stat().st_size} of {length} bytes were received')
    sums[path.name] = _sha256(partial)
    write_whole(cache_folder() / CHECKSUMS_FILE, ''.join(f'{sums[key]}  {key}\n' for key in sorted(sums)))
    partial.replace(path)
  except (OSError, urllib.error.URLError) as error:
    raise UserError(f'{name}: cannot be fetched from {url} ({getattr(error, "reason", error)}); fetch it by other means '
                    f'and put it into {path.parent}, or give the path of the file') from error
  finally:
    partial.unlink(missing_ok=True)
  return path


def _checksums() -> dict[str, str]:
  path = cache_folder() / CHECKSUMS_FILE
  lines = path.read_text().splitlines() if path.exists() else []
  return {name: digest for digest, _, name in (line.partition('  ') for line in lines)}


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
