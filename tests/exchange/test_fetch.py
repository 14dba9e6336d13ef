"""Fetched rates, through a real HTTP server and the real database: believed, refused, kept."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from stand_in import (
    HTML,
    JSON,
    Reply,
    StandIn,
    cbr_document,
    document,
    dripping,
    ecb_document,
    endless,
    er_api_document,
    gzip_bomb,
    hanging,
    openexchangerates_document,
    packed,
    redirect,
    stand_in_server,
    truncated,
)

from postbackd.config.settings import Settings, load_keyless
from postbackd.db import rate_book
from postbackd.db.rate_book import FetchState, RefusedRate
from postbackd.exchange import download, plausibility
from postbackd.exchange import fetch as fetching
from postbackd.exchange.plausibility import count_days_in_row
from rates import decimal_text
from storage import Storage, open_database

MONDAY = date(2026, 3, 2)
TOKEN = "the holder of the lease"


@pytest.fixture
def services() -> Iterator[StandIn]:
    with stand_in_server() as stand_in:
        yield stand_in


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Storage]:
    with open_database(tmp_path / "postback.db", "USD") as opened:
        yield opened


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a silent service be given up soon, from when this is called."""
    return lambda: monkeypatch.setattr(download, "READ_SECONDS", 0.3)


@pytest.fixture
def short_asking(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let all that is not there soon be given up, from when this is called."""
    return lambda: monkeypatch.setattr(fetching, "ASKING_SECONDS", 1.5)


def configure(
    database: Path, sources: Sequence[str], urls: Mapping[str, str], app_id: str
) -> Settings:
    """Read a config file that names the sources and where they are."""
    lines = [f'source = "{",".join(sources)}"', f'app_id = "{app_id}"']
    lines += [f'{source}_url = "{url}"' for source, url in urls.items()]
    path = database.with_name("config.ini.php")
    path.write_text(
        "\n".join([";<?php exit; ?>", "[db]", f'path = "{database}"', "[rates]", *lines, ""])
    )
    return load_keyless(path)


class Fetch:
    """Fetches on a day, and keeps what was said."""

    def __init__(self, db: Storage, services: StandIn) -> None:
        self.db = db
        self.services = services
        self.sources: tuple[str, ...] = ("ecb",)
        self.app_id = ""
        self.said: list[str] = []

    def serve(self, source: str, reply: Reply) -> None:
        self.services.serve(f"/{source}", reply)

    def on(self, day: date, *, hour: int = 17) -> bool:
        """Fetch on a day and give whether all went well."""
        urls = {source: f"{self.services.url}/{source}" for source in self.sources}
        with self.db.transaction():
            rate_book.write_fetch_state(self.db.db, FetchState(TOKEN, None, None, None, 1))
        settings = configure(self.db.path, self.sources, urls, self.app_id)
        now = datetime(day.year, day.month, day.day, hour, tzinfo=UTC)
        self.said = []
        return fetching.fetch_rates(
            self.db, settings, TOKEN, now, lambda level, text: self.said.append(text)
        )

    def ecb_says(self, day: date, **rates: str) -> bool:
        """Fetch on a day on which the ECB says how many dollars a euro buys, and others."""
        self.serve("ecb", document(ecb_document(day, rates)))
        return self.on(day)

    def in_force(self, currency: str, day: date = MONDAY + timedelta(365)) -> str | None:
        """Return the rate that a postback of the day would get."""
        rate = self.db.find_rate(currency, day)
        return None if rate is None else f"{decimal_text(rate.value)} {rate.source} {rate.day}"


@pytest.fixture
def fetch(db: Storage, services: StandIn) -> Fetch:
    return Fetch(db, services)


def in_days(days: int) -> date:
    return MONDAY + timedelta(days)


def test_every_rate_of_every_day_is_kept(fetch: Fetch) -> None:
    assert fetch.ecb_says(MONDAY, USD="1.08")
    assert fetch.ecb_says(in_days(1), USD="1.09")

    assert fetch.in_force("EUR", MONDAY) == "1.08 ecb 2026-03-02"
    assert fetch.in_force("EUR", in_days(1)) == "1.09 ecb 2026-03-03"
    assert fetch.in_force("EUR", in_days(-5)) == "1.09 ecb 2026-03-03"


def test_yesterdays_document_again_changes_nothing_and_is_no_fault(fetch: Fetch) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")

    assert fetch.on(in_days(1))

    assert fetch.said == ["rates from ecb: nothing new, its newest are of 2026-03-02"]
    assert fetch.db.db.execute("SELECT count(*) FROM rates").fetchone() == (1,)


def test_days_without_a_document_take_the_newest_rate_before_them(fetch: Fetch) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")
    fetch.ecb_says(in_days(4), USD="1.10")

    assert fetch.in_force("EUR", in_days(2)) == "1.08 ecb 2026-03-02"
    assert fetch.in_force("EUR", in_days(4)) == "1.1 ecb 2026-03-06"


def test_what_the_first_source_lacks_is_filled_from_the_next(fetch: Fetch) -> None:
    fetch.sources = ("ecb", "cbr")
    fetch.serve("cbr", document(cbr_document(MONDAY, {"USD": (1, "80"), "EUR": (1, "88,8")})))

    assert fetch.ecb_says(MONDAY, USD="1.08", GBP="0.8")

    assert fetch.in_force("EUR") == "1.08 ecb 2026-03-02"
    assert fetch.in_force("GBP") == "1.35 ecb 2026-03-02"
    assert fetch.in_force("RUB") == "0.0125 cbr 2026-03-02"


def test_a_first_source_that_fails_is_stood_in_for_at_once_where_nothing_is_known(
    fetch: Fetch,
) -> None:
    fetch.sources = ("ecb", "cbr")
    fetch.serve("cbr", document(cbr_document(MONDAY, {"USD": (1, "80"), "EUR": (1, "88")})))

    assert not fetch.on(MONDAY)

    assert fetch.in_force("EUR") == "1.1 cbr 2026-03-02"


def test_an_hour_without_the_first_source_does_not_change_where_a_rate_comes_from(
    fetch: Fetch,
) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")
    fetch.sources = ("ecb", "cbr")
    fetch.services.replies.clear()

    for day in (1, 3, 4):
        today = in_days(day)
        fetch.serve("cbr", document(cbr_document(today, {"USD": (1, "80"), "EUR": (1, "88")})))
        fetch.on(today)

    assert fetch.in_force("EUR", in_days(3)) == "1.08 ecb 2026-03-02"
    assert fetch.in_force("EUR", in_days(4)) == "1.1 cbr 2026-03-06"


@pytest.mark.parametrize(
    ("source", "write"),
    [("er-api", er_api_document), ("openexchangerates", openexchangerates_document)],
)
def test_the_sources_that_speak_json_are_asked_likewise(
    fetch: Fetch, source: str, write: Callable[..., str]
) -> None:
    fetch.sources = (source,)
    fetch.app_id = "an-app-id"
    fetch.serve(source, document(write(MONDAY, "USD", {"EUR": "0.8"}), JSON))

    assert fetch.on(MONDAY)

    assert fetch.in_force("EUR") == f"1.25 {source} 2026-03-02"
    query = "?app_id=an-app-id" if source == "openexchangerates" else ""
    assert fetch.services.asked == [f"/{source}{query}"]


# Bad answers


GOOD = ecb_document(in_days(1), {"USD": "1.09"})
BOMB = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><l>&b;</l>'

BAD_ANSWERS: dict[str, tuple[Callable[[StandIn], Reply], str]] = {
    "cut short": (lambda _: truncated(GOOD), "broke off"),
    "cut short and honest about it": (lambda _: document(GOOD[:300]), "is no XML"),
    "silent": (hanging, "was silent for"),
    "dripping": (dripping, "gave no whole answer within 1.5 seconds"),
    "huge": (lambda _: endless(), "larger than 1048576 bytes"),
    "huge and packed": (lambda _: gzip_bomb(), "larger than 1048576 bytes"),
    "packed badly": (lambda _: document(GOOD, Content_Encoding="gzip"), "cannot be unpacked"),
    "empty": (lambda _: document(""), "is empty"),
    "a page for people": (lambda _: document(HTML, "text/html"), "with 'text/html', not with"),
    "a page for people under a false name": (lambda _: document(HTML), "is no XML"),
    "the right document under a wrong name": (
        lambda _: document(GOOD, "image/png"),
        "with 'image/png', not with 'text/xml'",
    ),
    "an entity bomb": (lambda _: document(BOMB), "declares entities or a DTD"),
    "an outage": (lambda _: document(GOOD, status=503), "status 503"),
    "to a file": (lambda _: redirect("file:///etc/passwd"), "is 'file:///etc/passwd', which is no"),
    "to itself": (lambda _: redirect("/ecb"), "redirects more than 3 times"),
    "to nowhere": (lambda _: redirect("http://[::1"), "the target of its redirect cannot be read"),
    "into our network": (lambda _: redirect("http://10.0.0.1/latest"), "10.0.0.1 is no address of"),
    "to this machine": (
        lambda services: redirect(services.url.replace("127.0.0.1", "127.0.0.2") + "/ecb"),
        "127.0.0.2 is no address of the public internet",
    ),
    "to a name that is none": (lambda _: redirect(f"http://{'x' * 70}.example/"), "be found"),
    "of the future": (
        lambda _: document(ecb_document(in_days(3), {"USD": "1.09"})),
        "which is yet to come",
    ),
    "forgotten": (lambda _: document(ecb_document(in_days(-20), {"USD": "1.09"})), "21 days old"),
    "all zero": (
        lambda _: document(GOOD.replace("1.09", "0")),
        "no rates of use: USD, '0' can be no rate",
    ),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_a_bad_answer_changes_nothing_and_is_told(
    fetch: Fetch,
    what: str,
    short_silence: Callable[[], None],
    short_asking: Callable[[], None],
) -> None:
    reply, sentence = BAD_ANSWERS[what]
    fetch.ecb_says(MONDAY, USD="1.08")
    fetch.serve("ecb", reply(fetch.services))
    # Only where it is shown: a good answer may take its time on a busy machine.
    {"silent": short_silence, "dripping": short_asking}.get(what, lambda: None)()

    assert not fetch.on(in_days(1))

    assert fetch.in_force("EUR") == "1.08 ecb 2026-03-02"
    assert len(fetch.said) == 1
    assert sentence in fetch.said[0]
    assert fetch.said[0].endswith("; the rates at hand stay in force")
    [state] = rate_book.list_sources(fetch.db.db)
    assert sentence in (state.trouble or "")
    assert state.day == "2026-03-02"


def test_a_service_that_is_gone_is_told_and_forgotten_when_it_is_back(fetch: Fetch) -> None:
    fetch.services.url = "http://127.0.0.1:9"
    assert not fetch.on(MONDAY)
    assert "127.0.0.1 takes no connection" in fetch.said[0]

    fetch.services.url = f"http://127.0.0.1:{fetch.services.server.server_address[1]}"
    assert fetch.ecb_says(MONDAY, USD="1.08")

    assert [state.trouble for state in rate_book.list_sources(fetch.db.db)] == [None]


def test_a_redirect_is_followed_and_a_packed_document_read(fetch: Fetch) -> None:
    fetch.serve("ecb", redirect("/moved"))
    fetch.serve("moved", packed(ecb_document(MONDAY, {"USD": "1.08"})))

    assert fetch.on(MONDAY)

    assert fetch.in_force("EUR") == "1.08 ecb 2026-03-02"


def test_a_source_that_hangs_does_not_keep_the_next_from_answering(
    fetch: Fetch, short_asking: Callable[[], None]
) -> None:
    short_asking()
    fetch.sources = ("ecb", "cbr")
    fetch.serve("ecb", dripping(fetch.services))
    fetch.serve("cbr", document(cbr_document(MONDAY, {"USD": (1, "80")})))
    begun = time.monotonic()

    assert not fetch.on(MONDAY)

    assert time.monotonic() - begun < 10
    assert fetch.in_force("RUB") == "0.0125 cbr 2026-03-02"


def test_what_is_said_never_holds_the_app_id(
    fetch: Fetch, short_silence: Callable[[], None]
) -> None:
    short_silence()
    fetch.sources = ("openexchangerates",)
    fetch.app_id = "an-app-id"
    for reply in (hanging(fetch.services), redirect("file:///x?app_id=an-app-id")):
        fetch.serve("openexchangerates", reply)
        fetch.on(MONDAY)
        assert fetch.said
        assert "an-app-id" not in "".join(fetch.said)
    kept = "\n".join(fetch.db.db.iterdump())
    assert "an-app-id" not in kept


# Sanity


@pytest.mark.parametrize(
    ("jump", "believed"), [("1.62", True), ("1.63", False), ("0.72", True), ("0.71", False)]
)
def test_a_rate_that_moved_by_more_than_a_factor_of_one_and_a_half_is_refused(
    fetch: Fetch, jump: str, believed: bool
) -> None:
    fetch.ecb_says(MONDAY, USD="1.08", GBP="0.9")

    assert fetch.ecb_says(in_days(1), USD=jump, GBP="0.9") is believed

    held = jump if believed else "1.08"
    assert (fetch.in_force("EUR") or "").startswith(f"{held} ecb")


def test_a_refusal_is_kept_told_once_and_does_not_hold_up_the_others(fetch: Fetch) -> None:
    fetch.ecb_says(MONDAY, USD="1.08", GBP="0.9", SEK="11")

    assert not fetch.ecb_says(in_days(1), USD="1.09", GBP="0.009", SEK="-1")

    assert fetch.in_force("EUR") == "1.09 ecb 2026-03-03"
    assert fetch.in_force("GBP") == "1.2 ecb 2026-03-02"
    refusals = rate_book.list_standing_refusals(fetch.db.db)
    assert [(r.currency, r.day, r.source, r.days_in_row) for r in refusals] == [
        ("GBP", "2026-03-03", "ecb", 1),
        ("SEK", "2026-03-03", "ecb", 1),
    ]
    assert (
        refusals[0].reason
        == "1 GBP = 121.11111 USD is more than 1.5 times off 1.2 of 2026-03-02 (ecb)"
    )
    assert refusals[1].reason == "SEK: '-1' can be no rate"
    assert sum("refused: the rate at hand stays in force" in said for said in fetch.said) == 2

    assert fetch.on(in_days(1))
    assert rate_book.list_standing_refusals(fetch.db.db) == refusals
    assert not any("refused" in said for said in fetch.said)


def test_a_good_rate_ends_a_refusal(fetch: Fetch) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")
    fetch.ecb_says(in_days(1), USD="108")
    assert rate_book.list_standing_refusals(fetch.db.db)

    assert fetch.ecb_says(in_days(2), USD="1.09")

    assert rate_book.list_standing_refusals(fetch.db.db) == []


def test_three_days_in_a_row_that_say_the_same_are_believed(fetch: Fetch) -> None:
    fetch.ecb_says(in_days(0), USD="1.08")
    assert not fetch.ecb_says(in_days(3), USD="2.16")
    assert not fetch.ecb_says(in_days(4), USD="2.30")
    assert fetch.in_force("EUR") == "1.08 ecb 2026-03-02"

    assert fetch.ecb_says(in_days(7), USD="2.20")

    assert fetch.in_force("EUR") == "2.2 ecb 2026-03-09"
    assert fetch.in_force("EUR", in_days(6)) == "1.08 ecb 2026-03-02"
    assert any("accepted after 3 days of the same" in said for said in fetch.said)
    assert fetch.db.db.execute(
        "SELECT day, days_in_row, accepted_at FROM refused_rates ORDER BY day"
    ).fetchall() == [
        ("2026-03-05", 1, "2026-03-09T17:00:00.000Z"),
        ("2026-03-06", 2, "2026-03-09T17:00:00.000Z"),
    ]
    assert rate_book.list_standing_refusals(fetch.db.db) == []


@pytest.mark.parametrize(
    "others",
    [
        {1: "2.16", 2: "1.08", 3: "2.16"},  # a good one between
        {1: "2.16", 2: "2.60", 3: "2.16"},  # not the same
        {1: "2.16", 7: "2.16", 8: "2.16"},  # not in a row
    ],
    ids=["a good one between", "not the same", "not in a row"],
)
def test_three_days_that_do_not_say_the_same_in_a_row_are_not_believed(
    fetch: Fetch, others: dict[int, str]
) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")
    for day, rate in others.items():
        fetch.ecb_says(in_days(day), USD=rate)

    assert (fetch.in_force("EUR") or "").startswith("1.08 ecb")


def test_days_in_a_row_that_say_the_same_are_counted_by_the_day() -> None:
    def refused(day: int, value: str) -> RefusedRate:
        return RefusedRate(Decimal(value), date(2026, 3, day))

    def count(*earlier: RefusedRate) -> int:
        return count_days_in_row(Decimal("2"), date(2026, 3, 10), earlier)

    assert count() == 1
    assert count(refused(9, "2.1"), refused(8, "1.95")) == 3
    assert count(refused(9, "2.1"), refused(9, "1.95")) == 2
    assert count(refused(9, "2.1"), refused(8, "1.9")) == 2
    assert count(refused(5, "2")) == 2
    assert count(refused(4, "2")) == 1


def test_one_day_said_three_times_is_one_day(fetch: Fetch) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")
    fetch.ecb_says(in_days(1), USD="2.16")
    for _ in range(3):
        fetch.on(in_days(2))

    assert fetch.in_force("EUR") == "1.08 ecb 2026-03-02"
    assert [r.days_in_row for r in rate_book.list_standing_refusals(fetch.db.db)] == [1]


def test_a_person_may_take_a_refused_rate(fetch: Fetch) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")
    fetch.ecb_says(in_days(1), USD="2.16")

    with fetch.db.transaction():
        taken = plausibility.accept(fetch.db.db, "EUR", datetime(2026, 3, 3, 18, tzinfo=UTC))
        again = plausibility.accept(fetch.db.db, "EUR", datetime(2026, 3, 3, 18, tzinfo=UTC))

    assert taken is not None
    assert (taken.value, again) == (Decimal("2.16"), None)
    assert fetch.in_force("EUR") == "2.16 ecb 2026-03-03"
    assert fetch.ecb_says(in_days(2), USD="2.20")


def test_a_first_rate_on_which_two_sources_disagree_is_not_believed(fetch: Fetch) -> None:
    fetch.sources = ("ecb", "cbr")
    fetch.serve("cbr", document(cbr_document(MONDAY, {"USD": (1, "80"), "EUR": (1, "88")})))

    assert not fetch.ecb_says(MONDAY, USD="108")

    assert fetch.in_force("EUR") is None
    [refusal] = rate_book.list_standing_refusals(fetch.db.db)
    assert refusal.reason == "1 EUR = 108 USD, and cbr says 1.1"


def test_a_first_rate_that_nothing_speaks_against_is_believed(fetch: Fetch) -> None:
    assert fetch.ecb_says(MONDAY, USD="108")

    assert fetch.in_force("EUR") == "108 ecb 2026-03-02"


def test_a_rate_by_hand_wins_until_it_is_unset(fetch: Fetch) -> None:
    with fetch.db.transaction():
        fetch.db.add_rate_by_hand("EUR", Decimal("1.2"), datetime(2026, 3, 1, tzinfo=UTC))

    fetch.ecb_says(MONDAY, USD="1.08")
    assert fetch.in_force("EUR") == "1.2 hand 2026-03-01"

    with fetch.db.transaction():
        fetch.db.end_rate_by_hand("EUR", datetime(2026, 3, 3, tzinfo=UTC))
    assert fetch.in_force("EUR") == "1.08 ecb 2026-03-02"


# The lease


def test_a_process_that_has_lost_its_lease_writes_nothing(fetch: Fetch) -> None:
    fetch.serve("ecb", document(ecb_document(MONDAY, {"USD": "1.08"})))
    with fetch.db.transaction():
        rate_book.write_fetch_state(fetch.db.db, FetchState("somebody else", None, None, None, 1))
    settings = configure(fetch.db.path, ("ecb",), {"ecb": f"{fetch.services.url}/ecb"}, "")
    now = datetime(2026, 3, 2, 17, tzinfo=UTC)

    with pytest.raises(fetching.LostLeaseError):
        fetching.fetch_rates(fetch.db, settings, TOKEN, now, logging.log)

    assert fetch.in_force("EUR") is None
    assert rate_book.read_fetch_state(fetch.db.db).holder == "somebody else"


def test_a_good_round_is_due_again_after_the_next_publication(fetch: Fetch) -> None:
    fetch.ecb_says(MONDAY, USD="1.08")

    ended = rate_book.read_fetch_state(fetch.db.db)
    assert (ended.holder, ended.tries) == (None, 0)
    # 17:10 UTC, and up to twenty minutes more.
    assert "2026-03-02T17:10" <= (ended.due_at or "") <= "2026-03-02T17:30:01"


def test_a_document_as_large_as_allowed_holds_the_write_lock_only_briefly(fetch: Fetch) -> None:
    codes = [f"X{number:03}" for number in range(998)]
    fetch.ecb_says(MONDAY, USD="1.08", **dict.fromkeys(codes, "2"))

    assert fetch.db.db.execute("SELECT count(*) FROM rates").fetchone() == (999,)
