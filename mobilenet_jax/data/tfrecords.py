"""Random access to TFRecord files, without TensorFlow.

A TFRecord file is a sequence of records: the length of the data (8 bytes), its checksum (4), the data, and its checksum (4);
see https://www.tensorflow.org/tutorials/load_data/tfrecord. Where the records begin is found out once, by going from length to
length, and is kept in an index, so that any record can be read by its number. Every checksum is verified.
"""

import contextlib
import mmap
import os
import struct
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from mobilenet_jax.storage.files import whole_file

HEADER, FOOTER = 12, 4  # bytes before and after the data of a record
SAY_EVERY = 5  # seconds


class TFRecords:
  """The records of several files, by file and number."""

  def __init__(self, files: Sequence[Path], index: Path, name: str):
    """Reads the index, or makes it.

    Args:
      files: TFRecord files.
      index: path of the index.
      name: what the records are called while an index is made.
    """
    self._files = files
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    self._starts = _known(state, index)
    if self._starts is None:
      self._starts = _starts_of_all(files, name)
      _keep(state, self._starts, index)

  def read(self, file: int, number: int) -> bytes:
    """Returns the data of record `number` of files[file].

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the record is damaged or cannot be found.
    """
    starts = self._starts[file]  # one more than there are records
    if number + 1 >= len(starts):
      raise ValueError(f'the file is damaged or cut off at record {len(starts) - 1}, and what follows cannot be found')
    start, size = int(starts[number]), int(starts[number + 1] - starts[number])
    with open(self._files[file], 'rb', buffering=0) as records:
      record = os.pread(records.fileno(), size, start)
    if len(record) < size:
      raise ValueError('the file has become shorter than it was')
    data, (crc,) = record[HEADER:-FOOTER], struct.unpack('<I', record[-FOOTER:])
    if _length(record, 0) != len(data) or crc != _masked_crc(data):
      raise ValueError('a checksum is wrong')
    return data


def _known(state, index):
  """Returns the starts of the records in each file from the index; None if there is none, or it is of other files."""
  try:
    with np.load(index) as arrays:
      same = arrays['state'].tolist() == np.array(state).tolist()
      return np.split(arrays['starts'], np.cumsum(arrays['counts'])[:-1]) if same else None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # there is none, or it is damaged
    return None


def _keep(state, starts, index):
  with contextlib.suppress(OSError):  # a folder that cannot be written: it is made again
    index.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(index) as file:
      np.savez(file, state=state, counts=[len(part) for part in starts], starts=np.concatenate(starts))


def _starts_of_all(files, name):
  found, said = [], time.monotonic()
  for file in files:
    if time.monotonic() - said > SAY_EVERY:
      said = time.monotonic()
      print(f'looking up the records of {name}, once: {len(found)} of {len(files)} files', flush=True)
    found.append(_starts(file))
  return found


def _starts(path):
  """Returns where each record begins, and where the last one ends; up to a damaged length."""
  starts, at = [0], 0
  with open(path, 'rb') as file:
    end = os.fstat(file.fileno()).st_size
    if not end:
      return np.array(starts)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      while at + HEADER <= end and (length := _length(content, at)) is not None:
        at += HEADER + length + FOOTER
        if at > end:
          break
        starts.append(at)
  return np.array(starts)


def _length(content, at):
  """Returns the length of the data of the record that begins at `at`; None if its checksum is wrong."""
  length, crc = struct.unpack_from('<QI', content, at)
  return length if crc == _masked_crc(content[at:at + 8]) else None


def _masked_crc(data):
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff
