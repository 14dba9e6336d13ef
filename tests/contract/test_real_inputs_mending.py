"""Misread conversions are corrected: by the network's next postback, or by an operator's --force.

D23 … are ids of the list of public cases: a conversion that is approved again, a word for hold that
was in the list of sales, an amount that came as a macro.
"""

import re
from pathlib import Path

import pytest
from cli_calls import Ran
from conftest import NOON, PIXEL_KEY, Client, ReceiverWith
from public_cases import add_up, call, held, set_up

APPROVED = "status=approved&payout=20&tid=X&sale_status=approved"
REJECTED = "status=rejected&tid=X"
HOLD = "status=hold&payout=20&tid=H1&sale_status=hold,approved"
MEND_HOLD = ("--set", "sale_status=approved", "--set", "lead_status=hold")


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    return set_up(receiver_with)


def changes(client: Client, subid: str) -> list[tuple[str, str]]:
    """List each change of a click's conversions, and the status after it."""
    return [(row["change"], row["status"]) for row in client.history(subid)]


def log_ids(client: Client, verdict: str) -> list[str]:
    return [str(row.id) for row in client.postbacks() if row.verdict == verdict]


# Filled in by the network itself: the first postback, the second, the conversion.
FILLED = [
    pytest.param("payout=%7Bpayout%7D", "payout=15", ("15", "USD", "15", None), id="D25"),
    pytest.param("", "payout=15", ("15", "USD", "15", None), id="no amount at all"),
    pytest.param("payout=12,50", "payout=12.50", ("12.5", "USD", "12.5", None), id="a comma"),
    pytest.param(
        "payout=8&currency=%7Bcurrency%7D",
        "payout=8&currency=eur",
        ("8", "EUR", "10", None),
        id="the currency was a macro",
    ),
    pytest.param(
        "payout=8&cost=%7Bcost%7D", "payout=8&cost=2", ("8", "USD", "8", "2"), id="the cost was one"
    ),
    pytest.param(
        "payout=15", "payout=15&cost=2", ("15", "USD", "15", "2"), id="the cost comes later"
    ),
    pytest.param("payout=0", "payout=15", ("0", "USD", "0", None), id="nothing is an amount, too"),
]


@pytest.mark.parametrize("status", ["lead", "sale"])
@pytest.mark.parametrize(("first", "then", "stands"), FILLED)
def test_what_was_unknown_is_filled_in_by_the_next_postback(
    tracker: Client, status: str, first: str, then: str, stands: tuple[str | None, ...]
) -> None:
    tracker.send(f"subid=C1&status={status}&tid=Z&{first}")

    tracker.send(f"subid=C1&status={status}&tid=Z&{then}")
    tracker.send(f"subid=C1&status={status}&tid=Z&{first}")

    [kept] = tracker.conversions("C1")
    assert (kept.amount, kept.currency, kept.payout, kept.cost) == stands
    assert (kept.status, kept.created_at) == (status, NOON)


def test_a_network_s_second_approval_is_refused_and_an_operator_forces_it(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """D23."""
    for query in (APPROVED, REJECTED):
        tracker.send(f"subid=C1&{query}")
    refused = tracker.send(f"subid=C1&{APPROVED}")
    [wanted] = log_ids(tracker, "refused")
    left = call(tracker, capsys, "replay", "--id", wanted)

    ran = call(tracker, capsys, "replay", "--id", wanted, "--force", "--json")

    assert refused.verdict == "refused"
    assert "`postback replay --force`" in (tracker.postbacks()[2].reason or "")
    assert left.rows[0][7] == "left"
    [told] = ran.objects
    assert (told["was"], told["verdict"], told["what"]) == ("refused", "updated", "changed")
    assert told["reason"] == "forced: from rejected to sale"
    assert held(tracker, "C1") == [("X", "sale", "20")]
    assert changes(tracker, "C1")[-1] == ("forced", "sale")
    assert add_up(tracker, capsys)["revenue"] == "20"
    [kept] = tracker.conversions("C1")
    assert (kept.sale_at, kept.previous_status) == (NOON, "rejected")


@pytest.mark.parametrize(
    "again", [f"{APPROVED}&at=2", "status=approved&payout=22&tid=X&sale_status=approved"]
)
def test_where_the_config_says_so_a_network_may_approve_again(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], again: str
) -> None:
    tracker = set_up(receiver_with, unreject="yes")
    for query in (APPROVED, REJECTED, APPROVED):
        tracker.send(f"subid=C1&{query}")
    assert held(tracker, "C1") == [("X", "rejected", "20")]

    answer = tracker.send(f"subid=C1&{again}")

    assert answer.verdict == "updated"
    assert add_up(tracker, capsys)["revenue"] == ("22" if "22" in again else "20")


