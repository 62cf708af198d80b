"""The names of a model's outputs: ImageNet's labels, and the keys that identify classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

BACKGROUND = 'background'  # class 0 of the TF-slim models; no example has it
IMAGENET_LABELS = Path(__file__).parent / 'imagenet_labels.txt'  # synsets, with the words of WordNet 3.0


def top_labels(probabilities: np.ndarray, labels: Sequence[str] | None, k: int) -> list[tuple[str, float]]:
  """Returns the k most likely classes of one image and their probabilities, by name, or by number if there are no names."""
  best = np.argsort(-probabilities, kind='stable')[:k]
  return [(labels[i] if labels else str(i), float(probabilities[i])) for i in best]


def imagenet_labels(num_classes: int) -> tuple[str, ...] | None:
  """Returns 'n01440764 tench, Tinca tinca' for each of 1,000 classes, or 1,001 with the background; else None."""
  names = tuple(IMAGENET_LABELS.read_text().splitlines())
  return {1000: names, 1001: (BACKGROUND, *names)}.get(num_classes)


def class_keys(labels: Sequence[str]) -> list[str]:
  """Returns the key that identifies each class: its label, or the number if it is a synset.

  WordNet's words follow the number in labels, but not in the names of folders.
  """
  def key(label):
    first = label.partition(' ')[0]
    return first if first[:1] == 'n' and first[1:].isdigit() and len(first) == 9 else label
  return [key(label) for label in labels]
