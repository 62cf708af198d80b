"""One run, from a config to its result:

    python -m mobilenet_jax.main --config=configs/fabrics.py:alpha=0.5,res=48 --workdir=runs/mine
"""

from mobilenet_jax import cli  # first: it quietens what the others import

from absl import flags

from mobilenet_jax import report
from mobilenet_jax.errors import UserError


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise UserError('--workdir is missing; give a folder for this run, such as --workdir=runs/mine')
  from mobilenet_jax import parallel
  from mobilenet_jax.train import train
  parallel.join_hosts(values.coordinator, values.hosts, values.host)
  with parallel.ending_with_the_others():
    row = train(values.config, values.workdir)
  if parallel.is_first_host():
    print(f'{row["name"]}: {report.headline(row)}, {row["mult_adds"] / 1e6:.1f} M Mult-Adds, '
          f'{row["params"] / 1e6:.2f} M parameters; all of it in {values.workdir}')


if __name__ == '__main__':
  cli.define_config()
  cli.define_hosts()
  flags.DEFINE_string('workdir', None, 'Folder of the run; started again in it, the run continues.')
  cli.run(main)
