"""Random access to TFRecord files, without TensorFlow.

A TFRecord file is a sequence of records: the length of the data (8 bytes), its checksum (4), the data, and its checksum (4);
see https://www.tensorflow.org/tutorials/load_data/tfrecord. Where the records begin is found out once, by going from length to
length, and is kept in an index, so that any record can be read by its number. Every checksum is verified.
"""

import mmap
import os
import struct
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from mobilenet_jax.errors import UserError
from mobilenet_jax.storage.files import whole_file

HEADER, FOOTER = 12, 4  # bytes before and after the data of a record
SAY_EVERY = 5  # seconds


class TFRecords:
  """The records of several files, by file and number."""

  def __init__(self, files: Sequence[Path], index: Sequence[Path], name: str):
    """Reads the index, or makes it.

    Args:
      files: TFRecord files.
      index: paths of the index; it is written to the first that can be written.
      name: what the records are called while an index is made.

    Raises:
      UserError: if a file cannot be read; the error names it.
    """
    self._files = files
    try:
      found = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
      self._starts = _known(files, found, index)
      if todo := [i for i, starts in enumerate(self._starts) if starts is None]:
        self._make(todo, name)
        _keep(files, found, self._starts, index)
    except OSError as error:
      raise UserError(f'{error.filename}: {error.strerror}; prepare the dataset again') from error

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

  def _make(self, todo, name):
    said = time.monotonic()
    for done, i in enumerate(todo):
      if time.monotonic() - said > SAY_EVERY:
        said = time.monotonic()
        print(f'looking up the records of {name}, once: {done} of {len(todo)} files', flush=True)
      self._starts[i] = _starts(self._files[i])


def _known(files, found, index):
  """Returns the starts of the records in each file from the index; None where it has none or is older than the file."""
  for path in index:
    try:
      with np.load(path) as arrays:
        names, sizes, times, counts, starts = (arrays[name] for name in ('files', 'sizes', 'times', 'counts', 'starts'))
      parts = dict(zip(zip(names.tolist(), sizes.tolist(), times.tolist()), np.split(starts, np.cumsum(counts)[:-1])))
      return [parts.get((file.name, *state)) for file, state in zip(files, found)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # there is none, or it is damaged
      continue
  return [None] * len(files)


def _keep(files, found, starts, index):
  sizes, times = np.array(found, np.int64).T
  for path in index:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with whole_file(path) as file:
        np.savez(file, files=[file.name for file in files], sizes=sizes, times=times, counts=[len(part) for part in starts],
                 starts=np.concatenate(starts))
      return
    except OSError:  # a folder that cannot be written
      continue


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
