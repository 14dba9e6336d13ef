"""No key leaves the program in any output, in any spelling.

`EXITS` lists the outputs; add a new one here. `tests/deploy/test_nginx.py` has the logs of nginx.
"""

import io
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import pytest
from cli_calls import build_environment, call_on_terminal, call_process
from conftest import FORM, Answer, Client, Clock
from live import LiveServer, live_server
from spellings import find_spelt, spell_for_transport
from stand_in import JSON, StandIn, redirect, stand_in_server
from stand_in import document as answer_with

import postback
from postbackd.cli import entry as cli
from postbackd.config import settings as config
from postbackd.config.entries import ConfigError
from postbackd.exchange import runner
from postbackd.explain import dry_run
from postbackd.explain.pasted import read_pasted
from postbackd.intake import booking
from postbackd.intake.booking import read_booking_options
from postbackd.intake.sandbox import rehearse
from postbackd.masking import HIDDEN
from postbackd.reports.queries import open_to_read
from storage import open_database

# They have every character that a config file can have; the last is the key of a rates source.
KEYS = {
    "postback_key": "s3cret/key-of the+tésts",
    "postback_key_old": "0123456789abcdef0123456789abcdef",
    "pixel_key": "p1xel\\key\"of'the-tests",
    "click_key": "кл1юч-of-the-tests",
    "app_id": "app=id&of%41the-tests",
}
SPELT = [spelt for key in KEYS.values() for spelt in spell_for_transport(key.encode())]

# The characters of a target of HTTP.
IN_TARGETS = [spelt.replace(" ", "%20").replace("#", "%23") for spelt in SPELT]
IN_ASCII = [re.sub(r"[^\x00-\x7f]", lambda found: quote(found[0]), spelt) for spelt in IN_TARGETS]


def quote_ini(value: str) -> str:
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'


def write_config(directory: Path, **more: str) -> Path:
    system = {name: quote_ini(key) for name, key in KEYS.items() if name != "app_id"}
    sections: dict[str, dict[str, str]] = {
        "system": system,
        "db": {},
        "postback": {"unknown_subid": '"accept"'},
        "rates": {"source": '"none"', "app_id": quote_ini(KEYS["app_id"])},
        "log": {"postbacks": "yes"},
    }
    for place, value in more.items():
        section, _, name = place.partition("__")
        sections[section][name] = value
    lines = [";<?php exit; ?>"]
    for section, entries in sections.items():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in entries.items())]
    path = directory / "config.ini.php"
    path.write_text("\n".join(lines) + "\n")
    assert set(config.load(path).secrets()) >= {key.encode() for key in KEYS.values()}
    return path


# Requests.


def send_all(server: LiveServer) -> None:
    """Send every spelling in every part of a request, and in malformed requests."""
    key = quote(KEYS["postback_key"], safe="")
    for target, spelt in zip(IN_TARGETS, SPELT, strict=True):
        fields = [f"{name}: http://h/{spelt}" for name in ("Referer", "User-Agent", "Cookie")]
        for path in (f"/{target}/postback", f"/x{target}", f"/{key}/postback"):
            head = [f"GET {path}?subid=c1&from={target}&ref=http://h/{target}/postback HTTP/1.1"]
            send_lines(server, [*head, "Host: h", "Connection: close", *fields])
        send_lines(server, [f"G=T /{spelt}/postback HTTP/1.1", f"{spelt}"])


def send_lines(server: LiveServer, lines: list[str]) -> None:
    server.send("\r\n".join([*lines, "", ""]).encode())


def run_server(directory: Path, *options: str) -> str:
    write_config(directory)
    with live_server(directory, "--log-level", "debug", *options) as server:
        send_all(server)
    return server.read_log()


def read_service_log(directory: Path) -> str:
    """The service log, gunicorn's error log with all levels, a line for each postback."""
    return run_server(directory)


def read_access_log(directory: Path) -> str:
    form = '%(h)s "%(r)s" "%(f)s" "%(a)s" %(U)s %(q)s %({cookie}i)s %({raw_uri}e)s'
    return run_server(directory, "--access-logfile", "-", "--access-logformat", form)


def read_json_log(directory: Path) -> str:
    os.environ["POSTBACK_LOG_FORMAT"] = "json"
    try:
        return run_server(directory, "--access-logfile", "-")
    finally:
        del os.environ["POSTBACK_LOG_FORMAT"]


# Answers, and what is stored of requests.


def call_all(directory: Path) -> tuple[str, str]:
    """Send every spelling to a receiver; returns its answers, and everything in its database."""
    receiver = postback.Receiver(write_config(directory), clock=Clock())
    client = Client(directory, directory / "postback.db", receiver, Clock())
    answers = [answer for target in IN_ASCII for answer in send_in_all_parts(client, target)]
    receiver.close()
    said = "\n".join(f"{answer.headers} {answer.body.decode()}" for answer in answers)
    with closing(sqlite3.connect(client.database)) as db:
        return said, "\n".join(db.iterdump())


