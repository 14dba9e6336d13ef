"""When each key was last used, kept without the key: a hash with the database's salt stands for it.

Workers remember in memory and write now and then: the hot path pays for one entry of a dict.
"""

import hashlib
import hmac
import sqlite3
from collections.abc import Iterable
from datetime import datetime, timedelta

from postbackd.db.rows import utc_text

# How much older than the truth what stands in the database may be: a key is dropped after days.
PRECISION = timedelta(minutes=1)


class KeyUses:
    """One process's part: requests write to `seen`, the housekeeping calls `write`."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self.seen: dict[bytes, datetime] = {}
        self._written: dict[bytes, datetime] = {}

    def list_news(self, precision: timedelta = PRECISION) -> dict[bytes, datetime]:
        """Give what is not written yet, or was so long before that it is worth a write."""
        return {
            key: at
            # A copy: another thread may serve meanwhile.
            for key, at in self.seen.copy().items()
            if key not in self._written or at - self._written[key] >= precision
        }

    def forget_written(self) -> None:
        """Take nothing for written: the transaction that was to bring it may have failed."""
        self._written.clear()

    def write(self, db: sqlite3.Connection, news: dict[bytes, datetime]) -> None:
        """Write down; the caller holds the transaction."""
        if not news:
            return
        salt = _read_salt(db)
        for key, at in news.items():
            db.execute(_NOTE_USE, (key_hash(salt, key), utc_text(at)))
        self._written |= news


def find_uses(db: sqlite3.Connection, keys: Iterable[bytes]) -> dict[bytes, str | None]:
    """Tell when each of these keys was last used; None: never, since that has been written down."""
    salt = _read_salt(db)
    uses: dict[str, str] = dict(db.execute("SELECT fingerprint, last_used_at FROM key_uses"))
    return {key: uses.get(key_hash(salt, key)) for key in keys}


def key_hash(salt: str, key: bytes) -> str:
    """Give what stands for a key; a key that can be guessed can be guessed from it too."""
    return hmac.new(salt.encode(), key, hashlib.sha256).hexdigest()


def _read_salt(db: sqlite3.Connection) -> str:
    salt: str = db.execute("SELECT key_salt FROM tracker").fetchone()[0]
    return salt


# Of several workers the latest counts.
_NOTE_USE = """
    INSERT INTO key_uses (fingerprint, last_used_at) VALUES (?, ?)
    ON CONFLICT (fingerprint) DO UPDATE SET last_used_at = max(last_used_at, excluded.last_used_at)
"""
