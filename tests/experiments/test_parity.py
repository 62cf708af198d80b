"""Training as a whole, beside Keras and TensorFlow: 10 steps from the same weights on the same batches."""

import numpy as np
import pytest

from experiments import parity, parity_sides
from experiments.parity import CASES, faults


def trained(cases, width_multiplier, folder, monkeypatch):
  pytest.importorskip('tensorflow')
  monkeypatch.setenv('XLA_FLAGS', '')  # in float64, programs that are not optimised are slow
  monkeypatch.setenv('GLIBC_TUNABLES', '')
  return faults(*parity.measure([case for case in CASES if case.name in cases], width_multiplier, 10, folder))


def test_ten_steps_equal_tensorflows(tmp_path, monkeypatch):
  """In float64: in float32, rounding switches activations at 0 and 6, which changes the gradients of all layers by percents."""
  keras = pytest.importorskip('keras')

  def run(side, *args):
    if side == parity_sides.OURS:
      return parity_sides.run(side, *args)
    try:
      return parity_sides.train_tensorflow(*args)  # in this process, which may have imported TensorFlow before
    finally:
      keras.config.set_floatx('float32')
      keras.config.set_dtype_policy('float32')

  keras.config.set_dtype_policy('float32')  # as another test may leave it
  monkeypatch.setattr(parity, 'THREADS', (0, 0))
  monkeypatch.setattr(parity, 'run', run)
  assert trained(['float64'], 0.25, tmp_path, monkeypatch) == []


@pytest.mark.slow
def test_ten_steps_of_the_widest_model_equal_tensorflows(tmp_path, monkeypatch):
  """On two devices and in two parts, too, and in float32 within five times the difference between TensorFlow and itself."""
  cases = [case.name for case in CASES if case.name not in ('float32, group of four', 'bfloat16')]
  assert trained(cases, 1.0, tmp_path, monkeypatch) == []


@pytest.mark.parametrize('case, step, ours, tensorflow, wrong', (
    ('float64', 1, 2e-6, 1e-9, True), ('float64', 1, 9e-7, 1e-9, False), ('float32', 10, 6e-3, 1e-3, True),
    ('float32', 10, 4e-3, 1e-3, False), ('float32', 5, 6e-3, 1e-3, False), ('float32, group of four', 50, 1, 0.1, True),
    ('float64', 1, np.nan, 0, True), ('float32, two parts', 10, np.nan, 1, True)))
def test_what_is_not_tolerated(case, step, ours, tensorflow, wrong):
  row = {'case': case, 'step': step, 'layer': 'conv1', 'ours': ours, 'tensorflow': tensorflow}
  assert len(faults([row], {})) == wrong
  losses = {'bfloat16': np.array([1.03, 1.0]), 'tensorflow, float32': np.array([1.0, 1.0])}
  assert len(faults([], losses)) == 0 and len(faults([], {**losses, 'bfloat16': np.array([1.03, 1.03])})) == 1
