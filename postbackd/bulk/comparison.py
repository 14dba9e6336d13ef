"""Compares rows of a network's report with the conversions in the database."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import NamedTuple

from postbackd.bulk.conversion_lines import Line
from postbackd.bulk.report_file import ReportRow
from postbackd.db.rows import utc_text
from postbackd.reports.listing import Row, RowFilter
from postbackd.reports.queries import Questions, StoredConversion
from postbackd.zones import put_in_zone, write_in_zone
from rates import decimal_text
from statuses import (
    REPEATS,
    Click,
    Conversion,
    Incoming,
    Status,
    Verdict,
    find_bare_lead,
    find_conversion,
    find_flaw,
    read_word,
)

MISSING = "missing"
EXTRA = "extra"
STATUS = "status"
AMOUNT = "amount"
CURRENCY = "currency"
TWICE = "twice"
UNMAPPED = "unmapped"
UNREADABLE = "unreadable"
UNCOMPARED = "uncompared"
AGREE = "agree"
IGNORED = "ignored"
DIFFERENCES = (
    *(MISSING, EXTRA, STATUS, AMOUNT, CURRENCY, TWICE, UNMAPPED, UNREADABLE, UNCOMPARED),
)


class Money(NamedTuple):
    """An amount and its currency, each None where it is unknown."""

    amount: str | None = None
    currency: str | None = None

    def describe(self) -> str:
        """Write it for people."""
        return " ".join(part for part in self if part) or "no amount"


class Side(NamedTuple):
    """A conversion's status and money on one side."""

    status: str
    money: Money


class Finding(NamedTuple):
    """The differences between a row of the report and a conversion; either may be missing."""

    line: int | None
    differences: tuple[str, ...]
    subid: str
    tid: str
    reported: Side | None = None
    held: Side | None = None
    conversion_id: int | None = None
    reason: str = ""


_BARE = "it is stored, but the row has neither a status nor an amount to compare"
_AGREES = Finding(None, (), "", "")
_IGNORED = Finding(None, (), "", "", reason="the word is to be ignored")


class DateRange(NamedTuple):
    """The networks and times in which to search conversions that the report lacks."""

    since: str | None
    until: str | None
    networks: tuple[str | None, ...]
    basis: str

    def describe(self, zone: tzinfo = UTC) -> str:
        """Write it for people, its times in a zone."""
        names = ", ".join(repr(name) if name else "without a name" for name in self.networks)
        since, until = write_in_zone(self.since, zone), write_in_zone(self.until, zone)
        whole = f"from {since or 'the beginning'} to {until or 'now'}"
        return f"extra: conversions {whole} ({self.basis}) of the networks {names}"


