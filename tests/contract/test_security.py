"""Claims of docs/security.md that no other test checks, and that each claim names its test."""

import ast
import hmac
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from cli_calls import build_command, build_environment, without_styles
from conftest import CLICK_KEY, PIXEL_KEY, POSTBACK_KEY, Client, ReceiverWith, write_config
from live import live_server
from tree import ROOT, read_distribution

from postbackd.cli import entry as cli

KEYS = (POSTBACK_KEY, CLICK_KEY, PIXEL_KEY)


def test_every_claim_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    claims = [line for line in text.splitlines() if line.startswith("- ")]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    held = text.partition("## What is not protected")[0]
    unheld = [
        paragraph
        for paragraph in re.split(r"\n(?=- )|\n\n", held)
        if paragraph.startswith("- ") and "::" not in paragraph
    ]

    assert len(claims) > 25
    assert unheld == []
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert any(isinstance(n, ast.FunctionDef) and n.name == name for n in tree.body), name


# Keys.


def test_every_key_is_compared_whatever_comes(
    receiver_with: ReceiverWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = receiver_with(postback_key_old="older-key-of-the-tests")
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def compare_noted(candidate: bytes, key: bytes) -> bool:
        compared.append(key)
        return compare(candidate, key)

    monkeypatch.setattr(hmac, "compare_digest", compare_noted)
    sets = []
    for key in (*KEYS, "older-key-of-the-tests", "wrong", POSTBACK_KEY[:-1], "", "x" * 2000):
        for name in ("postback", "postback.gif", "click", "elsewhere"):
            compared.clear()
            client.get(f"/{key}/{name}")
            sets.append(sorted(compared))

    every = sorted(key.encode() for key in (*KEYS, "older-key-of-the-tests"))
    assert all(found == every for found in sets)


def test_no_process_shows_a_key_to_other_users(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    with live_server(tmp_path) as server:
        server.get(f"/{POSTBACK_KEY}/postback?subid=c1")
        assert server.process is not None
        for pid in (server.process.pid, *server.worker_pids()):
            for name in ("cmdline", "environ", "comm"):
                shown = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not any(key.encode() in shown for key in KEYS)


def test_no_spelling_of_a_key_gets_into_a_log(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    spelt = (
        POSTBACK_KEY,
        "".join(f"%{byte:02x}" for byte in POSTBACK_KEY.encode()),
        "".join(f"%{byte:02X}" for byte in POSTBACK_KEY.encode()),
        POSTBACK_KEY.replace("c", "%63"),
        POSTBACK_KEY.replace("k", "%6B", 1),
    )
    with live_server(tmp_path, "--access-logfile", "-", "--log-level", "debug") as server:
        for key in spelt:
            # The path behind the key does not show either that it was right.
            for name in ("postback", "p%6fstback", "p", "?"):
                server.get(f"/{key}/{name}?subid=c1", f"Referer: http://h/{key}")
    log = server.read_log()

    assert log.count("GET /") >= 20
    assert POSTBACK_KEY not in unquote(log)


@pytest.mark.parametrize("worker_class", ["postbackd.server.worker.GroupCommitWorker", "gthread"])
def test_nearly_all_of_a_key_in_a_logged_line_holds_up_nobody(
    tmp_path: Path, worker_class: str
) -> None:
    """31 right letters in escapes whose digits have no case once stopped the worker for good."""
    key = "0123456789abcdef0123456789abcdef"
    write_config(tmp_path, {"postback_key": key, "postbacks": "yes"})
    guess = "".join(f"%{byte:02x}" for byte in key[:31].encode())
    options = ("--access-logfile", "-", "--log-level", "debug", "--worker-class", worker_class)
    with live_server(tmp_path, *options) as server:
        server.get(f"/{guess}/postback?subid=c2", f"Cookie: subid={guess}{guess}", f"X: /{guess}")
        server.get(
            f"/{key}/postback?subid=c1&from={guess}&ref={guess}0", f"Referer: http://h/{key}"
        )
        answer = server.get("/health")
    log = server.read_log()

    assert answer.startswith(b"HTTP/1.1 200 ")
    # A text that is nearly the key is shown.
    assert f'"GET /***/postback?subid=c1&from={guess}&ref={guess}0 HTTP/1.1" 200' in log
    assert '"GET /***/postback?subid=c2 HTTP/1.1" 404' in log
    assert key not in unquote(log)


# Files.


def test_nothing_is_readable_for_other_users_whatever_the_umask(tmp_path: Path) -> None:
    command = 'umask 0; exec "$@"'
    # A wrong option: gunicorn exits at once, and the files are there.
    serve = build_command("serve", "--no-such-option")
    subprocess.run(
        ["/bin/sh", "-c", command, "sh", *serve],
        cwd=tmp_path,
        env=build_environment({}),
        capture_output=True,
        timeout=60,
        check=False,
    )
    with live_server(tmp_path) as server:
        server.get("/health")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}

    assert {"config.ini.php", "postback.db", "postback.db-wal", "postback.db-lock"} <= set(modes)
    del modes["gunicorn.log"]
    assert set(modes.values()) == {0o600}


# Senders' text, shown to people.

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\x00\r\n\x7f=cmd|' /C calc'!A0[bold]"
    "\u200b\u034f\u3164\ufe0f\U000e0101"
)
SHOWING = (
    ("log",),
    ("log", "--json"),
    ("log", "--verdict", "unmapped"),
    ("conversions",),
    ("conversions", "--history"),
    ("conversions", "--json"),
    ("conversions", "--csv"),
    ("clicks", "list"),
    ("offers", "list"),
    ("campaigns", "list"),
    ("check",),
    ("rates", "show"),
    ("report",),
    ("report", "--by", "network"),
    ("report", "--by", "offer"),
    ("report", "--by", "campaign", "--csv"),
    ("explain", f"subid=p{quote(HOSTILE)}&status={quote(HOSTILE)}&from={quote(HOSTILE)}"),
    ("replay", "--verdict", "unmapped", "--dry-run"),
    ("replay", "--verdict", "unmapped", "--set", f"status={HOSTILE[:9]}", "--dry-run"),
)


@pytest.fixture
def hostile(client: Client) -> Client:
    """A tracker with a hostile sender's text in every column."""
    evil = quote(HOSTILE)
    client.get(f"/{CLICK_KEY}/click?subid={evil}&offer={evil}&campaign={evil}&sub_id_1={evil}")
    sale = f"subid={evil}&status=sale&payout=1&currency=EUR&from={evil}&tid={evil}&sub_id_2={evil}"
    for query in (sale, f"subid={evil}&status={evil}&x={evil}", f"subid=p{evil}&currency={evil}"):
        client.send(query)
    return client


@pytest.mark.parametrize("words", SHOWING, ids=lambda words: ascii(" ".join(words))[:40])
def test_no_command_lets_a_sender_move_the_cursor(
    hostile: Client,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a terminal of that width.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(hostile.directory)
    monkeypatch.delenv("POSTBACK_CONFIG", raising=False)

    status = cli.main(words)

    # CSV has its lines end in two characters.
    said = capsys.readouterr()
    seen = without_styles(said.out + said.err).replace("\r\n", "\n")
    assert status in {0, 1}
    assert "owned" in seen or words in {("check",), ("rates", "show"), ("report",)}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", seen), seen
    assert not re.search("[\u200b\u034f\u3164\ufe0f\U000e0101]", seen), ascii(seen)
    assert "Traceback" not in seen


def test_a_click_id_cannot_be_sql(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "'; DROP TABLE postbacks; --"
    for value in (evil, '" OR 1=1 --', "%", "_", "x' UNION SELECT postback_key"):
        client.click(value, offer=value)
        client.send(f"subid={quote(value)}&tid={quote(value)}&status={quote(value)}")
        config = str(client.directory / "config.ini.php")
        assert cli.main(["log", "--subid", value, "--json", "--config", config]) == 0
        # Its own row and no other.
        assert len(capsys.readouterr().out.splitlines()) == 1


# Denial of service by a sender with a key.

FULL = 65_000
DEAR_BODIES: dict[str, Callable[[], str]] = {
    "digits": lambda: "payout=" + "9" * FULL,
    "digits and a letter": lambda: "payout=" + "9" * FULL + "x",
    "digits and commas": lambda: "payout=" + "9," * (FULL // 2),
    "nothing but &": lambda: "&" * FULL,
    "nothing but =": lambda: "=" * FULL,
    "nothing but +": lambda: "+" * FULL,
    "many fields": lambda: "a=1&" * (FULL // 4),
    "names that end at once": lambda: "%00&" * (FULL // 4),
    "escapes": lambda: "subid=" + "%41" * (FULL // 3),
    "bad escapes": lambda: "subid=" + "%" * FULL,
    "bytes that are no text": lambda: "subid=" + "%ff" * (FULL // 3),
    "brackets": lambda: "[" * FULL + "=1",
    "a list of words": lambda: "status=x&sale_status=" + "a," * (FULL // 2 - 20),
    "an endless macro": lambda: "subid={" + "a" * (FULL - 9) + "}",
    "almost the key": lambda: f"{POSTBACK_KEY[:-1]}&" * (FULL // 24),
    "almost the key in escapes": lambda: (
        "".join(f"%{byte:02x}" for byte in f"/{POSTBACK_KEY[:-1]}".encode()) * (FULL // 72)
    ),
    "escapes of every kind": lambda: r"%2541%5Cx41\x41\\x41\x2541-" * (FULL // 27),
    "the key again and again": lambda: f"{POSTBACK_KEY}&" * (FULL // 24),
}


@pytest.mark.parametrize("body", DEAR_BODIES)
def test_the_dearest_body_is_read_in_bounded_time(client: Client, body: str) -> None:
    text = DEAR_BODIES[body]()
    began = time.process_time()

    answer = client.post("subid=c1", text)

    # Some 20 ms for the slowest; a cost that grows with the square would take minutes.
    assert time.process_time() - began < 1
    assert answer.status == 200


def test_a_long_chain_of_trusted_proxies_is_read_in_bounded_time(client: Client) -> None:
    chain = ", ".join(["127.0.0.1"] * 740)
    began = time.process_time()

    answer = client.request(
        f"/{POSTBACK_KEY}/postback?subid=c1",
        environ={"REMOTE_ADDR": "127.0.0.1"},
        headers={"X-Forwarded-For": chain},
    )

    assert time.process_time() - began < 1
    assert answer.status == 200


def test_importing_no_module_needs_an_evaluator() -> None:
    """No sent value is ever run: no module of ours evaluates, unpickles or calls a shell."""
    modules = read_distribution().modules
    banned = re.compile(r"\b(eval|exec|pickle|marshal|shelve|os\.system|shell=True)\b")
    found = {name: banned.findall(path.read_text()) for name, path in modules.items()}

    assert {"postback", "statuses", "storage", "rates"} <= set(modules)
    assert {name: words for name, words in found.items() if words} == {}