def send_in_all_parts(client: Client, target: str) -> Iterator[Answer]:
    key, click_key = (quote(KEYS[name], safe="") for name in ("postback_key", "click_key"))
    names = ("subid", "tid", "status", "payout", "currency", "from", "sub_id_1", "x", "return")
    for name in names:
        yield client.get(
            f"/{key}/postback?subid=c1&{name}={target}&{target}=1&ref=http://h/{target}/postback"
        )
    form = f"subid=c2&from={target}&return={target}".encode()
    yield client.request(f"/{key}/postback", "POST", form, headers={"Content-Type": FORM})
    yield client.request(f"/{key}/postback", "POST", form, headers={"Content-Type": f"x/{target}"})
    yield client.request(f"/{key}/postback", headers={"Cookie": f"subid={target}; _subid={target}"})
    yield client.request(
        f"/{key}/click?subid=c1&clicked_at={target}&offer={target}&cost_model={target}"
    )
    yield client.request(
        f"/{click_key}/click?subid=c1&clicked_at={target}&offer={target}&x={target}"
    )
    yield client.request(f"/{target}/postback?subid=c1", "DELETE")
    proxy = {"REMOTE_ADDR": "127.0.0.1"}
    forwarded = {"X-Forwarded-For": f"fe80::1%{target}"}
    yield client.request(f"/{key}/postback?subid=c3", environ=proxy, headers=forwarded)


# Commands.


def call(directory: Path, *words: str) -> str:
    """Call a command in this process; returns all its output."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        cli.main([*words, "--config", str(directory / "config.ini.php")])
    return said.getvalue()


def fill_by_another_program(directory: Path) -> None:
    """Make a database with every spelling, which no command or request of ours would store."""
    settings = config.load(write_config(directory))
    with open_database(settings.db_path, settings.currency):
        pass
    with closing(sqlite3.connect(settings.db_path)) as db, db:
        for number, spelt in enumerate(SPELT, 1):
            text = f"{number} {spelt}"
            db.execute("INSERT INTO offers (id, name) VALUES (?, ?)", (number, text))
            db.execute("INSERT INTO campaigns (id, name) VALUES (?, ?)", (number, text))
            db.execute(
                "INSERT INTO clicks (id, subid, offer_id, campaign_id, sub_ids)"
                " VALUES (?, ?, ?, ?, ?)",
                (number, text[:255], number, number, json.dumps({"sub_id_1": text})),
            )
            db.execute(_CONVERSION, (number, number, text[:255], text, number, number, text))
            db.execute(
                _POSTBACK,
                (number, text, text[:255], text[:255], text, text, json.dumps([text]), text),
            )


_CONVERSION = """
    INSERT INTO conversions (id, click_id, tid, status, original_status, campaign_id, offer_id,
        network, sub_ids, created_at, updated_at)
    VALUES (?, ?, ?, 'sale', ?, ?, ?, ?, '{}', '2026-03-02T12:00:00Z', '2026-03-02T12:00:00Z')
"""
_POSTBACK = """
    INSERT INTO postbacks (id, received_at, source, method, query, subid, tid, original_status,
        verdict, reason, warnings, network)
    VALUES (?, '2026-03-02T12:00:00Z', 'http', 'GET', ?, ?, ?, ?, 'unmapped', ?, ?, ?)
