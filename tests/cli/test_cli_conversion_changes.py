"""`postback conversions set` and `delete`: an operator's word, and what networks say afterwards."""

import csv
from typing import Any

import pytest
from cli_calls import Ran, call_process
from conftest import POSTBACK_KEY, Client, ReceiverWith
from live import live_server

from postbackd.cli import entry as cli

REASON = ("--reason", "mail of the network")
SALE = "subid=c1&status=sale&payout=10&tid=t1"
REVENUE = "SELECT coalesce(sum(payout_micros), 0) AS sum FROM conversions WHERE status IN"


def call(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    config = str(client.directory / "config.ini.php")
    status = cli.main([*words, "--config", config])
    captured = capsys.readouterr()
    return Ran(status, captured.out, captured.err)


def change(client: Client, capsys: pytest.CaptureFixture[str], what: str, *words: str) -> Ran:
    return call(client, capsys, "conversions", what, "--subid", "c1", *words, *REASON)


@pytest.fixture
def tracker(client: Client) -> Client:
    client.click("c1", offer="O1")
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at) VALUES"
        " ('EUR', '2026-03-02', 'ecb', '1.1', ''), ('EUR', '2026-03-09', 'ecb', '2', '')"
    )
    return client


def read_history(client: Client) -> list[dict[str, Any]]:
    return client.rows(
        "SELECT change, status, amount_micros, payout_micros, postback_id, reason"
        " FROM conversion_history ORDER BY conversion_id, seq"
    )


def held(client: Client) -> list[tuple[str, str, str | None]]:
    return [(each.tid, each.status, each.payout) for each in client.conversions("c1")]


@pytest.mark.parametrize(
    ("came", "words", "stands"),
    [
        ("sale&payout=10", ("--status", "lead"), ("lead", "10", "USD", "10", None)),
        ("lead&payout=10", ("--status", "sale"), ("sale", "10", "USD", "10", "set")),
        ("rejected&payout=10", ("--status", "rebill"), ("rebill", "10", "USD", "10", "set")),
        ("sale&payout=10", ("--payout", "12.50"), ("sale", "12.5", "USD", "12.5", "kept")),
        ("sale&payout=10", ("--payout", "-3"), ("sale", "-3", "USD", "-3", "kept")),
        # At the rate of the day on which the conversion's own amount was received.
        ("sale&payout=10", ("--currency", "eur"), ("sale", "10", "EUR", "11", "kept")),
        ("sale", ("--payout", "5", "--currency", "EUR"), ("sale", "5", "EUR", "5.5", "kept")),
        ("sale&payout=1&currency=eur", ("--payout", "2"), ("sale", "2", "EUR", "2.2", "kept")),
    ],
)
def test_an_operator_sets_what_no_network_may(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    came: str,
    words: tuple[str, ...],
    stands: tuple[object, ...],
) -> None:
    tracker.send(f"subid=c1&status={came}")
    [before] = tracker.conversions()

    ran = change(tracker, capsys, "set", *words)

    assert (ran.status, ran.err.count("was changed.")) == (0, 1), ran
    [now] = tracker.conversions()
    sale_at = {None: None, "set": now.updated_at, "kept": before.sale_at}[stands[-1]]  # type: ignore[index]
    assert (now.status, now.amount, now.currency, now.payout) == stands[:-1]
    assert (now.sale_at, now.created_at) == (sale_at, before.created_at)
    assert now.updated_at > before.updated_at
    [_, row] = read_history(tracker)
    [_, logged] = tracker.postbacks()
    assert (row["change"], row["reason"]) == ("operator", REASON[1])
    assert row["postback_id"] == logged.id
    assert (logged.source, logged.verdict, logged.conversion_id) == ("operator", "updated", now.id)
    assert logged.reason == f"corrected by an operator: {REASON[1]}"
    deep = call(tracker, capsys, "check", "--deep", "--json").objects
    assert [row["level"] for row in deep if row["check"] == "agreement"] == ["ok"]


