"""Checkpoints of a run: the newest and the best. The only file that knows Orbax."""

import contextlib
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mobilenet_jax.errors import UserError

FOLDER = 'checkpoints'  # in a run's folder
DISK_MARGIN = 1.2  # of a checkpoint's arrays: Orbax writes its own notes beside them
FULL_DISK_ADVICE = ('the checkpoint was not written, older ones are intact: free some space and start the same '
                    'command again')


class Checkpoints:
  """The checkpoints in one folder, written in the background; whole or not at all."""

  def __init__(self, folder: Path, metric: str):
    """Opens the folder, or makes it; `metric` is the evaluation metric whose highest value is best."""
    policy = preservation_policy.AnyPreservationPolicy([
        preservation_policy.LatestN(1),
        preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[metric], n=1, keep_checkpoints_without_metrics=False),
    ])
    options = ocp.CheckpointManagerOptions(preservation_policy=policy)
    self._folder = folder.resolve()
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def save(self, step: int, state, metrics: dict[str, float], notes: dict) -> None:
    """Writes a tree of arrays, with JSON-able `notes` beside it. A step already there is left as it is.

    Raises:
      UserError: where the disk is full. What was written before stays.
    """
    if step in self._manager.all_steps():
      return
    state = jax.device_get(state)  # so that a checkpoint does not remember how many devices there were
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(self._folder).free
    if free < size * DISK_MARGIN:  # asked before: once a write has failed, Orbax's threads cover stderr with it
      raise UserError(f'the disk is full: {self._folder} has {free / 2**20:.0f} MiB left, a checkpoint takes '
                      f'{size / 2**20:.0f}; {FULL_DISK_ADVICE}')
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
    with _full_disk_as_user_error():
      self._manager.save(step, args=args, metrics=metrics)

  def restore(self, like):
    """(step, state, notes) of the newest checkpoint; None where there is none.

    Args:
      like: a tree with the shapes and types that are expected.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), notes=ocp.args.JsonRestore())
    restored = self._manager.restore(step, args=args)
    return step, restored.state, restored.notes

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def close(self) -> None:
    """Waits for what is being written."""
    with _full_disk_as_user_error():
      self._manager.wait_until_finished()
      self._manager.close()


def write_model(folder: Path, variables: dict, notes: dict) -> None:
  """Writes {'params', 'batch_stats'} as the only checkpoint of a folder, as `read_model` reads it."""
  state = {**jax.device_get(variables), 'ema': {}}
  args = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
  with ocp.CheckpointManager((folder / FOLDER).resolve()) as manager, _full_disk_as_user_error():
    manager.save(0, args=args)


def read_model(folder: Path) -> tuple[dict, dict]:
  """What to evaluate of the newest checkpoint of a run or an imported model, and its notes.

  Returns:
    {'params', 'batch_stats'}, the averaged ones where they are kept; notes.

  Raises:
    UserError: where there is no checkpoint, or it cannot be read.
  """
  if not (folder / FOLDER).is_dir():
    raise UserError(f'{folder}: no checkpoint in this folder; expected a run that has written one')
  with ocp.CheckpointManager((folder / FOLDER).resolve()) as manager:
    step = manager.latest_step()
    if step is None:
      raise UserError(f'{folder}: no checkpoint in this folder yet; expected a run that has written one')
    try:
      args = ocp.args.Composite(state=ocp.args.StandardRestore(), notes=ocp.args.JsonRestore())
      restored = manager.restore(step, args=args)
    except (OSError, ValueError, KeyError) as error:
      raise UserError(f'{folder}: its checkpoint of step {step} cannot be read ({str(error).splitlines()[0]})') from error
  state = restored.state
  return state['ema'] or {name: state[name] for name in ('params', 'batch_stats')}, restored.notes


@contextlib.contextmanager
def _full_disk_as_user_error():
  try:
    yield
  except Exception as error:
    if 'No space left on device' in str(error):  # TensorStore puts the system's words into a ValueError
      raise UserError(f'the disk is full; {FULL_DISK_ADVICE}') from error
    raise
