"""What is stored (section 7 of the contract), also by eight processes at once."""

from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode

import pytest
from at_once import run_at_once
from conftest import (
    NOON,
    POSTBACK_KEY,
    Client,
    Clock,
    Conversion,
    Postbacks,
    ReceiverWith,
    Send,
)

import postback

PIXEL = f"/{POSTBACK_KEY}/postback.gif"


def test_every_postback_is_logged_whatever_came_of_it(client: Client) -> None:
    client.click("c1")
    for query in (
        "subid=c1&status=lead",
        "subid=c1&status=sale",
        "subid=c1",
        "subid=c1&status=lead",
        "subid=c1&status=x&ignore=x",
        "subid=unknown",
        "subid=c1&status=what",
        "",
    ):
        client.send(query)

    assert [p.verdict for p in client.postbacks()] == [
        *("recorded", "updated", "repeated", "refused", "ignored", "parked", "unmapped", "invalid")
    ]


def test_a_logged_postback_tells_when_where_from_and_what(client: Client) -> None:
    client.click("c1")
    client.clock.forward(hours=1)

    client.send("subid=c1&status=Paid&sale_status=paid&tid=T1&payout=5&from=N1")

    [logged] = client.postbacks()
    [made] = client.conversions("c1")
    assert logged.received_at == NOON + timedelta(hours=1)
    assert logged.received_at.utcoffset() == timedelta(0)
    assert (logged.source, logged.method, logged.remote_addr) == ("http", "GET", "203.0.113.9")
    assert (logged.subid, logged.tid, logged.original_status) == ("c1", "T1", "Paid")
    assert (logged.network, logged.conversion_id) == ("N1", made.id)
    assert parse_qs(logged.query) == {
        "subid": ["c1"],
        "status": ["Paid"],
        "sale_status": ["paid"],
        "tid": ["T1"],
        "payout": ["5"],
        "from": ["N1"],
    }


def test_a_posted_body_is_kept_with_the_query(client: Client) -> None:
    client.click("c1")

    client.post("subid=c1&goal=a", "status=lead&note=%D0%96+1")

    logged = client.postbacks()[-1]
    assert (logged.method, logged.source) == ("POST", "http")
    assert parse_qs(logged.query) == {
        "subid": ["c1"],
        "goal": ["a"],
        "status": ["lead"],
        "note": ["Ж 1"],
    }


@pytest.mark.parametrize("cookie", ["subid=c1", "_subid=c1"])
def test_the_click_of_a_cookie_is_kept_as_subid(client: Client, cookie: str) -> None:
    client.click("c1")

    client.get(f"{PIXEL}?status=lead", cookie=cookie)

    logged = client.postbacks()[-1]
    assert (logged.subid, logged.source) == ("c1", "pixel")
    assert parse_qs(logged.query) == {"status": ["lead"], "subid": ["c1"]}


@pytest.mark.parametrize(
    ("query", "body", "cookie"),
    [
        ("subid=c1&status=lead&tid=T1", "", ""),
        ("sub.id=c1&status=wait&lead_status=wait&payout=.5", "", ""),
        ("tid=Q", "tid=B&subid=c1&status=lead&payout=3", ""),
        ("tid=%C3%A9;&status=lead", "", "_subid=c1"),
        ("click_id=x", "subid=c1&status=lead", ""),
        ("subid=&tid=T", "", "subid=c1"),
        ("status=%20LEAD%00&cost=1", "clickid=c1", ""),
    ],
)
def test_the_kept_query_says_all_that_the_postback_said(
    receiver_with: ReceiverWith, query: str, body: str, cookie: str
) -> None:
    first, second = receiver_with(), receiver_with()
    first.click("c1")
    second.click("c1")
    headers = {"cookie": cookie} if cookie else {}
    answer = first.post(query, body) if body else first.send(query, **headers)

    again = second.send(first.postbacks()[-1].query)

    assert answer.verdict == again.verdict == "recorded"
    assert first.conversions("c1") == second.conversions("c1")


