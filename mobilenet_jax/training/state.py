"""The state of training: what a step changes, and what a checkpoint stores in addition."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections

from mobilenet_jax import models
from mobilenet_jax.data import stream_size
from mobilenet_jax.training import distillation


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: the number of steps done, int32 ().
    params: the parameters of the network, and the learned projection of a distillation.
    batch_stats: the running statistics of batch norm; {} for a network without it.
    opt_state: the state of the optimiser.
    ema: the averages of {'params', 'batch_stats'}; {} if averaging is off.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any

  def variables(self) -> dict:
    """Returns the variables to evaluate: the averages if they are kept."""
    return self.ema or {'params': self.params, 'batch_stats': self.batch_stats}

  def start_with(self, variables: dict) -> 'TrainState':
    """Returns this state with other weights. It must be the state before the first step."""
    return self.replace(**variables, ema=jax.tree.map(jnp.copy, variables) if self.ema else {})


def init_state(rng: jax.Array, model, tx, config: ml_collections.ConfigDict,
               teacher: distillation.Teacher | None = None) -> TrainState:
  """Returns the state before the first step. The parameters do not depend on the image size."""
  image = jnp.zeros((1, *config.data.image_size, 3))
  variables = models.variables_of(model.init(rng, image, train=False))
  stream = (1, *stream_size(config.data), 3)
  params = {**variables['params'],
            **distillation.init_projection(jax.random.fold_in(rng, 1), config, model, teacher, stream)}
  batch_stats = variables['batch_stats']
  # A copy, because a step consumes its state, which must not contain the same buffer twice.
  ema = jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if config.ema_decay else {}
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)


@dataclasses.dataclass
class Progress:
  """How far a run is. A checkpoint stores all of it.

  Attributes:
    step: the number of steps done.
    state: the state on the devices, or on the host while it is on its way to a checkpoint.
    window: the sums of each step since the last log. They stay on the device, because reading one waits for its step.
    pending: whether an evaluation was due when training stopped.
    seconds: the training time before this process.
    skipped: the steps whose batches are left out, ascending.
    extended: each train_for that the run had before, with the step from which it went on with a longer one.
  """

  step: int
  state: TrainState
  window: list = dataclasses.field(default_factory=list)
  pending: bool = False
  seconds: float = 0.0
  skipped: list[int] = dataclasses.field(default_factory=list)
  extended: list[str] = dataclasses.field(default_factory=list)

  @classmethod
  def restored(cls, step: int, state: TrainState, notes: dict) -> 'Progress':
    """Returns the progress that a checkpoint of `step` has stored as its state and its notes."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in ('step', 'state')]
    return cls(step, state, **{name: notes[name] for name in names if name in notes})

  def updates(self) -> int:
    """Returns the number of updates that the optimiser has made."""
    return self.step - sum(step <= self.step for step in self.skipped)

  def steps_in_window(self) -> list[int]:
    """Returns the steps that the sums in the window belong to."""
    done = (step for step in range(self.step, 0, -1) if step not in self.skipped)
    return [step for step, _ in zip(done, self.window)][::-1]
