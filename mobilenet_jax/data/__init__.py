"""Data: datasets by name, the preprocessing of images, and batches.

This module is the public interface of the package: other packages import from here.

- Sources: `load`, `load_whole`, `from_images`, `keep_in_memory`. A `Source` is a sequence of examples, each with
  an id, an image and targets by name (ATTRIBUTES, TEACHER, 'label', which may be UNKNOWN). `with_classes_checked` compares
  two splits. `walk` finds the images in a folder.
- Batches: `train_batches`, `eval_batches`, `blank_batch`, `steps_per_epoch`, `left_out`. A `BadExample` cannot be read.
- Images: `read_image`, `IMAGE_SUFFIXES`, `crop` run on the host; `normalize`, `distort_colors` run on the device;
  `stream_size`; `description`, which is saved with every checkpoint.
- What is done to an example: a `Transform`, usually `crop_and_flip`, with `CropTargets` for targets such as boxes.
- What identifies data: `fingerprint` and `ids_digest` of a source, `digest` of anything; `known_targets`, which may be a
  sample; `common`, how many examples two sources share.
- Pairs of faces: `Pairs`, `read_pairs`, `draw_pairs`; `image_names`, the names by which pairs refer to images.
"""

from mobilenet_jax.data.examples import ATTRIBUTES, TEACHER, UNKNOWN, BadExample, Example, Source, from_images, keep_in_memory
from mobilenet_jax.data.fingerprints import common, digest, fingerprint, ids_digest, known_targets
from mobilenet_jax.data.folders import image_names
from mobilenet_jax.data.image_files import Walk, walk
from mobilenet_jax.data.images import SUFFIXES as IMAGE_SUFFIXES
from mobilenet_jax.data.images import read as read_image
from mobilenet_jax.data.order import left_out, steps_per_epoch
from mobilenet_jax.data.pairs import Pairs, draw_pairs
from mobilenet_jax.data.pairs_file import read_pairs
from mobilenet_jax.data.pipeline import Batch, blank_batch, eval_batches, train_batches
from mobilenet_jax.data.preprocessing import (
    CropTargets, Transform, crop, crop_and_flip, description, distort_colors, normalize, stream_size)
from mobilenet_jax.data.recorded import teacher_of
from mobilenet_jax.data.sources import load, load_whole
from mobilenet_jax.data.splits import with_classes_checked

__all__ = [
    'ATTRIBUTES', 'IMAGE_SUFFIXES', 'TEACHER', 'UNKNOWN', 'BadExample', 'Batch', 'CropTargets', 'Example', 'Pairs', 'Source',
    'Transform', 'Walk', 'blank_batch', 'common', 'crop', 'crop_and_flip', 'description', 'digest', 'distort_colors',
    'draw_pairs', 'eval_batches', 'fingerprint', 'from_images', 'ids_digest', 'image_names', 'keep_in_memory', 'known_targets',
    'left_out', 'load', 'load_whole', 'normalize', 'read_image', 'read_pairs', 'steps_per_epoch', 'stream_size', 'teacher_of',
    'train_batches', 'walk', 'with_classes_checked']
