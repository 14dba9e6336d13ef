"""deploy/ as it is shipped: the unit, log rotation, the image, and the numbers that must fit."""

import configparser
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_calls import build_command, build_environment, call_process
from live import PATIENCE_SECONDS, LiveServer, live_server, wait_until
from tree import ROOT, read_distribution

from postbackd.db.sqlite import connection
from postbackd.intake import group_commit
from postbackd.server import gunicorn_conf

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "postback.service"
NGINX = DEPLOY / "nginx" / "postback.conf"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "docker" / "compose.yaml"

KEY = "s3cret-key-of-the-tests"
CONFIG = f"""\
;<?php exit; ?>
[system]
postback_key = "{KEY}"
[postback]
unknown_subid = "accept"
[rates]
source = "none"
"""


def find_setting(path: Path, pattern: str) -> int:
    """Return the number that a shipped file sets."""
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    assert found is not None, f"{path.name} no longer says {pattern!r}"
    return int(found[1])


def test_the_numbers_of_nginx_gunicorn_and_systemd_fit_together() -> None:
    for upstream in (
        DEPLOY / "nginx" / "postback-upstream.conf",
        DEPLOY / "docker" / "postback-upstream.conf",
    ):
        assert find_setting(upstream, r"^ +keepalive_timeout (\d+)s;") < gunicorn_conf.keepalive
    assert find_setting(NGINX, r"proxy_read_timeout (\d+)s;") > group_commit.WAIT_LIMIT_SECONDS
    assert find_setting(UNIT, r"^TimeoutStopSec=(\d+)$") > gunicorn_conf.graceful_timeout
    assert find_setting(COMPOSE, r"stop_grace_period: (\d+)s$") > gunicorn_conf.graceful_timeout
    assert find_setting(UNIT, r"^LimitNOFILE=(\d+)$") > 2 * gunicorn_conf.worker_connections


def test_no_crash_writes_the_keys_to_a_disk() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]

    assert find_setting(UNIT, r"^LimitCORE=(\d+)$") == 0
    assert [services[name]["ulimits"]["core"] for name in ("postback", "nginx")] == [0, 0]


SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
# From 0.0 (safe) to 10.0; a unit that says nothing has 9.6.
WORST_EXPOSURE = 1.3


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not installed")
def test_the_unit_is_well_written_and_exposes_little(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # systemd-analyze looks for the program.
    unit.write_text(UNIT.read_text().replace("/opt/postback/bin/postback", sys.executable))

    verified, rated = (
        subprocess.run(
            [str(SYSTEMD_ANALYZE), *words, unit], capture_output=True, text=True, check=False
        )
        for words in (("verify", "--man=no"), ("security", "--offline=true", "--no-pager"))
    )

    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    found = re.search(r"Overall exposure level for postback.service: ([0-9.]+)", rated.stdout)
    assert found is not None, rated.stderr
    assert float(found[1]) <= WORST_EXPOSURE


def test_nothing_is_reloaded_with_a_mistake_in_the_config(tmp_path: Path) -> None:
    first, signals = re.findall(r"^ExecReload=(.*)$", UNIT.read_text(), re.MULTILINE)
    program, option, script = shlex.split(first)
    script = script.replace("/opt/postback/bin/postback", shlex.join(build_command()))
    ran = []
    for mistake in ("", "max_change = never\n"):
        (tmp_path / "config.ini.php").write_text(CONFIG + mistake)
        ran.append(
            subprocess.run(
                [program, option, script],
                cwd=tmp_path,
                env=build_environment({}),
                capture_output=True,
                text=True,
                check=False,
            )
        )

    assert signals == "/bin/kill -HUP $MAINPID"
    assert [one.returncode for one in ran] == [0, 1]
    assert "line 8: [rates] max_change is 'never'" in ran[1].stderr
    # The journal is told no key.
    assert [one.stdout for one in ran] == ["", ""]


def test_systemd_is_told_when_the_service_listens(tmp_path: Path) -> None:
    (tmp_path / "config.ini.php").write_text(CONFIG)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(f"\0postback-test-{os.getpid()}")
        systemd.settimeout(PATIENCE_SECONDS)
        running = subprocess.Popen(
            build_command("serve", "--bind", "unix:postback.sock"),
            cwd=tmp_path,
            env=build_environment({"NOTIFY_SOCKET": f"@postback-test-{os.getpid()}"}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            told = systemd.recv(4096)
            was_there = (tmp_path / "postback.sock").is_socket()
        finally:
            running.terminate()
            running.wait(PATIENCE_SECONDS)

    assert told.startswith(b"READY=1")
    assert was_there


# Debian keeps it where an ordinary user's PATH does not look.
LOGROTATE = shutil.which("logrotate", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
def test_a_log_file_is_rotated_and_written_on(tmp_path: Path) -> None:
    (tmp_path / "config.ini.php").write_text(CONFIG)
    logs = tmp_path / "log"
    logs.mkdir(mode=0o755)
    log, pid = logs / "postback.log", tmp_path / "postback.pid"
    text = (DEPLOY / "logrotate" / "postback").read_text()
    for old, new in (
        ("/var/log/postback/postback.log {", f"{log} {{"),
        ("/run/postback/postback.pid", str(pid)),
        ("    su postback postback\n", ""),
    ):
        assert old in text
        text = text.replace(old, new)
    rules = tmp_path / "rules"
    rules.write_text(text)
    rules.chmod(0o644)
    rotate = [str(LOGROTATE), "--force", "--state", str(tmp_path / "state"), str(rules)]

    options = ("--error-logfile", str(log), "--access-logfile", str(log), "--pid", str(pid))
    with live_server(tmp_path, *options) as running:
        running.get(f"/{KEY}/postback?subid=before")
        wait_until(lambda: "subid=before" in log.read_text(), "the line of the log")
        done = subprocess.run(rotate, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        # The master opens the new log and tells its worker to.
        old_log = logs / "postback.log.1"
        wait_until(lambda: log.exists() and not writes_to(running, old_log), "a new log")
        running.get(f"/{KEY}/postback?subid=after")
        wait_until(lambda: "subid=after" in log.read_text(), "the line of the new log")

    assert "subid=before" in old_log.read_text()
    assert "subid=after" not in old_log.read_text()
    assert KEY not in old_log.read_text() + log.read_text()


def writes_to(running: LiveServer, log: Path) -> bool:
    """Return whether a worker has a file open."""
    for pid in running.worker_pids():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if link.readlink() == log:
                    return True
    return False


def read_instructions() -> list[tuple[str, str]]:
    """Read the Dockerfile: instruction and the rest, lines put together."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]


def last_of(instruction: str) -> str:
    """Return what the final image says."""
    return [rest for name, rest in read_instructions() if name == instruction][-1]


def test_the_image_runs_as_nobody_much_and_stops_gently() -> None:
    names = [name for name, _ in read_instructions()]

    assert last_of("USER") == "postback"
    assert last_of("STOPSIGNAL") == "SIGTERM"
    # Without a shell in between, which would swallow the signal.
    assert json.loads(last_of("ENTRYPOINT")) == ["postback"]
    assert json.loads(last_of("CMD"))[0] == "serve"
    assert names.index("USER") > max(n for n, name in enumerate(names) if name == "RUN")
    assert last_of("VOLUME") == "/var/lib/postback"


def test_the_health_check_of_the_image_tells_well_from_ill(tmp_path: Path) -> None:
    words = json.loads(last_of("HEALTHCHECK").partition("CMD")[2])
    assert words[0] == "python"

    def check(port: int) -> int:
        command = [sys.executable, *(word.replace("8000", str(port)) for word in words[1:])]
        return subprocess.run(command, capture_output=True, check=False).returncode

    with live_server(tmp_path) as running:
        ill = check(running.port)
        (tmp_path / "config.ini.php").write_text(CONFIG)
        wait_until(lambda: b" 200 OK" in running.get("/health"), "the config to be found")
        well = check(running.port)
    gone = check(running.port)

    assert well == 0
    assert ill != 0
    assert gone != 0


def test_what_docker_is_handed_is_the_whole_package_and_no_key(tmp_path: Path) -> None:
    """The context as .dockerignore leaves it."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*", "everything is left out but for what is named"

    def is_handed(name: str) -> bool:
        return any(fnmatch.fnmatch(name, rule[1:]) for rule in rules if rule[0] == "!")

    for path in filter(lambda path: is_handed(path.name), ROOT.iterdir()):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / path.name)

    handed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    installed = read_distribution()
    for path in (*installed.modules.values(), *installed.files):
        assert str(path.relative_to(ROOT)) in handed
    setup = configparser.ConfigParser()
    setup.read(tmp_path / "setup.cfg")
    assert handed >= set(setup["options.data_files"]["share/postback"].split())
    assert handed >= {"pyproject.toml", "requirements.lock", "LICENSE", "README.md"}
    secret = ("config.ini.php", "postback.db", "postback.db-wal", ".git", ".venv", "copy.db")
    assert not [name for name in secret if is_handed(name)]
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "import postbackd.server.__main__, postbackd.cli.entry\n"
            "postbackd.cli.entry.main(['--help'])",
        ],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_what_compose_names_is_there() -> None:
    services = read_yaml(COMPOSE)["services"]
    build = services["postback"]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()

    assert context == ROOT
    assert context / build["dockerfile"] == DOCKERFILE
    volumes = set(read_yaml(COMPOSE)["volumes"])
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in volumes or (COMPOSE.parent / source).resolve().exists(), source
    # The socket is where nginx looks for it.
    upstream = (DEPLOY / "docker" / "postback-upstream.conf").read_text()
    [bind] = [word for word in services["postback"]["command"] if word.startswith("unix:")]
    assert f"server {bind};" in upstream


DOCKER_COMPOSE = shutil.which("docker-compose")


@pytest.mark.skipif(DOCKER_COMPOSE is None, reason="docker-compose is not installed")
def test_docker_compose_understands_the_file() -> None:
    ran = subprocess.run(
        [str(DOCKER_COMPOSE), "--profile", "litestream", "-f", COMPOSE, "config"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert set(yaml.safe_load(ran.stdout)["services"]) == {"postback", "nginx", "litestream"}


def test_the_sidecar_copies_the_services_database_as_its_user() -> None:
    litestream = read_yaml(COMPOSE)["services"]["litestream"]
    [database] = read_yaml(DEPLOY / "litestream" / "litestream.yml")["dbs"]

    assert database["path"] == f"{last_of('VOLUME')}/postback.db"
    user, group = litestream["user"].split(":")
    assert f"--uid {user} " in last_of("RUN")
    assert f"--gid {group} postback" in last_of("RUN")


def test_a_replicator_that_reads_without_end_and_moves_the_log_loses_nothing(
    tmp_path: Path,
) -> None:
    """What Litestream does to a database: an open read, now and then a checkpoint of its own."""
    (tmp_path / "config.ini.php").write_text(CONFIG)
    # Twice, and read in between: the log cannot be begun afresh when the service starts.
    assert call_process(tmp_path, "rates", "set", "EUR", "1.1").status == 0
    with closing(sqlite3.connect(tmp_path / "postback.db", isolation_level=None)) as replicator:
        read_on(replicator)
        assert call_process(tmp_path, "rates", "set", "EUR", "1.2").status == 0
        with live_server(tmp_path) as running:
            slowest = 0.0
            for number in range(60):
                began_at = time.monotonic()
                answer = running.get(f"/{KEY}/postback?subid=c{number}&payout=1")
                slowest = max(slowest, time.monotonic() - began_at)
                assert b"X-Postback-Result: recorded" in answer
                if number % 20 == 10:
                    replicator.execute("ROLLBACK")
                    replicator.execute("PRAGMA wal_checkpoint(RESTART)")
                    read_on(replicator)
                if number == 30:
                    assert running.process is not None
                    running.process.send_signal(signal.SIGHUP)
            replicator.execute("ROLLBACK")
            kept = replicator.execute("SELECT count(*) FROM conversions_view").fetchone()[0]
            damage = replicator.execute("PRAGMA integrity_check").fetchone()[0]

    assert (kept, damage) == (60, "ok")
    # Nobody waited for as long as others' locks are waited for.
    assert slowest < connection.BUSY_TIMEOUT_SECONDS


def read_on(replicator: sqlite3.Connection) -> None:
    replicator.execute("BEGIN")
    replicator.execute("SELECT count(*) FROM postbacks").fetchone()
