"""Prints the Mult-Adds and parameters of Tables 2 to 9, ours beside the paper's. Nothing is trained or downloaded.

    python -m experiments.complexity_tables
"""

import argparse

from mobilenet_jax.models import CONVENTION, MobileNet, measure
from mobilenet_jax.models.mobilenet import ConvMobileNet, ShallowMobileNet
from mobilenet_jax.runtime import command_line

# Name, network, input size, and the paper's million Mult-Adds and parameters if it prints them.
NETWORKS = [
    ('Conv MobileNet', ConvMobileNet(1000), 224, (4866, 29.3)),
    ('Shallow MobileNet', ShallowMobileNet(1000), 224, (307, 2.9)),
]
PRINTED = {
    (1.0, 224): (569, 4.2), (0.75, 224): (325, 2.6), (0.5, 224): (149, 1.3), (0.25, 224): (41, 0.5),
    (1.0, 192): (418, 4.2), (1.0, 160): (290, 4.2), (1.0, 128): (186, 4.2), (0.5, 160): (76, 1.32),
}
NETWORKS += [(f'{alpha:g} MobileNet-{size}'.replace('1 M', '1.0 M'), MobileNet(1000, alpha), size,
            PRINTED.get((alpha, size)))
           for alpha in (1.0, 0.75, 0.5, 0.25) for size in (224, 192, 160, 128)]

# Table 2 as printed: percent of the Mult-Adds, and of the parameters.
SHARES = {'conv 1x1': (94.86, 74.59), 'conv dw 3x3': (3.06, 1.06), 'conv 3x3': (1.19, 0.02),
          'fully connected': (0.18, 24.33)}


def main(args: argparse.Namespace) -> None:
  del args  # there are none
  print(f'Counted: {CONVENTION}. "Trainable" adds batch norm and bias.\n')
  print('Table 2                Mult-Adds, %             parameters, %')
  print('                     ours    paper           ours    paper')
  for kind, shares in measure(MobileNet(1000), (224, 224, 3), train=False).shares().items():
    paper = SHARES[kind]
    note = '  (1.19 is a misprint: the column would not sum to 100)' if kind == 'conv 3x3' else ''
    print(f'{kind:18} {shares[0]:7.2f}  {paper[0]:7.2f}        {shares[1]:7.2f}  {paper[1]:7.2f}{note}')

  print('\nTables 4 to 9             Mult-Adds    weights  trainable   the paper, M Mult-Adds and M parameters')
  for name, network, size, paper in NETWORKS:
    result = measure(network, (size, size, 3), train=False)
    printed = f'{paper[0]:>6} {paper[1]:>6}' if paper else '     –      –'
    print(f'{name:22} {result.mult_adds:>13,} {result.params:>10,} {result.trainable:>10,}   {printed}')


if __name__ == '__main__':
  command_line.run_with(command_line.Parser(__doc__), main)
