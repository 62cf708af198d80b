"""Evaluations by the real path, with batches and masks, against scikit-learn; and outputs that are not finite.

The network is a table of outputs: every pixel of an image is the number of its row. A case is drawn from its seed, and has
ties, classes without examples, examples that cannot be read, or only one example.
"""

import numpy as np
import pytest
from conftest import random_images, tiny_config
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve, top_k_accuracy_score

from mobilenet_jax import tasks
from mobilenet_jax.data import Pairs, from_images
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.tasks import verification
from mobilenet_jax.training import evaluation, train
from mobilenet_jax.training import run as run_module

ROWS, OUTPUTS = 40, 7
NAMES = tuple('abcdefg')
CASES = range(20)


class Table:
  """A network whose outputs are the rows of a table."""

  @staticmethod
  def apply(variables, images, train):
    return variables['table'][((images[:, 0, 0, 0] + 1) * 127.5).round().astype(int)]


@pytest.fixture(scope='module')
def evaluated():
  """Returns a function that evaluates outputs (n, OUTPUTS) on labels, or on attributes; examples of `unread` have no image."""
  steps = {}

  def evaluate(name, outputs, labels, attributes=None, unread=()):
    config = tiny_config(**{'task': name, 'data.bad_images': 'skip'})
    task = tasks.create(config)
    step = steps.setdefault(name, devices.pmap_evaluation(evaluation.make_eval_step(Table, task, (32, 32))))
    images = [f'/nowhere/{i}.png' if i in unread else np.full((32, 32, 3), i, np.uint8) for i in range(len(outputs))]
    extra = {} if attributes is None else {'attributes': attributes}
    source = from_images(images, labels, OUTPUTS, NAMES, extra, list(map(str, range(len(images)))), {'attributes': NAMES})
    table = np.full((ROWS, OUTPUTS), np.nan, np.float32)
    table[:len(outputs)] = outputs
    found, = evaluation.evaluate([evaluation.Evaluated(task, step, {'table': table})], source, config, lambda error: None)
    return found

  return evaluate


def drawn(seed):
  """Returns outputs, on few levels in every second case, labels, and which examples can be read."""
  rng = np.random.default_rng(seed)
  count = 1 if seed < 2 else int(rng.integers(2, ROWS + 1))
  outputs = rng.integers(0, 4, (count, OUTPUTS)) / 4 if seed % 2 else rng.normal(size=(count, OUTPUTS))
  classes = 1 if seed % 5 == 0 else OUTPUTS - 2  # two never occur
  read = (rng.random(count) < 0.8) | (np.arange(count) == 0)
  return rng, outputs.astype(np.float32), rng.integers(0, classes, count), read


@pytest.mark.parametrize('seed', CASES)
def test_top_k_equals_scikit_learn(seed, evaluated):
  """scikit-learn ranks ties by the number of the class. Here they count against the label, which is lowered a little for it."""
  _, outputs, labels, read = drawn(seed)
  found = evaluated('classification', outputs, labels, unread=set(np.flatnonzero(~read)))
  lowered = outputs.astype(np.float64)
  lowered[np.arange(len(labels)), labels] -= 1e-9
  for k in (1, 5):
    expected = top_k_accuracy_score(labels[read], lowered[read], k=k, labels=range(OUTPUTS))
    assert found[f'top{k}'] == pytest.approx(expected, abs=1e-12)
  assert found['examples'] == read.sum()


@pytest.mark.parametrize('seed', CASES)
def test_mean_average_precision_equals_scikit_learn(seed, evaluated):
  rng, outputs, labels, read = drawn(seed)
  attributes = rng.choice((-1, 0, 1), outputs.shape, p=(0.2, 0.5, 0.3)).astype(np.int32)
  attributes[:, 2], attributes[:, 4], attributes[0, 5] = 0, -1, 1
  found = evaluated('attributes', outputs, labels, attributes, set(np.flatnonzero(~read)))
  expected = {}
  for name, scores, targets in zip(NAMES, outputs[read].T, attributes[read].T):
    known = targets >= 0
    if (targets > 0).any():
      expected[f'ap/{name}'] = average_precision_score(targets[known], scores[known])
  assert {name: value for name, value in found.items() if name.startswith('ap/')} == pytest.approx(expected, abs=1e-12)
  assert found['mean_ap'] == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
  assert found['attributes_counted'] == len(expected) and found['positives/c'] == found['positives/e'] == 0
  attributes[:] = np.minimum(attributes, 0)
  assert 'no attribute has a positive example' in str(evaluated('attributes', outputs, labels, attributes))


