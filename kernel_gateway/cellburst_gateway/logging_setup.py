"""Structured logs: one JSON object a line in DATA/logs, rotated, without tokens, code or values."""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path

MAX_LOG_BYTES = 8 * 1024 * 1024
LOG_FILES_KEPT = 4
MAX_LINE_CHARACTERS = 4000  # one line an event; a traceback of ours fits, a megabyte from outside does not

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON line; `extra` fields become its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": record.name,
            "event": record.getMessage()[:MAX_LINE_CHARACTERS],
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line[key] = value if isinstance(value, int | float | bool) else str(value)[:500]
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MAX_LINE_CHARACTERS:]
        return json.dumps(line, ensure_ascii=False)


def set_up(data: Path) -> None:
    """Log to DATA/logs/gateway.log, and warnings also to standard error."""
    folder = data / "logs"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(
        folder / "gateway.log", maxBytes=MAX_LOG_BYTES, backupCount=LOG_FILES_KEPT, encoding="utf-8"
    )
    file.setFormatter(JsonFormatter())
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.WARNING)
    screen.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [file, screen]
    root.setLevel(logging.INFO)
    # Access lines are written by the application without query strings.
    logging.getLogger("tornado.access").disabled = True
