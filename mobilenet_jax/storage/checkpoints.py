"""Checkpoints of a run: the two newest and the best. The only file that knows Orbax."""

import contextlib
import json
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.run_files import CHECKPOINTS as FOLDER

CHECKSUM = 'crc32'  # in the notes
DISK_MARGIN = 1.2, 2**20  # of a checkpoint's arrays, and bytes: Orbax writes its own notes beside them
FULL_DISK_ADVICE = ('the checkpoint was not written, older ones are intact: free some space and start the same '
                    'command again')


class Checkpoints:
  """The checkpoints in one folder, written in the background; whole or not at all."""

  def __init__(self, folder: Path, metric: str, say: Callable[[str], None] = print):
    """Opens the folder, or makes it.

    Args:
      folder: of the checkpoints.
      metric: the evaluation metric whose highest value is best.
      say: takes a line on each checkpoint that is damaged.
    """
    policy = preservation_policy.AnyPreservationPolicy([
        preservation_policy.LatestN(2),  # the one before takes the place of a damaged one
        preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[metric], n=1, keep_checkpoints_without_metrics=False),
    ])
    # best_fn has Orbax write the metrics, too, so that the best one is known again after a restart.
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics[metric], preservation_policy=policy, **_ALONE)
    self._folder, self._say = folder.resolve(), say
    self._folder.mkdir(parents=True, exist_ok=True)
    _drop_damaged_metrics(self._folder, say)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def save(self, step: int, state, metrics: dict[str, float] | None, notes: dict) -> None:
    """Writes a tree of arrays, with JSON-able `notes` beside it; a step that is there already only if it has no metrics.

    Args:
      step: its number.
      state: the tree.
      metrics: of its evaluation, None where it had none.
      notes: beside it.

    Raises:
      UserError: where the disk is full. What was written before stays.
    """
    there = step in self._manager.all_steps()
    if there and (metrics is None or self._manager.metrics(step)):
      return
    state = jax.device_get(state)  # so that a checkpoint does not remember how many devices there were
    size = DISK_MARGIN[0] * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + DISK_MARGIN[1]
    free = shutil.disk_usage(self._folder).free
    if free < size:  # asked before: once a write has failed, Orbax's threads cover stderr with it
      raise UserError(f'the disk is full: {self._folder} has {free / 2**20:.0f} MiB left, a checkpoint takes '
                      f'up to {size / 2**20:.0f}; {FULL_DISK_ADVICE}')
    with _full_disk_as_user_error():
      if there:  # from a stop before its evaluation; a kill before the next line costs this one checkpoint
        self._manager.delete(step)
      self._manager.save(step, args=_to_save(state, notes), metrics=metrics)

  def restore(self, like):
    """(step, state, notes) of the newest checkpoint that is whole; None where there is none.

    Damaged ones that are newer are said and moved to the folder `damaged` beside this one.

    Args:
      like: a tree with the shapes and types that are expected.

    Raises:
      UserError: where all are damaged.
    """
    self._manager.wait_until_finished()
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
    steps = self.steps()
    if not steps:
      return None
    step, state, notes = _newest_whole(self._manager, ocp.args.StandardRestore(like), self._say)
    for newer in steps[steps.index(step) + 1:]:
      self._set_aside(newer)
    return step, state, notes

  def _set_aside(self, step):
    aside = self._folder.with_name('damaged') / str(step)
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    (self._folder / str(step)).rename(aside)
    self._manager.reload()

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def close(self) -> None:
    """Waits for what is being written."""
    with _full_disk_as_user_error():
      self._manager.wait_until_finished()
      self._manager.close()


# Whoever opens a folder does so by itself: among several hosts Orbax would wait for all of them.
_ALONE = {'create': False, 'multiprocessing_options': ocp.options.MultiprocessingOptions(
    active_processes={0}, barrier_sync_key_prefix='first_host')}


class _Damaged(Exception):
  pass


