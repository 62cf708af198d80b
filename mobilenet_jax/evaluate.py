"""Evaluation: every example exactly once.

    python -m mobilenet_jax.evaluate mobilenet_0.25_128 --data=folder:/imagenet/val [--json]
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax import metrics, parallel, tasks, trained
from mobilenet_jax.data import pipeline, preprocessing, sources
from mobilenet_jax.data.sources import Source
from mobilenet_jax.trained import TrainedModel


def make_eval_step(model, task, image_size: tuple[int, int], outputs: np.ndarray | None = None) -> Callable:
  """step({'params', 'batch_stats'}, batch) -> sums and count over all devices; maps with pmap_evaluation.

  `outputs` says which output stands for each label, where it is another one.
  """
  def eval_step(variables, batch):
    if outputs is not None:
      batch = {**batch, 'label': jnp.asarray(outputs)[batch['label']]}
    logits = model.apply(variables, preprocessing.normalize(batch['image'], image_size), train=False)
    return jax.lax.psum(metrics.sums(task.metrics(logits, batch), batch['mask']), parallel.AXIS)

  return eval_step


def evaluate(models: Sequence[tuple[Callable, dict]], source: Source, config: ml_collections.ConfigDict,
             on_bad_image: Callable[[str], None]) -> list[dict[str, float]]:
  """The task's metrics of each model over all of `source`, which is read once.

  Args:
    models: of each, its step as from make_eval_step, compiled, and {'params', 'batch_stats'}.
    source: what to evaluate on.
    config: a whole config, whose data and eval_batch_size hold for all.
    on_bad_image: see pipeline.eval_batches.

  Returns:
    For each model the means, and 'examples': how many were counted: all, but for images that could not be decoded
    where data.bad_images is 'skip'.
  """
  skipped = []

  def skip(name):
    skipped.append(name)
    on_bad_image(name)

  means = [metrics.Mean() for _ in models]
  batches = pipeline.eval_batches(source, config.data, config.eval_batch_size, skip)
  for batch in parallel.split_ahead(batches):
    sums = [eval_step(variables, batch) for eval_step, variables in models]
    for mean, values in zip(means, sums):
      mean.add(values)
  for mean in means:
    assert mean.count + len(skipped) == source.num_examples, (mean.count, len(skipped), source.num_examples)
  return [{**mean.compute(), 'examples': mean.count} for mean in means]


def evaluate_trained(models: Sequence[TrainedModel], source: Source, config: ml_collections.ConfigDict,
                     on_bad_image: Callable[[str], None]) -> list[dict[str, float]]:
  """As `evaluate`, for trained models of one preprocessing, whose classes are matched with those of `source`."""
  steps = []
  for model in models:
    task = tasks.create(model.config, model.num_classes)
    step = make_eval_step(model.module, task, model.config.data.image_size, model.outputs_of(source))
    steps.append((parallel.pmap_evaluation(step), model.variables))
  return evaluate(steps, source, config, on_bad_image)


def main(args: argparse.Namespace) -> None:
  model = trained.load(args.model)
  config = config_lib.changed(model.config, {
      'eval_batch_size': args.batch, **({'data.name': args.data} if args.data else {}),
      **({'data.eval_split': args.split} if args.split else {}), 'data.data_dir': args.data_dir})
  parallel.check_divisible('--batch', args.batch)
  # Of its own data a model is asked what it has not been trained on; of other data, all there is.
  source = sources.keep_in_memory(sources.load_whole(config.data) if args.data else sources.load(config.data)[1])
  means, = evaluate_trained([model], source, config, lambda name: print(f'skipping {name}', file=sys.stderr))
  if args.json:
    print(json.dumps({'model': args.model, 'data': config.data.name, **means}))
  else:
    print(f'{args.model} on {config.data.name}: top-1 {means["top1"]:.2%}, top-5 {means["top5"]:.2%}, loss '
          f'{means["loss"]:.4f}, {means["examples"]:,} examples')


if __name__ == '__main__':
  parser = cli.Parser(__doc__)
  parser.add_argument('model', help='a run folder, a file of published weights, or the name of a published model')
  parser.add_argument('--data', default='', help='a TFDS name, folder:/path or npz:/path; by default the held-out part '
                      'of what the model was trained on')
  parser.add_argument('--split', default='', help="split of the data; by default the model's own")
  parser.add_argument('--data_dir', default='', help='where TFDS data is')
  parser.add_argument('--batch', type=int, default=100, help='images at once; changes no result')
  parser.add_argument('--json', action='store_true', help='print one JSON object')
  cli.run_with(parser, main)
