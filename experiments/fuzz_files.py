"""The files of experiments/fuzz.py: a folder in which every command has what it needs, and ways to spoil what is in it."""

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mobilenet_jax.models import MobileNet
from mobilenet_jax.trained.published import weights

WIDTH = 0.03125  # of the networks: 32 channels at most
SIZE = 128  # of the images that the published weights are for
RECIPE = f'''
from mobilenet_jax import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, data='folder:photos', recorded='')
  config = config_lib.base()
  config.data.name = arg.data
  config.data.recorded = arg.recorded
  config.distill.softmax_weight = 1.0 if arg.recorded else 0.0
  config.data.image_size = (32, 32)
  config.model.name = 'shallow_mobilenet'
  config.model.width_multiplier = {WIDTH}
  config.batch_size = config.eval_batch_size = 4
  config.train_for = config.log_every = config.eval_every = config.checkpoint_every = '1 step'
  return config


def sweep(config):
  return [{{'model.width_multiplier': {WIDTH}}}, {{'model.width_multiplier': {2 * WIDTH}}}]

'''
# Two folds of two pairs of each kind, in the form of LFW. Eve and Fay are trained on.
PAIRS = '2\t2\n' + ''.join(f'{a}\t1\t2\n{b}\t1\t2\n{a}\t1\t{b}\t1\n{a}\t2\t{b}\t2\n'
                           for a, b in (('Ann', 'Bob'), ('Cid', 'Dan')))
PHOTOS = [f'{split}/{name}/{i}.png' for split, count in (('train', 3), ('test', 1)) for name in 'ab' for i in range(count)]
PEOPLE = ('Ann', 'Bob', 'Cid', 'Dan', 'Eve', 'Fay')
# Text that a person, a program or an accident may put where something else is expected.
NONSENSE = (
    '', ' ', '0', '-1', '1', '2', '7', '3.5', '1e9', '1e308', '9' * 20, 'nan', 'inf', '-inf', '1_0', '\u0663', '\uff11',
    'None', 'True', '[]', '()', '(1, 2, 3)', '(32, 32)', '{}', 'é', '日本', '\u202eabc', '\udcff', '\x1b[31mred', 'a\nb',
    '\r', '\t', '\x7f', 'x' * 5000, '*', '[a-', '\\', '%s', '{0}', 'a=b', 'a,b', ':', '::', '--', '-', "'", '"', '0 steps',
    '-1 steps', 'nan epochs', '1 epoch', '9e99 examples', 'steps')
JSON_NONSENSE = (None, True, -1, 0, 1e308, 10**30, float('nan'), '', 'x', '\x1b[31m', [], [None], {}, {'a': 1})


def make(folder: Path) -> None:
  """Writes all that the commands read, except what they make themselves."""
  rng = np.random.default_rng(0)
  (folder / 'recipe.py').write_text(RECIPE)
  images = [f'photos/{name}' for name in PHOTOS]
  images += [f'labelled/{i}.png' for i in range(12)] + [f'people/{name}/{name}_{i:04}.png' for name in PEOPLE for i in (1, 2)]
  for path in map(folder.joinpath, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (33, 40, 3), np.uint8)).save(path)
  (folder / 'labelled' / 'labels.csv').write_text('file,label\n' + ''.join(f'{i}.png,{"ab"[i % 2]}\n' for i in range(12)))
  (folder / 'pairs.txt').write_text(PAIRS)
  np.savez(folder / 'set.npz', **arrays('set'))
  np.savez(folder / 'teacher.npz', **arrays('teacher'))
  _write_weights(folder)


def arrays(name: str) -> dict[str, np.ndarray]:
  """Returns the arrays of set.npz, images with labels, or of teacher.npz, recorded outputs for the images in photos/."""
  rng = np.random.default_rng(1)
  if name == 'set':
    images = {f'{split}_images': rng.integers(0, 256, (4, 33, 40, 3), np.uint8) for split in ('train', 'test')}
    return {**images, 'train_labels': np.arange(4) % 2, 'test_labels': np.arange(4) % 2, 'class_names': np.array(['a', 'b'])}
  logits = rng.normal(size=(len(PHOTOS), 2)).astype(np.float32)
  return {'names': np.array(PHOTOS), 'logits': logits, 'labels': np.array(['a', 'b'])}


