"""`postback replay`: received postbacks judged again, with corrections."""

import os
import signal
import subprocess
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_calls import (
    Ran,
    Terminal,
    build_command,
    build_environment,
    call_process,
    without_styles,
)
from conftest import NOON, POSTBACK_KEY, Client, ReceiverWith, write_config
from live import PATIENCE_SECONDS, live_server, wait_until

from postbackd.cli import entry as cli
from postbackd.intake import replay as replaying
from postbackd.intake.booking import BookingOptions
from postbackd.intake.replay import Corrections, Effect, Original
from storage import open_database

MEND = ("--verdict", "unmapped", "--set", "sale_status=approved")


def replay(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    """Run `replay` in this process."""
    config = str(client.directory / "config.ini.php")
    status = cli.main(["replay", *words, "--config", config])
    captured = capsys.readouterr()
    return Ran(status, captured.out, captured.err)


def count_rows(client: Client) -> dict[str, Any]:
    return client.rows(
        "SELECT (SELECT count(*) FROM postbacks) AS postbacks,"
        " (SELECT count(*) FROM conversion_history) AS changes"
    )[0]


def read_files(client: Client) -> dict[str, bytes]:
    # The -shm file has readers' marks, no data.
    return {
        path.name: path.read_bytes()
        for path in client.directory.iterdir()
        if not path.name.endswith("-shm")
    }


def test_an_unmapped_status_is_corrected_as_if_it_had_been_right_when_it_came(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="O1")
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at) VALUES"
        " ('EUR', '2026-03-01', 'ecb', '1.1', ''), ('EUR', '2026-03-09', 'ecb', '2', '')"
    )
    client.send("subid=c1&status=approved&payout=10&currency=eur&from=net")
    before = datetime.now(UTC) - timedelta(seconds=1)

    ran = replay(client, capsys, *MEND, "--json")

    [told] = ran.objects
    assert (told["was"], told["verdict"], told["what"]) == ("unmapped", "recorded", "added")
    [conversion] = client.conversions()
    assert conversion.id == told["conversion_id"]
    assert (conversion.created_at, conversion.sale_at) == (NOON, NOON)
    assert (conversion.payout, conversion.rate_day) == ("11", "2026-03-01")
    original, again = client.postbacks()
    assert (original.verdict, original.settled_verdict) == ("unmapped", "recorded")
    assert original.conversion_id == again.conversion_id == conversion.id
    assert original.settled_at == again.received_at >= before
    assert (again.source, again.method, again.remote_addr) == ("replay", None, None)
    assert again.query == f"{original.query}&sale_status=approved"
    assert client.rows("SELECT replay_of FROM postbacks ORDER BY id") == [
        {"replay_of": None},
        {"replay_of": original.id},
    ]


@pytest.mark.parametrize("repeats", ["ignore", "update"])
def test_doing_it_twice_is_doing_it_once(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], repeats: str
) -> None:
    client = receiver_with(repeats=repeats)
    client.click("c1")
    for query in ("payout=10", "payout=12", "payout=12&tid=t2", "payout=oops", "status=paid"):
        client.send(f"subid=c1&status=approved&{query}")
    client.send("subid=unknown&status=approved")
    first = replay(client, capsys, *MEND)
    rows, held = count_rows(client), client.snapshot()

    second = replay(client, capsys, *MEND)

    assert {row[7] for row in first.rows} > {"added", "noted"}
    assert {row[7] for row in second.rows} == {"left"}
    assert (count_rows(client), client.snapshot()) == (rows, held)


def send_a_mixed_lot(client: Client) -> None:
    """Send postbacks that depend on each other: leads, sales, rebills, repeats, unknown clicks."""
    for subid in ("c1", "c2", "c3"):
        client.click(subid, offer="O1", campaign="C1")
    client.allow_rebills("O1")
    client.send("subid=c2&status=lead&tid=t0")
    for query in (
        "subid=c1&status=hold&tid=t1",
        "subid=c1&status=approved&payout=10&tid=t1",
        "subid=c1&status=approved&payout=11&tid=t1",
        "subid=c1&status=approved&payout=5&currency=EUR&tid=t2",
        "subid=c1&status=bad&tid=t2",
        "subid=c2&status=approved&tid=t0",
        "subid=c3&status=bad",
        "subid=c3&status=approved",
        "subid=c3&status=strange",
        "subid=unknown&status=approved",
        "clickid={sub1}&aff_sub=c3&status=approved&tid=t9",
    ):
        client.clock.forward(minutes=1)
        client.send(query)