"""

SHOWING = (
    ("log", "--limit", "0"),
    ("log", "--limit", "0", "--json"),
    ("conversions", "--limit", "0"),
    ("conversions", "--limit", "0", "--json"),
    ("conversions", "--limit", "0", "--csv"),
    ("conversions", "--limit", "0", "--history"),
    ("clicks", "list"),
    ("clicks", "list", "--json"),
    ("offers", "list"),
    ("campaigns", "list", "--json"),
    ("report", "--by", "network"),
    ("report", "--by", "offer,sub_id_1", "--json"),
    ("report", "--by", "campaign", "--csv"),
    ("check",),
    ("check", "--json"),
    ("replay", "--verdict", "unmapped", "--dry-run"),
)


def show_rows(directory: Path) -> str:
    fill_by_another_program(directory)
    return "\n".join(call(directory, *words) for words in SHOWING)


def show_rows_on_a_terminal(directory: Path) -> str:
    fill_by_another_program(directory)
    with closing(sqlite3.connect(directory / "postback.db")) as db, db:
        # A currency of which no rate is known is named beneath a report.
        key = KEYS["postback_key_old"]
        db.execute("UPDATE conversions SET amount_micros = 1, currency = ? WHERE id = 1", (key,))
    shown = [
        call_on_terminal(directory, *words, columns=4000) for words in SHOWING if len(words) < 4
    ]
    return "\n".join(ran.out for ran in shown)


def explain_all(directory: Path) -> str:
    fill_by_another_program(directory)
    said = []
    for number, target in enumerate(IN_TARGETS):
        query = f"subid=c1&from={target}&x={target}&ref=http://h/{target}/postback&status={target}"
        form = ("--json",) if number % 2 else ()
        said.append(call(directory, "explain", f"https://h/{target}/postback?{query}", *form))
    asked = read_pasted(f"subid=c1&from={IN_ASCII[0]}")
    settings = config.load(directory / "config.ini.php")
    with (
        closing(open_to_read(settings.db_path)) as questions,
        rehearse(settings.db_path, read_booking_options(settings)) as rehearsal,
    ):
        said.append(str(dry_run.explain(asked, settings, questions, rehearsal)))
    return "\n".join(said)


def take_files_in(directory: Path) -> str:
    fill_by_another_program(directory)
    cells = [spelt.replace('"', '""') for spelt in SPELT]
    lines = "".join(f'c1,5,"{cell}",what\n' for cell in cells)
    (directory / "lines.csv").write_text(lines)
    file = str(directory / "lines.csv")
    twice = quote(quote(KEYS["postback_key"], safe=""), safe="")
    said = [
        call(directory, "import", file, "--json", "--network", SPELT[0], "--sale-status", SPELT[1]),
        call(directory, "import", file, "--verbose"),
        call(directory, "reconcile", file, "--currency", "USD"),
        call(directory, "replay", "--id", "1", "--set", f"from={twice}", "--json"),
        call(directory, "clicks", "import", file),
    ]
    with closing(sqlite3.connect(directory / "postback.db")) as db:
        kept = db.execute("SELECT query, network, tid FROM postbacks WHERE source <> 'http'")
        said += [str(part) for row in kept for part in row]
    return "\n".join(said)


# Errors.


def complain(directory: Path) -> str:
    """Messages about wrong usage, missing files, and the like."""
    write_config(directory)
    wrong = (
        ("log", "--since"),
        ("log", "--no-such"),
        ("rates", "set", "EUR"),
        ("rates", "set"),
        ("import",),
        ("explain", "x", "y", "z"),
        ("url", "--macros"),
        ("backup",),
        ("no-such-command",),
    )
    said = [call(directory, *words, f"/nowhere/{spelt}") for words in wrong for spelt in SPELT]
    with open_database(directory / "postback.db", "USD"):
        # The quoted part of the word is cut in the middle of the key.
        key = KEYS["postback_key_old"]
        cut = call(directory, "log", "--subid", f"\udcff{'-' * 50}{key}")
        assert "is no UTF-8" in cut
        assert key[:8] not in cut
        said.append(call(directory, "backup", str(directory / key)))
    return "\n".join([*said, cut])


def break_off_a_command(directory: Path) -> str:
    """A traceback of a command, and a warning that is logged without a service."""
    fill_by_another_program(directory)
    script = """
import logging, sys
from postbackd.cli import entry as cli
import postbackd.cli.commands.log

def boom(settings):
    logging.getLogger("postback.config").warning("warned of %s", TEXT)
    raise RuntimeError(TEXT)

TEXT = sys.stdin.read()
postbackd.cli.commands.log.reading = boom
sys.argv = ["postback", "log"]
cli.enter()
"""
    return run_script(directory, script)


def break_off_the_service(directory: Path) -> str:
    """Tracebacks of uncaught errors in a process of the service, in any of its threads."""
    write_config(directory)
    script = """
import sys, threading
from gunicorn.config import Config
from postbackd.server import logs

TEXT = sys.stdin.read()

def boom():
    raise RuntimeError(TEXT)

class Broken:
    def __del__(self):
        boom()

logs.MaskingLogger(Config())
threading.Thread(target=boom).start()
Broken()
boom()
"""
    said = run_script(directory, script)
    assert said.count("RuntimeError: ") == 3
    return said


def run_script(directory: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(SPELT),
        cwd=directory,
        env=build_environment({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" in done.stderr
    return done.stdout + done.stderr


def break_off_a_request(directory: Path) -> str:
    """The handler that answers 503 logs a traceback with the error's message."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    log = logging.getLogger("postback")
    log.addHandler(handler)
    receiver = postback.Receiver(write_config(directory), clock=Clock())
    client = Client(directory, directory / "postback.db", receiver, Clock())
    keep = booking.record
    try:
        for spelt in SPELT:
            booking.record = fail_with(f"boom {spelt!s} {spelt!r}")
            assert client.get(f"/{quote(KEYS['postback_key'], safe='')}/postback").status == 503
    finally:
        booking.record = keep
        log.removeHandler(handler)
        receiver.close()
    return said.getvalue()


def fail_with(text: str) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError(text)

    return fail


