"""The service log: one line an event, as text or JSON; no key, no control character.

A message may quote what senders sent, so control characters are shown as escapes and further lines
of one event are indented: nobody can forge an entry. gunicorn's logs are written the same way.
"""

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, NamedTuple

from gunicorn.glogging import Logger

from postbackd.config.entries import ConfigError
from postbackd.config.settings import find_config, load
from postbackd.escapes import visible_lines
from postbackd.intake.client_address import anonymize
from postbackd.masking import HIDDEN, NO_KEYS, KeyMask, hide_in_tracebacks

# `postback serve --log-format` passes the format to its processes in this variable.
FORMAT_VARIABLE = "POSTBACK_LOG_FORMAT"
FORMATS = ("text", "json")

# gunicorn's message for a request that it cannot read; the rest of the line quotes the request.
_INVALID_REQUEST = re.compile(r"Invalid request from ip=(\S*): ")

# The values of gunicorn's access log that hold a client's address.
_ADDRESS_ATOMS = ("h", "{x-forwarded-for}i", "{x-real-ip}i", "{forwarded}i", "{remote_addr}e")


class TextFormatter(logging.Formatter):
    """Formats through another formatter, then masks keys and escapes control characters."""

    def __init__(self, wrapped: logging.Formatter) -> None:
        """Wrap another formatter."""
        super().__init__()
        self._wrapped = wrapped

    def format(self, record: logging.LogRecord) -> str:
        """Format and mask, and indent all lines after the first."""
        line = visible_lines(mask_keys(self._wrapped.format(record)))
        return line.replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """One JSON object an event: `time level logger pid message`, `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format and mask."""
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": mask_keys(record.getMessage()),
        }
        if record.exc_info:
            event["traceback"] = mask_keys(self.formatException(record.exc_info))
        return json.dumps(event)


def format_event(sentence: str) -> str:
    """Write a sentence as the service log would, in the format that was asked for."""
    if os.environ.get(FORMAT_VARIABLE) != "json":
        return sentence
    return JsonFormatter().format(
        logging.LogRecord("postback", logging.INFO, "", 0, sentence, None, None)
    )


class MaskingLogger(Logger):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn's logger: its logs hold no key, and no full address under `anonymize_ip`."""

    def setup(self, cfg: Any) -> None:
        """Set up gunicorn's handlers, mask their output, and use them for our own loggers too."""
        super().setup(cfg)
        is_json = os.environ.get(FORMAT_VARIABLE) == "json"
        for log in (self.error_log, self.access_log):
            for handler in log.handlers:
                # A handler of --log-config may have none.
                text = TextFormatter(handler.formatter or logging.Formatter())
                handler.setFormatter(JsonFormatter() if is_json else text)
        ours = logging.getLogger("postback")
        ours.handlers = self.error_log.handlers
        ours.setLevel(self.error_log.level)
        ours.propagate = False
        hide_in_tracebacks(mask_keys)

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log a warning; a malformed request is named by its kind, and not quoted."""
        found = _INVALID_REQUEST.match(str(msg))
        kind = sys.exc_info()[0]
        if found and kind is not None:
            msg = f"Invalid request from ip={_shown_address(found[1])}: {kind.__name__}"
        super().warning(msg, *args, **kwargs)

    def atoms(self, *asked: Any) -> dict[str, Any]:
        """Return the values for an access log line, addresses shortened if so configured."""
        atoms: dict[str, Any] = super().atoms(*asked)
        for name in _ADDRESS_ATOMS:
            if name in atoms:
                atoms[name] = _shown_address(atoms[name])
        return atoms


def describe_start(cfg: Any) -> str:
    """Return the line about a start: version, config, database, the settings in force."""
    begin = f"postback {metadata.version('postback')}, config {find_config(os.environ)}"
    try:
        settings = load(find_config(os.environ))
    except ConfigError:
        # Each worker logs what is wrong with the file.
        return f"{begin}: not usable yet"
    proxies = ", ".join(map(str, settings.trusted_proxies)) or "none"
    said = {
        "database": settings.db_path,
        "currency": settings.currency,
        "workers": f"{cfg.workers} {cfg.worker_class_str}",
        "unknown_subid": settings.unknown_subid,
        "park_days": settings.park_days,
        "repeats": settings.repeats,
        "rates": ",".join(settings.rate_sources) or "none",
        "trusted_proxies": proxies,
        "old keys": len(settings.old_keys),
        "pixel_key": "set" if settings.pixel_key else "off",
        "click_key": "set" if settings.click_key else "off",
        "anonymize_ip": "yes" if settings.anonymize_ip else "no",
    }
    return "; ".join([begin, *(f"{name} {value}" for name, value in said.items())])


def mask_keys(text: str) -> str:
    """Mask keys, and text that looks like one, in a line of a log file."""
    return _read_known().mask.hide_in_message(text)


def _shown_address(address: str) -> str:
    if not _read_known().anonymizes or address == "-":
        return address
    return anonymize(address) or HIDDEN


class _Known(NamedTuple):
    """The settings that log lines depend on."""

    mask: KeyMask = NO_KEYS
    anonymizes: bool = False


_loaded: tuple[tuple[int, int], _Known] = ((0, 0), _Known())


def _read_known() -> _Known:
    global _loaded  # noqa: PLW0603 one small cache, read anew when the file changes
    path = find_config(os.environ)
    try:
        stat = os.stat(path)
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != _loaded[0]:
            settings = load(path)
            _loaded = (stamp, _Known(KeyMask(settings.secrets()), settings.anonymize_ip))
    except (OSError, ConfigError):
        # The keys of the last good file stay masked.
        pass
    return _loaded[1]
