"""A batch is booked as a set, and comes to what its jobs would have come to one at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import accumulate, pairwise
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postbackd.db import rate_book
from postbackd.db.rows import NO_MONEY, ClickRow, ConversionRow, KnownClick, PostbackRow
from postbackd.db.shelf import Shelf, ToWrite
from postbackd.exchange import repricing
from postbackd.intake import booking
from postbackd.intake import replay as replaying
from postbackd.intake.booking import Arrival, BookingOptions
from postbackd.intake.group_commit import Job, do_all, do_together
from postbackd.intake.query import read_fields, read_postback
from postbackd.intake.replay import Corrections, Original
from rates import Rate
from statuses import Click, Policy, Verdict
from storage import Storage, open_database

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
AT = "2026-03-02T12:00:00.000Z"
TABLES = (
    *("due_clicks", "conversion_history", "postbacks", "conversions"),
    *("clicks", "offers", "campaigns", "rates"),
)


# Batches and single jobs come to the same

SUBIDS = st.sampled_from(["c1", "c1", "c1", "c2", "c3", "new1", "new1", "new2", "nu\0l"])
PARAMETERS = st.fixed_dictionaries(
    {
        "subid": SUBIDS,
        "status": st.sampled_from(["lead", "lead", "sale", "sale", "rejected", "rebill", "yes"]),
    },
    optional={
        "tid": st.sampled_from(["T1", "T2", "T3"]),
        "payout": st.sampled_from(["5", "5", "7.5", "-5", "999999999"]),
        "currency": st.sampled_from(["usd", "eur", "gbp", "big", "{currency}"]),
        "cost": st.sampled_from(["1", "2"]),
        "sub_id_1": st.sampled_from(["a", 'Ж"']),
        "sub_id_2": st.sampled_from(["x", "y"]),
        "external_id": st.sampled_from(["E2", "E3"]),
        "from": st.sampled_from(["net", "other"]),
    },
)
# So few that equal ones come again, and meet what the first of them did.
REFUNDS = st.fixed_dictionaries(
    {"subid": st.sampled_from(["c1", "c2"]), "status": st.sampled_from(["sale", "rejected"])},
    optional={"tid": st.sampled_from(["T1", "T2"]), "payout": st.sampled_from(["5", "-5"])},
)
CLICKS = st.builds(
    ClickRow,
    SUBIDS,
    campaign=st.sampled_from([None, "C1", "C2"]),
    offer=st.sampled_from([None, "O1", "O2"]),
    clicked_at=st.sampled_from([None, AT]),
    cost_model=st.sampled_from([None, "cpa", "cpc"]),
    sub_ids=st.sampled_from([{}, {"sub_id_1": "q"}, {"sub_id_2": "r", "sub_id_3": "s"}]),
    external_id=st.sampled_from([None, "E1"]),
    source=st.sampled_from([None, "S1"]),
    cost=st.none(),
    currency=st.none(),
)
# A job is described, so that it can be made for one database and for the other.
STEPS = {
    "postback": PARAMETERS,
    "refund": REFUNDS,
    # Where the config has changed meanwhile.
    "accepted": PARAMETERS,
    "clicks": st.lists(CLICKS, min_size=1, max_size=3),
    "replay": st.tuples(st.integers(1, 8), PARAMETERS),
    "forced": st.tuples(st.integers(1, 8), PARAMETERS),
    "look": PARAMETERS,
    "due": st.none(),
    "rate": st.sampled_from(["gbp", "eur"]),
    # Another program, which knows no shelf: it comes between batches.
    "other": SUBIDS,
    "boom": PARAMETERS,
    "late boom": PARAMETERS,
}
SOUND = (
    *("postback", "postback", "postback", "postback", "refund", "refund", "refund", "accepted"),
    *("clicks", "clicks", "replay", "replay", "forced", "look", "due", "rate", "other"),
)
BROKEN = (*SOUND, "boom", "late boom")
Step = tuple[str, Any]


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Storage, Storage]]:
    directory = tmp_path_factory.mktemp("shelf")
    with (
        open_database(directory / "batches.db", "USD") as batches,
        open_database(directory / "single.db", "USD") as single,
    ):
        for db in (batches, single):
            db.db.execute("PRAGMA synchronous = OFF")
        with pytest.MonkeyPatch.context() as patch:
            # So that some have more than is applied.
            patch.setattr(booking, "PARKED_PER_CLICK", 2)
            yield batches, single


def streams(kinds: Sequence[str]) -> st.SearchStrategy[list[Step]]:
    steps = st.sampled_from(kinds).flatmap(lambda kind: st.tuples(st.just(kind), STEPS[kind]))
    return st.lists(steps, min_size=10, max_size=40)


@settings(max_examples=300)
@given(streams(SOUND), st.lists(st.integers(2, 20), min_size=20), st.booleans(), st.booleans())
def test_batches_come_to_what_single_jobs_come_to(
    databases: tuple[Storage, Storage],
    steps: list[Step],
    sizes: list[int],
    accepts: bool,
    updates: bool,
) -> None:
    policy = Policy(
        accepts_unknown_subid=accepts, updates_on_repeat=updates, unrejects=updates is accepts
    )
    terms = BookingOptions("USD", policy)

    compare(databases, steps, sizes, terms, do_together_or_fail)


@settings(max_examples=60)
@given(streams(BROKEN), st.lists(st.integers(2, 8), min_size=20), st.booleans())
def test_they_do_where_some_jobs_break(
    databases: tuple[Storage, Storage], steps: list[Step], sizes: list[int], accepts: bool
) -> None:
    compare(
        databases,
        steps,
        sizes,
        BookingOptions("USD", Policy(accepts_unknown_subid=accepts)),
        do_all,
    )


Way = Callable[[Storage, Sequence[Job[Any]]], list[Any]]


def do_together_or_fail(db: Storage, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Do a batch without the way out, which would hide that the tables refuse what is written."""
    with db.transaction(subid for job in jobs for subid in job.about):
        return do_together(db, jobs)