def _to_save(state, notes):
  return ocp.args.Composite(state=ocp.args.StandardSave(state),
                            notes=ocp.args.JsonSave({**notes, CHECKSUM: checksum(state)}))


def _newest_whole(manager, state_args, say) -> tuple:
  """(step, state, notes) of the newest checkpoint that is whole; says which newer ones are damaged.

  Raises:
    UserError: where all are.
  """
  for step in sorted(manager.all_steps(), reverse=True):
    try:
      return step, *_read(manager, step, state_args)
    except _Damaged as error:
      say(f'the checkpoint of step {step} is damaged ({error})')
  raise UserError(f'{manager.directory}: none of its checkpoints can be read; without this folder the run would start anew')


def _read(manager, step, state_args) -> tuple:
  """(state, notes), checked against the checksum that was written with them, where one was."""
  try:
    restored = manager.restore(step, args=ocp.args.Composite(state=state_args, notes=ocp.args.JsonRestore()))
  except MemoryError:
    raise
  except Exception as error:  # of Orbax, TensorStore or json, depending on the file
    raise _Damaged(f'{type(error).__name__}: {" ".join(str(error).split())[:100]}') from error
  found, notes = checksum(restored.state), dict(restored.notes)
  if notes.pop(CHECKSUM, found) != found:
    raise _Damaged('its content is not what was written')
  return restored.state, notes


def checksum(tree) -> int:
  """The sum of each array's CRC-32, in whatever order: TensorStore does not notice a bit that flips in them."""
  return sum(zlib.crc32(np.ascontiguousarray(leaf)) for leaf in jax.tree.leaves(tree)) % 2**32


def _drop_damaged_metrics(folder, say):
  """Orbax opens no folder in which the metrics of one checkpoint are damaged; without them it is only not the best."""
  for path in folder.glob('*/metrics/metrics'):
    try:
      json.loads(path.read_text())
    except ValueError:
      say(f'{path}: damaged, and left out: of step {path.parent.parent.name} it is not known how good it is')
      path.unlink()


def write_model(folder: Path, variables: dict, notes: dict) -> None:
  """Writes {'params', 'batch_stats'} as the only checkpoint of a folder, as `read_model` reads it."""
  state = {**jax.device_get(variables), 'ema': {}}
  with ocp.CheckpointManager((folder / FOLDER).resolve()) as manager, _full_disk_as_user_error():
    manager.save(0, args=_to_save(state, notes))


def read_model(folder: Path) -> tuple[dict, dict]:
  """What to evaluate of the newest checkpoint of a run or an imported model, and its notes; errors as `read_newest`.

  Returns:
    {'params', 'batch_stats'}, the averaged ones where they are kept; notes.
  """
  state, notes = read_newest(folder)
  return state['ema'] or {name: state[name] for name in ('params', 'batch_stats')}, notes


def read_newest(folder: Path) -> tuple[dict, dict]:
  """All of the newest checkpoint of a run, as nested dicts, and its notes; where that is damaged, of the one before.

  Raises:
    UserError: where there is no checkpoint, or none can be read.
  """
  if not (folder / FOLDER).is_dir():
    raise UserError(f'{folder}: no checkpoint in this folder; expected a run that has written one')
  with ocp.CheckpointManager((folder / FOLDER).resolve(), options=ocp.CheckpointManagerOptions(**_ALONE)) as manager:
    if not manager.all_steps():
      raise UserError(f'{folder}: no checkpoint in this folder yet; expected a run that has written one')
    _, state, notes = _newest_whole(manager, ocp.args.StandardRestore(),
                                    lambda text: print(f'{folder}: {text}', file=sys.stderr))
  return state, notes


@contextlib.contextmanager
def _full_disk_as_user_error():
  try:
    yield
  except Exception as error:
    if 'No space left on device' in str(error):  # TensorStore puts the system's words into a ValueError
      raise UserError(f'the disk is full; {FULL_DISK_ADVICE}') from error
    raise
