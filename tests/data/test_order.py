"""The order of the examples: exact shuffles, and starts by arithmetic."""

import time

import numpy as np
import pytest
from conftest import data_config

from mobilenet_jax.data import from_images, order

CONFIG = data_config()


def source(count, labels=None):
  image = np.zeros((1, 1, 3), np.uint8)
  return from_images([image] * count, np.zeros(count, np.int32) if labels is None else labels, 30)


def epoch(count, seed=0, number=0, batch=1):
  return order.epoch_order(source(count), CONFIG, batch, seed, number)


@pytest.mark.parametrize('count', (1, 2, 7, 1000, 20011))
def test_an_epoch_has_each_example_once(count):
  for number in range(2):
    np.testing.assert_array_equal(np.sort(epoch(count, number=number)), np.arange(count))


def buffered(count, buffer):
  """Returns the order of a shuffle in a buffer, as tf.data does it."""
  rng, held, out = np.random.default_rng(0), list(range(buffer)), []
  for i in range(buffer, count):
    k = rng.integers(buffer)
    out.append(held[k])
    held[k] = i
  return np.array(out + list(rng.permutation(held)))


def rank_scores(found):
  """Returns how far an order is from chance, in standard deviations: rank correlation with the order in the file, and the
  mean distance in the order between neighbours in the file."""
  count = len(found)
  places = np.argsort(found)
  correlation = np.corrcoef(places, np.arange(count))[0, 1] * np.sqrt(count - 1)
  # The distance between two random places has mean n/3 and variance n^2/18.
  distance = (np.abs(np.diff(places)).mean() - count / 3) / (count / np.sqrt(18 * (count - 1)))
  return abs(correlation), abs(distance)


def test_neighbours_in_the_file_are_as_far_apart_as_chance_has_it():
  for seed in range(5):
    assert max(rank_scores(epoch(50000, seed))) < 4.5
  correlation, distance = rank_scores(buffered(50000, 16384))
  assert correlation > 20 and distance > 20  # a shuffle in a buffer fails


def test_orders_of_epochs_and_of_seeds_are_uncorrelated():
  count = 20000
  orders = {(seed, number): np.argsort(epoch(count, seed, number)) for seed in range(4) for number in range(4)}
  found = list(orders.values())
  for i, a in enumerate(found):
    for b in found[i + 1:]:
      assert abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(count - 1) < 4.5
      assert (a == b).sum() < 12  # fixed points are Poisson distributed with mean 1: also if seed and epoch are exchanged


def test_what_is_random_about_an_example_depends_on_seed_epoch_and_example_only():
  draws = {key: order.generator(*key).random(3).tolist() for key in
           ((seed, number, example) for seed in range(6) for number in range(6) for example in range(6))}
  assert len({tuple(draw) for draw in draws.values()}) == 6**3
  assert order.generator(1, 2, 3).random(3).tolist() == draws[1, 2, 3]
  firsts = np.array([draws[key][0] for key in draws])
  assert abs(firsts.mean() - 0.5) < 0.1 and order.generator(1, 2, 0).random() != np.random.default_rng((1, 1, 2)).random()


def test_identities_come_in_groups_each_image_once_before_any_comes_again():
  labels = np.repeat(np.arange(30), np.arange(30) % 7 + 1).astype(np.int32)
  people = source(len(labels), labels)
  config = data_config(per_identity=3)
  found = order.epoch_order(people, config, 12, 0, 0)
  groups = found.reshape(-1, 3)
  assert len(found) == len(labels) // 12 * 12
  assert (labels[groups] == labels[groups[:, :1]]).all() and all(len(set(group)) == 3 for group in groups.tolist())
  possible = sum(count // 3 for count in np.bincount(labels))
  assert len({tuple(group) for group in groups.tolist()}) == min(possible, len(groups))


@pytest.mark.slow
def test_a_million_examples_are_ordered_in_no_time():
  many = from_images(np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1281167, 1, 1, 3)), np.zeros(1281167, np.int32), 1,
                     ids=range(1281167))
  started = time.monotonic()
  assert len(order.epoch_order(many, CONFIG, 256, 0, 89)) == 1281167
  assert time.monotonic() - started < 2