def test_the_log_is_only_ever_added_to(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead")
    client.send("status=lead")
    before = client.rows("SELECT * FROM postbacks ORDER BY id")

    client.send("subid=c1&status=sale")
    client.send("subid=c1&status=rejected")
    client.click("c1", offer="O1")

    assert client.rows("SELECT * FROM postbacks ORDER BY id")[: len(before)] == before


def test_warnings_are_a_list_of_sentences(client: Client) -> None:
    client.click("c1")

    client.send("subid=c1&payout=1$10&tid={tid}&cost=x")

    warnings = client.postbacks()[-1].warnings
    assert len(warnings) == 3
    for warning in warnings:
        assert " " in warning


def test_a_warning_does_not_hide_the_value_from_the_log(client: Client) -> None:
    client.click("c1")

    client.send("subid=c1&payout=12%2C50")

    assert "12,50" in client.postbacks()[-1].warnings[0]


# --- Where it came from ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "client_address"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", "198.51.100.7", "203.0.113.9"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("::1", "198.51.100.7", "198.51.100.7"),
        ("", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "6.6.6.6,198.51.100.7, 127.0.0.1", "198.51.100.7"),
        ("127.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "6.6.6.6, ::ffff:198.51.100.7, ::ffff:127.0.0.1", "198.51.100.7"),
    ],
)
def test_the_client_is_the_rightmost_address_that_no_trusted_proxy_has(
    client: Client, peer: str, forwarded: str | None, client_address: str
) -> None:
    client.request(
        f"/{POSTBACK_KEY}/postback?subid=c1",
        environ={"REMOTE_ADDR": peer},
        headers={"X-Forwarded-For": forwarded} if forwarded else {},
    )

    assert client.postbacks()[-1].remote_addr == client_address


def test_trusted_proxies_are_those_of_the_config(receiver_with: ReceiverWith) -> None:
    client = receiver_with(trusted_proxies="192.0.2.1, 192.0.2.2")

    for peer in ("192.0.2.1", "127.0.0.1"):
        client.request(
            f"/{POSTBACK_KEY}/postback?subid=c1",
            environ={"REMOTE_ADDR": peer},
            headers={"X-Forwarded-For": "198.51.100.7, 192.0.2.2"},
        )

    assert [p.remote_addr for p in client.postbacks()] == ["198.51.100.7", "127.0.0.1"]


@pytest.mark.parametrize(
    "forwarded", ["", ",", "unknown", "1.2.3.4:80", "[::1]:80", "é", "x" * 999]
)
def test_a_forwarded_address_that_makes_no_sense_loses_no_postback(
    client: Client, forwarded: str
) -> None:
    answer = client.request(
        f"/{POSTBACK_KEY}/postback?subid=c1",
        environ={"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": forwarded},
    )

    assert (answer.status, len(client.postbacks())) == (200, 1)


# --- The file --------------------------------------------------------------------------------


