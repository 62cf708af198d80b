"""Marks and labels of models, for all figures of accuracy against cost. This module does not import JAX."""

from collections.abc import Iterable

import numpy as np

# One look per resolution, largest first. They differ in shape and in brightness as well as in colour.
LOOKS = (('#08306b', 'o'), ('#2171b5', 's'), ('#d94801', '^'), ('#fdae6b', 'D'))


def marks(heights: Iterable[float]) -> dict[float, dict]:
  """Returns Matplotlib's options for the models of each input height, largest first."""
  found = {}
  for i, height in enumerate(sorted(set(heights), reverse=True)):
    color, marker = LOOKS[i % len(LOOKS)]
    found[height] = dict(marker=marker, color=color, linestyle='None', markeredgecolor='black', markeredgewidth=0.6,
                         markersize=7)
  return found


def label(axes, labels: list[tuple[tuple[float, float], str]]) -> None:
  """Writes a label at each point (x, y) of Matplotlib's `axes`.

  A label is near its point, and nearer to it than to any other. If there is room, it covers no mark, line or other label. The
  figure's layout must be done.
  """
  pixel = axes.figure.dpi / 72
  marks = axes.transData.transform([point for point, _ in labels])
  taken = []  # boxes: left, bottom, right, top, in pixels
  for line in axes.lines:
    path = line.get_transform().transform_path(line.get_path())
    marked = line.get_linestyle() == 'None'
    reach = pixel * (line.get_markersize() / 2 if marked else 1)
    taken += [(x - reach, y - reach, x + reach, y + reach)
              for x, y in (path if marked else path.interpolated(100)).vertices]
  for (point, words), mark in zip(labels, marks):
    text = axes.annotate(words, point, xytext=(0, 0), textcoords='offset points', ha='center', va='center', fontsize=7,
                         zorder=5)
    text.set_in_layout(False)
    half = np.array(text.get_window_extent().size) / 2
    left, bottom, right, top = np.transpose(taken)
    places = []
    for gap in (2, 4, 7, 11):
      for direction in ((1, -1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0), (1, 1), (-1, -1)):
        offset = direction * (half + pixel * gap)
        box = np.concatenate([mark + offset - half, mark + offset + half])
        covered = np.sum((box[0] < right) & (box[2] > left) & (box[1] < top) & (box[3] > bottom))
        nearer = np.sum(np.linalg.norm(marks - mark - offset, axis=1) < np.linalg.norm(offset))
        outside = np.any(box[:2] < axes.bbox.min + 2 * pixel) or np.any(box[2:] > axes.bbox.max - 2 * pixel)
        places.append((covered + 5 * nearer + 1000 * outside, len(places), offset, box))
    _, _, offset, box = min(places, key=lambda place: place[:2])
    text.set_position(offset / pixel)
    taken.append(tuple(box + pixel * np.array((-2, 0, 2, 0))))  # as wide as the space between two words
