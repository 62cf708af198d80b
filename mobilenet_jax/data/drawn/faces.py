"""Faces, the embedded dataset for distillation: faces drawn by code, with several images per person and attributes.

A person is a point in PERSON, which gives the shape and the colours of a face, and has habits: a beard or long hair is in
most images of the person or in few. An image draws its ATTRIBUTES from these habits, the person's age and the occasion, so
that they are correlated but none follows from another. It then draws the way the picture was taken from PICTURE. Hair,
hats and scarves cover a part of the image; freckles, earrings and closed eyes cover a few pixels, so that resolution
matters. Everything is symmetric, so that a horizontal flip changes no attribute. The splits have different people.
"""

import types

import numpy as np
import tensorflow_datasets as tfds

SIZE = 64  # pixels, height and width
NUM_PEOPLE = {'train': 250, 'test': 100}
IMAGES_PER_PERSON = {'train': 16, 'test': 10}
SEED = 0

# Attributes, with CelebA's names if it has them. Each has its rate; what the rate gains as the person's gender and age and
# the occasion's cold and mood go from 0 to 1; and how far it is a habit: 0 means drawn by chance for every image, 1 means in
# all images of a person or in none.
_RATES = {
    'Bangs': (0.26, -0.2, -0.15, 0, 0, 0.6),
    'Beard': (0.23, 0.42, 0.1, 0, 0, 0.9),
    'Eyeglasses': (0.3, 0, 0.3, 0, 0, 0.6),
    'Eyes_Closed': (0.14, 0, 0, 0, 0.15, 0),
    'Freckles': (0.2, -0.05, -0.2, 0, 0, 0.9),
    'Gray_Hair': (0.2, 0, 0.4, 0, 0, 0.95),
    'Long_Hair': (0.42, -0.7, -0.1, 0, 0, 0.85),
    'Mouth_Slightly_Open': (0.34, 0, 0, 0, 0.5, 0),
    'Mustache': (0.19, 0.34, 0.1, 0, 0, 0.85),
    'Rosy_Cheeks': (0.22, -0.15, -0.1, 0.25, 0, 0.3),
    'Smiling': (0.46, -0.1, 0, 0, 0.8, 0.1),
    'Wearing_Earrings': (0.28, -0.45, 0, 0, 0, 0.6),
    'Wearing_Hat': (0.2, 0.1, 0, 0.3, 0, 0.2),
    'Wearing_Lipstick': (0.3, -0.55, 0, 0, 0, 0.6),
    'Wearing_Necktie': (0.18, 0.28, 0.1, -0.1, 0, 0.3),
    'Wearing_Scarf': (0.15, -0.05, 0, 0.25, 0, 0.1),
    'Wrinkles': (0.25, 0, 0.5, 0, 0, 0.95),
}
ATTRIBUTES = tuple(_RATES)

PERSON = {  # lengths in pixels from the middle of a face seen from the front, downwards; colours as positions in a palette
    'width': (13.5, 17), 'chin': (15.5, 19), 'jaw': (1.9, 3),  # half the width; from pointed to square
    'skin': (0, 1), 'hair': (0, 1), 'iris': (0, 1),
    'volume': (2.2, 4), 'hairline': (-13.5, -11), 'temples': (2, 8),  # of the hair
    'eyes': (-3.5, -1), 'spacing': (5.2, 7), 'eye_width': (2.4, 3.4), 'eye_height': (1.5, 2.2),
    'brows': (3.6, 4.8), 'brow_width': (2.6, 3.8), 'brow_thickness': (0.4, 1), 'brow_arch': (0.2, 1.8),
    'brow_tilt': (-0.15, 0.15),
    'nose': (5, 7.2), 'nose_width': (1.4, 3), 'ears': (2.6, 4.4),
    'mouth': (4, 5.2), 'mouth_width': (3.6, 5.4), 'mouth_curve': (-0.8, 0.5), 'lips': (0.8, 1.5),  # below the nose
    'lens': (0.3, 0.95),  # of the glasses, from square to round
}
PICTURE = {
    'roll': (-15, 15), 'turn': (-1, 1),  # rotation in the image plane, in degrees; turn to one side
    'right': (-2.5, 2.5), 'down': (-1.5, 1.5), 'scale': (0.92, 1.06),
    'light': (0, 2 * np.pi), 'shade': (0.05, 0.35), 'exposure': (0.85, 1.08),
    'clothes': (0, 1), 'contrast': (0.3, 0.7), 'hat': (0, 1), 'metal': (0, 1),  # hues, except for the metal
    'brim': (1, 7), 'smile': (2.2, 3.4), 'gape': (1.5, 2.5), 'gaze': (-0.5, 0.5), 'collar': (0, 3),
}
_SKIN = ((250, 220, 200), (234, 188, 155), (190, 140, 105), (120, 78, 55))
_HAIR = ((32, 26, 28), (80, 50, 36), (130, 66, 40), (176, 120, 62), (226, 190, 110))
_IRIS = ((60, 36, 22), (110, 75, 35), (70, 120, 60), (50, 110, 175), (110, 140, 160))
_HUES = ((200, 45, 50), (215, 150, 40), (60, 140, 70), (40, 130, 160), (55, 70, 165), (135, 60, 145), (200, 45, 50))
_METAL = ((250, 205, 60), (225, 230, 240))
_GRAY, _BLUSH, _LIPSTICK = (176, 178, 184), (225, 70, 85), (214, 16, 64)
_FRECKLES = 9, 2  # columns, rows; each freckle is somewhere in its cell
_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5


