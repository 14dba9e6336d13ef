"""`postback serve`: create missing files, print the Postback URL, become gunicorn."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from cli_calls import Terminal, build_command, build_environment
from conftest import POSTBACK_KEY, write_config
from live import PATIENCE_SECONDS, wait_until

from postbackd.cli import entry as cli
from postbackd.cli.commands.serve import find_base
from postbackd.config.settings import load
from postbackd.server import logs
from tools.durability.servers import find_free_port


class BecameGunicornError(Exception):
    """Raised instead of replacing this process."""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Catch the command line that this process would become."""
    for name in ("POSTBACK_CONFIG", logs.FORMAT_VARIABLE):
        # Variables that it sets for gunicorn must not reach other tests.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    command: list[str] = []

    def execv(path: str, words: list[str]) -> None:
        assert path == sys.executable
        command.extend(words)
        raise BecameGunicornError

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.delenv("POSTBACK_CONFIG", raising=False)
    return command


def serve(*words: str) -> None:
    with pytest.raises(BecameGunicornError):
        cli.main(["serve", *words])


def test_config_and_database_are_made_where_missing(
    tmp_path: Path,
    become: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    serve()

    settings = load(tmp_path / "config.ini.php")
    assert len(settings.postback_key) == 32
    assert (tmp_path / "config.ini.php").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "postback.db").stat().st_mode & 0o777 == 0o600
    assert os.environ["POSTBACK_CONFIG"] == str(tmp_path / "config.ini.php")
    # The output of a service goes to a journal, which must not have the key.
    said = capsys.readouterr()
    assert settings.postback_key.decode() not in said.out + said.err
    assert "run `postback url`" in said.out
    assert become == [
        *(
            sys.executable,
            "-P",
            "-m",
            "postbackd.server",
            "--config",
            "python:postbackd.server.gunicorn_conf",
        ),
        "postback:application",
    ]


def test_every_line_is_an_object_where_json_is_asked_for(
    tmp_path: Path, become: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    serve("--config", str(write_config(tmp_path, {})), "--log-format", "json")

    [line] = capsys.readouterr().out.splitlines()
    assert "run `postback url`" in json.loads(line)["message"]


def test_a_config_that_is_there_stays_as_it_is(tmp_path: Path, become: list[str]) -> None:
    path = write_config(tmp_path, {})
    before = path.read_bytes()

    serve("--config", str(path))

    assert path.read_bytes() == before
    assert become


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["--bind", "0.0.0.0:80"], ["--bind", "0.0.0.0:80"]),
        (["-b", "[::1]:1", "-b", "unix:/x"], ["--bind", "[::1]:1", "--bind", "unix:/x"]),
        (["--workers", "4"], ["--workers", "4"]),
        (["-w4"], ["--workers", "4"]),
        (["--timeout", "30", "--certfile=a.pem"], ["--timeout", "30", "--certfile=a.pem"]),
        (
            ["--timeout", "30", "--bind", ":1", "-k", "sync", "--reload"],
            ["--bind", ":1", "--timeout", "30", "-k", "sync", "--reload"],
        ),
        (["--worker-tmp-dir", "/dev/shm"], ["--worker-tmp-dir", "/dev/shm"]),
        (["--work", "4"], ["--work", "4"]),
    ],
)
def test_options_we_do_not_know_go_to_gunicorn_untouched(
    tmp_path: Path, become: list[str], given: list[str], passed: list[str]
) -> None:
    serve("--config", str(write_config(tmp_path, {})), *given)

    assert become[6:-1] == passed


@pytest.mark.parametrize(
    ("public_url", "addresses", "base"),
    [
        (None, [], "http://127.0.0.1:8000"),
        (None, ["127.0.0.1:8080"], "http://127.0.0.1:8080"),
        (None, ["0.0.0.0:80"], "http://127.0.0.1:80"),
        (None, [":9000"], "http://127.0.0.1:9000"),
        (None, ["[::]:9000"], "http://127.0.0.1:9000"),
        (None, ["[::1]:9000"], "http://[::1]:9000"),
        (None, ["unix:/run/postback.sock"], "http://127.0.0.1:8000"),
        (None, ["unix:/run/x", "10.0.0.1:81"], "http://10.0.0.1:81"),
        ("https://t.example", ["0.0.0.0:80"], "https://t.example"),
    ],
)
def test_the_printed_url_uses_the_port_that_is_listened_on(
    tmp_path: Path, public_url: str | None, addresses: list[str], base: str
) -> None:
    settings = load(write_config(tmp_path, {"public_url": public_url}))

    assert find_base(settings, addresses) == base


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"postback_key": ""}, "postback_key is empty"),
        ({"path": "no/such/directory/x.db"}, "No such file or directory"),
    ],
)
def test_what_cannot_work_is_reported_and_not_started(
    tmp_path: Path,
    become: list[str],
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str | None],
    sentence: str,
) -> None:
    path = write_config(tmp_path, settings)

    status = cli.main(["serve", "--config", str(path)])

    assert status == 1
    assert become == []
    assert sentence in capsys.readouterr().err


def get(url: str) -> tuple[str | None, bytes]:
    with urlopen(url, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310  # our own address
        return answer.headers["X-Postback-Result"], answer.read()


def is_healthy(port: int) -> bool:
    try:
        return get(f"http://127.0.0.1:{port}/health")[1] == b"ok"
    except URLError:
        return False


def wait_for_health(port: int) -> None:
    wait_until(lambda: is_healthy(port), f"a healthy server on port {port}")


def test_modules_in_the_working_directory_do_not_shadow_ours(tmp_path: Path) -> None:
    for name in ("config", "storage", "wire", "worker", "server", "json", "gunicorn"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else was imported')")
    port = find_free_port()
    command = [sys.executable, "-P", *build_command("serve", "--bind", f"127.0.0.1:{port}")[1:]]
    running = subprocess.Popen(
        command, cwd=tmp_path, env=build_environment({}), stdout=subprocess.DEVNULL
    )
    wait_for_health(port)
    running.send_signal(signal.SIGTERM)

    assert running.wait(PATIENCE_SECONDS) == 0


def test_on_a_terminal_the_url_is_printed_and_answers(tmp_path: Path) -> None:
    port = find_free_port()
    write_config(tmp_path, {})
    terminal = Terminal(tmp_path, "serve", "--bind", f"127.0.0.1:{port}")
    try:
        terminal.wait_for("Booting worker")
        [line] = [line for line in terminal.seen.splitlines() if "Postback URL" in line]
        url = line.split()[-1]
        assert get(url.replace("{subid}", "c1").replace("{status}", "lead"))[0] == "parked"
        terminal.press_ctrl_c()
        ran = terminal.finish()
    finally:
        terminal.kill()

    assert url.startswith(f"http://127.0.0.1:{port}/{POSTBACK_KEY}/postback?")
    assert ran.status == 0


def test_in_a_service_the_journal_holds_no_key(tmp_path: Path) -> None:
    port = find_free_port()
    running = subprocess.Popen(
        build_command("serve", "--bind", f"127.0.0.1:{port}", "--access-logfile", "-"),
        cwd=tmp_path,
        env=build_environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_for_health(port)
    key = load(tmp_path / "config.ini.php").postback_key.decode()
    get(f"http://127.0.0.1:{port}/{key}/postback?subid=c1")
    running.send_signal(signal.SIGTERM)
    journal, _ = running.communicate(timeout=PATIENCE_SECONDS)

    assert running.returncode == 0
    assert b"run `postback url`" in journal
    assert key.encode() not in journal
