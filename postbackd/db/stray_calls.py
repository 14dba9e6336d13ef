"""Calls of our addresses under no key of ours: whose key it was is found out beside the requests.

A request leaves its key in memory for some seconds. The housekeeping compares it, hashed with the
database's salt, with the keys that have opened an address before (`key_usage`), and only a count
remains: no key that was sent is ever written. Beside the requests, so that no answer takes longer
for a key that once was good.
"""

import sqlite3
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from postbackd.db.key_usage import find_uses
from postbackd.db.refusals import Kind, Tally

# How many different keys are told apart between two turns of the housekeeping, so that somebody who
# tries keys fills no memory. Networks use one; the rest of a flood counts as unknown.
DIFFERENT_KEYS = 256

# A longer one is none of ours, and is not worth its memory.
KEY_BYTES = 1024

FORMER_KEY = Kind(404, "a former key")
OTHER_KEY = Kind(404, "a key that opens other addresses")
UNKNOWN_KEY = Kind(404, "an unknown key")
NO_KEY = Kind(404, "no key")
STRAY_KINDS = (FORMER_KEY, OTHER_KEY, UNKNOWN_KEY, NO_KEY)


def describe_former_key(tally: Tally, zone: tzinfo = UTC) -> str:
    """Say what calls with a former key mean, and what is to be done."""
    at = datetime.fromisoformat(tally.last_at).astimezone(zone)
    calls = "1 call" if tally.requests == 1 else f"{tally.requests} calls"
    return (
        f"the previous key is no longer accepted: {calls} in 24 hours, the last at"
        f" {at:%Y-%m-%d %H:%M} {zone} from {tally.last_address or 'a unix socket'}: give that"
        " network the address that `postback url` prints, or put the key into postback_key_old"
        " until it has it (`postback key rotate --keep-old-until DATE` does so by itself)"
    )


class Sighting(NamedTuple):
    """How many calls came under a key since the housekeeping looked, and the last of them."""

    calls: int
    address: str
    at: datetime


class StrayCalls:
    """One process's part: `note` is for the requests, `sort` for the housekeeping."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self._seen: dict[bytes | None, Sighting] = {}

    @property
    def has_any(self) -> bool:
        """Tell whether anything waits to be sorted."""
        return bool(self._seen)

    def note(self, key: bytes, address: str, now: datetime) -> None:
        """Remember a call until it is sorted."""
        is_told_apart = len(key) <= KEY_BYTES and (
            key in self._seen or len(self._seen) < DIFFERENT_KEYS
        )
        # None: one of those that are not told apart.
        place = key if is_told_apart else None
        before = self._seen.get(place)
        self._seen[place] = Sighting(1 + (before.calls if before else 0), address, now)

    def forget(self) -> None:
        """Forget what was seen: it was only tried."""
        self._seen.clear()

    def sort(
        self, db: sqlite3.Connection, accepted: Collection[bytes], ended: Collection[bytes]
    ) -> Iterator[tuple[Kind, Sighting]]:
        """Give what was seen, by kind; `accepted` keys open other addresses, `ended` did so."""
        seen, self._seen = self._seen, {}
        uses = find_uses(db, [key for key in seen if key])
        for key, sighting in seen.items():
            if key == b"":
                yield NO_KEY, sighting
            elif key in accepted:
                yield OTHER_KEY, sighting
            elif key in ended or (key is not None and uses[key] is not None):
                yield FORMER_KEY, sighting
            else:
                yield UNKNOWN_KEY, sighting