def _write_weights(folder):
  """Writes random weights of a narrow network in each form in which weights are published."""
  import h5py
  import tensorflow as tf
  shapes = weights.shapes(MobileNet(5, WIDTH))
  values = {path: np.random.default_rng(2).uniform(0.5, 1.5, shape).astype(np.float32) for path, shape in shapes.items()}
  slim = {weights.slim_name(path): weights.to_theirs(path, value) for path, value in values.items()}

  graph = tf.compat.v1.GraphDef()
  for name, value in slim.items():
    node = graph.node.add(name=name, op='Const')
    node.attr['value'].tensor.CopyFrom(tf.make_tensor_proto(value))
  (folder / f'slim_{SIZE}.pb').write_bytes(graph.SerializeToString())
  tf.raw_ops.SaveV2(prefix=str(folder / f'slim_{SIZE}.ckpt'), tensor_names=list(slim), shape_and_slices=[''] * len(slim),
                    tensors=list(slim.values()))
  with (gzip.GzipFile(folder / f'slim_{SIZE}.tgz', 'wb', mtime=0) as file, tarfile.open(fileobj=file, mode='w') as archive):
    for path in sorted(folder.glob(f'slim_{SIZE}.ckpt.*')):
      member = archive.gettarinfo(path, path.name)
      member.mtime = 0  # so that the bytes are the same each time
      with path.open('rb') as content:
        archive.addfile(member, content)
  with h5py.File(folder / f'keras_{SIZE}.h5', 'w') as file:
    layers = {}
    for path, value in values.items():
      layer, _, number = weights.keras_name(path).partition('/')
      layers.setdefault(layer, {})[number] = weights.to_theirs(path, value)
    file.attrs['layer_names'] = list(layers)
    for layer, parts in layers.items():
      file.create_group(layer).attrs['weight_names'] = sorted(parts)
      for number, value in parts.items():
        file[layer][number] = value


def odd_places(folder: Path) -> None:
  """Adds places with which a path can go wrong, each under a name in ODD."""
  for name in ('empty', 'locked', 'readonly', '[a]*'):
    (folder / name).mkdir()
  (folder / 'new.parts').mkdir()  # a user's own, under a name that `record --out=new.npz` likes
  for name in ('unreadable.png', 'bell\a.png', 'new.parts/notes.txt', os.fsdecode(b'\xff.png')):
    shutil.copy(folder / 'photos/test/a/0.png', folder / name)
  os.mkfifo(folder / 'fifo.png')
  (folder / 'round').mkdir()
  for link, target in (('loop', 'loop'), ('dangling.png', 'nowhere.png'), ('round/round', '.'), ('null', '/dev/null'),
                       ('full', '/dev/full'), ('memory', '/proc/self/mem')):  # links, so that no case replaces a device
    (folder / link).symlink_to(target)
  for name, mode in (('unreadable.png', 0), ('locked', 0), ('readonly', 0o555)):
    (folder / name).chmod(mode)


ODD = (
    'empty', 'locked', 'readonly', '[a]*', 'unreadable.png', 'bell\a.png', os.fsdecode(b'\xff.png'), 'loop', 'dangling.png',
    'round', 'missing', 'missing/below', 'recipe.py', 'recipe.py/below', 'photos', 'run', 'sweep', 'set.npz',
    'run/config.json', '.', '~', '~nouser', 'null', 'null/below', 'fifo.png', 'full', 'memory', 'x' * 300, 'new/' * 60 + 'x',
    '*.png', 'new.parts', 'readonly/new', 'locked/new', 'loop/new')


def spoil(rng: random.Random, path: Path) -> str:
  """Damages a file, and returns how."""
  content = path.read_bytes()
  how = rng.choice(('truncated', 'truncated', 'flipped', 'flipped', 'flipped', 'emptied', 'deleted', 'zeros', 'noise',
                    'doubled', 'text', 'a folder', 'a link'))
  if how in ('deleted', 'a folder', 'a link'):
    path.unlink()
    {'deleted': lambda: None, 'a folder': path.mkdir, 'a link': lambda: path.symlink_to(path.name)}[how]()
    return how
  path.write_bytes({
      'truncated': lambda: content[:rng.randrange(len(content) or 1)],
      'flipped': lambda: _flipped(rng, content, rng.choice((1, 1, 8, 64))),
      'emptied': bytes,
      'zeros': lambda: bytes(len(content)),
      'noise': lambda: rng.randbytes(min(len(content), 10_000)),
      'doubled': lambda: content + content,
      'text': lambda: _encoded(rng.choice(NONSENSE)),
  }[how]())
  return how


