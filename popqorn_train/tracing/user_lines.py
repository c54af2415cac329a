"""Which line of the user's code is meant, for messages."""

import linecache
import traceback
from types import CodeType, FrameType


def user_line(frame: FrameType | None) -> str:
    """The innermost line of code that is neither torch's nor ours."""
    while frame is not None:
        if _is_users(frame.f_code):
            return _said(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return "unknown line"


def _is_users(code: CodeType) -> bool:
    name = code.co_filename.replace("\\", "/")
    return "/torch/" not in name and "/popqorn_train/" not in name and not name.startswith("<")


def _said(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    return f"{file.replace(chr(92), '/').rsplit('/', 1)[-1]}, line {line}: {text}"


def innermost(error: Exception) -> str:
    """The innermost user's line that an error passed."""
    places = [(f.f_code, line) for f, line in traceback.walk_tb(error.__traceback__)]
    users = [(code.co_filename, line) for code, line in places if _is_users(code)]
    return _said(*users[-1]) if users else "unknown line"
