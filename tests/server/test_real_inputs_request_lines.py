"""Request lines as old and careless senders write them, at a running server.

Each row is one of a kind; hosts are made up.
"""

from collections.abc import Iterator

import pytest
from conftest import POSTBACK_KEY, write_config
from live import LiveServer, live_server

PLACE = f"/{POSTBACK_KEY}/postback"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The service with an empty database."""
    directory = tmp_path_factory.mktemp("lines")
    write_config(directory, {})
    with live_server(directory) as running:
        yield running


HOST = b"Host: h\r\nConnection: close\r\n\r\n"
LINES = {
    # Q07
    "HTTP/1.0 without Host": f"GET {PLACE}?subid=C1 HTTP/1.0\r\n\r\n".encode(),
    "the whole address": f"GET http://t.example.com{PLACE}?subid=C1 HTTP/1.1\r\n".encode() + HOST,
    "a fragment": f"GET {PLACE}?subid=C1#top HTTP/1.1\r\n".encode() + HOST,
    "raw signs": f"GET {PLACE}?subid=C1&x={{|}}^\"'`<> HTTP/1.1\r\n".encode() + HOST,
    "raw UTF-8": f"GET {PLACE}?subid=C1&name=Имя HTTP/1.1\r\n".encode() + HOST,
    "raw latin-1": f"GET {PLACE}?subid=C1&name=é HTTP/1.1\r\n".encode("latin-1") + HOST,
    # Q08
    "a slash at the end": f"GET {PLACE}/?subid=C1 HTTP/1.1\r\n".encode() + HOST,
}


@pytest.mark.parametrize("kind", LINES)
def test_a_postback_is_known_however_its_line_is_written(server: LiveServer, kind: str) -> None:
    answer = server.send(LINES[kind])

    assert b" 200 " in answer.splitlines()[0]
    assert b"X-Postback-Result: parked\r\n" in answer
