"""What the tests share: a receiver of their own, ways to call it, and ways to see what it kept.

Every test gets its own config file and its own database in a fresh directory. Calls go through
WebTest, which checks each request and each answer against the WSGI specification.
"""

import json
import signal
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from wsgiref.headers import Headers

import hypothesis
import pytest
from tree import ROOT

import postback

# The harness and what maintainers run are not installed. Behind all else: what is, is tested.
sys.path.append(str(ROOT))

# WebOb imports the deprecated `cgi`, and warnings are errors in the tests.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import webtest

# Who starts the tests may have Ctrl-C ignored (a shell does, for what it puts in the background),
# and every program that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long one example takes is the machine's affair: a disk that syncs slowly for a moment would
# make a test flaky. What is tried today is tried tomorrow, so that no tree is refused by chance;
# `--hypothesis-profile search` tries others each time.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        # Where examples share a receiver, they are made for that.
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "search", hypothesis.settings.get_profile("any machine"), derandomize=False
)
hypothesis.settings.load_profile("any machine")

POSTBACK_KEY = "s3cret-key-of-the-tests"
CLICK_KEY = "cl1ck-key-of-the-tests"
PIXEL_KEY = "p1xel-key-of-the-tests"

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)

FORM = "application/x-www-form-urlencoded"

# Where a setting lives in the config file; whatever is not named here belongs to [postback].
SECTIONS = {
    "postback_key": "system",
    "postback_key_old": "system",
    "click_key": "system",
    "pixel_key": "system",
    "currency": "system",
    "public_url": "system",
    "trusted_proxies": "system",
    "timezone": "system",
    "path": "db",
    "source": "rates",
    "postbacks": "log",
    "anonymize_ip": "log",
}

DEFAULTS: Mapping[str, str | None] = {
    "postback_key": POSTBACK_KEY,
    "click_key": CLICK_KEY,
    "pixel_key": PIXEL_KEY,
    "path": "postback.db",
    "source": "none",
}


