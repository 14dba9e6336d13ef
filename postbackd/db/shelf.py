"""What a transaction has read and is to write: a batch of postbacks is booked on it as a set.

                take              find_click, find_rate, …
    database ────────▶ the shelf ◀──────────────────────────── a job: judge, book
             ◀────────           add_conversion, add_postback, …
              write

Before its first job a transaction reads (`take`) the clicks that its jobs name, with their
conversions: a statement a table. The jobs are done one after the other, and each asks and changes
the shelf alone, so that a later job sees what an earlier one did though no row is written yet. Then
the engine (`storage`) writes `to_write`: again a statement a table. The ids of new rows are given
here, which is safe while the transaction holds the write lock.

What the shelf cannot answer is asked of the tables, once they have what it holds (`write`): what is
parked for a click, what the postback log says of earlier postbacks. What was read stays valid after
a write. A click whose sub ids were patched is read again where it is asked for: only the database
patches JSON.

No driver and no SQL here: an engine says how its tables are read (the `_read_…` methods).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from operator import itemgetter
from typing import Any, NamedTuple

from postbackd.db.rows import (
    HISTORY_COLUMNS,
    SEEN_COLUMNS,
    ConversionRow,
    KnownClick,
    PostbackRow,
    read_conversion,
)
from rates import Rate
from statuses import ID_MAX_CHARACTERS, Click, Verdict


class SubIdPatch(NamedTuple):
    """Sub ids of a click that replace its own, or (`only_missing`) are added where it has none."""

    click_id: int
    sub_ids: Mapping[str, str]
    only_missing: bool


class Settlement(NamedTuple):
    """What came of a parked or replayed postback later."""

    at: str
    verdict: str
    reason: str
    conversion_id: int | None
    postback_id: int


class ToWrite(NamedTuple):
    """What is to be written, in this order; each list in the order in which it came about."""

    # id, subid, created_at.
    clicks: list[tuple[int, str, str]]
    click_sub_ids: list[SubIdPatch]
    # The traffic source's own id of a click, the click's id, whether only where it has none.
    external_ids: list[tuple[str, int, bool]]
    # As they were read; what they are to be is on the shelf, as are the new ones.
    changed_conversions: dict[int, ConversionRow]
    new_conversions: dict[int, None]
    # The conversion's id, and the sub ids that replace its own.
    conversion_sub_ids: list[tuple[int, Mapping[str, str]]]
    # The id and the fields of a `PostbackRow`.
    postbacks: list[tuple[Any, ...]]
    # conversion_id, seq, at, change, postback_id, and `HISTORY_COLUMNS`.
    history: list[tuple[Any, ...]]
    settlements: list[Settlement]
    # Clicks that are not due any more.
    settled_clicks: list[int]


class Shelf(ABC):
    """The questions and changes that every postback has, in the trade's words."""

    def __init__(self) -> None:
        """Begin empty."""
        self._is_open = False
        self.clear()

    def clear(self) -> None:
        """Forget what was read and what was to be written."""
        self._clicks: dict[str, KnownClick | None] = {}
        self._of_click: dict[int, list[int]] = {}
        self._conversions: dict[int, ConversionRow] = {}
        # The last `seq` of each conversion's history.
        self._seqs: dict[int, int] = {}
        # Clicks that are to be read again: other columns than the shelf knows have changed.
        self._stale: set[int] = set()
        self._rates: dict[tuple[str, date], Rate | None] = {}
        self._last_ids: dict[str, int] = {}
        self._begin_writing()

    def _begin_writing(self) -> None:
        self.to_write = ToWrite([], [], [], {}, {}, [], [], [], [], [])
        # Click ids for which something is parked that is not written yet.
        self._parked: set[str] = set()

    # Clicks

    def take(self, subids: Iterable[str]) -> None:
        """Read clicks and their conversions at once; those that are here already stay."""
        wanted = [subid for subid in dict.fromkeys(subids) if subid not in self._clicks]
        self._clicks.update(dict.fromkeys(wanted))
        # No click has a longer one: the engine answers `invalid`.
        readable = [subid for subid in wanted if len(subid) <= ID_MAX_CHARACTERS]
        with_conversions = []
        for subid, known, has_conversions in self._read_clicks(readable) if readable else ():
            self._clicks[subid] = known
            if has_conversions:
                with_conversions.append(known.id)
        if with_conversions:
            for row, seq in self._read_conversions_of(with_conversions):
                self._of_click.setdefault(row.click_id, []).append(row.id)
                self._put(row, seq)

    def find_click(self, subid: str) -> KnownClick | None:
        """Find a click and the conversions that stand on it."""
        if not self._is_open:
            # Another program may have written since.
            self.clear()
        if subid not in self._clicks:
            self.take((subid,))
        known = self._clicks[subid]
        if known is not None and known.id in self._stale:
            known = self._read_again(subid, known)
        if known is None or known.id not in self._of_click:
            # As nearly every click.
            return known
        rows = map(self._conversions.__getitem__, self._of_click[known.id])
        conversions = tuple(map(read_conversion, map(_SEEN, rows)))
        return known._replace(click=known.click._replace(conversions=conversions))

    def _read_again(self, subid: str, known: KnownClick) -> KnownClick | None:
        self.write()
        self._stale.discard(known.id)
        del self._clicks[subid]
        for conversion_id in self._of_click.pop(known.id, ()):
            del self._conversions[conversion_id]
        self.take((subid,))
        return self._clicks[subid]

    def add_bare_click(self, subid: str, now: str) -> int:
        """Make a click of which only the subid is known; gives its id."""
        click_id = self._next_id("clicks")
        self.to_write.clicks.append((click_id, subid, now))
        self._clicks[subid] = KnownClick(click_id, None, None, "{}", is_due=False, click=Click())
        return click_id

    def clear_due_click(self, click_id: int, subid: str) -> None:
        """Take a click off the list of those that are due: nothing is parked for it any more."""
        assert self._is_open
        self.to_write.settled_clicks.append(click_id)
        known = self._clicks.get(subid)
        if known is not None:
            self._clicks[subid] = known._replace(is_due=False)

    def patch_sub_ids(
        self,
        click_id: int,
        conversion_id: int,
        sub_ids: Mapping[str, str],
        *,
        only_missing: bool = False,
    ) -> None:
        """Replace those sub ids of a conversion and of its click that are given.

        `only_missing`: of the click's none is replaced, and those are added that it lacks.
        """
        assert self._is_open
        self.to_write.conversion_sub_ids.append((conversion_id, sub_ids))
        self.to_write.click_sub_ids.append(SubIdPatch(click_id, sub_ids, only_missing))
        self._stale.add(click_id)

    def set_external_id(
        self, click_id: int, external_id: str, *, only_missing: bool = False
    ) -> None:
        """Replace the traffic source's own id of a click, or only add it where it is not known."""
        assert self._is_open
        self.to_write.external_ids.append((external_id, click_id, only_missing))

    # Conversions

    def take_conversions(self, conversion_ids: Iterable[int]) -> None:
        """Read conversions by their ids at once, where they are to be changed."""
        wanted = [row_id for row_id in conversion_ids if row_id not in self._conversions]
        for row, seq in self._read_conversions(wanted) if wanted else ():
            self._put(row, seq)

    def _put(self, row: ConversionRow, seq: int) -> None:
        # One that was changed by its id alone is newer here than in the table.
        if row.id not in self._conversions:
            self._conversions[row.id] = row
            self._seqs[row.id] = seq

    def next_conversion_id(self) -> int:
        """Give the id of the conversion that is added next."""
        return self._next_id("conversions")

    def add_conversion(self, row: ConversionRow) -> None:
        """Make a conversion of a click; its history is begun with `add_history`."""
        self._put(row, 0)
        self._of_click.setdefault(row.click_id, []).append(row.id)
        self.to_write.new_conversions[row.id] = None

    def change_conversion(self, conversion_id: int, values: Mapping[str, Any]) -> None:
        """Change columns of a conversion, but for its sub ids."""
        assert self._is_open
        if conversion_id not in self._conversions:
            self.take_conversions((conversion_id,))
        was = self._conversions[conversion_id]
        if conversion_id not in self.to_write.new_conversions:
            self.to_write.changed_conversions.setdefault(conversion_id, was)
        self._conversions[conversion_id] = was._replace(**values)

    def add_history(
        self, conversion_id: int, change: str, at: str, postback_id: int | None
    ) -> None:
        """Write down what the conversion is from now on."""
        assert self._is_open
        if conversion_id not in self._conversions:
            self.take_conversions((conversion_id,))
        seq = self._seqs[conversion_id] = self._seqs[conversion_id] + 1
        what = _OF_HISTORY(self._conversions[conversion_id])
        self.to_write.history.append((conversion_id, seq, at, change, postback_id, *what))

    def list_new_conversions(self) -> list[ConversionRow]:
        """List the conversions to insert."""
        return [self._conversions[row_id] for row_id in self.to_write.new_conversions]

    def list_changed_conversions(self) -> list[tuple[ConversionRow, ConversionRow]]:
        """List the conversions to update: as they were read, as they are to be."""
        changed = self.to_write.changed_conversions
        return [(was, self._conversions[row_id]) for row_id, was in changed.items()]

    # Postbacks

    def add_postback(self, row: PostbackRow) -> int:
        """Append to the postback log; gives the row's id."""
        postback_id = self._next_id("postbacks")
        self.to_write.postbacks.append((postback_id, *row))
        if row.verdict == _PARKED and row.subid is not None:
            self._parked.add(row.subid)
        return postback_id

    def settle_postback(
        self, postback_id: int, at: str, verdict: Verdict, reason: str, conversion_id: int | None
    ) -> None:
        """Write down what came of a parked or replayed postback later.

        What comes of a replay that was parked has come of its original too.
        """
        assert self._is_open
        settlement = Settlement(at, verdict.value, reason, conversion_id, postback_id)
        self.to_write.settlements.append(settlement)

    def has_parked(self, subid: str) -> bool:
        """Tell whether anything is parked for a click id."""
        return subid in self._parked or self._read_has_parked(subid)

    # Rates

    def find_rate(self, currency: str, day: date) -> Rate | None:
        """Find the rate for a day: one set by hand, else the newest by then, else the newest."""
        if not self._is_open:
            return self._read_rate(currency, day)
        if (currency, day) not in self._rates:
            self._rates[currency, day] = self._read_rate(currency, day)
        return self._rates[currency, day]

    # Writing

    def write(self) -> None:
        """Write what is to be written; what was read stays."""
        if any(self.to_write):
            self._write()
            self._begin_writing()

    @property
    def _changes_clicks(self) -> bool:
        """Tell whether what is to be written bears on clicks that come in, and on what is due."""
        changes = self.to_write
        of_clicks = (changes.clicks, changes.click_sub_ids, changes.external_ids)
        return any((*of_clicks, changes.settlements, changes.settled_clicks, self._parked))

    def _forget_clicks(self, subids: Iterable[str]) -> None:
        """Read these clicks again where they are asked for: they have just been put."""
        for subid in subids if self._clicks else ():
            known = self._clicks.get(subid)
            if known is not None:
                self._stale.add(known.id)
            else:
                self._clicks.pop(subid, None)

    def _next_id(self, table: str) -> int:
        last_ids = self._last_ids or self._take_last_ids()
        next_id = last_ids[table] = last_ids[table] + 1
        return next_id

    def _find_last_id(self, table: str) -> int:
        return (self._last_ids or self._take_last_ids())[table]

    def _take_last_ids(self) -> dict[str, int]:
        assert self._is_open
        self._last_ids = self._read_last_ids()
        return self._last_ids

    # What an engine does

    @abstractmethod
    def _write(self) -> None:
        """Write `to_write` in the order of its fields."""

    @abstractmethod
    def _read_clicks(self, subids: Sequence[str]) -> Iterable[tuple[str, KnownClick, bool]]:
        """Read those of these clicks that there are, without conversions; and if it has any."""

    @abstractmethod
    def _read_conversions_of(self, click_ids: Sequence[int]) -> Iterable[tuple[ConversionRow, int]]:
        """Read all conversions of these clicks, by id, each with the last `seq` of its history."""

    @abstractmethod
    def _read_conversions(
        self, conversion_ids: Sequence[int]
    ) -> Iterable[tuple[ConversionRow, int]]:
        """Read the same by the conversions' ids."""

    @abstractmethod
    def _read_last_ids(self) -> dict[str, int]:
        """Read the highest ids of "clicks", "conversions" and "postbacks", 0 for an empty one."""

    @abstractmethod
    def _read_has_parked(self, subid: str) -> bool:
        """Read whether the table has anything parked for a click id."""

    @abstractmethod
    def _read_rate(self, currency: str, day: date) -> Rate | None:
        """Read what `find_rate` finds."""


_PARKED = Verdict.PARKED.value

# What the engine sees of a conversion, and what its history says.
_SEEN = itemgetter(*map(ConversionRow._fields.index, SEEN_COLUMNS))
_OF_HISTORY = itemgetter(*map(ConversionRow._fields.index, HISTORY_COLUMNS))
