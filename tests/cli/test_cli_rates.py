"""`postback rates update`, `accept`, `recompute`, `show`; the lines of `check` about rates."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cli_calls import Ran, Terminal, call_process
from live import live_server, wait_until
from stand_in import HTML, StandIn, document, ecb_document, hanging, stand_in_server

TODAY = datetime.now(UTC).date()


@pytest.fixture
def services() -> Iterator[StandIn]:
    with stand_in_server() as stand_in:
        yield stand_in


class Tracker:
    """A directory with a config, and the command called in it."""

    def __init__(self, directory: Path, services: StandIn) -> None:
        self.directory = directory
        self.services = services
        self.configure("ecb")

    def configure(self, source: str) -> None:
        (self.directory / "config.ini.php").write_text(f"""\
;<?php exit; ?>
[system]
postback_key = "s3cret-key-of-these-tests"
[postback]
unknown_subid = "accept"
[rates]
source = "{source}"
ecb_url = "{self.services.url}/ecb"
cbr_url = "{self.services.url}/cbr"
""")

    def ecb_says(self, day: date, **rates: str) -> None:
        self.services.serve("/ecb", document(ecb_document(day, rates)))

    def call(self, *words: str) -> Ran:
        return call_process(self.directory, *words)

    def findings(self) -> list[tuple[str, str]]:
        """Return the findings of `check` about rates."""
        rows = self.call("check", "--json").objects
        return [(row["level"], row["message"]) for row in rows if row["check"] == "rates"]

    def rates(self) -> dict[str, dict[str, object]]:
        return {row["currency"]: row for row in self.call("rates", "show", "--json").objects}


@pytest.fixture
def tracker(tmp_path: Path, services: StandIn) -> Tracker:
    return Tracker(tmp_path, services)


def test_update_fetches_now(tracker: Tracker) -> None:
    tracker.ecb_says(TODAY, USD="1.08", GBP="0.9")

    ran = tracker.call("rates", "update")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"rates from ecb: 2 of {TODAY} taken\n"
    assert tracker.rates()["EUR"]["rate"] == "1.08"
    assert tracker.findings() == [("ok", "2 known, nothing waits for one")]


def test_update_without_a_source_says_what_to_write(tracker: Tracker) -> None:
    tracker.configure("none")

    ran = tracker.call("rates", "update")

    assert ran.status == 1
    assert '[rates] source is "none": name a source' in ran.err
    assert tracker.services.asked == []


def test_without_a_network_the_command_and_check_say_so_and_all_else_works(
    tracker: Tracker,
) -> None:
    tracker.services.url = "http://127.0.0.1:9"
    tracker.configure("ecb")

    ran = tracker.call("rates", "update")

    assert ran.status == 1
    assert "rates from ecb: 127.0.0.1 takes no connection; the rates at hand" in ran.err
    [finding] = [text for level, text in tracker.findings() if level == "warning"]
    assert finding.startswith("ecb: 127.0.0.1 takes no connection, asked 20")
    assert tracker.call("rates", "set", "EUR", "1.1").status == 0


def test_what_was_never_asked_is_reported_by_check(tracker: Tracker) -> None:
    tracker.call("rates", "set", "EUR", "1.1")

    [_, finding] = tracker.findings()

    assert finding[1].startswith("ecb: not asked yet; the service does so soon after it starts")


def test_a_refused_rate_is_shown_and_accepted_by_hand(tracker: Tracker) -> None:
    tracker.ecb_says(TODAY - timedelta(1), USD="1.08")
    tracker.call("rates", "update")
    tracker.ecb_says(TODAY, USD="10.8")

    ran = tracker.call("rates", "update")

    yesterday = TODAY - timedelta(1)
    reason = f"1 EUR = 10.8 USD is more than 1.5 times off 1.08 of {yesterday} (ecb)"
    assert ran.status == 1
    assert f"rates from ecb, {TODAY}: {reason}; refused: the rate at hand stays in force" in ran.err
    shown = tracker.rates()["EUR"]
    assert (shown["rate"], shown["refused"]) == (
        "1.08",
        f"ecb, {TODAY}: {reason}; refused once",
    )
    assert tracker.findings()[1] == (
        "warning",
        f"ecb, {TODAY}: {reason}; refused once: `postback rates accept EUR` accepts it",
    )

    accepted = tracker.call("rates", "accept", "eur")

    assert accepted.out == f"1 EUR is worth 10.8 USD from {TODAY} on, says ecb.\n"
    shown = tracker.rates()["EUR"]
    assert (shown["rate"], shown["refused"]) == ("10.8", None)
    assert tracker.call("rates", "accept", "eur").status == 1


def test_rates_that_are_too_old_are_a_problem_unless_there_are_no_newer_ones(
    tracker: Tracker,
) -> None:
    tracker.ecb_says(TODAY - timedelta(4), USD="1.08")
    tracker.call("rates", "update")
    assert tracker.findings() == [
        ("warning", "the newest fetched rate is 4 days old: the sources publish no newer one")
    ]

    with_old_answer = "UPDATE rate_sources SET answered_at = '2020-01-01T00:00:00.000Z'"
    change(tracker.directory, with_old_answer)

    [(level, message)] = tracker.findings()
    assert level == "problem"
    assert message.startswith("the newest fetched rate is 4 days old: see the service log")


def change(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "postback.db")) as db, db:
        db.execute(statement)


def test_recompute_shows_and_then_books_with_a_mark(tracker: Tracker) -> None:
    tracker.call("rates", "set", "EUR", "1.1")
    with live_server(tracker.directory) as server:
        server.get("/s3cret-key-of-these-tests/postback?subid=c1&payout=10&currency=eur")
    tracker.call("rates", "set", "EUR", "1.2")
    since = str(TODAY - timedelta(1))

    dry = tracker.call("rates", "recompute", "--since", since, "--dry-run", "--json")
    assert [(o["subid"], o["old_worth"], o["worth"]) for o in dry.objects] == [("c1", "11", "12")]
    [kept] = tracker.call("conversions", "--json").objects
    assert kept["payout"] == "11"

    booked = tracker.call("rates", "recompute", "--since", since, "--json")
    assert booked.objects == dry.objects
    [kept] = tracker.call("conversions", "--json").objects
    assert (kept["payout"], kept["rate"]) == ("12", "1.2")
    history = tracker.call("conversions", "--history", "--json")
    assert "recomputed" in json.dumps(history.objects)


def test_recompute_wants_to_know_since_when(tracker: Tracker) -> None:
    assert tracker.call("rates", "recompute").status == 2
    assert tracker.call("rates", "recompute", "--since", "3d", "--day", "x").status == 2


def test_two_updates_at_once_are_one(tracker: Tracker) -> None:
    tracker.services.serve("/ecb", hanging(tracker.services))
    with live_server(tracker.directory, housekeeps_often=True):
        wait_until(lambda: tracker.services.asked == ["/ecb"], "the service to ask")

        ran = tracker.call("rates", "update")

    assert ran.status == 1
    assert "rates are being fetched right now" in ran.err
    assert tracker.services.asked == ["/ecb"]


def test_ctrl_c_gives_the_lease_back(tracker: Tracker) -> None:
    tracker.services.serve("/ecb", hanging(tracker.services))
    terminal = Terminal(tracker.directory, "rates", "update")
    wait_until(lambda: tracker.services.asked == ["/ecb"], "the command to ask")

    terminal.press_ctrl_c()

    assert terminal.finish().status == 130
    tracker.ecb_says(TODAY, USD="1.08")
    assert tracker.call("rates", "update").status == 0


def test_a_lease_of_another_process_is_respected(tracker: Tracker) -> None:
    tracker.ecb_says(TODAY, USD="1.08")
    tracker.call("rates", "set", "GBP", "1.2")

    ran = tracker.call("rates", "update", "--leased", "not-the-holder")

    assert ran.status == 1
    assert "the fetched rates were not stored: another process has taken over" in ran.err
    assert "EUR" not in tracker.rates()


def test_the_service_says_in_log_and_check_what_was_wrong_with_a_document(
    tracker: Tracker,
) -> None:
    tracker.ecb_says(TODAY, USD="1.08")
    tracker.call("rates", "update")
    change(tracker.directory, "UPDATE rate_rounds SET due_at = NULL")
    tracker.services.serve("/ecb", document(HTML, "text/html"))
    with live_server(tracker.directory, housekeeps_often=True) as server:
        wait_until(lambda: "rates from ecb" in server.read_log(), "the sentence")
        answer = server.get("/s3cret-key-of-these-tests/postback?subid=c1&payout=10&currency=eur")

    assert answer.endswith(b"Success")
    sentence = "it answers with 'text/html', not with 'text/xml'"
    assert f"rates from ecb: {sentence}; the rates at hand stay in force" in server.read_log()
    assert tracker.findings()[1][1].startswith(f"ecb: {sentence}, asked ")
    [kept] = tracker.call("conversions", "--json").objects
    assert (kept["payout"], kept["rate_source"]) == ("10.8", "ecb")
