"""What the service logs: enough to run it by, in lines nobody can forge."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import POSTBACK_KEY, ReceiverWith, write_config
from live import live_server

from postbackd.intake import client_address
from postbackd.server import logs

ADDRESS = "X-Forwarded-For: 203.0.113.77"


@pytest.fixture
def in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_LOG_FORMAT", "json")


def read_events(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def test_the_start_is_told_once_whatever_the_number_of_workers(tmp_path: Path) -> None:
    write_config(tmp_path, {"currency": "EUR", "park_days": "7", "postback_key_old": "older"})
    with live_server(tmp_path, "--workers", "2") as server:
        pass
    (line,) = [line for line in server.read_log().splitlines() if "postback 0." in line]

    for said in (
        f"config {tmp_path}/config.ini.php",
        f"database {tmp_path}/postback.db",
        "currency EUR",
        "workers 2 postbackd.server.worker.GroupCommitWorker",
        "park_days 7",
        "rates none",
        "trusted_proxies 127.0.0.1/32, ::1/128",
        "old keys 1",
        "pixel_key set",
    ):
        assert said in re.split("[,;] (?!::)", line)
    assert POSTBACK_KEY not in line
    assert "older" not in line


@pytest.mark.parametrize(
    "path",
    [
        "/var/lib/postback/config.ini.php",
        "/var/lib/postback/postback.db",
        "/run/postback/postback.sock",
        "/opt/postback/lib/python3.11/site-packages/postback.py",
        "/var/log/postback/postback.log",
    ],
)
def test_the_files_of_a_service_are_named_and_the_key_beside_them_is_not(path: str) -> None:
    line = f"{path}: GET /rotated-away/postback?subid=c1, /lib/rotated/click, /opt/x/postback.gif"

    masked = logs.mask_keys(line)

    assert masked == f"{path}: GET /***/postback?subid=c1, /lib/***/click, /opt/***/postback.gif"


def test_every_line_is_an_object_where_json_is_asked_for(tmp_path: Path, in_json: None) -> None:
    write_config(tmp_path, {"postbacks": "yes", "unknown_key": "x"})
    with live_server(tmp_path, "--access-logfile", "-") as server:
        server.get(f"/{POSTBACK_KEY}/postback?subid=c1&from=N%0A1", ADDRESS)
        server.send(b"G=T / HTTP/1.1\r\n\r\n")
    events = read_events(server.read_log())

    assert all(set(event) == {"time", "level", "logger", "pid", "message"} for event in events)
    levels = {event["message"].partition(":")[0]: event["level"] for event in events}
    assert levels["parked"] == "info"
    assert levels["Invalid request from ip=127.0.0.1"] == "warning"
    assert any("[postback] unknown_key is unknown" in event["message"] for event in events)
    assert all(re.fullmatch(r"20..-..-..T..:..:..\....\+00:00", e["time"]) for e in events)


def test_a_postback_is_one_line_where_that_is_asked_for_and_none_otherwise(tmp_path: Path) -> None:
    for setting, count in (("no", 0), ("yes", 1)):
        home = tmp_path / setting
        home.mkdir()
        write_config(home, {"postbacks": setting, "unknown_subid": "accept"})
        with live_server(home) as server:
            before = len(server.read_log().splitlines())
            server.get(f"/{POSTBACK_KEY}/postback?subid=c1&from=N1&payout=1", ADDRESS)
            lines = server.read_log().splitlines()[before:]

        assert len(lines) == count
    assert lines[0].endswith("recorded: http GET from 203.0.113.77, network 'N1'")
    # Who it was about is for those who may read the database.
    assert "c1" not in lines[0].partition("recorded")[2]


@pytest.mark.parametrize("worker_class", ["postbackd.server.worker.GroupCommitWorker", "gthread"])
def test_no_line_can_be_forged_and_no_cursor_moved(tmp_path: Path, worker_class: str) -> None:
    with write_config(tmp_path, {"postbacks": "yes"}).open("a") as config:
        config.write("[x\x1b[2J]\ny = 1\n")
    evil = (
        "%1B]0;owned%07%1B[2J%0A[2026-01-01 00:00:00 +0000] [1] [ERROR] forged%9B31m%E2%80%AE%CD%8F"
    )
    options = ("--access-logfile", "-", "--worker-class", worker_class)
    with live_server(tmp_path, *options, "--access-logformat", '%(h)s "%(r)s" %(a)s') as server:
        server.get(
            f"/{POSTBACK_KEY}/postback?subid={evil}&from={evil}".replace(" ", "%20"),
            "User-Agent: red\x9b2J",
        )
        server.get(f"/{POSTBACK_KEY}/{evil}".replace(" ", "%20"))
    log = server.log.read_bytes().decode()

    assert "owned" in log
    assert r"red\x9b2J" in log
    assert r"\u202e\u034f" in log
    assert r"section [x\x1b[2J] is unknown" in log
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u034f]", log)
    assert not any(line.startswith("[2026-01-01") for line in log.splitlines())


def test_the_level_is_gunicorns_to_set(tmp_path: Path) -> None:
    write_config(tmp_path, {"postbacks": "yes"})
    with live_server(tmp_path, "--log-level", "error") as server:
        server.get(f"/{POSTBACK_KEY}/postback?subid=c1")

    assert server.read_log() == ""


@pytest.mark.parametrize("worker_class", ["postbackd.server.worker.GroupCommitWorker", "gthread"])
def test_addresses_are_cut_where_that_is_asked_for(tmp_path: Path, worker_class: str) -> None:
    write_config(tmp_path, {"postbacks": "yes", "anonymize_ip": "yes"})
    form = '%(h)s "%(r)s" %({x-forwarded-for}i)s'
    options = ("--access-logfile", "-", "--access-logformat", form, "--worker-class", worker_class)
    with live_server(tmp_path, *options) as server:
        server.get(f"/{POSTBACK_KEY}/postback?subid=c1", ADDRESS)
        server.send(b"G=T / HTTP/1.1\r\n\r\n")
    log = server.read_log()

    assert "from 203.0.113.0, network" in log
    assert "Invalid request from ip=127.0.0.0" in log
    assert "203.0.113.77" not in log
    assert re.search('\n127.0.0.0 "GET .* 203.0.113.0\n', log)
    assert "127.0.0.1 " not in log.replace("bind 127.0.0.1", "")


def test_a_stored_address_is_cut_too(receiver_with: ReceiverWith) -> None:
    client = receiver_with(anonymize_ip="yes")
    proxy = {"REMOTE_ADDR": "127.0.0.1"}
    url = f"/{POSTBACK_KEY}/postback?subid=c1"

    client.request(url)
    client.request(url, environ={"REMOTE_ADDR": "2001:db8:1:2:3:4:5:6"})
    client.request(url, environ=proxy, headers={"X-Forwarded-For": "198.51.100.7"})
    client.request(url, environ=proxy, headers={"X-Forwarded-For": "nonsense"})
    client.request(url, environ={"REMOTE_ADDR": ""})

    assert [p.remote_addr for p in client.postbacks()] == [
        *("203.0.113.0", "2001:db8:1::", "198.51.100.0", "127.0.0.0", None)
    ]


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("192.0.2.129", "192.0.2.0"),
        ("::ffff:192.0.2.129", "192.0.2.0"),
        ("2001:db8:aaaa:bbbb::1", "2001:db8:aaaa::"),
        ("fe80::1%eth0", "fe80::"),
        ("[2001:db8::1]:443", "2001:db8::"),
        ("unknown", None),
        ("", None),
    ],
)
def test_an_address_is_cut_to_its_network(address: str, kept: str | None) -> None:
    assert client_address.anonymize(address) == kept