def _uniform(rng: np.random.Generator, ranges: dict) -> types.SimpleNamespace:
  return types.SimpleNamespace(**{name: rng.uniform(*limits) for name, limits in ranges.items()})


def _two_peaked(rng: np.random.Generator) -> float:
  return float(np.sin(np.pi / 2 * rng.random()) ** 2)


def identity(split: str, i: int) -> int:
  """Returns the person in example `i` of `split`: its people take turns; numbers continue from split to split."""
  before = list(NUM_PEOPLE)[:list(NUM_PEOPLE).index(split)]
  return sum(NUM_PEOPLE[other] for other in before) + i % NUM_PEOPLE[split]


def person(number: int) -> types.SimpleNamespace:
  """Returns the values of PERSON, the positions of the freckles and the rate of each attribute, given by the number."""
  rng = np.random.default_rng([SEED, len(NUM_PEOPLE), number])  # a random stream separate from those of the examples
  who = _uniform(rng, PERSON)
  who.hair *= 1 - 0.95 * who.skin  # otherwise brown hair on brown skin
  cells = np.stack(np.meshgrid(*map(np.arange, _FRECKLES)), -1).reshape(-1, 2)
  who.freckles = 2 * (cells + rng.uniform(0.1, 0.9, cells.shape)) / _FRECKLES - 1
  gender, age = _two_peaked(rng), rng.random()
  who.rates = {}
  for name, (rate, by_gender, by_age, _, _, habit) in _RATES.items():
    rate = np.clip(rate + by_gender * (gender - 0.5) + by_age * (age - 0.5), 0.01, 0.95)
    who.rates[name] = rate + habit * ((rng.random() < rate) - rate)
  return who


def sample_attributes(who: types.SimpleNamespace, rng: np.random.Generator) -> dict[str, bool]:
  """Draws the attributes of one image of a person."""
  cold, mood, draws = _two_peaked(rng), rng.random(), rng.random(len(_RATES))
  rates = [who.rates[name] + by_cold * (cold - 0.5) + by_mood * (mood - 0.5)
           for name, (_, _, _, by_cold, by_mood, _) in _RATES.items()]
  return {name: bool(draw < np.clip(rate, 0.01, 0.99)) for name, rate, draw in zip(_RATES, rates, draws)}


def _mix(palette: tuple, place: float) -> np.ndarray:
  """Returns the colour at `place` in [0, 1] along a palette, (3, 1, 1)."""
  at = place * (len(palette) - 1)
  colour = [np.interp(at, range(len(palette)), channel) for channel in zip(*palette)]
  return _rgb(*colour)


def _rgb(*colour: float) -> np.ndarray:
  return np.array(colour, np.float32).reshape(3, 1, 1)


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
  """Returns noise in [-1, 1] that varies over SIZE / cells pixels, by bilinear interpolation of a coarse grid; (3, h, w)."""
  grid = rng.uniform(-1, 1, (3, cells + 1, cells + 1)).astype(np.float32)
  at = np.arange(SIZE, dtype=np.float32) * cells / SIZE
  low, part = at.astype(int), at % 1
  rows = grid[:, low] * (1 - part[:, None]) + grid[:, low + 1] * part[:, None]
  return rows[..., low] * (1 - part) + rows[..., low + 1] * part


