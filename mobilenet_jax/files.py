"""Files that are there whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
  """Writes beside `path` and renames, so that neither a kill nor a full disk leaves half a file."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(text)
  temporary.replace(path)