# As many cores as the machines have on which these tests are known to be steady.
PROCESSES = 2


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run all tests in two processes, a file or a test in this one: starting takes a second."""
    asks_for_all = config.args == config.getini("testpaths")
    return PROCESSES if asks_for_all else 0


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        """Start at noon of an ordinary Monday."""
        self.now = NOON

    def __call__(self) -> datetime:
        """Tell the time, in UTC."""
        return self.now

    def forward(self, **units: float) -> None:
        """Let `days=…`, `hours=…` or `seconds=…` pass."""
        self.now += timedelta(**units)


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    status: int
    body: bytes
    headers: Headers

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def verdict(self) -> str | None:
        """What came of the postback, as the answer tells it."""
        return self.headers["X-Postback-Result"]

    @property
    def reason(self) -> str:
        """The reason the answer gives, empty where it gives none."""
        return self.headers["X-Postback-Reason"] or ""


@dataclass(frozen=True)
class Conversion:
    """One row of `conversions_view`; amounts are decimal text."""

    id: int
    subid: str
    tid: str
    status: str
    original_status: str | None
    previous_status: str | None
    amount: str | None
    currency: str | None
    payout: str | None
    rate: str | None
    rate_day: str | None
    rate_source: str | None
    cost: str | None
    campaign: str | None
    offer: str | None
    network: str | None
    sub_ids: dict[str, str]
    created_at: datetime
    updated_at: datetime
    sale_at: datetime | None


@dataclass(frozen=True)
class Postback:
    """One row of the log of postbacks, with what came of a parked one later."""

    id: int
    received_at: datetime
    source: str
    method: str | None
    remote_addr: str | None
    query: str
    subid: str | None
    tid: str | None
    original_status: str | None
    verdict: str
    reason: str | None
    warnings: list[str]
    conversion_id: int | None
    network: str | None
    settled_at: datetime | None
    settled_verdict: str | None
    settled_reason: str | None


def _value(column: str, stored: Any) -> Any:
    """Turn a stored value into what the row objects hold."""
    if stored is None:
        return None
    if column.endswith("_at"):
        return datetime.fromisoformat(stored)
    if column in {"sub_ids", "warnings"}:
        return json.loads(stored)
    return stored


@dataclass
class Client:
    """One running receiver: how to call it, and what its database holds."""

    directory: Path
    database: Path
    receiver: postback.Receiver
    clock: Clock
    app: Any = field(init=False)

    def __post_init__(self) -> None:
        """Put WebTest in front of the receiver."""
        self.app = webtest.TestApp(self.receiver)

    def request(
        self,
        url: str,
        method: str = "GET",
        body: bytes = b"",
        environ: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request and take whatever answer comes."""
        called = webtest.TestRequest.blank(
            url,
            environ={"REMOTE_ADDR": "203.0.113.9", **(environ or {})},
            method=method,
            headers=dict(headers or {}),
            body=body,
        )
        answer = self.app.do_request(called, expect_errors=True)
        return Answer(answer.status_int, answer.body, Headers(list(answer.headerlist)))

    def get(self, url: str, **headers: str) -> Answer:
        """`GET` a URL; `sec_fetch_dest="image"` is the header `Sec-Fetch-Dest: image`."""
        return self.request(url, headers=_header_names(headers))

    def send(self, query: str, **headers: str) -> Answer:
        """Send a postback as a network does, with the key in the path."""
        return self.get(f"/{POSTBACK_KEY}/postback?{query}", **headers)

    def post(self, query: str, body: str | bytes = "", **headers: str) -> Answer:
        """Send a postback as `POST`, the body as a form unless a header says otherwise."""
        return self.request(
            f"/{POSTBACK_KEY}/postback?{query}",
            method="POST",
            body=body.encode() if isinstance(body, str) else body,
            headers={"Content-Type": FORM} | _header_names(headers),
        )

    def click(self, subid: str, **fields: str) -> Answer:
        """Make a click, or add to one: `click("c1", offer="O1", cost_model="cpa")`."""
        return self.get(f"/{CLICK_KEY}/click?{urlencode({'subid': subid, **fields})}")

    def allow_rebills(self, offer: str, allowed: int = 1) -> None:
        """Let an offer take rebills (or forbid them again, with 0)."""
        self.write("UPDATE offers SET allow_rebills = ? WHERE name = ?", allowed, offer)

    def conversions(self, subid: str | None = None) -> list[Conversion]:
        """Everything held about a click (or about all of them), oldest first."""
        where = "" if subid is None else "WHERE subid = ?"
        found = self.rows(
            f"SELECT * FROM conversions_view {where} ORDER BY id",
            *(() if subid is None else (subid,)),
        )
        return [Conversion(**{name: _value(name, row[name]) for name in row}) for row in found]

    def postbacks(self) -> list[Postback]:
        """Every postback that was logged, oldest first."""
        columns = list(Postback.__dataclass_fields__)
        found = self.rows(f"SELECT {', '.join(columns)} FROM postbacks ORDER BY id")
        return [Postback(**{name: _value(name, row[name]) for name in row}) for row in found]

    def history(self, subid: str) -> list[dict[str, Any]]:
        """Every change of a click's conversions, one row each, in order."""
        return self.rows(
            "SELECT * FROM conversion_history WHERE conversion_id IN"
            " (SELECT id FROM conversions_view WHERE subid = ?) ORDER BY conversion_id, seq",
            subid,
        )

    def snapshot(self) -> list[dict[str, Any]]:
        """All that counts: every conversion and its whole history."""
        return self.rows("SELECT * FROM conversions_view ORDER BY id") + self.rows(
            "SELECT * FROM conversion_history ORDER BY conversion_id, seq"
        )

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Ask the database file, beside the receiver; before there is one, it holds nothing."""
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database, timeout=10)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(sql, values)]

    def write(self, sql: str, *values: object) -> None:
        """Change the database file, as another program would."""
        with closing(sqlite3.connect(self.database, timeout=10)) as db, db:
            db.execute(sql, values)


Send = Callable[..., Answer]
Click = Callable[..., Answer]
Conversions = Callable[..., list[Conversion]]
Postbacks = Callable[[], list[Postback]]
History = Callable[[str], list[dict[str, Any]]]
ReceiverWith = Callable[..., Client]


def _header_names(keywords: Mapping[str, str]) -> dict[str, str]:
    return {word.replace("_", "-").title(): value for word, value in keywords.items()}


def write_config(directory: Path, settings: Mapping[str, str | None]) -> Path:
    """Write a config file in the layout of the original; a setting of None is left out."""
    chosen = {**DEFAULTS, **settings}
    lines = [";<?php exit; ?>"]
    for section in ("system", "db", "postback", "rates", "log"):
        lines.append(f"[{section}]")
        lines += [
            f'{key} = "{value}"'
            for key, value in chosen.items()
            if value is not None and SECTIONS.get(key, "postback") == section
        ]
    config_path = directory / "config.ini.php"
    config_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config_path


@pytest.fixture
def clock() -> Clock:
    """The clock that the receivers of this test go by."""
    return Clock()


@pytest.fixture
def receiver_with(tmp_path: Path, clock: Clock) -> Iterator[ReceiverWith]:
    """Start receivers with settings of one's own: `receiver_with(repeats="update")`.

    Each has its own directory, or the one given as `directory`.
    """
    started: list[postback.Receiver] = []
    numbers = count(1)

    def start(directory: Path | None = None, **settings: str | None) -> Client:
        home = directory or tmp_path / f"tracker-{next(numbers)}"
        home.mkdir(exist_ok=True)
        receiver = postback.Receiver(write_config(home, settings), clock=clock)
        started.append(receiver)
        return Client(home, home / (settings.get("path") or "postback.db"), receiver, clock)

    yield start
    for receiver in started:
        receiver.close()


@pytest.fixture
def client(receiver_with: ReceiverWith) -> Client:
    """A receiver with the settings of an ordinary tracker."""
    return receiver_with()


@pytest.fixture
def send(client: Client) -> Send:
    """Send a postback: `send("subid=c1&status=sale")`."""
    return client.send


@pytest.fixture
def click(client: Client) -> Click:
    """Make a click: `click("c1", offer="O1")`."""
    return client.click


@pytest.fixture
def conversions(client: Client) -> Conversions:
    """See the conversions of a click: `conversions("c1")`."""
    return client.conversions


@pytest.fixture
def postbacks(client: Client) -> Postbacks:
    """See the log of postbacks."""
    return client.postbacks


@pytest.fixture
def history(client: Client) -> History:
    """See every change of a click's conversions: `history("c1")`."""
    return client.history
