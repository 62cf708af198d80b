"""Trained models and their uses: published weights, outputs for a dataset, latency, export.

This module is the public interface of the package: other packages import from here, and from `trained.export` and
`trained.published`, which are packages of their own.
"""

from pathlib import Path

from mobilenet_jax.trained import published
from mobilenet_jax.trained.labels import class_keys, top_labels
from mobilenet_jax.trained.latency import measure_latency
from mobilenet_jax.trained.model import TrainedModel, digest_of, load_folder, notes
from mobilenet_jax.trained.recording import outputs_for, record

__all__ = ['TrainedModel', 'class_keys', 'digest_of', 'load', 'measure_latency', 'notes', 'outputs_for', 'record', 'top_labels']


def load(name: str | Path, averaged: bool = True) -> TrainedModel:
  """Loads a trained model.

  Args:
    name: one of three. The folder of a run or of an imported model: its newest checkpoint is loaded, with the averaged
      weights if it has them. Or a file of published weights, see published/readers.py. Or the name of a published model,
      see published/release.py, which is downloaded on first use.
    averaged: use the moving averages of a TF-slim checkpoint, if it has them.

  Raises:
    UserError: if there is no such model, or its file is damaged.
  """
  path = Path(name).expanduser()
  return load_folder(path, str(name)) if path.is_dir() else published.load(name, averaged)