class Comparison:
    """Compares row after row, then finds the conversions that the report does not have."""

    def __init__(
        self,
        questions: Questions,
        tolerance: Decimal,
        *,
        has_more_than_ids: bool = True,
        zone: tzinfo = UTC,
    ) -> None:
        """Remember the database, the tolerance, and whether the report has more than ids.

        Reasons have their times in `zone`.

        Rows of a report of ids alone are counted as uncompared, and not yielded one by one.
        """
        self._questions = questions
        self._zone = zone
        self._has_more_than_ids = has_more_than_ids
        self._tolerance = tolerance
        self._seen = _Numbers()
        self._networks: set[str | None] = set()
        self._reported = _Times()
        self._held = _Times()
        # The numbers of rows that agree, of ignored rows, and of each difference.
        self.counts: Counter[str] = Counter()
        self.rows = 0

    def compare(self, rows: Sequence[ReportRow]) -> Iterator[Finding]:
        """Yield the differences of rows of the report."""
        clicks = self._questions.find_held(
            {row.line.postback.incoming.subid or "" for row in rows if row.line.postback}
        )
        findings = []
        for row in rows:
            self.rows += 1
            if row.at is not None:
                self._reported.add(utc_text(row.at), utc_text(row.end or row.at))
            finding = self._compare_row(row.line, clicks)
            self.counts.update(finding.differences or (IGNORED if finding is _IGNORED else AGREE,))
            if finding.differences and (self._has_more_than_ids or finding.reason != _BARE):
                findings.append(finding)
        return self._explain_missing(findings)

    def find_span(
        self, since: str | None, until: str | None, network: str | None
    ) -> DateRange | None:
        """Choose where to search extra conversions; None where no network is known."""
        networks = (network,) if network is not None else tuple(sorted(self._networks, key=str))
        if not networks:
            return None
        if since is not None or until is not None:
            return DateRange(since, until, networks, "as you say")
        if self._reported.last is not None:
            basis = "the report's own times"
            return DateRange(self._reported.first, self._reported.last, networks, basis)
        basis = "the times of the conversions that were found"
        until = None if self._held.last is None else _just_after(self._held.last)
        return DateRange(self._held.first, until, networks, basis)

    def find_extra(self, span: DateRange) -> Iterator[Finding]:
        """Yield the conversions that the report does not have."""
        names = [name for name in span.networks if name is not None]
        marks = ", ".join("?" * len(names))
        nameless = " OR network IS NULL" if None in span.networks else ""
        wanted = RowFilter().also(f"(network IN ({marks}){nameless})", *names)
        for page in self._questions.list_conversion_ids(span.since, span.until):
            unseen = [number for number in page if number not in self._seen]
            if not unseen:
                continue
            for row in self._questions.list_conversions(wanted.where("id", unseen), 0):
                self.counts[EXTRA] += 1
                yield _find_extra(put_in_zone(row, self._zone))

    def _compare_row(self, line: Line, clicks: dict[str, list[StoredConversion]]) -> Finding:
        if line.postback is None:
            return _unusable(line, UNREADABLE, line.flaw)
        incoming = line.postback.incoming
        held_of_click = clicks.get(incoming.subid or "")
        held = _find_held(incoming, held_of_click or [])
        meaning = (UNREADABLE, line.flaw) if line.flaw else _read_meaning(incoming)
        if not isinstance(meaning, Status):
            if held is not None:
                # Its id is in the report, so it is not extra, whatever its status.
                self._seen.add(held.conversion.id)
            return _IGNORED if meaning is None else _unusable(line, *meaning)
        if held is None:
            reported = Side(meaning, _find_money(line))
            reason = _describe_click(incoming, held_of_click)
            return Finding(
                line.number, (MISSING,), incoming.subid or "", incoming.tid, reported, reason=reason
            )
        differences = self._find_differences(line, meaning, held.conversion)
        if not self._seen.add(held.conversion.id):
            differences = (*differences, TWICE)
        self._networks.add(held.network)
        self._held.add(held.created_at, held.created_at)
        if not differences:
            says_more = _says_anything(line, meaning)
            return _AGREES if says_more else _unusable(line, UNCOMPARED, _BARE)
        return Finding(
            line.number,
            differences,
            incoming.subid or "",
            held.conversion.tid or incoming.tid,
            Side(meaning, _find_money(line)),
            _describe_held(held.conversion),
            held.conversion.id,
        )

    def _find_differences(
        self, line: Line, meaning: Status, conversion: Conversion
    ) -> tuple[str, ...]:
        assert line.postback is not None
        incoming = line.postback.incoming
        differences = []
        # The rules would call it a repeat, so it agrees: a further sale is stored as a rebill.
        if meaning not in REPEATS[conversion.status]:
            differences.append(STATUS)
        # The amount of a rejected conversion does not count, and many reports leave it out.
        if incoming.amount is not None and meaning is not Status.REJECTED:
            known = conversion.amount
            if known is None or abs(incoming.amount - known) > self._tolerance:
                differences.append(AMOUNT)
            if known is not None and line.said.currency:
                differences += [CURRENCY] * (incoming.currency != conversion.currency)
        return tuple(differences)

    def _explain_missing(self, findings: Sequence[Finding]) -> Iterator[Finding]:
        missing = [(f.subid, f.tid) for f in findings if MISSING in f.differences]
        came = self._questions.find_unbooked(missing)
        for finding in findings:
            unbooked = came.get((finding.subid, finding.tid))
            if MISSING in finding.differences and unbooked is not None:
                at = write_in_zone(unbooked.received_at, self._zone)
                reason = f"its postback came {at}: {unbooked.verdict}, {unbooked.reason}"
                yield finding._replace(reason=reason)
            else:
                yield finding