def _flipped(rng, content, bits):
  content = bytearray(content)
  for _ in range(bits if content else 0):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  return bytes(content)


def _encoded(text):
  return text.encode('utf-8', 'surrogateescape')


def spoil_json(rng: random.Random, path: Path) -> None:
  """Replaces or removes one of the values in a JSON file, or in a line of a file of JSON lines."""
  lines = [path.read_text()] if path.suffix != '.jsonl' else path.read_text().splitlines()
  at = rng.randrange(len(lines))
  value = whole = json.loads(lines[at])
  while isinstance(value, (dict, list)) and value:
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if not isinstance(value[key], (dict, list)) or rng.random() < 0.3:
      value[key] = rng.choice(JSON_NONSENSE)
      if rng.random() < 0.2:
        del value[key]
      break
    value = value[key]
  lines[at] = json.dumps(whole if rng.random() < 0.9 else rng.choice(JSON_NONSENSE))
  path.write_text('\n'.join(lines) + '\n')


def spoil_table(rng: random.Random, path: Path) -> None:
  """Changes lines or cells of a text file of cells."""
  text = path.read_text()
  separator = next(mark for mark in (',', '\t') if mark in text)
  lines = [line.split(separator) for line in text.splitlines()]
  for _ in range(rng.choice((1, 1, 2, 5))):
    at = rng.choice((0, rng.randrange(len(lines)))) if lines else 0
    change = rng.choice(('cell', 'cell', 'cell', 'drop', 'double', 'swap', 'longer', 'shorter', 'column'))
    if not lines or not lines[at]:
      lines.append(list(rng.choices(NONSENSE, k=2)))
    elif change == 'cell':
      lines[at][rng.randrange(len(lines[at]))] = rng.choice(NONSENSE)
    elif change == 'drop':
      del lines[at]
    elif change == 'double':
      lines.insert(at, list(lines[at]))
    elif change == 'swap':
      rng.shuffle(lines)
    elif change == 'longer':
      lines[at].append(rng.choice(NONSENSE))
    elif change == 'shorter':
      lines[at].pop()
    else:
      title = rng.choice(('split', 'identity', 'number', 'file', 'smiling', '', *NONSENSE))
      lines = [[*line, title if i == 0 else rng.choice(('0', '1', 'train', 'test', *NONSENSE))] for i, line in enumerate(lines)]
  text = '\n'.join(rng.choice((separator,) * 9 + (';', '\0')).join(line) for line in lines)
  text += rng.choice(('\n', '', '"', '\n\n'))
  content = _encoded(text)
  path.write_bytes(rng.choice((content,) * 8 + (b'\xef\xbb\xbf' + content, b'sep=;\n' + content, content.decode(
      errors='replace').encode('utf-16'), content.replace(b'\n', b'\r'))))


