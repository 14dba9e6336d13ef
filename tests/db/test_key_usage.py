"""When a key was last used is known, so that an old one can be dropped; the key is not kept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import call_process
from conftest import CLICK_KEY, PIXEL_KEY, POSTBACK_KEY, Client, ReceiverWith, write_config
from live import live_server, wait_until

from postbackd.cli import entry as cli

OLD_KEY = "0ld-key-of-the-tests"

Show = Callable[..., list[str]]


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    return receiver_with(postback_key_old=f"{OLD_KEY} until 2999-12-31, never-used")


@pytest.fixture
def show(tracker: Client, capsys: pytest.CaptureFixture[str]) -> Show:
    """What `key show --last-used` says, once the receiver has written down what it knows."""

    def show(*options: str) -> list[str]:
        config = str(tracker.directory / "config.ini.php")
        assert cli.main(["key", "show", "--last-used", *options, "--config", config]) == 0
        return capsys.readouterr().out.splitlines()

    return show


def test_each_key_is_shown_with_its_last_use(tracker: Client, show: Show) -> None:
    tracker.get(f"/{OLD_KEY}/postback?subid=c1")
    tracker.clock.forward(days=3)
    tracker.send("subid=c1")
    tracker.receiver.close()

    assert show() == [
        f"{POSTBACK_KEY} (last used 2026-03-05 12:00 UTC)",
        f"{OLD_KEY} (old, until 2999-12-31, last used 2026-03-02 12:00 UTC)",
        "never-used (old, no end, not used yet)",
    ]
    assert [json.loads(line)["last_used_at"] for line in show("--json")] == [
        "2026-03-05T12:00:00.000Z",
        "2026-03-02T12:00:00.000Z",
        None,
    ]


def test_a_use_is_written_down_soon_then_once_a_minute_and_at_the_end(tracker: Client) -> None:
    def uses() -> list[str]:
        tracker.receiver.service.run_housekeeping()
        return [row["last_used_at"] for row in tracker.rows("SELECT * FROM key_uses")]

    tracker.send("subid=c1")
    assert uses() == ["2026-03-02T12:00:00.000Z"]
    tracker.clock.forward(seconds=59)
    tracker.send("subid=c1")
    tracker.send("subid=c1")
    assert uses() == ["2026-03-02T12:00:00.000Z"]
    tracker.clock.forward(seconds=1)
    tracker.send("subid=c1")
    tracker.send("subid=c1")
    assert uses() == ["2026-03-02T12:01:00.000Z"]
    tracker.clock.forward(seconds=30)
    tracker.send("subid=c1")
    tracker.receiver.close()
    assert tracker.rows("SELECT last_used_at FROM key_uses") == [
        {"last_used_at": "2026-03-02T12:01:30.000Z"}
    ]


def test_no_key_is_kept_and_a_wrong_one_leaves_no_trace(tracker: Client) -> None:
    for path in (f"{OLD_KEY}/postback", f"{PIXEL_KEY}/postback.gif", f"{CLICK_KEY}/click"):
        tracker.get(f"/{path}?subid=c1")
    tracker.get(f"/{POSTBACK_KEY}/elsewhere")
    tracker.get("/wr0ng-key/postback?subid=c1")
    tracker.receiver.close()

    stored = tracker.database.read_bytes()
    assert len(tracker.rows("SELECT * FROM key_uses")) == 3
    for key in (POSTBACK_KEY, OLD_KEY, PIXEL_KEY, CLICK_KEY, "wr0ng-key"):
        assert key.encode() not in stored


@pytest.mark.parametrize("worker_class", ["postbackd.server.worker.GroupCommitWorker", "gthread"])
def test_a_running_service_writes_it_down_by_itself(tmp_path: Path, worker_class: str) -> None:
    write_config(tmp_path, {})

    def last_use() -> str | None:
        (shown,) = call_process(tmp_path, "key", "show", "--last-used", "--json").objects
        at: str | None = shown["last_used_at"]
        return at

    with live_server(tmp_path, "--worker-class", worker_class) as server:
        assert last_use() is None
        server.get(f"/{POSTBACK_KEY}/postback?subid=c1")

        wait_until(lambda: last_use() is not None, "the use to be written down")
