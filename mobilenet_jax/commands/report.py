"""Writes a page of one or several sweeps, to look at in a browser: an HTML file that needs nothing else.

    mobilenet_jax report runs/fabrics                             # writes runs/fabrics/report.html
    mobilenet_jax report runs/rmsprop runs/sgd --out=both.html

A sweep may still be running: the page shows what there is, and the same command writes it anew. A folder may also be that of
a single run.
"""

from mobilenet_jax.errors import UserError
from mobilenet_jax.runtime import command_line
from mobilenet_jax.storage.files import expanded

SUFFIXES = ('.html', '.htm')


def main(argv: list[str]) -> None:
  parser = command_line.Parser(__doc__, 'report')
  parser.add_argument('folders', nargs='+', metavar='FOLDER', type=expanded, help='the --workdir of a sweep or of a run')
  parser.add_argument('--out', type=expanded, help='the file to write; by default report.html in the folder, if there is one')
  args = parser.parse_args(argv)
  if twice := [str(folder) for i, folder in enumerate(args.folders)
               if any(folder.resolve() == other.resolve() for other in args.folders[:i])]:
    raise UserError(f'{twice[0]} is given twice; expected different folders')
  if not args.out and len(args.folders) > 1:
    raise UserError('--out is missing; give the file for the page of several folders, such as --out=report.html')
  out = args.out or args.folders[0] / 'report.html'
  if out.suffix not in SUFFIXES or out.is_dir():
    raise UserError(f'--out={out}: expected the name of an HTML file, such as report.html')
  from mobilenet_jax.sweeps import page  # here, so that the help needs no JAX
  counts, remarks = page.write(args.folders, out)
  for remark in remarks:
    print(f'remark   {remark}')
  print(f'page     {out}: {counts}, {out.stat().st_size / 1e6:.1f} MB')