def misread_the_config(directory: Path) -> str:
    """Messages about a config file that has a key on a wrong line, or in a name."""
    path = write_config(directory)
    good = path.read_text()
    said: list[str] = []
    of_postback_key = spell_for_transport(KEYS["postback_key"].encode())
    for spelt in SPELT:
        lost = "no such line" if spelt in of_postback_key else "postback_key = "
        written = quote_ini(spelt)
        in_name = re.sub(r"[^\w/%. -]", "", spelt)
        for wrong in (
            good.replace("[postback]", f"currency = {written}\n[postback]"),
            good.replace("[postback]", f"public_url = {written}\n[postback]"),
            good.replace("[postback]", f"trusted_proxies = {written}\n[postback]"),
            good.replace("[postback]", f"[postback]\nrepeats = {written}"),
            good.replace("[postback]", f"[postback]\npark_days = {written}"),
            good + f"max_change = {written}\n",
            good + "[x]\n" + "".join(f"{c}" for c in spelt if c.isalnum()) + " = 1\n",
            good + f"[{in_name}]\nx = 1\n",
            # Where there is no key, sections that are lost are named.
            good.replace(lost, "x = ") + 2 * f"[{in_name}]\nx = 1\n",
        ):
            path.write_text(wrong)
            try:
                said += config.load(path).warnings
            except ConfigError as error:
                said.append(str(error))
        said.append(call(directory, "check"))
    return "\n".join(said)


# Rates.


def serve_echoes(services: StandIn) -> Mapping[str, str]:
    """Sources that repeat the request in every part of the answer."""
    app_id = KEYS["app_id"]
    today = datetime.now(UTC).date().isoformat()
    echo = {
        "base": "USD",
        "timestamp": int(datetime.now(UTC).timestamp()),
        "rates": {"EUR": app_id, "GBP": 0.8},
    }
    replies = {
        "ecb": redirect(f"file:///{quote(app_id, safe='')}/x"),
        "cbr": answer_with("x", f"text/{quote(app_id, safe='')[:40]}"),
        "er-api": answer_with(
            json.dumps({"result": app_id, "error-type": app_id, "day": today}), JSON
        ),
        "openexchangerates": answer_with(json.dumps(echo), JSON),
    }
    key = quote(app_id, safe="")
    return {
        source: services.serve(f"/{source}", reply) + f"?access_key={key}"
        for source, reply in replies.items()
    }


def fetch_rates(directory: Path) -> str:
    """The output and the rows of the fetching process, started by the command and the service."""
    with stand_in_server() as services:
        urls = serve_echoes(services)
        named = {f"rates__{source}_url": quote_ini(url) for source, url in urls.items()}
        write_config(directory, rates__source='"ecb,cbr,er-api,openexchangerates"', **named)
        ran = [
            call_process(directory, "rates", "update"),
            call_process(directory, "rates", "show"),
            call_process(directory, "check"),
        ]
        started = runner.Runner(config.load(directory / "config.ini.php"), "token")
        reports = [started.run()]
    with closing(sqlite3.connect(directory / "postback.db")) as db:
        kept = "\n".join(db.iterdump())
    write_config(directory, db__path=quote_ini(f"/nowhere/{KEYS['postback_key_old']}/x"))
    reports.append(runner.Runner(config.load(directory / "config.ini.php"), "token").run())
    # Output of the process before it can hide keys, cut in the middle of a key.
    key = KEYS["postback_key_old"]
    broken = "\n".join([*SPELT, key + "-" * (runner.CAUSE_LIMIT_CHARACTERS - 9)])
    reports.append(started._read_report(1, "\n".join(SPELT), broken))
    assert key[-8:] not in str(reports)
    return "\n".join([kept, str(reports), *(f"{one.out}{one.err}" for one in ran)])


EXITS: dict[str, Callable[[Path], str]] = {
    "the service log": read_service_log,
    "the access log": read_access_log,
    "the log as JSON": read_json_log,
    "answers": lambda directory: call_all(directory)[0],
    "the database": lambda directory: call_all(directory)[1],
    "commands that show rows": show_rows,
    "commands on a terminal": show_rows_on_a_terminal,
    "explain": explain_all,
    "import, reconcile and replay": take_files_in,
    "complaints of a command": complain,
    "a command's traceback": break_off_a_command,
    "a process's traceback": break_off_the_service,
    "a request's traceback": break_off_a_request,
    "errors in the config": misread_the_config,
    "the fetching process": fetch_rates,
}


@pytest.mark.parametrize("way", EXITS)
def test_no_key_leaves(tmp_path: Path, way: str) -> None:
    said = EXITS[way](tmp_path)

    # There was output, with the keys hidden.
    assert HIDDEN in said
    leaks = {name: find_spelt(key.encode(), said)[:3] for name, key in KEYS.items()}
    assert not any(leaks.values()), leaks
