"""Evaluates a trained model on a dataset.

    mobilenet_jax evaluate mobilenet_0.25_128 --data=folder:/imagenet/val [--json]
    mobilenet_jax evaluate runs/mine --checkpoint=best
"""

import json
import sys

from mobilenet_jax import config as config_lib
from mobilenet_jax import data, tasks
from mobilenet_jax.commands import model_argument
from mobilenet_jax.runtime import command_line, devices
from mobilenet_jax.runtime.pace import progress
from mobilenet_jax.training import evaluate_trained, own_data, trained_on


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'evaluate')
  model_argument.add_arguments(parser)
  parser.add_argument('--data', default='', help='a TFDS name, folder:/path, npz:/path or hf:/path; by default the held-out '
                      "part of the model's own data")
  parser.add_argument('--split', default='', help="split of the data; by default the model's own")
  parser.add_argument('--data_dir', default='', help='folder of TFDS data')
  parser.add_argument('--ignore_exif', action='store_true', help='do not turn images as their EXIF orientation says, as '
                      'published benchmarks are read')
  parser.add_argument('--batch', type=int, default=100, help='images at a time; does not affect the result')
  parser.add_argument('--json', action='store_true', help='print one JSON object')
  args = parser.parse_args(argv)

  model = model_argument.load(args)
  changes = {'eval_batch_size': args.batch}
  if args.data:
    changes['data.name'] = args.data
  if args.split:
    changes['data.eval_split'] = args.split
  if args.ignore_exif:
    changes['data.exif_orientation'] = False
  if args.data_dir:
    changes['data.data_dir'] = args.data_dir
  config = config_lib.changed(model.config, changes)
  devices.check_divisible('--batch', args.batch)
  # A model is evaluated on the held-out part of its own data, or on all of other data.
  if args.data:
    train, source = None, data.load_whole(config.data, args.split)
  else:
    train, source = own_data(model, config)
  remarks = list(source.remarks)
  if model.matches_by_number(source):
    remarks.append('labels are taken as the numbers of the classes of the model, as there are no names to compare')
  count, seen = trained_on(model, source, config, train)
  if seen:
    remarks.append(seen)
  for remark in remarks:
    print(remark, file=sys.stderr)
  skipping = lambda error: print(f'skipping {error.name}: {error.reason}', file=sys.stderr)
  means, = evaluate_trained([model], source, config, skipping, progress('evaluating', len(source)))
  if left_out := model.task.remark(means):
    print(left_out, file=sys.stderr)
  against = model.task.measured_against(source)
  if args.json:
    print(json.dumps({'model': model.origin, 'step': model.step, 'data': config.data.name, 'measured_against': against,
                      'trained_on': count, **means}, allow_nan=False))
  else:
    against = '' if against == 'labels' else f' against {against}'
    print(f'{model.described_origin} on {config.data.name}, {means["examples"]:,} examples{against}: {tasks.headline(means)}')
    print(model.task.details(means), end='')