def test_a_replay_of_the_sale_that_was_rejected_since_undoes_nothing(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = set_up(receiver_with, unreject="yes")
    for query in (APPROVED, REJECTED, f"{APPROVED}&at=2", REJECTED):
        tracker.send(f"subid=C1&{query}")
    mend = ("--set", "payout=21", "--json")

    first = call(tracker, capsys, "replay", "--id", "1", *mend).objects[0]
    third = call(tracker, capsys, "replay", "--id", "3", *mend).objects[0]

    assert (first["what"], third["what"]) == ("left", "left")
    assert "came before the rejection" in first["reason"]
    assert held(tracker, "C1") == [("X", "rejected", "20")]


def mend_hold(tracker: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    return call(tracker, capsys, "replay", "--subid", "C1", *MEND_HOLD, *words, "--json")


def test_a_hold_that_was_booked_as_a_sale_becomes_a_lead_by_force(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """D24."""
    tracker.send(f"subid=C1&{HOLD}")
    before = tracker.snapshot()
    left = mend_hold(tracker, capsys)
    foretold = mend_hold(tracker, capsys, "--force", "--dry-run")
    assert tracker.snapshot() == before

    came = mend_hold(tracker, capsys, "--force")
    again = mend_hold(tracker, capsys, "--force")

    assert left.objects[0]["what"] == "left"
    assert "sale and cannot become lead" in left.objects[0]["reason"]
    assert foretold.objects == came.objects
    assert came.objects[0]["reason"] == "forced: from sale to lead"
    assert again.objects[0]["what"] == "left"
    assert held(tracker, "C1") == [("H1", "lead", "20")]
    assert [c.sale_at for c in tracker.conversions("C1")] == [None]
    total = add_up(tracker, capsys)
    assert (total["revenue"], total["hold"]) == ("0", "20")


def test_a_hold_that_was_approved_meanwhile_ends_as_a_sale(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(f"subid=C1&{HOLD}")
    tracker.clock.forward(days=3)
    tracker.send(f"subid=C1&{HOLD.replace('hold&', 'approved&')}")

    mend_hold(tracker, capsys, "--force")

    [kept] = tracker.conversions("C1")
    assert (kept.status, kept.amount) == ("sale", "20")
    assert (kept.sale_at - NOON).days == 3 if kept.sale_at else False
    assert changes(tracker, "C1") == [("recorded", "sale"), ("forced", "lead"), ("updated", "sale")]


def take_in(
    tracker: Client, capsys: pytest.CaptureFixture[str], directory: Path, lines: str, *words: str
) -> Ran:
    path = directory / "lines.csv"
    path.write_text(lines)
    return call(tracker, capsys, "import", str(path), *words)


# The postbacks, the line that corrects them by force, the conversion after it.
FORCED = [
    pytest.param([APPROVED, REJECTED], "C1,20,X,sale", ("sale", "20"), "sale", id="un-rejected"),
    pytest.param([APPROVED], "C1,20,X,lead", ("lead", "20"), "lead", id="sale to lead"),
    pytest.param(
        [APPROVED], "C1,7,X,rejected", ("rejected", "7"), "rejected", id="with its amount"
    ),
    pytest.param([APPROVED], "C1,2000,X,sale", ("sale", "2000"), "sale", id="another amount"),
    pytest.param([APPROVED], "C1,0.20,X", ("sale", "0.2"), "sale", id="cents"),
    pytest.param([APPROVED], "C1,16,X,sale,EUR", ("sale", "16"), "sale", id="another currency"),
    pytest.param([REJECTED], "C1,20,X,lead", ("lead", "20"), "lead", id="rejected to lead"),
    pytest.param(["status=lead&tid=X"], "C1,9,X,rebill", ("rebill", "9"), "rebill", id="a rebill"),
    pytest.param([APPROVED], "C1,-3,X,sale", ("sale", "-3"), "sale", id="a negative amount"),
]


@pytest.mark.parametrize(("sent", "line", "stands", "status"), FORCED)
def test_a_line_of_an_import_may_be_forced(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    sent: list[str],
    line: str,
    stands: tuple[str, str],
    status: str,
) -> None:
    for query in sent:
        tracker.send(f"subid=C1&{query}")
    before = tracker.snapshot()
    take_in(tracker, capsys, tmp_path, line)
    unforced = tracker.snapshot()
    foretold = take_in(tracker, capsys, tmp_path, line, "--force", "--dry-run")
    rows = len(tracker.postbacks())

    came = take_in(tracker, capsys, tmp_path, line, "--force")
    again = take_in(tracker, capsys, tmp_path, line, "--force")

    if status != "rejected":
        assert unforced == before
    assert len(tracker.postbacks()) == rows + 2
    assert foretold.rows == came.rows
    assert came.rows[0][5] == "updated"
    assert came.rows[0][6].startswith("forced: from ")
    assert again.rows[0][5] == "repeated"
    assert [(c.status, c.amount) for c in tracker.conversions("C1")] == [stands]
    assert changes(tracker, "C1")[-1] == ("forced", status)


def test_the_dry_run_of_an_import_writes_nothing_and_says_so(
    tracker: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tracker.send(f"subid=C1&{APPROVED}")
    before, rows = tracker.snapshot(), len(tracker.postbacks())
    lines = "C1,5,X,lead\nC2,7,new\nnobody,1\nC4,1O\n"

    dry = take_in(tracker, capsys, tmp_path, lines, "--dry-run")
    objects = take_in(tracker, capsys, tmp_path, lines, "--dry-run", "--json").objects
    real = take_in(tracker, capsys, tmp_path, lines)

    assert [row["verdict"] for row in objects] == ["refused", "recorded", "parked", "skipped"]
    assert [row["conversion_id"] for row in objects] == [1, None, None, None]
    assert dry.rows == real.rows
    assert dry.status == real.status == 1
    assert "2 not taken; nothing was written" in dry.err
    assert "nothing was written" not in real.err
    assert tracker.snapshot()[: len(before)] != []
    assert len(tracker.postbacks()) == rows + 3


def test_a_dry_run_of_an_import_leaves_the_database_as_it_is(
    tracker: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tracker.send(f"subid=C1&{APPROVED}")
    before, rows = tracker.snapshot(), tracker.postbacks()

    take_in(tracker, capsys, tmp_path, "C1,5,X,lead\nC2,7,new\n", "--dry-run", "--force")

    assert (tracker.snapshot(), tracker.postbacks()) == (before, rows)


def test_force_makes_no_conversion_that_the_rules_refuse(
    tracker: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tracker.send(f"subid=C1&{APPROVED}")

    ran = take_in(tracker, capsys, tmp_path, "C1,5,Y,sale\n", "--force")

    assert ran.rows[0][5] == "refused"
    assert held(tracker, "C1") == [("X", "sale", "20")]


def test_a_rebill_that_was_booked_for_want_of_a_sale_is_made_the_sale(
    tracker: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tracker.send("subid=C2&status=rebill&payout=40&tid=992_2")
    tracker.send("subid=C2&status=rebill&payout=10&tid=993")

    ran = take_in(tracker, capsys, tmp_path, "C2,40,992_2,sale\nC2,10,993,sale\n", "--force")

    assert [row[5] for row in ran.rows] == ["updated", "repeated"]
    assert held(tracker, "C2") == [("992_2", "sale", "40"), ("993", "rebill", "10")]


def test_force_applies_nothing_that_waits_for_its_click_by_force(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parking = set_up(receiver_with)
    for query in ("status=sale&payout=5&tid=T", "status=lead&payout=9&tid=T"):
        parking.send(f"subid=late&{query}")
    parking.receiver.close()
    # The command uses the real clock, and the waiting postbacks came long before it.
    settings = {"unknown_subid": "accept", "park_days": "36500"}
    tracker = receiver_with(directory=parking.directory, **settings)

    take_in(tracker, capsys, tmp_path, "late,6,T,sale\n", "--force")

    assert held(tracker, "late") == [("T", "sale", "6")]
    assert changes(tracker, "late") == [("recorded", "sale"), ("forced", "sale")]


def test_a_visitor_s_pixel_is_not_forced_to_be_a_sale(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.get(f"/{PIXEL_KEY}/postback.gif?subid=C1&status=lead&payout=9")

    call(tracker, capsys, "replay", "--subid", "C1", "--set", "status=sale", "--force")

    assert held(tracker, "C1") == [("", "lead", "9")]


def test_a_bulk_replay_by_force_undoes_nothing_that_is_booked(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for query in ("status=lead&tid=X", APPROVED, REJECTED, "status=lead&tid=X&payout=3"):
        tracker.send(f"subid=C1&{query}")
    assert held(tracker, "C1") == [("X", "rejected", "20")]

    ran = call(tracker, capsys, "replay", "--since", "2026-03-01", "--force", "--json")

    # The last postback was refused, and only that one is forced.
    assert [row["what"] for row in ran.objects] == ["left", "left", "left", "changed"]
    assert held(tracker, "C1") == [("X", "lead", "3")]


def test_what_an_operator_forced_is_no_contradiction(
    tracker: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for query in (APPROVED, REJECTED):
        tracker.send(f"subid=C1&{query}")
    lines = "C1,20,X,sale\nC1,20,X,lead\nC1,5,X,rejected\nC1,20,X,sale\n"
    ran = take_in(tracker, capsys, tmp_path, lines, "--force")
    assert [row[5] for row in ran.rows] == ["updated"] * 4

    shown = call(tracker, capsys, "check", "--deep", "--json").objects

    agreement = [row for row in shown if row["check"] == "agreement"]
    assert [row["level"] for row in agreement] == ["ok"], agreement


def test_what_a_later_sale_undid_is_no_contradiction(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = set_up(receiver_with, unreject="yes")
    for query in (APPROVED, REJECTED, f"{APPROVED}&at=2"):
        tracker.send(f"subid=C1&{query}")

    shown = call(tracker, capsys, "check", "--deep", "--json").objects

    assert [row["level"] for row in shown if row["check"] == "agreement"] == ["ok"]


def test_a_move_that_was_not_forced_is_a_contradiction_still(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(f"subid=C1&{APPROVED}")
    tracker.write(
        "INSERT INTO conversion_history (conversion_id, seq, at, change, status, tid)"
        " VALUES (1, 2, '', 'updated', 'lead', 'X')"
    )

    shown = call(tracker, capsys, "check", "--deep", "--json").objects

    messages = [row["message"] for row in shown if row["check"] == "agreement"]
    assert any("moved as no postback may move them" in message for message in messages)


def test_explain_names_the_operator_s_way(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for query in (APPROVED, REJECTED):
        tracker.send(f"subid=C1&{query}")

    ran = call(tracker, capsys, "explain", f"subid=C1&{APPROVED}", "--json")

    assert ran.objects[0]["verdict"] == "refused"
    assert any(re.search(r"replay --id N --force", hint) for hint in ran.objects[0]["did_you_mean"])