def test_the_view_has_the_names_that_scripts_rely_on(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1")

    [row] = client.rows("SELECT * FROM conversions_view")

    assert set(row) == set(Conversion.__dataclass_fields__)


def test_the_tables_are_those_of_the_contract_and_strict(client: Client) -> None:
    client.send("subid=c1")

    tables = {
        row["name"]: row["strict"]
        for row in client.rows("PRAGMA table_list")
        if row["type"] == "table" and not row["name"].startswith("sqlite_")
    }

    expected = {"postbacks", "conversions", "conversion_history", "clicks", "offers", "campaigns"}
    assert expected | {"rates"} <= tables.keys()
    assert set(tables.values()) == {1}


def test_a_conversion_is_one_by_click_and_tid_for_the_database_too(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&tid=T1")
    [row] = client.rows("SELECT * FROM conversions")
    columns = [name for name in row if name != "id"]

    with pytest.raises(Exception, match="UNIQUE"):
        client.write(
            f"INSERT INTO conversions ({', '.join(columns)})"
            f" SELECT {', '.join(columns)} FROM conversions"
        )


def test_the_file_is_sound_after_all_kinds_of_traffic(client: Client) -> None:
    client.send("subid=c1&status=sale&tid=T0")
    client.click("c1", offer="O1", campaign="C1")
    client.allow_rebills("O1")
    for number in range(5):
        client.send(f"subid=c1&tid=T{number}&payout={number}")
        client.send(f"subid=c1&tid=T{number}&status=rejected")

    assert client.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert client.rows("PRAGMA foreign_key_check") == []
    assert client.rows("PRAGMA user_version") != [{"user_version": 0}]


def test_everything_is_still_there_after_a_restart(
    receiver_with: ReceiverWith,
) -> None:
    first = receiver_with()
    first.click("c1")
    first.send("subid=c1&status=lead&payout=5")
    before = first.snapshot()
    first.receiver.close()

    second = receiver_with(directory=first.directory)

    assert second.send("subid=c1&status=lead").verdict == "repeated"
    assert second.snapshot() == before
    assert len(second.postbacks()) == 2


@pytest.mark.parametrize("value", ["Ж☃", "'; DROP TABLE postbacks; --", '"', "\ufffd", "😀"])
def test_any_text_is_kept_as_it_was_sent(send: Send, postbacks: Postbacks, value: str) -> None:
    send(urlencode({"subid": value, "tid": value, "from": value, "note": value}))

    [logged] = postbacks()
    assert (logged.subid, logged.tid, logged.network) == (value, value, value)
    assert dict(parse_qsl(logged.query))["note"] == value


# --- Eight processes -------------------------------------------------------------------------

PROCESSES = 8
EACH = 25


def send_all(config_path: Path, queries: list[str], link: Connection) -> None:
    """Run one worker process: a receiver of its own, on the same config and database."""
    receiver = postback.Receiver(config_path)
    client = Client(config_path.parent, config_path.parent / "postback.db", receiver, Clock())
    client.get("/health")
    link.send("ready")
    link.recv()
    answers = []
    for query in queries:
        answer = client.send(query)
        while answer.status == 503:
            # Eight want the lock, and on a busy machine one may wait too long: its postback is not
            # stored, and is sent again, as any sender does.
            answer = client.send(query)
        answers.append((answer.status, answer.verdict))
    receiver.close()
    link.send(answers)


def send_from_eight_processes(
    client: Client, shares: list[list[str]]
) -> list[tuple[int, str | None]]:
    """Let eight processes send their share at once, and collect the answers."""
    config_path = client.directory / "config.ini.php"
    answers = run_at_once(send_all, [(config_path, share) for share in shares])
    return [answer for share in answers for answer in share]


def test_eight_processes_with_the_same_postback_record_it_once(client: Client) -> None:
    client.click("c1", offer="O1")
    client.allow_rebills("O1")

    same = ["subid=c1&tid=T1&status=sale&payout=5"] * 3
    answers = send_from_eight_processes(client, [same] * PROCESSES)

    assert sorted(answers) == [(200, "recorded")] + [(200, "repeated")] * (3 * PROCESSES - 1)
    assert len(client.conversions("c1")) == len(client.history("c1")) == 1
    assert len(client.postbacks()) == 3 * PROCESSES


def test_eight_processes_with_different_postbacks_lose_none(client: Client) -> None:
    client.click("shared", offer="O1")
    client.allow_rebills("O1")
    shares = [
        [f"subid=shared&tid=T-{process}-{number}&payout=1" for number in range(EACH)]
        for process in range(PROCESSES)
    ]

    answers = send_from_eight_processes(client, shares)

    assert answers == [(200, "recorded")] * (PROCESSES * EACH)
    assert len({c.tid for c in client.conversions("shared")}) == PROCESSES * EACH
    assert [c.status for c in client.conversions("shared")].count("sale") == 1
    assert len(client.postbacks()) == PROCESSES * EACH


@pytest.mark.parametrize(
    "query",
    [
        "status=sale&payout=12.50&currency=usd&tid=t1",
        "status=lead",
        "payout=10&currency=EUR&cost=2.5",
        "status=yes&sale_status=yes&payout=-3&sub_id_1=a&from=net",
        "status=sale&payout=10&currency=XXX",
    ],
)
def test_the_history_begins_with_what_the_conversion_is(client: Client, query: str) -> None:
    client.click("c1", offer="O1")
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at)"
        " VALUES ('EUR', '2026-01-01', 'ecb', '1.0876', '2026-01-01T00:00:00.000Z')"
    )

    client.send(f"subid=c1&{query}")

    (begun,) = client.history("c1")
    (kept,) = client.rows("SELECT * FROM conversions")
    of_both = begun.keys() & kept.keys()
    assert {name: begun[name] for name in of_both} == {name: kept[name] for name in of_both}
    assert len(of_both) == 13
    assert (begun["seq"], begun["change"], begun["at"]) == (1, "recorded", kept["created_at"])
    assert begun["postback_id"] == client.postbacks()[0].id
