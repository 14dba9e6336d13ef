"""What is done beside the requests: a little at a time, and nothing is left open behind it."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import webtest
from conftest import POSTBACK_KEY, Client, ReceiverWith

from postbackd.intake import booking

AT_ONCE = booking.DUE_CLICKS_AT_ONCE
NUMBERS = count()


@pytest.fixture
def due(receiver_with: ReceiverWith) -> Client:
    """A tracker just started, with clicks of another program for which postbacks are parked."""
    parking = receiver_with()
    for number in range(3 * AT_ONCE):
        assert parking.send(f"subid=c{number}&status=lead").verdict == "parked"
    parking.receiver.close()
    for number in range(3 * AT_ONCE):
        parking.write(
            "INSERT INTO clicks (subid, created_at) VALUES (?, '2026-03-02T11:00:00.000Z')",
            f"c{number}",
        )
    return receiver_with(directory=parking.directory)


def answer_together(client: Client) -> int:
    """Have a new postback answered as the shipped worker does, which commits by itself."""
    path = f"/{POSTBACK_KEY}/postback?subid=other{next(NUMBERS)}"
    request = webtest.TestRequest.blank(path, environ={"REMOTE_ADDR": "203.0.113.9"})
    [answer] = client.receiver.answer_all([request.environ])
    return answer.status


def count_due(client: Client) -> int:
    return len(client.rows("SELECT * FROM due_clicks"))


def test_a_commit_settles_no_more_clicks_than_postbacks_can_wait_for(due: Client) -> None:
    assert answer_together(due) == 200
    after_one = count_due(due)
    assert answer_together(due) == 200
    after_two = count_due(due)

    assert (after_one, after_two) == (2 * AT_ONCE, AT_ONCE)
    assert len(due.conversions()) == 2 * AT_ONCE


def test_what_is_due_is_settled_in_the_order_of_the_clicks(due: Client) -> None:
    assert answer_together(due) == 200

    assert [each.subid for each in due.conversions()] == [f"c{n}" for n in range(AT_ONCE)]


def test_all_that_is_due_is_settled_without_further_requests(due: Client) -> None:
    assert answer_together(due) == 200

    # Once would do, on a machine that is quick.
    due.receiver.service.run_housekeeping()
    due.receiver.service.run_housekeeping()

    assert count_due(due) == 0
    assert len(due.conversions()) == 3 * AT_ONCE


def list_open(directory: Path) -> list[str]:
    """List the files of a directory that this process has open, each as often as it is."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        # The one of this list is closed by now.
        with suppress(FileNotFoundError):
            found.append(Path(f"/proc/self/fd/{number}").readlink())
    return sorted(path.name for path in found if path.parent == directory)


def answer_alone(client: Client) -> int:
    """Have a new postback answered as under any other server."""
    return client.send(f"subid=other{next(NUMBERS)}").status


Ask = Callable[[Client], int]


@pytest.mark.parametrize("ask", [answer_alone, answer_together])
def test_a_receiver_that_was_closed_has_nothing_open(client: Client, ask: Ask) -> None:
    assert ask(client) == 200
    while_open = list_open(client.directory)

    client.receiver.close()

    assert {"postback.db", "postback.db-lock", "postback.db-wal"} <= set(while_open)
    assert list_open(client.directory) == []


@pytest.mark.parametrize("ask", [answer_alone, answer_together])
def test_a_database_that_was_given_up_is_closed(client: Client, ask: Ask) -> None:
    assert ask(client) == 200
    before = list_open(client.directory)
    moved = client.directory / "moved.db"

    for _ in range(3):
        client.database.rename(moved)
        assert ask(client) == 503
        moved.rename(client.database)
        assert ask(client) == 200

    assert list_open(client.directory) == before