# Signed distances in pixels, negative inside. They are accurate enough near the edge, which is all that anti-aliasing needs.
def _ellipse(x, y, width, height):
  radius = np.hypot(x / width, y / height)
  return radius * (radius - 1) / (np.hypot(x / width**2, y / height**2) + 1e-6)


def _box(x, y, width, height, rounding=0.0):
  x, y = np.abs(x) - (width - rounding), np.abs(y) - (height - rounding)
  return np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - rounding


def _arc(x, y, width, rise, thickness):
  """Returns the distance to a line through the origin whose ends, `width` to each side, lie `rise` higher."""
  slope = -2 * rise / width**2 * x
  across = np.abs(y - slope * x / 2) / np.sqrt(1 + slope * slope)
  return np.maximum(across - thickness, np.abs(x) - width)


class _Canvas:
  """An image in progress, (3, h, w), and the position of each of its pixels on the head."""

  def __init__(self, who: types.SimpleNamespace, pose: types.SimpleNamespace, background: np.ndarray):
    self.image, self.scale = background, pose.scale
    roll = np.deg2rad(pose.roll)
    cos, sin = float(np.cos(roll)) / pose.scale, float(np.sin(roll)) / pose.scale
    right, down = _COLUMNS - (32 + pose.right), _ROWS - (29.5 + pose.down)
    self.x, self.y = right * cos + down * sin, down * cos - right * sin
    # Position on the face: a turn of the head moves the middle, but not the sides.
    self.across = self.x - 2.8 * pose.turn * np.maximum(1 - (self.x / who.width) ** 2, 0)
    self.side = np.abs(self.across)
    self.eye_x, self.eye_y = self.side - who.spacing, self.y - who.eyes
    self.brow, self.mouth = who.eyes - who.brows, who.eyes + who.nose + who.mouth
    lower = (np.abs(self.x / who.width) ** who.jaw + np.abs(self.y / who.chin) ** who.jaw) ** (1 / who.jaw) - 1
    self.face = np.where(self.y < 0, _ellipse(self.x, self.y, who.width, 17), lower * who.width)

    light_x, light_y = float(np.cos(pose.light)), float(np.sin(pose.light))
    self.light = pose.exposure * (1 + pose.shade * (right * light_x + down * light_y) / (SIZE / 2))
    self.dome = np.hypot((self.x - 4 * light_x) / who.width, (self.y - 4 * light_y) / 18)  # of the face, from 0

  def paint(self, distance, colour, opacity=1.0, outline=0.0):
    """Paints a colour where the distance is negative."""
    if outline:
      self.paint(distance - outline, 0.5 * colour)
    cover = np.clip(0.5 - distance * self.scale, 0, 1) * opacity
    rows = np.flatnonzero(cover.any(1))
    if rows.size:  # painting only these rows saves a third of the time
      band = slice(rows[0], rows[-1] + 1)
      part = self.image[:, band]
      part += (np.broadcast_to(colour, self.image.shape)[:, band] - part) * cover[band]


def _draw_behind(at: _Canvas, who, pose, has, skin, strands):
  """Draws hair, neck, clothes and ears."""
  out, below = np.abs(at.x), at.y - who.chin
  width = who.width + who.volume
  hull = np.where(at.y < 0, _ellipse(at.x, at.y, width, 17 + who.volume), out - width)
  at.paint(np.maximum(hull, at.y - (25 if has.Long_Hair else who.eyes + 3)), strands, outline=0.8)
  at.paint(_box(at.x, below, 0.42 * who.width, 10), 0.8 * skin)
  clothes, second = _mix(_HUES, pose.clothes), (pose.clothes + pose.contrast) % 1
  at.paint(_ellipse(at.x, below - 17, 30, 13), clothes, outline=0.8)
  at.paint(_ellipse(at.x, below - 3, 0.42 * who.width, 2 + pose.collar), 0.85 * skin)
  if has.Wearing_Necktie:
    at.paint(np.maximum(out - 9.8 + 0.45 * below, 3 - below), 240, outline=0.6)
    at.paint(np.maximum(out - 1.4 - 0.12 * below, 3.5 - below), _mix(_HUES, second), outline=0.7)
  if has.Wearing_Scarf:
    wool = _mix(_HUES, 1 - second)
    wool = wool + (np.sin(1.6 * at.x) > 0.2) * 0.6 * (245 - wool)
    at.paint(_box(at.x, below - 1.6 + 0.012 * at.x**2, 0.7 * who.width + 2, 4.2, 2.5), wool, outline=0.7)
  ear_x, ear_y = np.abs(at.x + 0.8 * pose.turn) - who.width - 0.7, at.eye_y - 2.5
  at.paint(_ellipse(ear_x, ear_y, 0.6 * who.ears, who.ears), 0.93 * skin, outline=0.6)
  if has.Wearing_Earrings:
    at.paint(np.hypot(ear_x - 0.4, ear_y - who.ears - 0.5) - 1.1, _mix(_METAL, pose.metal), outline=0.6)


