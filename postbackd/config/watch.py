"""ConfigWatch: the settings in force, read again when the config file changes."""

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from postbackd.config.changes import describe_changes, find_dropped_keys
from postbackd.config.entries import ConfigError
from postbackd.config.settings import Settings, absolute, judge_settings, name_reason, read_file

log = logging.getLogger("postback.config")

# File systems round the times of changes to up to two seconds (FAT); within that time an unchanged
# stamp does not prove an unchanged file.
STAMP_SECONDS = 2.0

# Long enough for an editor that truncates and then writes in place, short enough for a request to
# wait. If the file still changes after it, the next check reads it.
SETTLE_SECONDS = 0.01


class ConfigWatch:
    """The settings in force: the last valid ones of a file that may change at any time."""

    def __init__(
        self, path: Path, *, started_with: Settings | None = None, check_every_seconds: float = 0.25
    ) -> None:
        """Set the path; the file is not opened before the first call of current().

        Settings that need a restart stay as in `started_with`, or else as they are first read.
        """
        self.problem: str | None = None
        self._path = absolute(path)
        self._check_every = check_every_seconds
        self._next_check = float("-inf")
        self._checking = threading.Lock()
        self._settings: Settings | None = None
        self._started_with = started_with
        self._content: bytes | None = None
        self._stamp: tuple[int, ...] | None = None
        self._settled = False
        self._warned: frozenset[str] = frozenset()

    def current(self, now: float) -> Settings | None:
        """Return the settings in force at a time.monotonic(); None: no usable key since start."""
        if now < self._next_check:
            return self._settings
        # Only the first check is waited for: before it there is nothing to return.
        if self._checking.acquire(blocking=self._next_check == float("-inf")):
            try:
                if now >= self._next_check:
                    self._check()
                    # Not earlier: a caller during the first check must see that a check is due.
                    self._next_check = now + self._check_every
            finally:
                self._checking.release()
        return self._settings

    def _check(self) -> None:
        try:
            stamp, is_young = _stamp_of(self._path)
            if stamp != self._stamp or not self._settled or self.problem:
                self._settled = False
                self._read(is_young=is_young)
                self._stamp, self._settled = stamp, not is_young
        except ConfigError as problem:
            self._report(str(problem))

    def _read(self, *, is_young: bool) -> None:
        content = read_file(self._path)
        if content == self._content and not self.problem:
            return
        # Probably read in the middle of a write; the next check reads the whole.
        if is_young and not self._holds_still(content):
            return
        self._take_over(judge_settings(self._path, content))
        self._content = content

    def _holds_still(self, content: bytes) -> bool:
        time.sleep(SETTLE_SECONDS)
        return read_file(self._path) == content

    def _take_over(self, settings: Settings) -> None:
        if self._started_with is None:
            self._started_with = settings
        settings = _keep_what_needs_a_restart(settings, self._started_with)
        if self._settings is not None:
            self._tell_changes(self._settings, settings)
        for warning in settings.warnings:
            if warning not in self._warned:
                log.warning("%s, %s", self._path, warning)
        self._warned = frozenset(settings.warnings)
        self._settings = settings
        self.problem = None

    def _tell_changes(self, was: Settings, now: Settings) -> None:
        changes = "; ".join(describe_changes(was, now)) or "nothing that counts has changed"
        log.info("%s was read anew and is in force: %s", self._path, changes)
        dropped = find_dropped_keys(was, now)
        if dropped:
            log.warning(
                "%s: %s accepted no more, networks that call with it are answered 404;"
                " postback_key_old takes it for as long as they need, and"
                " `postback key rotate --keep-old-until DATE` does so by itself",
                self._path,
                "a former key is" if dropped == 1 else f"{dropped} former keys are",
            )

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            kept = "" if self._settings is None else " The last good settings stay in force."
            log.error("%s%s", problem, kept)
        self.problem = problem


def _stamp_of(path: Path) -> tuple[tuple[int, ...], bool]:
    """Return a value that changes when the file does, and whether that was just now."""
    try:
        now = os.stat(path)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read: {name_reason(problem)}.") from None
    # ctime too: a program can set mtime back after a write, but not ctime.
    is_young = any(abs(time.time() - at) < STAMP_SECONDS for at in (now.st_mtime, now.st_ctime))
    return (now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino, now.st_mode), is_young


def _keep_what_needs_a_restart(settings: Settings, first: Settings) -> Settings:
    warnings = [
        f"[{section}] {key} has changed; restart the service to bring it into force."
        for section, key, new, old in (
            ("system", "currency", settings.currency, first.currency),
            ("db", "path", settings.db_path, first.db_path),
        )
        if new != old
    ]
    return replace(
        settings,
        currency=first.currency,
        db_path=first.db_path,
        warnings=(*settings.warnings, *warnings),
    )
