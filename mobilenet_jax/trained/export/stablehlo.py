"""Export to StableHLO with jax.export: a function that JAX calls without the code that it came from."""

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.export
import numpy as np

from mobilenet_jax.trained.export.network import Network, Tensor

PLATFORMS = ('cpu', 'cuda', 'tpu')
_RUN = '''import sys, jax.export, numpy
exported = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
numpy.save(sys.argv[3], exported.call(numpy.load(sys.argv[2])))'''


def write(network: Network, path: Path, calibration: np.ndarray | None = None) -> None:
  """Writes a file for any batch size and all PLATFORMS."""
  del calibration
  shape = jax.export.symbolic_shape(f'b, {", ".join(map(str, network.input_shape))}')
  exported = jax.export.export(jax.jit(network.function()), platforms=PLATFORMS)(
      jax.ShapeDtypeStruct(shape, network.input_dtype))
  path.write_bytes(exported.serialize())


def run(path: Path, images: np.ndarray) -> np.ndarray:
  """Runs the file in a fresh process, which has nothing of this package."""
  with tempfile.TemporaryDirectory() as folder:
    source, target = Path(folder) / 'images.npy', Path(folder) / 'outputs.npy'
    np.save(source, images)
    done = subprocess.run([sys.executable, '-c', _RUN, path.resolve(), source, target], cwd=folder, capture_output=True,
                          text=True)
    if done.returncode:
      raise RuntimeError((done.stderr.strip().splitlines() or [f'the process ended with {done.returncode}'])[-1])
    return np.load(target)


def tensors(path: Path) -> tuple[Tensor, Tensor]:
  """Returns the input and the output, which have no names."""
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  (source,), (result,) = exported.in_avals, exported.out_avals
  return tuple(Tensor(None, tensor.dtype.name, tuple(size if isinstance(size, int) else None for size in tensor.shape))
               for tensor in (source, result))
