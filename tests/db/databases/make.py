"""Make a database with the program of an earlier schema, and write down what that program shows.

    git worktree add /tmp/earlier COMMIT
    cd /tmp/earlier && PYTHONPATH=. python .../tests/databases/make.py .../tests/databases/schema-N

gives schema-N.db and schema-N.json. The commits: 840b6f6 for schema 1, e0bec8f for schema 2,
498a099 for schema 3, e6671f0 for schema 4, 332fb2f for schema 5, 9735e9d for
schema 6.
Everything goes through that program's own entry points: its WSGI callable and its command.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import postback
from postbackd.cli import entry as cli
from postbackd.db.sqlite import schema

CONFIG = """\
;<?php exit; ?>
[system]
postback_key = "key-of-the-databases"
pixel_key = "pixel-of-the-databases"
click_key = "click-of-the-databases"
[rates]
source = "ecb"
ecb_url = "http://127.0.0.1:9/"
"""

CLICKS = """\
Sub ID,Campaign,Offer,Date/Time,Sub ID 1
c1,Spring,Shoes,2026-03-01 10:00:00,left
c2,Spring,Subscription,2026-03-01 10:05:00,right
c3,Summer,Shoes,2026-03-01 10:10:00,
c4,,,,
c5,Summer,Subscription,2026-03-01 11:00:00,Ünïcode
"""

# What a day of a tracker holds: every status and verdict, other currencies, odd bytes.
POSTBACKS = (
    "subid=c1&status=lead&payout=0&from=N1",
    "subid=c1&status=sale&payout=12.50&tid=t1&from=N1&sub_id_2=two",
    "subid=c1&status=sale&payout=12.50&tid=t1&from=N1",
    "subid=c1&status=lead&tid=t1",
    "subid=c2&status=sale&payout=30&currency=eur&tid=a&cost=1.5",
    "subid=c2&status=rebill&payout=30.000001&currency=eur&tid=b",
    "subid=c2&status=rebill&payout=9.99&currency=gbp&tid=c",
    "subid=c3&status=sale&payout=7.77&tid=x",
    "subid=c3&status=rejected&tid=x",
    "subid=c4&status=approved&payout=4&sale_status=approved",
    "subid=c5&status=strange",
    "subid=c5&status=test&ignore=test",
    "subid=late&status=sale&payout=55.55&tid=1",
    "subid=never&status=sale&payout=1",
    "status=sale",
    "subid=c5&status=lead&payout=$5&return=%3Cscript%3E",
    "subid=c5&status=%1B%5B2J%00&tid=%FF%FE",
)


def main(target: Path) -> None:
    """Make the two files beside each other."""
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        Path("config.ini.php").write_text(CONFIG)
        Path("clicks.csv").write_text(CLICKS)
        _fill()
        shutil.copyfile("postback.db", target.with_suffix(".db"))
        shown = {name: list(_show(*words)) for name, words in SHOWN.items()}
    text = json.dumps(shown, indent=1, ensure_ascii=False)
    target.with_suffix(".json").write_text(f"{text}\n", encoding="utf-8")


SHOWN = {
    "conversions": ("conversions", "--json", "--history", "--limit", "0"),
    "postbacks": ("log", "--json", "--limit", "0"),
    "clicks": ("clicks", "list", "--json", "--limit", "0"),
    "offers": ("offers", "list", "--json"),
    "campaigns": ("campaigns", "list", "--json"),
}


def _fill() -> None:
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)

    def tick() -> datetime:
        nonlocal now
        now += timedelta(minutes=1)
        return now

    _run("clicks", "import", "clicks.csv")
    _run("offers", "set", "Subscription", "--allow-rebills")
    _run("campaigns", "set", "Summer", "--cost-model", "cpa")
    _run("rates", "set", "EUR", "1.0876")
    receiver = postback.Receiver(Path("config.ini.php"), clock=tick)
    for query in POSTBACKS:
        _call(receiver, "/key-of-the-databases/postback", query)
    _call(receiver, "/pixel-of-the-databases/postback.gif", "subid=c4&status=lead")
    _call(receiver, "/click-of-the-databases/click", "subid=late&offer=Shoes&campaign=Spring")
    receiver.close()
    if len(schema.MIGRATIONS) >= 2:
        _run("rates", "update")
        _run("rates", "set", "EUR", "1.1")
        _run("rates", "recompute", "--since", "2026-03-01")


def _call(receiver: Any, path: str, query: str) -> None:
    environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query, "REMOTE_ADDR": "192.0.2.7"}
    setup_testing_defaults(environ)
    list(receiver(environ, lambda status, headers: None))


def _run(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(words)
    return out.getvalue()


def _show(*words: str) -> Iterator[Any]:
    return map(json.loads, _run(*words).splitlines())


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
