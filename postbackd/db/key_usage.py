"""When each key was last used, stored without the key: as a hash with the database's salt.

Workers collect uses in memory and write them now and then: a request sets one entry of a dict.
"""

import hashlib
import hmac
import sqlite3
from collections.abc import Iterable
from datetime import datetime, timedelta

from postbackd.db.rows import utc_text

# How far the times in the database may lag behind: keys are dropped after days.
PRECISION = timedelta(minutes=1)


class KeyUses:
    """The uses that one process has seen: requests set `seen`, the housekeeping calls `write`."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self.seen: dict[bytes, datetime] = {}
        self._written: dict[bytes, datetime] = {}

    def list_news(self, precision: timedelta = PRECISION) -> dict[bytes, datetime]:
        """Return the uses that are not written, or are newer by at least `precision`."""
        return {
            key: at
            # A copy: another thread may add uses meanwhile.
            for key, at in self.seen.copy().items()
            if key not in self._written or at - self._written[key] >= precision
        }

    def forget_written(self) -> None:
        """Consider no use as written: the transaction that wrote them may have failed."""
        self._written.clear()

    def write(self, db: sqlite3.Connection, news: dict[bytes, datetime]) -> None:
        """Write the uses; the caller opens the transaction."""
        if not news:
            return
        salt = _read_salt(db)
        for key, at in news.items():
            db.execute(_NOTE_USE, (key_hash(salt, key), utc_text(at)))
        self._written |= news


def find_uses(db: sqlite3.Connection, keys: Iterable[bytes]) -> dict[bytes, str | None]:
    """Return when each of these keys was last used; None: no use has been recorded."""
    salt = _read_salt(db)
    uses: dict[str, str] = dict(db.execute("SELECT fingerprint, last_used_at FROM key_uses"))
    return {key: uses.get(key_hash(salt, key)) for key in keys}


def key_hash(salt: str, key: bytes) -> str:
    """Return the salted hash of a key; a key that can be guessed can be found from it too."""
    return hmac.new(salt.encode(), key, hashlib.sha256).hexdigest()


def _read_salt(db: sqlite3.Connection) -> str:
    salt: str = db.execute("SELECT key_salt FROM tracker").fetchone()[0]
    return salt


# The latest use counts, whichever worker saw it.
_NOTE_USE = """
    INSERT INTO key_uses (fingerprint, last_used_at) VALUES (?, ?)
    ON CONFLICT (fingerprint) DO UPDATE SET last_used_at = max(last_used_at, excluded.last_used_at)
"""
