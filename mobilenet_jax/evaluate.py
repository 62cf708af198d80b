"""Evaluation: every example exactly once.

    python -m mobilenet_jax.evaluate mobilenet_0.25_128 --data=folder:/imagenet/val [--json]
"""

from mobilenet_jax import cli  # first: it quietens what the others import

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mobilenet_jax import config as config_lib
from mobilenet_jax import distill, metrics, parallel, report, tasks, trained
from mobilenet_jax.data import pipeline, preprocessing, sources
from mobilenet_jax.data.sources import Source
from mobilenet_jax.errors import UserError
from mobilenet_jax.trained import TrainedModel


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """A model to evaluate.

  Attributes:
    task: see tasks.
    step: as from make_eval_step, compiled or mapped with pmap_evaluation.
    variables: {'params', 'batch_stats'}.
    teacher_variables: of the teacher whose outputs are compared, {} without.
  """

  task: object
  step: Callable
  variables: dict
  teacher_variables: dict = dataclasses.field(default_factory=dict)


def make_eval_step(model, task, image_size: tuple[int, int], outputs: np.ndarray | None = None,
                   teacher: distill.Teacher | None = None) -> Callable:
  """step({'params', 'batch_stats'}, batch, teacher's variables) -> (sums and count over all devices, what `task` keeps).

  `outputs` says which output stands for each label, where it is another one.
  """
  def eval_step(variables, batch, teacher_variables):
    if outputs is not None:
      batch = {**batch, 'label': jnp.asarray(outputs)[batch['label']]}
    batch, _ = distill.add_outputs(batch, teacher, teacher_variables)
    found = model.apply(variables, preprocessing.normalize(batch['image'], image_size), train=False)
    sums = jax.lax.psum(metrics.sums(task.metrics(found, batch), batch['mask']), parallel.AXIS)
    return sums, task.kept(found, batch)

  return eval_step


def evaluate(models: Sequence[Evaluated], source: Source, config: ml_collections.ConfigDict,
             on_bad_image: Callable[[str], None],
             on_stall: Callable[[float], None] = lambda seconds: None,
             stop: Callable[[], bool] = lambda: False) -> list[dict[str, float] | UserError]:
  """The task's metrics of each model over all of `source`, which is read once.

  Args:
    models: what to evaluate.
    source: what to evaluate on.
    config: a whole config, whose data and eval_batch_size hold for all.
    on_bad_image, on_stall: see pipeline.train_batches.
    stop: whether a stop is wanted; where it is, nothing is evaluated to its end.

  Returns:
    For each model the means, the task's summary, and 'examples': how many were counted: all, but for images that could
    not be decoded where data.bad_images is 'skip'. Or the error that its outputs cannot be summed up. [] after a stop.
  """
  means, kept = [metrics.Mean() for _ in models], [[] for _ in models]
  skipped = []

  def skip(name):
    skipped.append(name)
    on_bad_image(name)

  batches = pipeline.eval_batches(source, config.data, config.eval_batch_size, skip, on_stall=on_stall, stop=stop)
  for batch in parallel.split_ahead(batches):
    if stop():
      return []
    results = [model.step(model.variables, batch, model.teacher_variables) for model in models]
    counted = parallel.join(batch['mask']) > 0 if any(values for _, values in results) else None
    for mean, rows, (sums, values) in zip(means, kept, results):
      mean.add(sums)
      rows.append({name: part[counted] for name, part in parallel.join(values).items()})
  if stop():
    return []
  said = parallel.over_hosts(len(skipped))  # a record that is damaged for several hosts is said by each
  for mean in means:
    assert 0 <= source.num_examples - mean.count <= said, (mean.count, said, source.num_examples)
  evaluations = []
  for model, mean, rows in zip(models, means, kept):
    whole = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}
    try:
      evaluations.append({**mean.compute(), **model.task.summary(whole, source), 'examples': mean.count})
    except UserError as error:
      evaluations.append(error)
  return evaluations


def evaluate_trained(models: Sequence[TrainedModel], source: Source, config: ml_collections.ConfigDict,
                     on_bad_image: Callable[[str], None]) -> list[dict[str, float]]:
  """As `evaluate`, for trained models of one preprocessing, whose classes are matched with those of `source`."""
  evaluated, model = [], models[0]
  if model.config.data.recorded:
    source = distill.selected(source, model.num_classes, model.labels)
  for model in models:
    task = tasks.create(model.config)
    outputs = model.outputs_of(source) if model.config.task == 'classification' else None
    if model.config.task == 'attributes' and (names := task.outputs(source)[1]) != model.labels:
      raise UserError(f'{model.origin}: knows the attributes {trained.some(model.labels)}, the data {trained.some(names)}; '
                      'expected data of the same ones')
    step = make_eval_step(model.module, task, model.config.data.image_size, outputs)
    evaluated.append(Evaluated(task, parallel.pmap_evaluation(step), model.variables))
  evaluations = evaluate(evaluated, source, config, on_bad_image)
  for evaluation in evaluations:
    if isinstance(evaluation, UserError):
      raise evaluation
  return evaluations


def main(args: argparse.Namespace) -> None:
  model = trained.load(args.model)
  if args.split and args.data.startswith('folder:') and not (Path(args.data[7:]).expanduser() / args.split).is_dir():
    raise UserError(f'--split={args.split}: there is no such folder in {args.data[7:]}; expected one, or no --split')
  config = config_lib.changed(model.config, {
      'eval_batch_size': args.batch, **({'data.name': args.data} if args.data else {}),
      **({'data.eval_split': args.split} if args.split else {}),
      **({'data.data_dir': args.data_dir} if args.data_dir else {})})
  parallel.check_divisible('--batch', args.batch)
  # Of its own data a model is asked what it has not been trained on; of other data, all there is.
  source = sources.keep_in_memory(sources.load_whole(config.data) if args.data else sources.load(config.data)[1])
  means, = evaluate_trained([model], source, config, lambda name: print(f'skipping {name}', file=sys.stderr))
  if args.json:
    print(json.dumps({'model': args.model, 'data': config.data.name, **means}))
  else:
    print(f'{args.model} on {config.data.name}, {means["examples"]:,} examples: {report.headline(means)}')
    print(report.attribute_table(means), end='')


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