def compare(
    databases: tuple[Storage, Storage],
    steps: list[Step],
    sizes: list[int],
    terms: BookingOptions,
    way: Way,
) -> None:
    """Do the jobs in batches on one database and one at a time on the other."""
    batches, single = databases
    for db in databases:
        begin_anew(db)

    outcomes = [out for some in cut(steps, sizes) for out in do(batches, some, terms, way)]
    one_by_one = [out for step in steps for out in do(single, [step], terms, do_all)]

    assert outcomes == one_by_one
    for table in TABLES:
        assert read(batches, table) == read(single, table), table


def read(db: Storage, table: str) -> list[Any]:
    """Read a table as it is kept: the text of JSON, the ids, the order."""
    return db.db.execute(f"SELECT * FROM {table}").fetchall()


def begin_anew(db: Storage) -> None:
    """Empty the tables, and give them some clicks, offers and rates."""
    with db.transaction():
        for table in TABLES:
            db.db.execute(f"DELETE FROM {table}")
        db.set_offer("O1", allow_rebills=True)
        db.set_campaign("C1", "cpc")
        for currency, value in (("EUR", "1.0876"), ("BIG", "999999999999")):
            rate = Rate(Decimal(value), date(2026, 3, 1), "ecb")
            rate_book.add_rate(db.db, currency, rate, NOON)
        rows = [
            ClickRow("c1", offer="O1", sub_ids={"sub_id_1": "first"}),
            ClickRow("c2", campaign="C1"),
            ClickRow("c3"),
        ]
        db.put_clicks(rows, AT)
        # As another program writes JSON.
        db.db.execute("UPDATE clicks SET sub_ids = '{ \"sub_id_2\" : 1.0 }' WHERE subid = 'c3'")


def cut(steps: Sequence[Step], sizes: Iterable[int]) -> Iterator[Sequence[Step]]:
    """Cut into batches of these sizes, and beside what another program does."""
    ends = {len(steps), *(end for end in accumulate(sizes, initial=0) if end < len(steps))}
    for place, (kind, _) in enumerate(steps):
        ends |= {place, place + 1} if kind == "other" else set()
    for start, end in pairwise(sorted(ends)):
        yield steps[start:end]


