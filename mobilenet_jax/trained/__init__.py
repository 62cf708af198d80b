"""Trained models, and what is done with them: published weights, outputs over a data set, latency, export.

This module is the door of the room: other rooms import from here, and from `trained.export` and `trained.published`,
which are rooms of their own.
"""

from pathlib import Path

from mobilenet_jax.trained import published
from mobilenet_jax.trained.labels import class_keys, some, top_labels
from mobilenet_jax.trained.latency import measure_latency
from mobilenet_jax.trained.model import TrainedModel, load_folder, notes
from mobilenet_jax.trained.recording import outputs_for, record

__all__ = ['TrainedModel', 'class_keys', 'load', 'measure_latency', 'notes', 'outputs_for', 'record', 'some', 'top_labels']


def load(name: str | Path, averaged: bool = True) -> TrainedModel:
  """Loads a trained model.

  Args:
    name: one of three. The folder of a run or of an imported model: the newest checkpoint is taken, and from it the
      averaged weights if they are kept. A file of published weights, see published/readers.py. The name of a published
      model, see published/release.py, which is downloaded on first use.
    averaged: take the moving averages from a TF-slim checkpoint, if it has them.

  Raises:
    UserError: if there is no such model, or its file is damaged.
  """
  path = Path(name).expanduser()
  return load_folder(path, str(name)) if path.is_dir() else published.load(name, averaged)
