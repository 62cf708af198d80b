"""Checkpoints of a run: the two newest and the best. This is the only module that uses Orbax."""

import contextlib
import json
import shutil
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import plain_path
from mobilenet_jax.storage.run_files import CHECKPOINTS as FOLDER
from mobilenet_jax.storage.run_files import newest_checkpoint

CHECKSUM = 'crc32'  # its name in the notes
DISK_MARGIN = 1.2, 2**20  # factor on the size of the arrays, and extra bytes: Orbax writes its own notes beside them
FULL_DISK_ADVICE = ('the checkpoint was not written, older ones are intact; free some space and start the same '
                    'command again')


class Checkpoints:
  """The checkpoints in one folder. They are written in the background, whole or not at all."""

  def __init__(self, folder: Path, metric: str, say: Callable[[str], None] = print):
    """Opens the folder, or creates it.

    Args:
      folder: the folder of the checkpoints.
      metric: the evaluation metric whose highest value is best.
      say: takes a line about each damaged checkpoint.
    """
    policy = preservation_policy.AnyPreservationPolicy([
        preservation_policy.LatestN(2),  # if the newest is damaged, the one before is used
        preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[metric], n=1, keep_checkpoints_without_metrics=False),
    ])
    # best_fn makes Orbax write the metrics too, so that the best checkpoint is known after a restart.
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics[metric], preservation_policy=policy, **_ALONE)
    self._folder, self._say = folder.resolve(), say
    self._folder.mkdir(parents=True, exist_ok=True)
    _drop_damaged_metrics(self._folder, say)
    self._closing = contextlib.ExitStack()
    path = self._closing.enter_context(plain_path(self._folder))
    self._manager = ocp.CheckpointManager(path, options=options)

  def save(self, step: int, state, metrics: dict[str, float] | None, notes: dict) -> None:
    """Writes a checkpoint. A checkpoint of the same step is replaced only if it has no metrics and the new one has some.

    Args:
      step: the number of the step.
      state: a tree of arrays.
      metrics: the metrics of the step's evaluation; None if it was not evaluated.
      notes: values that JSON can represent, stored beside the state.

    Raises:
      UserError: if the disk is full. Older checkpoints stay intact.
    """
    there = step in self._manager.all_steps()
    if there and (metrics is None or self._manager.metrics(step)):
      return
    state = jax.device_get(state)  # so that a checkpoint does not depend on the number of devices
    size = DISK_MARGIN[0] * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + DISK_MARGIN[1]
    free = shutil.disk_usage(self._folder).free
    if free < size:  # checked first, because Orbax's threads flood stderr once a write has failed
      raise UserError(f'the disk is full: {self._folder} has {free / 2**20:.0f} MiB left, a checkpoint takes '
                      f'up to {size / 2**20:.0f} MiB; {FULL_DISK_ADVICE}')
    with _full_disk_as_user_error():
      if there:  # written by a stop before the evaluation; a kill between this deletion and the save loses only this one
        self._manager.delete(step)
      self._manager.save(step, args=_to_save(state, notes), metrics=metrics)

  def restore(self, like):
    """Returns (step, state, notes) of the newest intact checkpoint; None if there is no checkpoint.

    Damaged checkpoints that are newer are reported and moved to the folder `damaged` beside this one.

    Args:
      like: a tree with the expected shapes and types.

    Raises:
      UserError: if all checkpoints are damaged.
    """
    self._manager.wait_until_finished()
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
    steps = self.steps()
    if not steps:
      return None
    step, state, notes = _newest_whole(self._manager, self._folder, ocp.args.StandardRestore(like), self._say)
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
    """Waits for pending writes and closes the folder."""
    with self._closing, _full_disk_as_user_error():
      self._manager.wait_until_finished()
      self._manager.close()


# A host opens a folder on its own. Without these options Orbax would wait for all hosts.
_ALONE = {'create': False, 'multiprocessing_options': ocp.options.MultiprocessingOptions(
    active_processes={0}, barrier_sync_key_prefix='first_host')}


class _Damaged(Exception):
  pass


def _to_save(state, notes):
  return ocp.args.Composite(state=ocp.args.StandardSave(state),
                            notes=ocp.args.JsonSave({**notes, CHECKSUM: checksum(state)}))


def _newest_whole(manager, folder, state_args, say) -> tuple:
  """Returns (step, state, notes) of the newest intact checkpoint, and reports damaged ones that are newer.

  Raises:
    UserError: if all checkpoints are damaged.
  """
  damaged = False
  for step in sorted(manager.all_steps(), reverse=True):
    try:
      found = _read(manager, step, state_args)
    except _Damaged as error:
      damaged = True
      say(f'the checkpoint of step {step} is damaged ({error})')
      continue
    if damaged:
      say(f'using the checkpoint of step {step} instead')
    return step, *found
  raise UserError(f'{folder}: none of the checkpoints can be read; to start the run anew, remove this folder')