def do(db: Storage, steps: Sequence[Step], terms: BookingOptions, way: Way) -> list[Any]:
    """Do a batch; exceptions are given as their text."""
    if [kind for kind, _ in steps] == ["other"]:
        db.db.execute(
            "INSERT OR IGNORE INTO clicks (subid, created_at) VALUES (?, ?)", (steps[0][1], AT)
        )
        return []
    outcomes = way(db, [JOBS[kind](said, terms) for kind, said in steps])
    return [repr(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]


def arrive(said: Mapping[str, str], terms: BookingOptions) -> Arrival:
    query = urlencode(said)
    postback = read_postback(read_fields(query), {}, tracker_currency=terms.currency)
    return Arrival(AT, "http", "GET", "203.0.113.9", query, postback)


def keep_postback(said: Mapping[str, str], terms: BookingOptions) -> Job[Any]:
    return Job(lambda db: booking.record(db, arrive(said, terms), terms), (said["subid"],))


def keep_accepted(said: Mapping[str, str], terms: BookingOptions) -> Job[Any]:
    policy = terms.policy._replace(accepts_unknown_subid=True)
    return keep_postback(said, terms._replace(policy=policy))


def keep_clicks(rows: Sequence[ClickRow], terms: BookingOptions) -> Job[Any]:
    # The first alone: what is not named is found as well.
    return Job(lambda db: booking.record_clicks(db, rows, NOON, terms), (rows[0].subid,))


def replay(said: tuple[int, Mapping[str, str]], terms: BookingOptions) -> Job[Any]:
    """Put a postback through again that may be there, or a later one of this batch."""
    number, parameters = said
    original = Original(number, AT, "http", arrive(parameters, terms).query)
    return Job(lambda db: replaying.replay(db, original, Corrections(), terms, NOON))


def force(said: tuple[int, Mapping[str, str]], terms: BookingOptions) -> Job[Any]:
    number, parameters = said
    original = Original(number, AT, "http", arrive(parameters, terms).query)
    mending = Corrections(forces=True)
    return Job(lambda db: replaying.replay(db, original, mending, terms, NOON))


def look(said: Mapping[str, str], terms: BookingOptions) -> Job[Any]:
    return Job(lambda db: booking.preview(db, arrive(said, terms), terms))


def boom(said: Mapping[str, str], terms: BookingOptions) -> Job[Any]:
    def do(db: Storage) -> None:
        booking.record(db, arrive(said, terms), terms)
        raise RuntimeError("boom")

    return Job(do, (said["subid"],))


def late_boom(said: Mapping[str, str], terms: BookingOptions) -> Job[Any]:
    """Book, and append what the table refuses when it is written."""

    def do(db: Storage) -> None:
        booking.record(db, arrive(said, terms), terms)
        row = PostbackRow(
            AT, "http", None, None, "", None, "", None, "nonsense", "", "[]", None, None
        )
        db.add_postback(row)

    return Job(do, (said["subid"],))


def settle_due(_: None, terms: BookingOptions) -> Job[Any]:
    def do(db: Storage) -> Any:
        return booking.settle_due_clicks(db, NOON, terms), repricing.fill_in_waiting(db, NOON)

    return Job(do)


def set_rate(currency: str, terms: BookingOptions) -> Job[Any]:
    def do(db: Storage) -> Any:
        db.add_rate_by_hand(currency.upper(), Decimal("1.5"), NOON)
        return repricing.fill_in_waiting(db, NOON)

    return Job(do)


JOBS: Mapping[str, Callable[[Any, BookingOptions], Job[Any]]] = {
    "postback": keep_postback,
    "refund": keep_postback,
    "accepted": keep_accepted,
    "clicks": keep_clicks,
    "replay": replay,
    "forced": force,
    "look": look,
    "boom": boom,
    "late boom": late_boom,
    "due": settle_due,
    "rate": set_rate,
}


# The shelf by itself


class TableShelf(Shelf):
    """A shelf whose tables are dicts."""

    def __init__(self) -> None:
        """Begin with one click, which has one conversion."""
        super().__init__()
        self._is_open = True
        self.clicks = {"c1": (KnownClick(1, None, 7, "{}", is_due=True, click=Click("O7")), True)}
        self.conversions = {3: make_conversion(3, 1, "T1")}
        self.reads: list[str] = []
        self.written: list[ToWrite] = []

    def _write(self) -> None:
        self.written.append(self.to_write)

    def _read_clicks(self, subids: Sequence[str]) -> Iterator[tuple[str, KnownClick, bool]]:
        self.reads.append("clicks")
        return ((subid, *self.clicks[subid]) for subid in subids if subid in self.clicks)

    def _read_conversions_of(self, click_ids: Sequence[int]) -> list[tuple[ConversionRow, int]]:
        self.reads.append("conversions")
        return [(row, 1) for row in self.conversions.values() if row.click_id in click_ids]

    def _read_conversions(self, conversion_ids: Sequence[int]) -> list[tuple[ConversionRow, int]]:
        self.reads.append("conversions")
        return [(self.conversions[row_id], 1) for row_id in conversion_ids]

    def _read_last_ids(self) -> dict[str, int]:
        return {"clicks": 1, "conversions": 3, "postbacks": 20}

    def _read_has_parked(self, subid: str) -> bool:
        return False

    def _read_rate(self, currency: str, day: date) -> Rate | None:
        self.reads.append("rates")
        return None


def make_conversion(conversion_id: int, click_id: int, tid: str) -> ConversionRow:
    about = (None, 7, "net", "{}", AT, AT, AT)
    return ConversionRow(
        conversion_id, click_id, tid, "sale", "ok", None, *NO_MONEY, *NO_MONEY, *about
    )


def make_postback(subid: str, verdict: Verdict) -> PostbackRow:
    log = (AT, "http", "GET", None, "", subid, "", None)
    return PostbackRow(*log, verdict.value, "", "[]", None, None)


def test_a_later_job_sees_what_an_earlier_one_did_before_a_row_is_written() -> None:
    shelf = TableShelf()
    shelf.take(["c1", "c2"])

    shelf.change_conversion(3, {"status": "rejected"})
    conversion_id = shelf.next_conversion_id()
    shelf.add_conversion(make_conversion(conversion_id, 1, "T4"))
    shelf.clear_due_click(1, "c1")
    new_click_id = shelf.add_bare_click("c2", AT)

    click, made = shelf.find_click("c1"), shelf.find_click("c2")
    assert click is not None
    assert made is not None
    assert not click.is_due
    assert [(c.id, c.tid, c.status) for c in click.click.conversions] == [
        (3, "T1", "rejected"),
        (4, "T4", "sale"),
    ]
    assert made.id == new_click_id == 2
    assert shelf.written == []
    assert shelf.reads == ["clicks", "conversions"]


def test_what_was_named_in_advance_is_read_at_once_and_anything_else_when_asked_for() -> None:
    shelf = TableShelf()

    shelf.take(["c1", "c2"])
    shelf.find_click("c1")
    shelf.find_click("c2")
    named = list(shelf.reads)
    shelf.find_click("c3")
    shelf.find_click("c3")
    shelf.find_rate("EUR", NOON.date())
    shelf.find_rate("EUR", NOON.date())

    assert named == ["clicks", "conversions"]
    assert shelf.reads == [*named, "clicks", "rates"]


def test_a_history_goes_on_behind_what_was_read_of_it() -> None:
    shelf = TableShelf()
    shelf.add_history(3, "updated", AT, 21)
    shelf.write()
    shelf.add_history(3, "updated", AT, 22)
    conversion_id = shelf.next_conversion_id()
    shelf.add_conversion(make_conversion(conversion_id, 1, "T4"))
    shelf.add_history(conversion_id, "recorded", AT, 23)

    [first], [second, third] = shelf.written[0].history, shelf.to_write.history

    assert [row[:2] for row in (first, second, third)] == [(3, 2), (3, 3), (4, 1)]


def test_a_click_whose_sub_ids_changed_is_written_and_read_again() -> None:
    shelf = TableShelf()
    shelf.find_click("c1")
    shelf.patch_sub_ids(1, 3, {"sub_id_1": "a"})
    assert shelf.written == []
    shelf.clicks["c1"] = (shelf.clicks["c1"][0]._replace(sub_ids='{"sub_id_1":"a"}'), True)

    again = shelf.find_click("c1")

    assert again is not None
    assert again.sub_ids == '{"sub_id_1":"a"}'
    assert [len(written.click_sub_ids) for written in shelf.written] == [1]


def test_what_this_batch_parked_is_parked() -> None:
    shelf = TableShelf()
    shelf.add_postback(make_postback("c8", Verdict.RECORDED))
    shelf.add_postback(make_postback("c9", Verdict.PARKED))

    assert [shelf.has_parked(subid) for subid in ("c8", "c9")] == [False, True]


def test_nothing_is_changed_outside_of_a_transaction(databases: tuple[Storage, Storage]) -> None:
    db, _ = databases
    begin_anew(db)
    for use in (
        lambda: db.add_postback(make_postback("c1", Verdict.PARKED)),
        lambda: db.add_bare_click("c9", AT),
        lambda: db.change_conversion(1, {"status": "sale"}),
        lambda: db.add_history(1, "updated", AT, None),
        lambda: db.clear_due_click(1, "c1"),
        lambda: db.patch_sub_ids(1, 1, {}),
        lambda: db.settle_postback(1, AT, Verdict.REFUSED, "", None),
    ):
        with pytest.raises(AssertionError):
            use()
        assert not any(db.to_write)


def test_outside_of_a_transaction_what_others_wrote_is_seen(
    databases: tuple[Storage, Storage],
) -> None:
    db, _ = databases
    begin_anew(db)
    before = db.find_click("c7"), db.find_rate("GBP", NOON.date())
    db.db.execute("INSERT INTO clicks (subid) VALUES ('c7')")
    db.db.execute(
        "INSERT INTO rates (currency, day, source, rate, created_at)"
        " VALUES ('GBP', '2026-03-01', 'ecb', '2', ?)",
        (AT,),
    )

    assert before == (None, None)
    assert db.find_click("c7") is not None
    assert db.find_rate("GBP", NOON.date()) is not None


def test_clicks_of_both_ways_have_ids_of_their_own(databases: tuple[Storage, Storage]) -> None:
    db, _ = databases
    begin_anew(db)
    with db.transaction():
        first = db.add_bare_click("c7", AT)
        db.put_clicks([ClickRow("c8"), ClickRow("c7", offer="O1")], AT)
        last = db.add_bare_click("c9", AT)
        found = [db.find_click(subid) for subid in ("c7", "c8", "c9")]

    ids = [click.id for click in found if click is not None]
    assert ids == [first, first + 1, last] == [4, 5, 6]
    assert found[0] is not None
    assert found[0].click.offer == "O1"


def test_what_a_click_brings_counts_behind_what_came_before_it(
    databases: tuple[Storage, Storage],
) -> None:
    db, _ = databases
    begin_anew(db)
    with db.transaction():
        db.set_external_id(1, "E1")
        db.set_external_id(1, "E2", only_missing=True)
        before = db.db.execute("SELECT external_id FROM clicks WHERE id = 1").fetchone()
        db.put_clicks([ClickRow("c1", external_id="E3")], AT)
        db.set_external_id(2, "E4", only_missing=True)

    assert before == (None,)
    assert db.db.execute("SELECT external_id FROM clicks ORDER BY id").fetchall() == [
        ("E3",),
        ("E4",),
        (None,),
    ]


def test_what_is_written_beside_the_shelf_is_seen_on_it(databases: tuple[Storage, Storage]) -> None:
    db, _ = databases
    begin_anew(db)
    with db.transaction(["c1"]):
        before = db.find_click("c1"), db.find_rate("GBP", NOON.date())
        db.add_rate_by_hand("GBP", Decimal(2), NOON)
        after_one = db.find_rate("GBP", NOON.date())
        db.set_offer("O1", allow_rebills=False)
        after = db.find_click("c1"), db.find_rate("GBP", NOON.date())

    assert before[0] is not None
    assert after[0] is not None
    assert (before[0].click.allows_rebills, after[0].click.allows_rebills) == (True, False)
    assert before[1] is None
    assert after_one == after[1] == Rate(Decimal(2), NOON.date(), "hand")
