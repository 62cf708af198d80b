"""Data: datasets by name, the preprocessing of images, and batches.

This module is the public interface of the package: other packages import from here.

- Sources: `load`, `load_whole`, `keep_in_memory`. A `Source` has images, targets by name (ATTRIBUTES, TEACHER, 'label'),
  ids and names. An `ArraySource` holds its images in memory.
- Batches: `train_batches`, `eval_batches`, `blank_batch`, `steps_per_epoch`, `left_out`, `target_shapes`.
- Images: `read_image`, `find_images`, `crop_centrally`, `crop_array` run on the host; `normalize`, `distort_colors` run on
  the device; `stream_size`; `description`, which is saved with every checkpoint.
- Pairs of faces: `Pairs`, `read_pairs`, `draw_pairs`; `image_names`, the names by which pairs refer to images.
"""

from mobilenet_jax.data.examples import ATTRIBUTES, TEACHER, ArraySource
from mobilenet_jax.data.folders import image_names
from mobilenet_jax.data.images import find as find_images
from mobilenet_jax.data.images import read as read_image
from mobilenet_jax.data.pairs import Pairs, draw_pairs, read_pairs
from mobilenet_jax.data.pipeline import (
    Batch, CropTargets, blank_batch, eval_batches, left_out, steps_per_epoch, target_shapes, train_batches)
from mobilenet_jax.data.preprocessing import (
    crop_array, crop_centrally, description, distort_colors, normalize, stream_size)
from mobilenet_jax.data.sources import Source, keep_in_memory, load, load_whole

__all__ = [
    'ATTRIBUTES', 'TEACHER', 'ArraySource', 'Batch', 'CropTargets', 'Pairs', 'Source', 'blank_batch', 'crop_array',
    'crop_centrally', 'description', 'distort_colors', 'draw_pairs', 'eval_batches', 'find_images', 'image_names',
    'keep_in_memory', 'left_out', 'load', 'load_whole', 'normalize', 'read_image', 'read_pairs', 'steps_per_epoch',
    'stream_size', 'target_shapes', 'train_batches']