def test_a_moved_conversion_forgets_the_network_s_word(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("subid=c1&status=approved&sale_status=approved")

    change(tracker, capsys, "set", "--status", "rejected")

    [now] = tracker.conversions()
    assert (now.status, now.previous_status, now.original_status) == ("rejected", "sale", None)


def test_a_deleted_conversion_leaves_all_but_its_history_and_the_log(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(f"{SALE}&from=net")
    tracker.send("subid=c1&status=lead&tid=t2&payout=4")

    ran = change(tracker, capsys, "delete", "--json")

    [told] = ran.objects
    assert (told["was"]["status"], told["becomes"]["status"]) == ("sale", "deleted")
    assert (told["was"]["revenue_USD"], told["becomes"]["revenue_USD"]) == ("10", "0")
    assert held(tracker) == []
    assert tracker.rows(f"{REVENUE} ('sale', 'rebill', 'lead')") == [{"sum": 0}]
    shown = call(tracker, capsys, "conversions", "--json")
    report = call(tracker, capsys, "report", "--by", "network", "--json")
    assert (shown.out, '"net"' in report.out) == ("", False)
    [gone] = call(tracker, capsys, "conversions", "--deleted", "--history", "--json").objects
    assert (gone["tid"], gone["previous_status"]) == ("t1", "sale")
    assert [(row["change"], row["reason"]) for row in gone["history"]] == [
        ("recorded", None),
        ("deleted", REASON[1]),
    ]
    logged = call(tracker, capsys, "log", "--subid", "c1", "--json").objects
    assert [(row["source"], row["tid"]) for row in logged] == [
        ("http", "t1"),
        ("http", "t2"),
        ("operator", "t1"),
    ]
    deep = call(tracker, capsys, "check", "--deep", "--json").objects
    assert [row["level"] for row in deep if row["check"] == "agreement"] == ["ok"]


# What a network may send about a deleted sale of 10, and what came of it.
AFTER_A_DELETION = [
    # About the deleted one: whatever it is, it does not come back.
    (SALE, "refused", []),
    (f"{SALE}&at=2", "refused", []),
    ("subid=c1&status=sale&payout=99&tid=t1", "refused", []),
    ("subid=c1&status=rejected&tid=t1", "refused", []),
    ("subid=c1&status=lead&tid=t1&payout=10", "refused", []),
    ("subid=c1&status=sale&payout=10", "refused", []),
    # It takes back what is deleted already.
    ("subid=c1&status=sale&payout=-10&tid=r1", "refused", []),
    # What was refused beside it does not take its place when it is sent again.
    ("subid=c1&status=lead&tid=l1", "refused", []),
    ("subid=c1&status=sale&payout=7&tid=t2", "refused", []),
    # News about other conversions of the click.
    ("subid=c1&status=sale&payout=8&tid=t3", "recorded", [("t3", "sale", "8")]),
    ("subid=c1&status=lead&payout=8&tid=t3", "recorded", [("t3", "lead", "8")]),
    ("subid=c1&status=rejected&tid=t3", "recorded", [("t3", "rejected", None)]),
]


@pytest.mark.parametrize(("query", "verdict", "stands"), AFTER_A_DELETION)
@pytest.mark.parametrize("settings", [{}, {"repeats": "update", "unreject": "yes"}])
def test_what_a_network_sends_about_a_deleted_conversion_is_refused(
    receiver_with: ReceiverWith,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    query: str,
    verdict: str,
    stands: list[tuple[str, str, str | None]],
) -> None:
    tracker = receiver_with(**settings)
    tracker.click("c1", offer="O1")
    for sent in (SALE, "subid=c1&status=lead&tid=l1", "subid=c1&status=sale&payout=7&tid=t2"):
        tracker.send(sent)
    change(tracker, capsys, "delete")

    answers = [tracker.send(query) for _ in range(2)]

    assert answers[0].verdict == verdict, answers[0].reason
    assert held(tracker) == stands
    # Sent again it is the same again.
    assert answers[1].verdict == ("repeated" if stands else "refused")


def test_a_deleted_one_of_several_is_in_nobody_s_way(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.allow_rebills("O1")
    tracker.send(SALE)
    tracker.send("subid=c1&status=sale&payout=10&tid=t1b")
    assert len(held(tracker)) == 2

    change(tracker, capsys, "delete", "--tid", "t1b")
    only = change(tracker, capsys, "set", "--payout", "11")

    assert only.status == 0
    assert tracker.send("subid=c1&status=rejected").verdict == "updated"
    assert held(tracker) == [("t1", "rejected", "11")]


def test_a_deleted_one_comes_back_by_set_alone(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("subid=c1&status=sale&payout=10&currency=GBP&tid=t1")
    change(tracker, capsys, "delete")
    rate = ("rates", "set", "GBP", "1.5")
    assert call(tracker, capsys, *rate).status == 0

    forced = call(tracker, capsys, "replay", "--subid", "c1", "--set", "payout=3", "--force")
    vague = change(tracker, capsys, "set", "--payout", "4")
    nothing = held(tracker)
    back = change(tracker, capsys, "set", "--status", "sale")

    assert "deleted the conversion" in forced.out
    assert vague.status == 1
    assert "say which --status" in vague.err
    assert nothing == []
    assert back.status == 0
    assert held(tracker) == [("t1", "sale", "15")]
    assert [row["change"] for row in read_history(tracker)] == ["recorded", "deleted", "operator"]


# What came, what the operator sets, what comes again, and what stands then.
CORRECTED = [
    ((SALE,), ("--status", "lead"), SALE, ("lead", "10"), "repeated"),
    ((SALE, "subid=c1&status=rejected&tid=t1"), ("--status", "sale"),
     "subid=c1&status=rejected&tid=t1", ("sale", "10"), "repeated"),
    ((SALE,), ("--status", "rejected"), SALE, ("rejected", "10"), "refused"),
    ((SALE,), ("--payout", "12"), SALE, ("sale", "12"), "repeated"),
    # What says something new counts.
    ((SALE,), ("--payout", "12"), "subid=c1&status=rejected&tid=t1", ("rejected", "12"),
     "updated"),
    ((SALE,), ("--status", "lead"), f"{SALE}&at=2", ("sale", "10"), "updated"),
]  # fmt: skip


@pytest.mark.parametrize(("came", "words", "again", "stands", "verdict"), CORRECTED)
@pytest.mark.parametrize("settings", [{}, {"repeats": "update", "unreject": "yes"}])
def test_a_postback_that_came_before_does_not_undo_a_correction(
    receiver_with: ReceiverWith,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    came: tuple[str, ...],
    words: tuple[str, ...],
    again: str,
    stands: tuple[str, str],
    verdict: str,
) -> None:
    tracker = receiver_with(**settings)
    tracker.click("c1")
    for query in came:
        tracker.send(query)
    change(tracker, capsys, "set", *words)

    answer = tracker.send(again)

    assert answer.verdict == verdict, answer.reason
    assert held(tracker) == [("t1", *stands)]


def test_a_dry_run_writes_nothing(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    tracker.send(SALE)
    before = (tracker.snapshot(), tracker.postbacks())

    ran = [
        change(tracker, capsys, "set", "--payout", "12", "--dry-run"),
        change(tracker, capsys, "delete", "--dry-run"),
    ]

    assert ["payout", "10", "12"] in ran[0].rows
    assert ["status", "sale", "deleted"] in ran[1].rows
    assert [each.err.count("nothing was written") for each in ran] == [1, 1]
    assert (tracker.snapshot(), tracker.postbacks()) == before


def test_what_is_so_already_leaves_no_trace(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(SALE)

    ran = change(tracker, capsys, "set", "--status", "sale", "--payout", "10")

    assert (ran.status, "nothing to change" in ran.err) == (0, True)
    assert len(tracker.postbacks()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "--subid", "c1", "--status", "lead"), "--tid: 't1' (sale, 10 USD), 't2' (rebill"),
        (("delete", "--subid", "c1"), "has 2 conversions, say which with --tid: 't1'"),
        (("delete", "--subid", "c1", "--tid", "t9"), "transaction id 't9'; it has: 't1' (sale"),
        (("delete", "--subid", "c2"), "click 'c2' has no conversion: `postback import`"),
        (("delete", "--subid", "c3"), "click 'c3' is not known"),
        (("set", "--subid", "c1", "--tid", "t2", "--currency", "XYZ"), "'XYZ' is no code of ISO"),
    ],
)
def test_what_is_not_one_conversion_is_refused_with_what_there_is(
    tracker: Client, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    tracker.allow_rebills("O1")
    tracker.click("c2")
    for tid in ("t1", "t2"):
        tracker.send(f"subid=c1&status=sale&payout=10&tid={tid}")
    before = tracker.snapshot()

    ran = call(tracker, capsys, "conversions", *words, *REASON)

    assert ran.status == 1
    assert says in ran.err
    assert tracker.snapshot() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", *REASON), "say what to set"),
        (("set", "--payout", "12,50", *REASON), "'12,50' is no amount"),
        (("set", "--status", "paid", *REASON), "invalid choice: 'paid'"),
        (("delete",), "--reason"),
        (("delete", "--reason", " "), "the reason is empty"),
        (("delete", "--reason", "x" * 501), "501 characters"),
    ],
)
def test_wrong_usage_is_told(
    tracker: Client, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    what, *rest = words

    ran = call(tracker, capsys, "conversions", what, "--subid", "c1", *rest)

    assert ran.status == 2
    assert says in ran.err


def test_a_key_in_the_reason_is_written_nowhere(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(SALE)

    reason = f"they sent to /{POSTBACK_KEY}/postback"
    ran = call(tracker, capsys, "conversions", "delete", "--subid", "c1", "--reason", reason)

    assert (ran.status, read_history(tracker)[-1]["reason"]) == (0, "they sent to /***/postback")
    tracker.receiver.close()
    for path in tracker.directory.glob("postback.db*"):
        assert POSTBACK_KEY.encode() not in path.read_bytes()


def test_an_operator_s_word_is_shown_where_people_ask(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(SALE)
    change(tracker, capsys, "set", "--payout", "12")
    change(tracker, capsys, "delete", "--tid", "t1")

    history = call(tracker, capsys, "conversions", "--deleted", "--history")
    explained = call(tracker, capsys, "explain", SALE)
    [told] = call(tracker, capsys, "explain", SALE, "--json").objects

    assert [row[1] for row in history.rows] == ["", "recorded", "operator", "deleted"]
    assert history.out.count(REASON[1]) == 2
    assert explained.out.count(REASON[1]) >= 2
    assert [row["change"] for row in told["corrections"]] == ["operator", "deleted"]
    assert told["verdict"] == "refused"
    assert told["conversions"] == []


def test_who_looks_for_a_deleted_one_on_a_terminal_is_told(
    tracker: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    tracker.send(SALE)
    before = call(tracker, capsys, "conversions", "--subid", "c1")
    change(tracker, capsys, "delete")

    after = call(tracker, capsys, "conversions", "--subid", "c1")
    itself = call(tracker, capsys, "conversions", "--subid", "c1", "--deleted")

    assert ["--deleted" in ran.out for ran in (before, after, itself)] == [False, True, False]


def test_an_operator_s_word_is_no_sign_of_life_of_a_network(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(SALE)
    change(tracker, capsys, "delete")

    ran = call(tracker, capsys, "check", "--json")

    assert "the last one came at 2026-03-02T12:00:00.000Z, recorded" in ran.out


def test_an_operator_s_row_of_the_log_is_no_postback_to_replay(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(SALE)
    change(tracker, capsys, "set", "--status", "lead")

    all_of_it = call(tracker, capsys, "replay", "--subid", "c1", "--json")
    alone = call(tracker, capsys, "replay", "--id", "2")

    assert [row["id"] for row in all_of_it.objects] == [1]
    assert (alone.status, "an operator's change" in alone.err) == (1, True)
    assert held(tracker) == [("t1", "lead", "10")]


def test_reconcile_takes_a_deleted_conversion_for_missing(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(SALE)
    change(tracker, capsys, "delete")
    report = tracker.directory / "report.csv"
    report.write_text("subid,payout,tid,status\nc1,10,t1,sale\n", encoding="utf-8")

    ran = call_process(tracker.directory, "reconcile", str(report), "--json")
    taken = call_process(tracker.directory, "import", str(report))

    assert "missing" in ran.out
    assert "refused" in taken.out
    assert held(tracker) == []


def test_the_one_without_a_transaction_id_is_named_by_an_empty_one(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.allow_rebills("O1")
    tracker.send("subid=c1&status=sale&payout=10")
    tracker.send("subid=c1&status=sale&payout=20&tid=t2")

    ran = change(tracker, capsys, "delete", "--tid", "")

    assert ran.status == 0
    assert held(tracker) == [("t2", "rebill", "20")]


def test_it_is_done_beside_a_running_service(tracker: Client) -> None:
    directory = tracker.directory
    tracker.receiver.close()
    with live_server(directory) as server:
        address = f"/{POSTBACK_KEY}/postback?{SALE}"
        assert b"X-Postback-Result: recorded" in server.get(address)

        ran = call_process(directory, "conversions", "delete", "--subid", "c1", *REASON)
        again = server.get(address)
        back = call_process(
            directory, "conversions", "set", "--subid", "c1", "--status", "sale", *REASON
        )
        further = server.get(f"{address}&payout=12")

    assert (ran.status, back.status) == (0, 0), (ran, back)
    assert b"X-Postback-Result: refused" in again
    assert b"X-Postback-Reason: an operator has deleted this conversion" in again
    assert b"X-Postback-Result: repeated" in further
    assert held(tracker) == [("t1", "sale", "10")]


def test_csv_of_deleted_ones_has_their_time_in_the_zone_before_the_sub_ids(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send(f"{SALE}&sub_id_1=banner")
    change(tracker, capsys, "delete")

    ran = call(tracker, capsys, "conversions", "--deleted", "--csv", "--tz", "+03:00")

    [row] = csv.DictReader(ran.out.splitlines())
    assert list(row).index("deleted_at") < list(row).index("sub_id_1")
    assert row["deleted_at"].endswith("+03:00")
    assert (row["subid"], row["sub_id_1"], row["sub_id_30"]) == ("c1", "banner", "")
