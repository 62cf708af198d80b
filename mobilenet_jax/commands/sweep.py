"""Trains the models of a sweep. Also shows its state and its logs, and cancels it.

    mobilenet_jax sweep --config=configs/grid.py:data=fabrics --workdir=runs/fabrics
    mobilenet_jax sweep --config=configs/fabrics.py --workdir=runs/rates --seeds=3 --sweep optim.learning_rate=3e-4,1e-3
    mobilenet_jax sweep --config=... --workdir=/shared/sweep --launcher=slurm --slurm=partition=gpu,gpus_per_node=1
    mobilenet_jax sweep status --workdir=runs/fabrics              # a table; --watch repeats it
    mobilenet_jax sweep logs --workdir=runs/fabrics [--run=NAME]   # the log of a run, or of all that failed or stopped
    mobilenet_jax sweep cancel --workdir=runs/fabrics              # ends all jobs, each with a checkpoint

The runs are all combinations of what the recipe's function sweep(config) lists and of what --sweep and --seeds vary. Runs
that have finished are skipped, and runs that were interrupted continue; more may be added in the same folder. A run that
fails is reported at the end and does not stop the others.
"""

import argparse
import csv
import functools
import time
from pathlib import Path

from mobilenet_jax.commands import recipe as recipe_lib
from mobilenet_jax.commands import variations
from mobilenet_jax.errors import UserError, counted
from mobilenet_jax.runtime import command_line, devices
from mobilenet_jax.runtime.pace import duration
from mobilenet_jax.sweeps import results, status
from mobilenet_jax.sweeps.sweep import AUTO, LAUNCHERS, sweep

COMMANDS = {
    'status': 'Shows a table of the runs of a sweep: their states, their jobs and how far they are.',
    'logs': 'Shows the end of the log of a run, or of all runs that failed or stopped.',
    'cancel': 'Ends all jobs of a sweep, each with a checkpoint.',
}
WATCH_SECONDS = 5


def main(argv: list[str]) -> None:
  if argv and argv[0] in COMMANDS:
    return _look_after(argv[0], argv[1:])
  if argv and not argv[0].startswith('-'):
    raise UserError(f'sweep {argv[0]}: expected {", ".join(COMMANDS)}, or the arguments of a sweep; --help lists them')
  parser = recipe_lib.parser(__doc__, 'sweep')
  parser.add_argument('--workdir', help='folder of the sweep; a sweep that is started again in its folder continues')
  parser.add_argument('--sweep', action='append', default=[], metavar='FIELD=VALUE,...', help='values of a field of the '
                      'config, a run for each; may be repeated, for all combinations, also with those of the recipe')
  parser.add_argument('--seeds', type=_at_least_0, default=0, help="a run for each of so many seeds, from the config's on")
  parser.add_argument('--group', default=AUTO, help='how runs whose batches are the same share a pass over the data; auto: in '
                      'as few groups as fit into memory and keep all CPU cores or GPUs busy, under Slurm each run alone; all: '
                      'in one; alone; or fields in which the runs of a group agree, such as data.image_size')
  parser.add_argument('--jobs', type=_at_least_0, default=0, help='groups at a time; 0, the default: one per CPU core, or one '
                      'per GPU; under Slurm, all')
  parser.add_argument('--launcher', choices=('here', *sorted(LAUNCHERS)), default='local', help='local: jobs on this '
                      'machine; slurm: jobs of a Slurm cluster; here: group after group in this process, which may be one of '
                      'several hosts')
  parser.add_argument('--slurm', type=_options, default={}, help='options of sbatch, such as '
                      'partition=gpu,gpus_per_node=1,time=720 (minutes; a day by default)')
  parser.add_argument('--retries', type=_at_least_0, default=3, help='how often a job is started again without making '
                      'progress; 3 by default')
  recipe_lib.add_host_arguments(parser)
  args, recipe = recipe_lib.parse(parser, argv)
  if not args.workdir:
    raise UserError('--workdir is missing; give a folder for the sweep, such as --workdir=runs/fabrics')
  changes, remarks = variations.changes(recipe, args.sweep, args.seeds)
  for option, launcher in (('slurm', 'slurm'), ('coordinator', 'here')):
    if getattr(args, option) and args.launcher != launcher:
      raise UserError(f'--{option} with --launcher={args.launcher}: expected --launcher={launcher} with it')
  for remark in (*recipe.left_out, *remarks):
    print(remark, flush=True)
  started = time.monotonic()
  run = functools.partial(
      sweep, recipe.config, changes, args.workdir, args.jobs, args.group, args.launcher, args.slurm, args.retries)
  if args.launcher == 'here':
    devices.join_hosts(args.coordinator, args.hosts, args.host)
    with devices.ending_with_the_others():
      rows = run()
    if not devices.is_first_host():
      return
  else:
    rows = run()
  print(f'{counted(len(rows), "run")} finished, after {duration(time.monotonic() - started)}; '
        f'rows in {Path(args.workdir) / results.CSV_FILE}')


def _look_after(command, argv):
  doc = f'{COMMANDS[command]}\n\n    mobilenet_jax sweep {command} --workdir=runs/fabrics'
  parser = command_line.Parser(doc, f'sweep {command}')
  parser.add_argument('--workdir', type=Path, required=True, help='folder of the sweep')
  if command == 'logs':
    parser.add_argument('--run', default='', help='the name of a run')
  if command == 'status':
    parser.add_argument('--watch', action='store_true', help=f'repeat the table every {WATCH_SECONDS} seconds')
  args = parser.parse_args(argv)
  if command == 'logs':
    status.show_logs(args.workdir, args.run)
  elif command == 'cancel':
    status.cancel(args.workdir)
  else:
    status.show_table(args.workdir)
    while args.watch:
      time.sleep(WATCH_SECONDS)
      print('\033[H\033[2J', end='')  # clears the screen
      status.show_table(args.workdir)


def _at_least_0(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f'{text}: expected a whole number, at least 0')
  return int(text)


def _options(text: str) -> dict[str, str]:
  options = next(csv.reader([text], skipinitialspace=True))  # "nodelist=a,b" in quotes is one option
  return dict(option.strip().partition('=')[::2] for option in options if option.strip())
