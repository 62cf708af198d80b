"""The tasks, by name, and the contract that every task fulfils.

A task is what varies between the sections of the paper: targets, loss, metrics and evaluation protocol. `Task` is its
complete interface, which tests/tasks/test_task_contract.py checks for every task in TASKS. The training loop, sweeps,
checkpoints and results know nothing else about a task.

This module is the public interface of the package: other packages import from here, including `losses`, `metrics` and
`verification`.
"""

from collections.abc import Mapping
from typing import Protocol

import jax
import ml_collections
import numpy as np

from mobilenet_jax.data import Source, Transform
from mobilenet_jax.errors import UserError
from mobilenet_jax.tasks import losses, metrics, verification
from mobilenet_jax.tasks.attributes import DECISIONS, Attributes
from mobilenet_jax.tasks.classification import Classification
from mobilenet_jax.tasks.embedding import Embedding, pairs_of

__all__ = ['DECISIONS', 'TASKS', 'Task', 'create', 'headline', 'headlines', 'losses', 'metrics', 'pairs_of', 'verification']

TASKS = {'classification': Classification, 'attributes': Attributes, 'embedding': Embedding}


class Task(Protocol):
  """The interface of a task, which is constructed from a complete config: TASKS[name](config).

  Attributes:
    kind: what the outputs of a model are: 'classes', of which one is correct, given by the label of an example;
      'attributes', each of which is correct or not by itself; 'vector', whose direction counts; or 'numbers'.
    main_metric: the main metric of an evaluation; the highest value is the best.
    headlines: title and format, by name, of the metrics that the progress line and the summary of a run show, in order,
      such as {'top1': ('top-1', '.2%')}.
    transform: what is done to an example between the decoder and the network, see data.Transform, such as
      data.crop_and_flip(config.data). What is random about it comes from its generator only.
    needs_labels: whether the loss and the evaluation use the label of an example, so that none may be unknown.
    compares_examples: whether the loss of an example depends on the others in its batch.
    split_by: how a set without splits is divided: by 'image', or by 'class' if classes are people.
  """

  kind: str
  main_metric: str
  headlines: Mapping[str, tuple[str, str]]
  transform: Transform
  needs_labels: bool
  compares_examples: bool
  split_by: str

  def outputs(self, source: Source) -> tuple[int, tuple[str, ...] | None]:
    """Returns the number of outputs of a model trained on `source`, and their names, or None if they have none.

    Raises:
      UserError: if the config does not match the data.
    """

  def check(self, source: Source) -> None:
    """Raises UserError if models cannot be evaluated on `source`. Called before training."""

  def measured_against(self, source: Source) -> str:
    """Returns what an evaluation on `source` compares a model with, for a row: 'labels' or, say, "the teacher's decisions"."""

  def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the training loss of each example against the targets in `batch`: (b, outputs) -> (b,)."""

  def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns values per example, (b,), whose means over a dataset are metrics."""

  def kept(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns values per example, (b, ...), that `summary` needs from a whole evaluation."""

  def summary(self, kept: dict[str, np.ndarray], source: Source) -> dict[str, float]:
    """Returns the metrics that are not means over examples. Names with a '/' are left out of the row of a run.

    Raises:
      UserError: if the metrics are undefined.
    """

  def prediction(self, outputs: jax.Array) -> jax.Array:
    """Returns what a trained model predicts: (b, outputs) -> (b, outputs).

    For the kind 'classes' these are the probabilities of a softmax, for 'attributes' those of a sigmoid, for 'vector' vectors
    of unit length, and for 'numbers' the outputs themselves. Exports rely on it.
    """

  def remark(self, evaluation: Mapping[str, float]) -> str:
    """Returns one line with what a person should know about an evaluation besides its headlines, or ''."""

  def details(self, evaluation: Mapping[str, float]) -> str:
    """Returns an evaluation in more detail, as the lines of a table, or '' if there is nothing more."""


def create(config: ml_collections.ConfigDict) -> Task:
  """Returns the task with the name config.task.

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
  """Returns the headline metrics as text, such as 'top-1 72.10%, top-5 90.33%'."""
  return ', '.join(f'{title} {values[name]:{form}}' for name, (title, form) in headlines().items()
                   if isinstance(values.get(name), int | float))  # a row of an earlier version may have null
