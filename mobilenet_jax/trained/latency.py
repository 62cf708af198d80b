"""Measures the latency of networks on this machine, for one image."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import ml_collections

from mobilenet_jax import config as config_lib
from mobilenet_jax import models
from mobilenet_jax.runtime import devices

NUM_CLASSES = 1000
ROUNDS, TURN_CALLS, TURN_SECONDS = 10, 2, 0.05  # at least 20 calls and 0.5 s for each network


def measure_latency(networks: list[tuple[ml_collections.ConfigDict, tuple[int, int]]]) -> list[float]:
  """Returns the milliseconds of a forward pass for one image: the median of many calls, one value per network.

  The networks take turns, so that a drift in the speed of the machine affects all of them alike. They have random weights
  and NUM_CLASSES classes. Batch norm is folded if models.can_fold.

  Args:
    networks: for each network, the `model` section of a config, and the height and width of the input.
  """
  def initialize(config):
    model = models.create(config, NUM_CLASSES)
    images = jnp.zeros((1, config_lib.MIN_SIZE, config_lib.MIN_SIZE, 3))
    variables = devices.run_once(lambda rng: models.variables_of(model.init(rng, images, train=False)), jax.random.key(0))
    predict, weights = models.fold(model, variables)
    return functools.partial(jax.jit(predict), weights)

  def prepare(network):
    config, size = network
    image = jax.random.uniform(jax.random.key(1), (1, *size, 3), minval=-1)
    call = functools.partial(initialized[config.to_json()], image)
    jax.block_until_ready(call())
    return call

  different = {config.to_json(): config for config, _ in networks}  # the weights do not depend on the resolution
  initialized = dict(zip(different, devices.at_once(initialize, list(different.values()))))
  calls = devices.at_once(prepare, networks)
  times = [[] for _ in networks]
  for _ in range(ROUNDS):
    for call, mine in zip(calls, times):
      jax.block_until_ready(call())  # not timed, because the caches hold the weights of the others
      turn = []
      while len(turn) < TURN_CALLS or sum(turn) < TURN_SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(call())
        turn.append(time.perf_counter() - start)
      mine += turn
  return [1e3 * statistics.median(mine) for mine in times]
