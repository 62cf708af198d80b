"""Tables 4 and 5: full against separable convolutions, and a shallow network against a thin one.

    mobilenet_jax sweep --config=configs/ablations.py:data=fabrics --workdir=runs/fabrics_ablations

It takes the same arguments as configs/grid.py.
"""

from configs import grid

get_config = grid.get_config


def sweep(config):
  """Returns what each of the four runs changes in `config`."""
  del config  # the four are the same for every recipe
  return [
      {'model.name': 'conv_mobilenet'},  # Table 4
      {'model.name': 'mobilenet'},  # Table 4
      {'model.name': 'mobilenet', 'model.width_multiplier': 0.75},  # Table 5
      {'model.name': 'shallow_mobilenet'},  # Table 5
  ]
