"""The durations of a run in steps, what is due when, and what a run is too short for."""

import dataclasses
import math

import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax.errors import counted

# Parts of the running statistics that are their first values. Measured, see docs/checks.md: where they were more than 1 %,
# accuracy was that of chance; with 0.2 to 0.7 % it was half or more of what it was with none. That was with averaged weights,
# whose statistics lag behind a little more.
MOST_OF_FIRST, LEAST_OF_FIRST = 0.01, 1e-4


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


def too_short_for(config: ml_collections.ConfigDict, steps_per_epoch: int) -> list[str]:
  """Returns what a run is too short for, a line each: its warm-up, and the decay of its running statistics.

  A run that starts from another model starts from its statistics, which are none of too few batches.
  """
  model, total = config.model, Durations.of(config, steps_per_epoch).total
  said, length = [], counted(total, 'step')
  warmup = config_lib.steps(config.optim.warmup, 'optim.warmup', steps_per_epoch, config.batch_size)
  if warmup > total:
    said.append(f'optim.warmup={config.optim.warmup!r}: longer than the run of {length}, so the learning rate does not reach '
                f'{config.optim.learning_rate:g}')
  elif warmup == total and config.optim.schedule in config_lib.OVER_THE_RUN:
    said.append(f'optim.warmup={config.optim.warmup!r}: as long as the run of {length}, which leaves none for '
                f'optim.schedule={config.optim.schedule}')
  decay = 0.0 if model.get('freeze_batch_stats') or config.init.model else model.get('batch_norm_decay', 0.0)
  if decay**total >= MOST_OF_FIRST:
    enough = min(math.floor(100 * LEAST_OF_FIRST ** (1 / total)) / 100, 0.99)
    said.append(f'model.batch_norm_decay={decay:g}: after {length}, {decay**total:.0%} of the running statistics are still '
                f'their first values, which may keep accuracy at chance; {enough:g} is low enough')
  return said