def _draw_skin(at: _Canvas, who, has, skin, line):
  """Draws the face, lighter towards the light, and what is on its skin."""
  at.paint(at.face, skin * (1.06 - 0.22 * np.minimum(at.dome**2, 1)), outline=0.7)
  if has.Rosy_Cheeks:
    blush = np.hypot(at.eye_x - 1.5, at.eye_y - 6.3) / 3.6
    at.paint(at.face, _rgb(*_BLUSH), 0.6 * np.clip(1.4 - 1.4 * blush, 0, 1))
  if has.Wrinkles:
    at.paint(_arc(at.across, at.y - at.brow + 3.4, 6.5, -0.8, 0.3), line)
    at.paint(_arc(at.across, at.y - at.brow + 5.6, 5, -0.8, 0.3), line)
    at.paint(_arc(at.eye_x, at.eye_y - who.eye_height - 1.7, 2.6, 1, 0.3), line)
    fold = at.side - 4 - 0.45 * (at.eye_y - who.nose)
    at.paint(np.maximum(np.abs(fold) * 0.91 - 0.3, np.abs(at.y - at.mouth + 2.2) - 2.6), line)
  if has.Freckles:
    places = who.freckles * (who.spacing + 3.2, 2.8) + (0, 4.6)
    squares = np.min([(at.across - x) ** 2 + (at.eye_y - y) ** 2 for x, y in places.tolist()], 0)
    at.paint(np.sqrt(squares) - 0.55, skin * _rgb(0.58, 0.5, 0.45))


def _draw_lower_half(at: _Canvas, who, pose, has, skin, line, strands):
  """Draws nose, beard, mouth and mustache."""
  nose_x, nose_y = at.across - 0.9 * pose.turn, at.eye_y - who.nose
  at.paint(_arc(nose_x, nose_y, who.nose_width, 1.1, 0.45), line)
  bridge = np.abs(nose_x) - 0.35 * who.nose_width
  at.paint(_box(bridge, nose_y + 0.5 * who.nose + 0.5, 0.3, 0.3 * who.nose), line, 0.35)
  if has.Beard:
    bare = _ellipse(at.across, at.eye_y - 3, who.width - 2.6, who.nose + who.mouth + 0.2)
    at.paint(np.maximum(np.maximum(at.face - 0.9, -bare), 3 - at.eye_y), strands, outline=0.5)

  corners, half = (pose.smile, who.mouth_width + 0.9) if has.Smiling else (who.mouth_curve, who.mouth_width)
  lips, thick = skin * _rgb(0.86, 0.66, 0.64), who.lips
  if has.Wearing_Lipstick:
    lips, thick = _rgb(*_LIPSTICK), 1.15 * who.lips
  gape = pose.gape if has.Mouth_Slightly_Open else 0
  bend, ends = np.maximum(1 - (at.across / half) ** 2, 0), at.side - half
  below = at.y - at.mouth - corners * (bend - 0.6)  # the line between the lips
  at.paint(np.maximum(np.maximum(-below - thick * bend, below - (1.2 * thick + gape) * bend), ends), lips)
  inside = np.maximum(np.maximum(-below - 0.25, below - np.maximum(gape * bend, 0.25)), ends)
  at.paint(inside, 0.3 * skin)
  if gape:
    at.paint(np.maximum(np.maximum(inside, below - 0.45 * gape * bend), ends + 1), 245)  # teeth
  if has.Mustache:
    drop = at.y - at.mouth + thick + 1.7 + 0.4 * corners - 0.05 * at.side**2
    at.paint(_box(at.side - 2.6, drop, 2.9, 1.3, 1.2), strands, outline=0.4)