LISTS = (
    *("--set", "lead_status=hold", "--set", "sale_status=approved"),
    *("--set", "rejected_status=bad", "--rename", "aff_sub=subid"),
)


@pytest.mark.parametrize("unknown_subid", ["park", "accept"])
def test_the_dry_run_foretells_what_the_real_one_does(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], unknown_subid: str
) -> None:
    client = receiver_with(unknown_subid=unknown_subid)
    send_a_mixed_lot(client)
    chosen = ("--since", "2026-03-01", *LISTS)

    foretold = replay(client, capsys, *chosen, "--dry-run")
    came = replay(client, capsys, *chosen)

    def without_conversion(ran: Ran) -> list[list[str]]:
        return [[*row[:8], *row[9:]] for row in ran.rows]

    assert without_conversion(foretold) == without_conversion(came)
    assert {row[8] for row in foretold.rows if row[7] == "added"} == {"new"}
    assert {row[7] for row in came.rows} == {"added", "changed", "noted", "left"}
    assert [row[6] for row in came.rows][1:5] == ["recorded", "updated", "repeated", "recorded"]


def test_the_dry_run_writes_nothing_and_leaves_nothing(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    send_a_mixed_lot(client)
    before = read_files(client)

    ran = replay(client, capsys, "--since", "2026-03-01", *LISTS, "--dry-run", "--totals", "--json")

    assert ran.err == ""
    assert ran.objects[0]["added"] > 0
    assert read_files(client) == before
    assert list(temporary.iterdir()) == []


def test_a_replay_may_wait_for_its_click_and_is_booked_at_the_originals_time(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    client.clock.now = now - timedelta(days=200)
    client.send("subid=late&status=approved&payout=3")
    ran = replay(client, capsys, *MEND)
    client.clock.now = now + timedelta(minutes=1)

    client.click("late")

    assert ran.rows[0][6:8] == ["parked", "noted"]
    [conversion] = client.conversions()
    assert conversion.created_at == now - timedelta(days=200)
    original, again = client.postbacks()
    assert original.settled_verdict == again.settled_verdict == "recorded"
    assert original.conversion_id == again.conversion_id == conversion.id
    assert replay(client, capsys, *MEND).rows[0][7] == "left"


def test_a_parked_postback_waits_on_unless_it_is_corrected(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")
    client.send("subid=junk&sub=c1&payout=3")

    untouched = replay(client, capsys, "--verdict", "parked")
    mended = replay(client, capsys, "--verdict", "parked", "--rename", "sub=subid")

    assert untouched.rows[0][7] == "left"
    assert mended.rows[0][6:8] == ["recorded", "added"]
    assert client.postbacks()[0].settled_verdict == "recorded"
    assert [c.subid for c in client.conversions()] == ["c1"]


def test_no_mapping_makes_a_sale_of_what_a_pixel_brought(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")
    client.get("/p1xel-key-of-the-tests/postback.gif?subid=c1&status=approved")

    ran = replay(client, capsys, *MEND)

    assert ran.rows[0][6:8] == ["refused", "noted"]
    assert client.conversions() == []


def test_a_replay_is_not_replayed(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.click("c1")
    client.send("subid=c1&status=approved")
    replay(client, capsys, *MEND)

    everything = replay(client, capsys, "--since", "2026-01-01")
    by_id = replay(client, capsys, "--id", "2")

    assert [row[0] for row in everything.rows] == ["1"]
    assert by_id.status == 1
    assert "postback 2 is a replay itself: replay its original, 1" in by_id.err


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (("--id", "2", "--id", "4"), ["2", "4"]),
        (("--verdict", "unmapped"), ["1", "3", "4"]),
        (("--network", "net"), ["1", "4"]),
        (("--subid", "c1"), ["1", "2"]),
        (("--since", "2026-03-02T14:00"), ["3", "4"]),
        (("--until", "2026-03-02T14:00"), ["1", "2"]),
        (("--verdict", "unmapped", "--network", "net", "--since", "2026-03-02T13:00"), ["4"]),
        (("--since", "2027-01-01"), []),
    ],
)
def test_postbacks_are_chosen_as_in_the_log(
    client: Client, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], ids: list[str]
) -> None:
    client.click("c1")
    for query in (
        "subid=c1&status=approved&from=net",
        "subid=c1&status=lead",
        "subid=c2&status=approved",
        "subid=c3&status=approved&from=net",
    ):
        client.send(query)
        client.clock.forward(hours=1)

    assert [row[0] for row in replay(client, capsys, *options, "--dry-run").rows] == ids


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ((), 2, "say which: --id, --verdict"),
        (("--set", "sale_status=approved"), 2, "say which"),
        (("--id", "1", "--set", "slae_status=approved"), 2, "the nearest is 'sale_status'"),
        (("--id", "1", "--rename", "sub=supid"), 2, "the nearest is 'subid'"),
        (("--id", "99"), 1, "there is no postback 99"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    sentence: str,
) -> None:
    client.send("subid=c1&status=approved")

    ran = replay(client, capsys, *words)

    assert ran.status == status
    assert sentence in ran.err


def test_a_key_does_not_come_into_the_log_by_an_override(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.send("subid=c1&status=approved")

    replay(client, capsys, *MEND, "--set", f"return=x/{POSTBACK_KEY}")

    assert POSTBACK_KEY not in client.postbacks()[1].query


def test_one_that_was_purged_meanwhile_is_left(client: Client) -> None:
    client.get("/health")
    gone = Original(99, "2026-03-02T12:00:00.000Z", "http", "subid=c1&status=sale")

    with open_database(client.database, "USD") as storage, storage.transaction():
        replayed = replaying.replay(storage, gone, Corrections(), BookingOptions("USD"), NOON)

    assert (replayed.effect, replayed.reason) == (Effect.LEFT, "purged meanwhile")
    assert client.postbacks() == []


def fill(client_directory: Path, count: int) -> Client:
    """Make a tracker's directory with clicks and as many unmapped postbacks."""
    write_config(client_directory, {})
    assert call_process(client_directory, "offers", "set", "O1", "--no-allow-rebills").status == 0
    client = Client(client_directory, client_directory / "postback.db", None, None)  # type: ignore[arg-type]  # nothing is sent through it
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    client.write(f"INSERT INTO clicks (subid) {numbers} SELECT 'c' || i FROM n")
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason,"
        f" original_status) {numbers} SELECT '2026-03-02T12:00:00.000Z', 'http', 'subid=c' || i ||"
        " '&status=approved&payout=2', 'c' || i, 'unmapped', '', 'approved' FROM n"
    )
    return client


def count_conversions(client: Client) -> int:
    [found] = client.rows("SELECT count(*) AS number FROM conversions WHERE tid = ''")
    number: int = found["number"]
    return number


def test_killed_beside_live_postbacks_it_goes_on_where_it_was(tmp_path: Path) -> None:
    client = fill(tmp_path, 3000)
    answers: list[bytes] = []
    is_over = threading.Event()

    def send_on() -> None:
        while not is_over.is_set():
            number = len(answers) + 1
            answers.append(server.get(f"/{POSTBACK_KEY}/postback?subid=c{number}&tid=x"))

    with live_server(tmp_path) as server:
        live = threading.Thread(target=send_on)
        live.start()
        first = subprocess.Popen(
            build_command("replay", *MEND),
            cwd=tmp_path,
            env=build_environment({}),
            stdout=subprocess.DEVNULL,
        )
        wait_until(lambda: count_conversions(client) > 0, "the first batch")
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        is_over.set()
        live.join(PATIENCE_SECONDS)
        done = count_conversions(client)

        ran = call_process(tmp_path, "replay", *MEND, "--totals", "--json")

    assert 0 < done < 3000
    assert {answer.split()[1] for answer in answers} == {b"200"}
    [told] = ran.objects
    # Where a live postback came first, a replay fills in its amount.
    assert sum(told[what] for what in ("added", "changed", "noted", "left")) == 3000
    assert told["left"] >= done - len(answers)
    booked = "SELECT count(*) AS rows, count(DISTINCT click_id) AS clicks FROM conversions"
    assert client.rows(booked) == [{"rows": 3000, "clicks": 3000}]
    replays = "SELECT count(*) AS rows, count(DISTINCT replay_of) AS originals FROM postbacks"
    assert client.rows(f"{replays} WHERE source = 'replay'") == [{"rows": 3000, "originals": 3000}]


def test_ctrl_c_says_how_far_it_came_and_how_to_go_on(tmp_path: Path) -> None:
    client = fill(tmp_path, 20_000)
    terminal = Terminal(tmp_path, "replay", *MEND, columns=60)
    try:
        wait_until(lambda: count_conversions(client) > 0, "the first batch")
        terminal.press_ctrl_c()
        ran = terminal.finish()
    finally:
        terminal.kill()

    seen = without_styles(ran.out)
    assert ran.status == 130
    assert "the same command does the rest" in " ".join(seen.split())
    assert "Traceback" not in seen
    assert 0 < count_conversions(client) < 20_000


# No replay books money twice, or less of it


def money(client: Client) -> list[tuple[str, str, str | None]]:
    return [(c.subid, c.status, c.payout) for c in client.conversions()]


def test_a_replay_that_waits_is_ended_by_the_next_one(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c2")
    client.send("aff=X1&aff2=c2&status=sale&payout=10")
    replay(client, capsys, "--verdict", "invalid", "--rename", "aff=subid")
    replay(client, capsys, "--verdict", "invalid", "--rename", "aff2=subid")

    client.click("X1")

    assert money(client) == [("c2", "sale", "10")]


def test_a_mapping_that_was_wrong_is_put_right_before_the_click_comes(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.send("subid=c1&status=approved&payout=10")
    replay(client, capsys, "--verdict", "unmapped", "--set", "sale_status=approved")
    replay(client, capsys, "--verdict", "unmapped", "--set", "lead_status=approved")

    client.click("c1")

    assert money(client) == [("c1", "lead", "10")]


def test_what_is_booked_is_not_booked_again_under_another_tid(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="O1")
    client.allow_rebills("O1")
    client.send("subid=c1&status=sale&payout=10&transaction=t1&from=net")

    ran = replay(client, capsys, "--network", "net", "--rename", "transaction=tid")

    assert money(client) == [("c1", "sale", "10")]
    assert "booked already" in ran.out


def test_an_override_takes_nothing_away_that_is_parked(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.send("subid=c1&status=sale&payout=10&from=net")
    replay(client, capsys, "--network", "net", "--set", "status=paid")

    client.click("c1")

    assert money(client) == [("c1", "sale", "10")]


@pytest.mark.parametrize("repeats", ["ignore", "update"])
def test_an_amount_that_reads_only_now_is_filled_in(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], repeats: str
) -> None:
    client = receiver_with(repeats=repeats)
    client.click("c1")
    client.send("subid=c1&payout=12,50&from=net")
    client.send("subid=c1&payout=13,50&from=net")
    write_config(client.directory, {"repeats": repeats, "decimal_comma": "yes"})

    first = replay(client, capsys, "--network", "net")
    second = replay(client, capsys, "--network", "net")

    assert money(client) == [("c1", "sale", "12.5")]
    assert [row[7] for row in first.rows] == ["changed", "left"]
    assert "filled in: amount 12.5 USD was unknown" in first.rows[0][9]
    assert [row[7] for row in second.rows] == ["left", "left"]


def test_a_bulk_replay_brings_no_older_amount_back(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(repeats="update")
    client.click("c1", offer="O1")
    client.send("subid=c1&payout=1&tid=t1")
    client.clock.forward(minutes=1)
    for payout in ("10", "13&currency=EUR"):
        client.send(f"subid=c1&payout={payout}&tid=t2&from=net&cost=2")
        client.clock.forward(minutes=1)
    client.allow_rebills("O1")
    for payout in ("12", "13"):
        client.send(f"subid=c1&payout={payout}&tid=t2&from=net&cost=3")
        client.clock.forward(minutes=1)
    before = money(client)

    dry = replay(client, capsys, "--network", "net", "--dry-run")
    ran = replay(client, capsys, "--network", "net")

    assert before == [("c1", "sale", "1"), ("c1", "rebill", "13")] == money(client)
    assert [row[7] for row in ran.rows] == [row[7] for row in dry.rows] == ["left"] * 4
    assert "a later postback has brought another amount, which stays" in ran.rows[0][9]


def test_a_replay_brings_a_later_amount_and_with_force_an_older_one(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(repeats="update")
    client.click("c1")
    for query in ("status=paid&payout=9", "payout=10", "status=paid&payout=11"):
        client.clock.forward(minutes=1)
        client.send(f"subid=c1&tid=t1&from=net&{query}")

    replay(client, capsys, "--network", "net", "--set", "sale_status=paid")
    later = money(client)
    replay(client, capsys, "--id", "1", "--set", "sale_status=paid", "--force")

    assert later == [("c1", "sale", "11")]
    assert money(client) == [("c1", "sale", "9")]


# A day of a network whose URL was wrong: what came of each, and what mends it.
WRONG_DAYS = [
    (
        "status=approved&rejected_status=approved",
        ("--set", "rejected_status=", "--set", "sale_status=approved"),
        ("rejected", "sale"),
        {"revenue": ("0", "31"), "rejected": (2, 0), "sales": (0, 2)},
    ),
    # Without `status=` all were sales, and were registrations.
    ("goal=reg", ("--set", "status=lead"), ("sale", "lead"), {"revenue": ("31", "0"),
     "hold": ("0", "31"), "sales": (2, 0), "leads": (0, 2)}),
    # The word stood under another name.
    ("event=reg", ("--rename", "event=status", "--set", "lead_status=reg"), ("sale", "lead"),
     {"revenue": ("31", "0"), "hold": ("0", "31"), "sales": (2, 0), "leads": (0, 2)}),
]  # fmt: skip


@pytest.mark.parametrize(("query", "words", "moves", "sums"), WRONG_DAYS)
def test_a_wrong_day_is_mended_by_force_with_its_sums_before_and_after(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    query: str,
    words: tuple[str, ...],
    moves: tuple[str, str],
    sums: dict[str, tuple[object, object]],
) -> None:
    for subid in ("c1", "c2", "other"):
        client.click(subid)
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at) VALUES"
        " ('EUR', '2026-03-02', 'ecb', '1.1', ''), ('EUR', '2026-03-09', 'ecb', '2', '')"
    )
    client.send("subid=other&status=sale&payout=500&from=other")
    client.send(f"subid=c1&payout=20&from=net&{query}")
    client.send(f"subid=c2&payout=10&currency=eur&from=net&{query}")
    client.clock.forward(days=1)
    client.send(f"subid=other&payout=7&from=net&{query}")
    before = client.snapshot()
    day = ("--network", "net", "--since", "2026-03-02", "--until", "2026-03-02", *words, "--force")

    dry = replay(client, capsys, *day, "--dry-run", "--totals", "--json")
    unchanged = client.snapshot()
    done = replay(client, capsys, *day, "--totals", "--json")
    again = replay(client, capsys, *day, "--totals", "--json")

    assert unchanged == before
    assert dry.objects == done.objects
    [told] = done.objects
    assert (told["changed"], told["added"]) == (2, 0)
    names = ("leads", "sales", "rejected", "rebills", "revenue", "hold")
    differ = {n: (told["before"][n], told["after"][n]) for n in names
              if told["before"][n] != told["after"][n]}  # fmt: skip
    assert differ == sums
    mended = [c for subid in ("c1", "c2") for c in client.conversions(subid)]
    assert [(c.status, c.payout) for c in mended] == [(moves[1], "20"), (moves[1], "11")]
    assert [c.created_at for c in mended] == [NOON, NOON]
    for subid in ("c1", "c2"):
        changes = [(row["change"], row["status"]) for row in client.history(subid)]
        assert changes == [("recorded", moves[0]), ("forced", moves[1])]
    assert [c.payout for c in client.conversions("other")] == ["500"]
    assert again.objects[0]["changed"] == 0


def test_the_sums_are_told_in_a_line_where_there_is_room(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")
    client.send("subid=c1&status=approved&payout=20")

    dry = replay(client, capsys, *MEND, "--dry-run")
    totals = replay(client, capsys, *MEND, "--totals")
    nothing = replay(client, capsys, *MEND)

    assert "What would change: sales 0 -> 1, revenue 0 -> 20 USD." in dry.err
    assert "What changed: sales 0 -> 1, revenue 0 -> 20 USD." in totals.out
    assert nothing.err == ""


def test_what_stood_before_is_not_what_an_earlier_replay_made_of_it(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")
    client.send("subid=c1&status=approved&payout=20")
    replay(client, capsys, *MEND)

    ran = replay(client, capsys, "--id", "1", "--set", "status=lead", "--force", "--totals")

    assert "leads 0 -> 1, sales 1 -> 0, revenue 20 -> 0 USD, hold 0 -> 20 USD" in ran.out


def test_a_wrong_day_mended_by_force_leaves_what_was_deleted(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for subid in ("c1", "c2"):
        client.click(subid)
        client.send(f"subid={subid}&payout=20&from=net&goal=reg")
    config = str(client.directory / "config.ini.php")
    deletion = ["conversions", "delete", "--subid", "c1", "--reason", "test", "--config", config]
    assert cli.main(deletion) == 0
    capsys.readouterr()

    ran = replay(client, capsys, "--network", "net", "--set", "status=lead", "--force", "--json")

    assert [row["what"] for row in ran.objects] == ["left", "changed"]
    assert client.conversions("c1") == []
    assert client.rows("SELECT status FROM conversions ORDER BY id")[0] == {"status": "rejected"}
