"""The durations of a run in steps, and what is due when."""

import dataclasses
import math

import ml_collections

from mobilenet_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Durations:
  """The number of steps that a run trains, and between two logs, evaluations and checkpoints; 0: only at the end."""

  total: int
  log: int
  eval: int
  checkpoint: int

  @classmethod
  def of(cls, config: ml_collections.ConfigDict, steps_per_epoch: int) -> 'Durations':
    """Returns those of a complete config."""
    steps = lambda field: config_lib.steps(config[field], field, steps_per_epoch, config.batch_size)
    return cls(steps('train_for'), steps('log_every'), steps('eval_every'), steps('checkpoint_every'))

  def due(self, what: str, step: int) -> bool:
    """Returns whether `what`, which is 'log', 'eval' or 'checkpoint', is due after `step`."""
    every = getattr(self, what)
    return step == self.total or bool(every and step % every == 0)

  def evaluations_after(self, step: int) -> int:
    """Returns the number of evaluations that are due after later steps than `step`. Checkpoints are evaluated, too."""
    multiples = lambda every: (self.total - 1) // every - step // every if every else 0  # without the last step
    both = math.lcm(self.eval, self.checkpoint)  # 0 if one of them is
    in_between = multiples(self.eval) + multiples(self.checkpoint) - multiples(both)
    return max(in_between, 0) + (step < self.total)
