"""The tasks by name, and what a task must be.

A task is what varies between the sections of the paper: targets, loss, metrics, evaluation protocol. `Task` is its whole
interface, which tests/test_task_contract.py checks for each of TASKS; the training loop, sweeps, checkpoints and results
know no more of it.

This module is the door of the room: other rooms import from here; `losses`, `metrics` and `verification` are in it too.
"""

from collections.abc import Mapping
from typing import Protocol

import jax
import ml_collections
import numpy as np

from mobilenet_jax.data import CropTargets, Source
from mobilenet_jax.errors import UserError
from mobilenet_jax.tasks import losses, metrics, verification
from mobilenet_jax.tasks.attributes import Attributes
from mobilenet_jax.tasks.classification import Classification
from mobilenet_jax.tasks.embedding import Embedding, pairs_of

__all__ = ['TASKS', 'Task', 'create', 'headline', 'headlines', 'losses', 'metrics', 'pairs_of', 'verification']

TASKS = {'classification': Classification, 'attributes': Attributes, 'embedding': Embedding}


class Task(Protocol):
  """What a task must be. It is made from a whole config: TASKS[name](config).

  Attributes:
    kind: what the outputs of a model are: 'classes', of which one is right, and the label of an example says which;
      'attributes', each right or wrong by itself; or a 'vector'.
    main_metric: the metric of an evaluation whose highest value is best.
    headlines: the metrics worth a place in the progress line and in the summary of a run, in order: title and format
      by name, such as {'top1': ('top-1', '.2%')}.
    crop_targets: what a crop or a flip of the image does to the targets of an example, see data.CropTargets; None if it
      does nothing, as with a class, attributes or an identity.
  """

  kind: str
  main_metric: str
  headlines: Mapping[str, tuple[str, str]]
  crop_targets: CropTargets | None

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """Returns how many outputs a model has that is trained on `source`, and their names, if they have any.

    Raises:
      UserError: if config and data do not fit.
    """

  def check(self, source: Source) -> None:
    """Raises UserError if `source` cannot be evaluated on. It is called before training."""

  def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns what training minimises against the targets in `batch`, one value per example: (b, outputs) -> (b,)."""

  def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns values per example (b,) whose means over a data set are metrics."""

  def kept(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns values per example (b, ...) that `summary` needs of a whole evaluation."""

  def summary(self, kept: dict[str, np.ndarray], source: Source) -> dict[str, float]:
    """Returns the metrics that are no means over examples. A name with a '/' is left out of the row of a run.

    Raises:
      UserError: if they are undefined.
    """

  def prediction(self, outputs: jax.Array) -> jax.Array:
    """Returns what a trained model predicts: probabilities, or embeddings of unit length; (b, outputs) -> (b, outputs)."""

  def remark(self, evaluation: Mapping[str, float]) -> str:
    """Returns what a person should know about an evaluation beside its headlines, in one line; '' for nothing."""

  def details(self, evaluation: Mapping[str, float]) -> str:
    """Returns an evaluation in more detail, as lines of a table; '' if there is no more."""


def create(config: ml_collections.ConfigDict) -> Task:
  """Returns the task that config.task names.

  Raises:
    UserError: if there is no such task.
  """
  if config.task not in TASKS:
    raise UserError(f'task={config.task!r}: expected one of {", ".join(TASKS)}')
  return TASKS[config.task](config)


def headlines() -> dict[str, tuple[str, str]]:
  """Returns the headlines of all tasks."""
  return {name: headline for task in TASKS.values() for name, headline in task.headlines.items()}


def headline(values: Mapping[str, float]) -> str:
  """Returns the metrics that a person looks for first, like 'top-1 72.10%, top-5 90.33%'."""
  return ', '.join(f'{title} {values[name]:{form}}' for name, (title, form) in headlines().items() if name in values)