def _draw_upper_half(at: _Canvas, who, pose, has, skin, hair, strands):
  """Draws eyes, forehead, glasses and hat."""
  eye = _ellipse(at.eye_x, at.eye_y, who.eye_width, who.eye_height)
  if has.Eyes_Closed:
    at.paint(eye, 0.9 * skin)
    at.paint(_arc(at.eye_x, at.eye_y - 0.8 * who.eye_height, who.eye_width, 1.1, 0.45), 0.25 * skin)
  else:
    iris = np.hypot(at.eye_x - pose.gaze * np.sign(at.across), at.eye_y) - 1.45
    at.paint(eye, 248, outline=0.5)
    at.paint(np.maximum(iris, eye), _mix(_IRIS, who.iris))
    at.paint(np.maximum(iris + 0.75, eye), 15)
    at.paint(_arc(at.eye_x, at.eye_y + who.eye_height, who.eye_width, -0.9 * who.eye_height, 0.4), 0.25 * skin)

  edge = who.hairline + who.temples * (at.across / who.width) ** 2
  if has.Bangs:
    edge = np.maximum(edge, at.brow + 0.5 + 0.7 * np.sin(1.9 * at.across))
  for rim, shade in ((0.6, 0.5), (0, 1)):  # an outline, but only where the hair meets the skin
    at.paint(np.maximum(np.maximum(at.face - 0.8, at.y - edge - rim), at.eye_y - 1), shade * strands)
  tilted = at.y - at.brow - who.brow_tilt * at.eye_x
  at.paint(_arc(at.eye_x, tilted, who.brow_width, -who.brow_arch, who.brow_thickness), 0.5 * hair)

  if has.Eyeglasses:
    reach, bar = min(4.4, who.spacing - 1), np.abs(at.eye_y + 0.7) - 0.45
    lens = _box(at.eye_x, at.eye_y - 0.2, reach, 3.4, 3.4 * who.lens)
    at.paint(lens, 235, 0.18)
    at.paint(np.abs(lens) - 0.5, 25)
    at.paint(np.maximum(bar, at.eye_x + reach), 25)
    at.paint(np.maximum(np.maximum(bar, reach - at.eye_x), np.abs(at.x) - who.width), 25)
  if has.Wearing_Hat:  # above the brows, so that bangs show below it
    above, width, felt = at.y - at.brow + 5.2, who.width + who.volume, _mix(_HUES, pose.hat)
    crown = _ellipse(at.x, above, width + 1, 14.8 + who.volume + at.brow)
    at.paint(np.maximum(crown, above), felt, outline=0.8)
    at.paint(np.maximum(crown, np.abs(above + 2.6) - 1.4), 0.55 * felt)
    at.paint(_box(at.x, above, width + pose.brim, 1.5, 1.4), felt, outline=0.7)


def draw(who: types.SimpleNamespace, attributes: dict[str, bool], rng: np.random.Generator) -> np.ndarray:
  """Draws one image of a person: uint8 RGB, (SIZE, SIZE, 3). The draws from `rng` do not depend on the other arguments."""
  pose, has = _uniform(rng, PICTURE), types.SimpleNamespace(**attributes)
  background = rng.uniform(80, 200) + _rgb(*rng.uniform(-45, 45, 3)) + 20 * _smooth_noise(rng, 4)
  noise = 4 * rng.standard_normal((3, SIZE, SIZE), np.float32)

  at = _Canvas(who, pose, background)
  skin = _mix(_SKIN, who.skin)
  line, hair = 0.6 * skin, _rgb(*_GRAY) if has.Gray_Hair else _mix(_HAIR, who.hair)
  strands = hair * (1 + 0.12 * np.sin(2.1 * at.x + 0.25 * at.y))
  _draw_behind(at, who, pose, has, skin, strands)
  _draw_skin(at, who, has, skin, line)
  _draw_lower_half(at, who, pose, has, skin, line, strands)
  _draw_upper_half(at, who, pose, has, skin, hair, strands)
  return np.clip(at.image * at.light + noise, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def example(split: str, i: int) -> dict:
  """Returns example `i` of `split`: its image, attributes and identity."""
  number, rng = identity(split, i), np.random.default_rng([SEED, list(NUM_PEOPLE).index(split), i])
  who = person(number)
  attributes = sample_attributes(who, rng)
  return {'image': draw(who, attributes, rng), 'attributes': attributes, 'identity': number}


class Faces(tfds.core.GeneratorBasedBuilder):
  """The TFDS builder of faces, with attributes in the same form as in TFDS's celeb_a."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description=__doc__,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(SIZE, SIZE, 3)),
            'attributes': {name: np.bool_ for name in ATTRIBUTES},
            'identity': np.int64,
        }),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in NUM_PEOPLE}

  def _generate_examples(self, split):
    for i in range(NUM_PEOPLE[split] * IMAGES_PER_PERSON[split]):
      yield i, example(split, i)
