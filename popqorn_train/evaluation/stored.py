"""Files that others may have written: read within bounds, and refused in one sentence."""

import json
import zipfile
from pathlib import Path
from typing import Any

_LARGEST = 2**34  # bytes that one file may unpack to
_FOLD = 1100  # deflate packs at most 1032 bytes in one


def text_of(path: Path) -> str:
    """What is written in a file, with a mark in the place of every byte that is no UTF-8.

    Raises:
        OSError: it cannot be read.
    """
    return path.read_text(encoding="utf-8", errors="replace")


def objects_in(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that a crash cut off is skipped.

    Raises:
        OSError: it cannot be read.
    """
    found = []
    for line in text_of(path).splitlines():
        plain = _parsed(line)
        if isinstance(plain, dict):
            found.append(plain)
    return found


def object_in(path: Path) -> dict[str, Any]:
    """The one object of a JSON file.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    plain = _parsed(text_of(path))
    if not isinstance(plain, dict):
        raise ValueError(f"{path} must be a JSON object; is it cut off?")
    return plain


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def check_unpacked(path: Path, *, packed: bool) -> None:
    """Refuse an archive that unpacks to far more than it is.

    Args:
        path: of what may be a zip archive; anything else is left to its reader.
        packed: whether its members may be compressed.

    Raises:
        ValueError: it would fill the memory.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return
    size, most = sum(member.file_size for member in members), path.stat().st_size
    most = min(_FOLD * most, _LARGEST) if packed else most
    if size > most:
        raise ValueError(
            f"{path} would unpack to {size:,} bytes, more than {most:,}. If you trust it, save "
            "it again without compression."
        )
