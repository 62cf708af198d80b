"""Training: the training loop, the step, the optimiser, distillation, evaluation and the files of a run.

    loop.py          the only training loop; it trains a group of models
    run.py           one model in the loop: its compiled steps, and when it logs, evaluates, goes back and ends
    inputs.py        what a run is made from besides its config, and whether it is still the same
    run_folder.py    reads and writes the folder of a run
    state.py         what a step changes, and what a checkpoint stores
    step.py          one step; it uses optimizer.py and distillation.py

This module is the interface of the package: other packages import from here.
"""

from mobilenet_jax.training.checks import checked, completed
from mobilenet_jax.training.distillation import Teacher
from mobilenet_jax.training.durations import too_short_for
from mobilenet_jax.training.evaluation import evaluate_trained
from mobilenet_jax.training.inputs import check_inputs, difference, load_inputs, own_data, starting_weights, trained_on
from mobilenet_jax.training.loop import stream, train, train_group
from mobilenet_jax.training.memory import state_bytes, step_bytes
from mobilenet_jax.training.report import described

__all__ = ['Teacher', 'check_inputs', 'checked', 'completed', 'described', 'difference', 'evaluate_trained', 'load_inputs',
           'own_data', 'starting_weights', 'state_bytes', 'step_bytes', 'stream', 'too_short_for', 'train', 'train_group',
           'trained_on']
