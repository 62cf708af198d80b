"""The names of a model's outputs: ImageNet's labels, and the keys that identify classes."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BACKGROUND = 'background'  # class 0 of the TF-slim models; no example has it
_SYNSET = re.compile(r'n\d{8}(?![0-9A-Za-z])', re.ASCII)
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

  Words may follow the number: 'n01440764 tench' in labels, 'n01440764-tench' or 'n01440764_tench' in the names of folders.
  """
  return [match[0] if (match := _SYNSET.match(label)) else label for label in labels]
