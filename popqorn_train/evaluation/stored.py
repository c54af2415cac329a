"""Files that others may have written: read within bounds, and refused in one sentence.

An object that is written with a checksum, its entry ``crc32``, is read as it was written or not at
all. The checksum is one of what the object says, not of its spaces and line breaks. Files of
earlier versions have none.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_LARGEST = 2**34  # bytes that one file may unpack to
_FOLD = 1100  # deflate packs at most 1032 bytes in one
_CHECKSUM = "crc32"
_WINDOW = 2**12  # bytes at the end of a file that are looked at first


def text_of(path: Path) -> str:
    """What is written in a file, with a mark in the place of every byte that is no UTF-8.

    Raises:
        OSError: it cannot be read.
    """
    return path.read_text(encoding="utf-8", errors="replace")


def with_checksum(plain: dict[str, Any]) -> dict[str, Any]:
    """An object of plain values, none of which is infinite, and its checksum."""
    return {**plain, _CHECKSUM: _checksum(plain)}


def line_of(plain: dict[str, Any]) -> str:
    """An object as a JSON line with a checksum."""
    return json.dumps(with_checksum(plain), allow_nan=False) + "\n"


class Lines(NamedTuple):
    """What a file of JSON lines holds.

    Attributes:
        objects: as they were written.
        damage: which lines are not as they were written, in words; empty where there is none.
    """

    objects: list[dict[str, Any]]
    damage: str = ""


def objects_in(path: Path, *, checked: bool = False) -> Lines:
    """The objects of a file of JSON lines, as they were written.

    A last line without its end is skipped: a crash has cut it off, or it is being written.

    Args:
        path: of the file.
        checked: whether every line must have a checksum. Otherwise one must have it after any that
            has: those before may be from an earlier version.

    Raises:
        OSError: it cannot be read.
    """
    *lines, end = text_of(path).split("\n")
    found, damaged = [], []
    for number, line in enumerate(lines, 1):
        plain = _intact(line, checked=checked)
        if plain is not None:
            checked = checked or _CHECKSUM in plain
            found.append(plain)
        elif line.strip():
            damaged.append(number)
    if (plain := _intact(end, checked=checked)) is not None:
        found.append(plain)
    return Lines([_without_checksum(plain) for plain in found], _told(path, damaged))


def _told(path: Path, damaged: list[int]) -> str:
    if not damaged:
        return ""
    more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
    lines = "line" if len(damaged) == 1 else "lines"
    return f"{path} is damaged in {lines} {', '.join(map(str, damaged[:5]))}{more}"


def mend_end(path: Path) -> None:
    """Take away what a crash has left of the last line of a file, before one is appended.

    Raises:
        OSError: it cannot be read or written.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        last = _last_line(file)
        if not last:
            return
        if _intact(last.decode(errors="replace"), checked=False) is None:
            file.truncate(file.seek(-len(last), os.SEEK_END))
        else:  # its line break alone is missing
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def _last_line(file: BinaryIO) -> bytes:
    """What follows the last line break; only the end of the file is read."""
    size = file.seek(0, os.SEEK_END)
    window, end = _WINDOW, b""
    while len(end) < size and b"\n" not in end:
        file.seek(max(0, size - window))
        end, window = file.read(min(window, size)), 4 * window
    return end[end.rfind(b"\n") + 1 :]


def object_in(path: Path, *, checked: bool = False) -> dict[str, Any]:
    """The one object of a JSON file, as it was written.

    Args:
        path: of the file.
        checked: whether it must have a checksum; one of an earlier version has none.

    Raises:
        ValueError: it holds something else, or is damaged.
        OSError: it cannot be read.
    """
    plain = _parsed(text_of(path))
    if not isinstance(plain, dict):
        raise ValueError(f"{path} must be a JSON object; is it cut off?")
    if (checked or _CHECKSUM in plain) and _intact_object(plain) is None:
        raise ValueError(
            f"{path} is damaged: its values are not those that were written. Make it again."
        )
    return _without_checksum(plain)


def _checksum(plain: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(plain).encode()):08x}"


def _without_checksum(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if name != _CHECKSUM}


def _intact_object(plain: dict[str, Any]) -> dict[str, Any] | None:
    """An object, if it has a checksum that fits."""
    try:
        fits = plain.get(_CHECKSUM) == _checksum(_without_checksum(plain))
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets in brackets
        fits = False
    return plain if fits else None


def _intact(line: str, *, checked: bool) -> dict[str, Any] | None:
    """The object of a line; None if it is damaged."""
    plain = _parsed(line)
    if not isinstance(plain, dict):
        return None
    if _CHECKSUM in plain:
        return _intact_object(plain)
    return None if checked else plain


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