def _read(manager, step, state_args) -> tuple:
  """Returns (state, notes), checked against the checksum in the notes if there is one."""
  try:
    restored = manager.restore(step, args=ocp.args.Composite(state=state_args, notes=ocp.args.JsonRestore()))
  except MemoryError:
    raise
  except Exception as error:  # from Orbax, TensorStore or json, depending on the file
    raise _Damaged(f'{type(error).__name__}: {textwrap.shorten(str(error), 100, placeholder=" ...")}') from error
  found, notes = checksum(restored.state), dict(restored.notes)
  if notes.pop(CHECKSUM, found) != found:
    raise _Damaged('its content differs from what was written')
  return restored.state, notes


def checksum(tree) -> int:
  """Returns the sum of the CRC-32 of each array, in any order. TensorStore does not detect flipped bits."""
  return sum(zlib.crc32(np.ascontiguousarray(leaf)) for leaf in jax.tree.leaves(tree)) % 2**32


def _drop_damaged_metrics(folder, say):
  """Removes the metrics of checkpoints if they are damaged.

  Orbax does not open a folder in which the metrics of one checkpoint are damaged. Without metrics, a checkpoint just cannot
  be the best.
  """
  for path in _damaged_metrics(folder):
    say(f'{path}: damaged and removed; the metrics of step {path.parent.parent.name} are unknown')
    path.unlink()


def _damaged_metrics(folder) -> list[Path]:
  found = []
  for path in folder.glob('*/metrics/metrics'):
    try:
      json.loads(path.read_bytes())
    except ValueError:
      found.append(path)
  return found


def write_model(folder: Path, variables: dict, notes: dict) -> None:
  """Writes {'params', 'batch_stats'} as the only checkpoint of a folder, for `read_model`.

  A model that is there is removed once the new one is written, which holds its own config: at any moment there is one of the
  two, or both, of which `read_model` takes the new one.
  """
  state = {**jax.device_get(variables), 'ema': {}}
  (folder / FOLDER).mkdir(parents=True, exist_ok=True)
  options = ocp.CheckpointManagerOptions(max_to_keep=1, **_ALONE)
  with (plain_path(folder / FOLDER) as path, ocp.CheckpointManager(path, options=options) as manager,
        _full_disk_as_user_error()):
    manager.save(newest_checkpoint(folder) + 1, args=_to_save(state, notes))


def read_model(folder: Path, step: int | None = None, averaged: bool = True) -> tuple[dict, dict]:
  """Reads the variables to evaluate from a checkpoint of a run or an imported model.

  Args:
    folder: the folder of the run or the model.
    step: the step of the checkpoint; None for the newest intact one.
    averaged: whether to take the averages of the variables, if averages are kept.

  Returns:
    {'params', 'batch_stats'}, and the notes.

  Raises:
    UserError: as in `read`.
  """
  state, notes = read(folder, step)
  return averaged and state['ema'] or {name: state[name] for name in ('params', 'batch_stats')}, notes


def read(folder: Path, step: int | None = None) -> tuple[dict, dict]:
  """Returns the whole state in a checkpoint of a run, as nested dicts, and its notes.

  Args:
    folder: the folder of the run.
    step: the step of the checkpoint; None for the newest intact one.

  Raises:
    UserError: if there is no checkpoint, or it or all of them cannot be read.
  """
  if not (folder / FOLDER).is_dir():
    raise UserError(f'{folder}: no checkpoint in this folder; expected a run that has written one')
  if damaged := _damaged_metrics(folder / FOLDER):
    raise UserError(f'{damaged[0]}: damaged; remove it, which loses only whether this checkpoint is the best')
  options, like = ocp.CheckpointManagerOptions(**_ALONE), ocp.args.StandardRestore()
  with plain_path(folder / FOLDER) as path, ocp.CheckpointManager(path, options=options) as manager:
    if not manager.all_steps():
      raise UserError(f'{folder}: no checkpoint in this folder yet; expected a run that has written one')
    if step is None:
      return _newest_whole(manager, folder / FOLDER, like, lambda text: print(f'{folder}: {text}', file=sys.stderr))[1:]
    try:
      return _read(manager, step, like)
    except _Damaged as error:
      raise UserError(f'{folder}: the checkpoint of step {step} is damaged ({error}); choose another one') from error


@contextlib.contextmanager
def _full_disk_as_user_error():
  try:
    yield
  except Exception as error:
    if 'No space left on device' in str(error):  # TensorStore raises the system's message as a ValueError
      raise UserError(f'the disk is full; {FULL_DISK_ADVICE}') from error
    raise
