"""One JSON object per line on standard error: what happened, never what was said.

Keys are cut wherever they turn up, all but printable ASCII is escaped, and an exception is told by its type and its
place: its text may quote the prompt.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from musespark.api.errors import redact

_TEXT_LIMIT = 512


def configure(stream: TextIO = sys.stderr) -> None:
    """Send structlog's events and the standard library's records to `stream`."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _clean,
            _to_json,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(logging.WARNING)


def describe(error: BaseException) -> dict[str, Any]:
    """Type and place of an exception: the innermost frames, without any value."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {"error": type(error).__name__, "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]}


class _ToStructlog(logging.Handler):
    """Records of other libraries, uvicorn's and ours; messages are formats and ids, their exceptions are described."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields |= describe(record.exc_info[1])
        structlog.get_logger().log(record.levelno, record.getMessage(), **fields)


def _clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: _clean_value(value) for name, value in event.items()}


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value[:_TEXT_LIMIT])
    if isinstance(value, list):
        return [_clean_value(item) for item in value]
    return value


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    # ASCII, so that U+2028 breaks no line either.
    text = json.dumps(event, separators=(",", ":"), default=lambda value: type(value).__name__)
    return text.replace("\x7f", "\\u007f")