class _Numbers:
    """The ids of conversions that were found: a bit each, because a million must fit."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, number: int) -> bool:
        """Add a number; False where it was there already."""
        place, bit = divmod(number, 8)
        if place >= len(self._bits):
            self._bits.extend(bytes(place + 1 - len(self._bits)))
        is_new = not self._bits[place] >> bit & 1
        self._bits[place] |= 1 << bit
        return is_new

    def __contains__(self, number: int) -> bool:
        place, bit = divmod(number, 8)
        return place < len(self._bits) and bool(self._bits[place] >> bit & 1)


class _Times:
    """The first and the last of some times."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.last: str | None = None

    def add(self, start: str, end: str) -> None:
        self.first = start if self.first is None else min(self.first, start)
        self.last = end if self.last is None else max(self.last, end)


def _read_meaning(incoming: Incoming) -> Status | tuple[str, str] | None:
    """Map a row's word to a status; None where it is ignored, a pair where it has no meaning."""
    flaw = find_flaw(incoming)
    if flaw is not None:
        return UNREADABLE, flaw.detail
    meaning = read_word(incoming)
    if isinstance(meaning, Status):
        return meaning
    verdict, reason = meaning
    return None if verdict is Verdict.IGNORED else (UNMAPPED, reason.detail)


def _says_anything(line: Line, meaning: Status) -> bool:
    """Return whether a row that agrees has a status or an amount."""
    assert line.postback is not None
    has_amount = line.postback.incoming.amount is not None and meaning is not Status.REJECTED
    return bool(line.said.status) or has_amount


def _unusable(line: Line, difference: str, reason: str) -> Finding:
    incoming = Incoming(None) if line.postback is None else line.postback.incoming
    subid, tid = incoming.subid or "", incoming.tid
    return Finding(line.number, (difference,), subid, tid, reason=reason)


def _find_held(
    incoming: Incoming, held_of_click: Sequence[StoredConversion]
) -> StoredConversion | None:
    """Find the conversion that a postback with the same values would be about."""
    conversions = tuple(held.conversion for held in held_of_click)
    found = find_conversion(incoming.tid, conversions) or find_bare_lead(
        incoming, Click(conversions=conversions)
    )
    return next((held for held in held_of_click if held.conversion is found), None)


def _find_money(line: Line) -> Money:
    assert line.postback is not None
    incoming = line.postback.incoming
    if incoming.amount is None:
        return Money()
    currency = incoming.currency if line.said.currency else None
    return Money(decimal_text(incoming.amount), currency)


def _describe_held(conversion: Conversion) -> Side:
    amount = None if conversion.amount is None else decimal_text(conversion.amount)
    return Side(conversion.status, Money(amount, conversion.currency))


def _find_extra(row: Row) -> Finding:
    held = Side(row["status"], Money(row["amount"], row["currency"]))
    reason = f"not in the report; came {row['created_at']}"
    return Finding(None, (EXTRA,), row["subid"], row["tid"], None, held, row["id"], reason)


def _describe_click(incoming: Incoming, held_of_click: Sequence[StoredConversion] | None) -> str:
    if held_of_click is None:
        return "no such postback came, and the click is not known"
    if not held_of_click:
        return "no such postback came"
    tids = ", ".join(repr(held.conversion.tid) for held in held_of_click)
    if not incoming.tid:
        return f"the row names no transaction, and the click has {len(held_of_click)}: {tids}"
    return f"no such postback came; the click has {tids}"


def _just_after(at: str) -> str:
    return utc_text(datetime.fromisoformat(at) + timedelta(milliseconds=1))
