"""Marks, labels and legends, for all figures of accuracy against cost. This module does not import JAX."""

from collections.abc import Iterable

import numpy as np

# One look per resolution, largest first. They differ in shape and in brightness as well as in colour.
LOOKS = (('#08306b', 'o'), ('#2171b5', 's'), ('#d94801', '^'), ('#fdae6b', 'D'), ('#00441b', 'v'), ('#41ab5d', 'P'),
         ('#54278f', 'X'), ('#9e9ac8', 'p'))
MAX_LOOKS = 2 * len(LOOKS)  # more would repeat
_INSIDE = ('lower right', 'upper left', 'upper right', 'lower left', 'center right', 'center left', 'upper center',
           'lower center')  # places of a legend, the best first


def marks(sizes: Iterable) -> dict:
  """Returns Matplotlib's options for the models of each input size, largest first. Beyond eight sizes, marks are hollow."""
  found = {}
  for i, size in enumerate(sorted(set(sizes), reverse=True)):
    color, marker = LOOKS[i % len(LOOKS)]
    found[size] = dict(marker=marker, color=color, linestyle='None', markeredgecolor='black', markeredgewidth=0.6,
                       markersize=7)
    if i // len(LOOKS) % 2:
      found[size] |= dict(markerfacecolor='white', markeredgecolor=color, markeredgewidth=1.5)
  return found


def taken(axes) -> np.ndarray:
  """Returns the boxes of the marks, the lines, the error bars and the labels of Matplotlib's `axes`.

  Returns:
    boxes: (n, 4), left, bottom, right and top, in pixels. The figure's layout must be done.
  """
  pixel, boxes = axes.figure.dpi / 72, []
  for line in axes.lines:
    path = line.get_transform().transform_path(line.get_path())
    marked = line.get_linestyle() == 'None'
    reach = pixel * (line.get_markersize() / 2 if marked else 1)
    boxes += [(x - reach, y - reach, x + reach, y + reach)
              for x, y in (path if marked else path.interpolated(100)).vertices]
  for bars in axes.collections:
    for path in bars.get_paths():
      ends = bars.get_transform().transform(path.vertices)
      boxes.append((*(ends.min(axis=0) - pixel), *(ends.max(axis=0) + pixel)))
  boxes += [text.get_window_extent().extents for text in axes.texts]
  return np.array(boxes).reshape(-1, 4)


def label(axes, labels: list[tuple[tuple[float, float], str]], above: bool = False) -> None:
  """Writes a label at each point (x, y) of Matplotlib's `axes`.

  A label is near its point, and nearer to it than to any other. If there is room, it covers no mark, line or other label. The
  figure's layout must be done.

  Args:
    axes: where to write.
    labels: the points and their labels.
    above: whether a label is best above its point, rather than beside the line through the points.
  """
  pixel = axes.figure.dpi / 72
  marks = axes.transData.transform([point for point, _ in labels])
  boxes = taken(axes)
  directions = ((1, -1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0), (1, 1), (-1, -1))
  if above:
    directions = tuple(sorted(directions, key=lambda direction: direction != (0, 1)))
  for (point, words), mark in zip(labels, marks):
    text = axes.annotate(words, point, xytext=(0, 0), textcoords='offset points', ha='center', va='center', fontsize=7,
                         zorder=5)
    text.set_in_layout(False)
    half = np.array(text.get_window_extent().size) / 2
    left, bottom, right, top = boxes.T
    places = []
    for gap in (2, 4, 7, 11):
      for direction in directions:
        offset = direction * (half + pixel * gap)
        box = np.concatenate([mark + offset - half, mark + offset + half])
        covered = np.sum((box[0] < right) & (box[2] > left) & (box[1] < top) & (box[3] > bottom))
        nearer = np.sum(np.linalg.norm(marks - mark - offset, axis=1) < np.linalg.norm(offset))
        outside = np.any(box[:2] < axes.bbox.min + 2 * pixel) or np.any(box[2:] > axes.bbox.max - 2 * pixel)
        places.append((covered + 5 * nearer + 1000 * outside, len(places), offset, box))
    _, _, offset, box = min(places, key=lambda place: place[:2])
    text.set_position(offset / pixel)
    boxes = np.vstack([boxes, box + pixel * np.array((-2, 0, 2, 0))])  # as wide as the space between two words


def finish(axes, labels: list[tuple[tuple[float, float], str]], handles: list, title: str, above: bool = False) -> None:
  """Writes the labels, and a legend that covers nothing, into Matplotlib's `axes`, the only ones of their figure.

  The legend is inside the axes where it covers no mark, line, error bar or label; if there is no such place, it is to the
  right of them, and the figure becomes as much wider, and higher if need be.
  """
  figure = axes.figure
  figure.draw_without_rendering()  # fixes the layout
  label(axes, labels, above)
  left, bottom, right, top = taken(axes).T
  options = dict(handles=handles, title=title, fontsize=8, title_fontsize=8, frameon=True)
  room = 4 * figure.dpi / 72
  for place in _INSIDE:
    legend = axes.legend(loc=place, **options)
    legend.set_in_layout(False)  # so that the layout is the same whether a place is tried or not
    box = legend.get_window_extent()
    covers = (box.x0 - room < right) & (box.x1 + room > left) & (box.y0 - room < top) & (box.y1 + room > bottom)
    if not covers.any() and np.all(box.min >= axes.bbox.min) and np.all(box.max <= axes.bbox.max):
      return
    legend.remove()
  for text in list(axes.texts):
    text.remove()
  legend = figure.legend(loc='outside right upper', **options)
  size = legend.get_window_extent().size / figure.dpi
  width, height = figure.get_size_inches()
  figure.set_size_inches(width + size[0], max(height, size[1] + 0.2))
  figure.draw_without_rendering()
  label(axes, labels, above)