@pytest.mark.parametrize('seed', CASES)
def test_verification_equals_scikit_learn(seed):
  """Embeddings on few directions give ties."""
  rng = np.random.default_rng(seed)
  people = np.arange(40) // 4
  embeddings = np.eye(10)[people] + (rng.integers(-1, 2, (40, 10)) if seed % 2 else rng.normal(0, 0.7, (40, 10)))
  embeddings[(embeddings == 0).all(1)] = 1
  first, second = np.triu_indices(40, 1)
  keep = rng.permutation(len(first))[:300]
  first, second = first[keep], second[keep]
  same = people[first] == people[second]
  pairs = Pairs(tuple(map(str, first)), tuple(map(str, second)), same, np.arange(300) % 3)
  found = verification.evaluate(list(map(str, range(40))), embeddings, pairs)
  distances = verification.squared_distances(list(map(str, range(40))), embeddings, pairs)
  far, val, _ = roc_curve(same, -distances, drop_intermediate=False)
  assert found.auc == pytest.approx(roc_auc_score(same, -distances), abs=1e-12)
  for rate in found.validation:
    if rate.false_accepts:
      assert rate.val == pytest.approx(val[far <= rate.far].max(), abs=1e-12)
  assert {f'val_at_{target:g}' for target in verification.FAR_TARGETS if target * (~same).sum() >= 1} == {
      name for name in found.summary() if name.startswith('val_at_')}
  error = found.equal_error_rate  # on the curve, where the two errors are equal
  after = np.argmax(far + val >= 1)
  low, high = (far[after - 1], val[after - 1]), (far[after], val[after])
  part = (1 - sum(low)) / (sum(high) - sum(low))
  assert error == pytest.approx(low[0] + part * (high[0] - low[0]), abs=1e-12)


@pytest.mark.parametrize('value', (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize('name', ('classification', 'attributes'))
def test_outputs_that_are_not_finite_are_counted(name, value, evaluated):
  rng = np.random.default_rng(0)
  outputs, labels = rng.normal(size=(19, OUTPUTS)), rng.integers(0, OUTPUTS, 19)
  outputs[[2, 3, 11, 18], rng.integers(0, OUTPUTS, 4)] = value
  attributes = np.ones((19, OUTPUTS), np.int32)
  found = evaluated(name, outputs, labels, attributes, unread={3})
  assert isinstance(found, UserError) and 'the outputs for 3 of 18 examples' in str(found)
  found = evaluated(name, outputs, labels, attributes, unread={2, 3, 11, 18})
  assert found['examples'] == 15  # what is not counted may be anything
  assert 'none of the examples to evaluate on can be read' in str(
      evaluated(name, outputs, labels, attributes, unread=range(19)))


def test_a_sum_that_float32_cannot_hold_is_an_error(evaluated):
  """The loss of each example is finite."""
  outputs = np.zeros((19, OUTPUTS))
  outputs[:, 1] = 1e38
  assert 'the loss over all examples is inf' in str(evaluated('classification', outputs, np.zeros(19, int)))


def test_an_evaluation_that_is_not_finite_stops_the_run(tiny_model, tmp_path, monkeypatch):
  """The outputs are infinite in evaluation alone, so that the loss shows nothing."""
  variables = run_module.Run._variables

  def overflowing(self):
    found = variables(self)
    head = found['params']['classifier']
    return {**found, 'params': {**found['params'], 'classifier': {**head, 'bias': head['bias'] + np.inf}}}

  monkeypatch.setattr(run_module.Run, '_variables', overflowing)
  with pytest.raises(UserError, match='^evaluation at step 4: the outputs for 20 of 20 examples, .* are not finite'):
    train(tiny_config(), tmp_path, (random_images(40), random_images(20)))
  assert not list((tmp_path / 'checkpoints').iterdir()) and not (tmp_path / 'result.json').exists()
