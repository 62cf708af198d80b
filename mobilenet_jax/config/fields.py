"""What a field of a config is: its default, which also gives its type, its comment, and its range."""

import ast
import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from mobilenet_jax.errors import UserError

Value = bool | int | float | str | tuple
UNITS = "a number and one unit: 'N steps', 'N epochs' or 'N examples'"


@dataclasses.dataclass(frozen=True)
class Range:
  """The valid values of a field: a function that says whether a value is one, and what is expected, in words."""

  holds: Callable[[Value], bool]
  expected: str


ANY = Range(lambda value: True, '')


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a config.

  Attributes:
    default: its default. A value has the same type.
    comment: what a person should know to set it, in one line.
    range: its valid values.
    of_weights: of a field of a network: whether the outputs of the same weights depend on it.
  """

  default: Value
  comment: str = ''
  range: Range = ANY
  of_weights: bool = False

  def read(self, name: str, text: str) -> Value:
    """Returns the value that `text`, from a command line, stands for. Raises UserError, which names the field."""
    kind = type(self.default)
    try:
      if kind is str:
        value = text
      elif kind is bool and text.lower() in ('true', 'false', '1', '0'):
        value = text.lower() in ('true', '1')
      else:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:  # what literal_eval raises
      raise UserError(self._other_type(name, _short(text))) from error
    if kind is tuple and type(value) is int:
      value = (value,)
    return self.checked(name, value)

  def checked(self, name: str, value: Value) -> Value:
    """Returns `value` in the type of the field: an int may stand for a float, a list for a tuple, NumPy's for Python's.

    Raises:
      UserError: if it has another type, or is outside of the range. It names the field, the value, and what is expected.
    """
    kind, shown = type(self.default), _short(repr(value) if isinstance(value, str) else str(value))
    value = getattr(value, 'item', lambda: value)()  # a NumPy number as Python's
    if kind is float and type(value) is int and abs(value) < 2**1000:
      value = float(value)
    if kind is tuple and type(value) is list:
      value = tuple(value)
    if type(value) is not kind or kind is str and '\0' in value:
      raise UserError(self._other_type(name, shown))
    if not self.range.holds(value):
      raise UserError(f'{name}={shown}: expected {self.range.expected}')
    if kind is float and not math.isfinite(value):  # whatever the range: a config is written as JSON
      raise UserError(f'{name}={shown}: expected a finite number')
    return value

  def _other_type(self, name, shown):
    return f'{name}={shown}: expected {type(self.default).__name__}, such as {self.default!r}'


def _short(text: str) -> str:
  text = ' '.join(text.split())
  return text if len(text) <= 100 else f'{text[:100]}...'


def number(at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf, below: float = math.inf) -> Range:
  """Returns the range of finite numbers within the given limits."""
  limits = {'at least': at_least, 'above': above, 'at most': at_most, 'below': below}
  words = ' and '.join(f'{word} {limit:,}' for word, limit in limits.items() if abs(limit) < math.inf)

  def holds(value):
    # As a device computes with it, too: in float32, 1e-300 is 0 and 0.9999999999 is 1.
    return all(math.isfinite(v) and at_least <= v <= at_most and above < v < below for v in (value, _as_on_a_device(value)))

  return Range(holds, f'a number {words}')


def _as_on_a_device(value):
  with np.errstate(over='ignore'):
    return float(np.float32(value)) if isinstance(value, float) else value


def text(value) -> str:
  """Returns a value of a field as short text, such as 0.002, 64x48 or cifar10; numbers read back as what they were."""
  if isinstance(value, tuple | list):
    return 'x'.join(map(text, value))
  short = f'{value:g}' if isinstance(value, float) else str(value)
  return repr(value) if isinstance(value, float) and float(short) != value else short


def one_of(*choices: str) -> Range:
  """Returns the range of the given texts. '' is a choice that needs no mention."""
  return Range(lambda value: value in choices, 'one of ' + ', '.join(filter(None, choices)))


def duration(above_0: bool = False) -> Range:
  """Returns the range of durations, such as "90 epochs"."""
  def holds(value):
    found = parse_duration(value)
    return found is not None and (found[0] > 0 or not above_0)
  return Range(holds, UNITS if not above_0 else f'{UNITS}, more than 0')


def parse_duration(text: str) -> tuple[float, str] | None:
  """Returns the amount and the unit, 'step', 'epoch' or 'example', of a duration; None if it is none."""
  match = re.fullmatch(r'\s*(\d+\.?\d*|\.\d+)\s*(step|epoch|example)s?\s*', text, re.ASCII)
  return match and (float(match[1]), match[2])


TEXT = Range(lambda value: bool(value.strip()), 'a name, not an empty text')


def whole_numbers(at_least: int, at_most: float, count: int | None, expected: str) -> Range:
  """Returns the range of tuples of whole numbers, `count` of them or any number."""
  return Range(lambda value: count in (None, len(value)) and all(type(n) is int and at_least <= n <= at_most for n in value),
               expected)
