"""Trains and evaluates one model, given its recipe.

    mobilenet_jax train --config=configs/fabrics.py:alpha=0.5,res=48 --workdir=runs/mine --config.train_for='2 epochs'

The run writes config.json, metrics.jsonl, checkpoints and, at the end, result.json into the folder --workdir. An interrupted
run continues when the same command is started again.
"""

from mobilenet_jax import tasks
from mobilenet_jax.commands import recipe as recipe_lib
from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import devices
from mobilenet_jax.training import train


def main(argv: list[str]) -> None:
  parser = recipe_lib.parser(__doc__, 'train')
  parser.add_argument('--workdir', help='folder of the run; a run that is started again in its folder continues')
  recipe_lib.add_host_arguments(parser)
  args, recipe = recipe_lib.parse(parser, argv)
  if not args.workdir:
    raise UserError('--workdir is missing; give a folder for this run, such as --workdir=runs/mine')
  devices.join_hosts(args.coordinator, args.hosts, args.host)
  if devices.is_first_host():
    for remark in recipe.left_out:
      print(remark, flush=True)
  with devices.ending_with_the_others():
    row = train(recipe.config, args.workdir)
  if devices.is_first_host():
    print(f'{row["name"]}: {tasks.headline(row)}, {row["mult_adds"] / 1e6:.1f} M Mult-Adds, '
          f'{row["params"] / 1e6:.2f} M parameters; everything is in {args.workdir}')
