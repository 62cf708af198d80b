"""One run: the training loop, the step, the optimiser, distillation, evaluation, what a run writes.

    loop.py          train: the only training loop, over a group of models
    run.py           one model in it: its compiled steps, and when it logs, evaluates, goes back and ends
    run_folder.py    what a run writes, and finds when it is started again
    state.py         what a step changes, and what a checkpoint keeps
    step.py          one step; optimizer.py and distillation.py are its parts

This module is the door of the room: other rooms import from here.
"""

from mobilenet_jax.training.checks import checked
from mobilenet_jax.training.distillation import Teacher
from mobilenet_jax.training.evaluation import evaluate_trained
from mobilenet_jax.training.loop import stream, train, train_group
from mobilenet_jax.training.memory import state_bytes, step_bytes
from mobilenet_jax.training.report import described, duration

__all__ = ['Teacher', 'checked', 'described', 'duration', 'evaluate_trained', 'state_bytes', 'step_bytes', 'stream', 'train',
           'train_group']