def spoil_arrays(rng: random.Random, path: Path) -> None:
  """Writes other arrays in the place of those of set.npz or teacher.npz."""
  kept = arrays(path.stem)
  name = rng.choice(list(kept))
  array = kept[name]
  change = rng.choice(('drop', 'rename', 'type', 'type', 'shape', 'values', 'objects', 'scalar', 'empty', 'pickle', 'array',
                       'huge', 'names'))
  if change == 'drop':
    del kept[name]
  elif change == 'rename':
    kept[rng.choice(('probs', 'embeddings', 'attributes', 'x_labels', 'val_images', 'a/b', '../x'))] = kept.pop(name)
  elif change == 'type':
    with contextlib.suppress(ValueError):
      kept[name] = array.astype(rng.choice(('U', 'S', 'f2', 'f8', 'c16', 'M8[s]', '?', 'i8', 'u8', 'V8')))
  elif change == 'shape':
    kept[name] = rng.choice((array[None], array[:1], array[:0], array[..., None], array[..., :0], array.ravel(), array.T,
                             array[::-1]))
  elif change == 'values':
    if array.dtype.kind in 'fiu':
      with np.errstate(invalid='ignore'):
        kept[name] = array + np.array(rng.choice((np.nan, -1, 100, 1e30, -2**31))).astype(array.dtype)
    else:
      kept[name] = np.array([rng.choice(NONSENSE).encode('utf-8', 'replace').decode() for _ in array])
  elif change == 'objects':
    kept[name] = np.array([{'a': 1}] * len(array), object)
  elif change == 'scalar':
    kept[name] = np.array(rng.choice((0, np.nan, 'x')))
  elif change == 'empty':
    kept = {}
  elif change == 'names':
    kept['class_names'] = kept['labels'] = np.array(rng.choice((['a'], ['a', 'a'], ['a', 'b', 'c'], [1, 2], [b'\xff', b'a'])))
  with path.open('wb') as file:
    if change == 'pickle':
      pickle.dump(kept, file)
    elif change == 'array':
      np.save(file, array)
    else:
      np.savez(file, **kept)
  if change == 'huge':  # an array of which the file says that it is larger than any memory
    content = path.read_bytes()
    shape = str(array.shape).encode()
    path.write_bytes(content.replace(shape, b'(' + b'9' * (len(shape) - 3) + b',)'))


def odd_image(rng: random.Random) -> tuple[bytes, str]:
  """Returns the content of an unusual or damaged image file, and a suffix for its name."""
  form, modes = rng.choice((('PNG', 'RGB L P 1 LA RGBA I;16'), ('JPEG', 'RGB L CMYK'), ('GIF', 'P L'), ('BMP', 'RGB P 1'),
                            ('WEBP', 'RGB RGBA'), ('TIFF', 'RGB L F I CMYK I;16 LAB')))
  size = rng.choice(((40, 33), (40, 33), (1, 1), (1, 40), (3000, 1), (1, 3000), (2, 2), (400, 3)))
  mode = rng.choice(modes.split())
  image = Image.new(mode, size)
  if mode == 'RGB':
    image = Image.frombytes('RGB', size, rng.randbytes(3 * size[0] * size[1]))
  options = {}
  if form in ('GIF', 'WEBP', 'TIFF', 'PNG') and rng.random() < 0.2:
    options = {'save_all': True, 'append_images': [image.copy()] * 3}
  if form in ('JPEG', 'PNG', 'WEBP') and rng.random() < 0.3:
    options['exif'] = b'Exif\0\0' + rng.choice((b'', b'II*\0\x08\0\0\0', b'MM\0*' + rng.randbytes(30), rng.randbytes(60)))
  file = io.BytesIO()
  image.save(file, form, **options)
  content = file.getvalue()
  damage = rng.choice(('none', 'none', 'truncated', 'flipped', 'flipped', 'huge', 'emptied', 'noise', 'text'))
  if damage == 'truncated':
    content = content[:rng.randrange(len(content))]
  elif damage == 'flipped':
    content = _flipped(rng, content, rng.choice((1, 5, 50)))
  elif damage == 'huge':
    content = _declared_huge(content, form)
  elif damage in ('emptied', 'noise', 'text'):
    content = {'emptied': b'', 'noise': rng.randbytes(500), 'text': b'GIF89a not really'}[damage]
  return content, rng.choice((f'.{form.lower()}', f'.{form.lower()}', '.jpg', '.png', '.JPG', '.tif'))


def _declared_huge(content, form):
  """Returns an image file whose header says that it has billions of pixels."""
  if form == 'PNG':
    header = b'IHDR' + struct.pack('>II', 60000, 60000) + content[24:29]
    return content[:12] + header + struct.pack('>I', zlib.crc32(header)) + content[33:]
  if form == 'GIF':
    return content[:6] + struct.pack('<HH', 65535, 65535) + content[10:]
  if form == 'BMP':
    return content[:18] + struct.pack('<ii', 60000, 60000) + content[26:]
  if form == 'JPEG' and (at := content.find(b'\xff\xc0')) >= 0:
    return content[:at + 5] + struct.pack('>HH', 65500, 65500) + content[at + 9:]
  return content
