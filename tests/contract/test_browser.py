"""A real browser: Debian's chromium, a landing page of another origin, a real gunicorn."""

import html
import json
import re
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cli_calls import call_process
from live import LiveServer, live_server

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# A first start on a busy machine, and a page with a handful of requests.
PATIENCE_SECONDS = 180

KEY = "s3cret-key-of-the-tests"
CONFIG = """\
;<?php exit; ?>
[system]
postback_key = "s3cret-key-of-the-tests"
pixel_key = "p1xel-key-of-the-tests"
public_url = "http://127.0.0.1:{port}"
[postback]
unknown_subid = "accept"
[rates]
source = "none"
"""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[LiveServer]:
    with live_server(tmp_path) as server:
        (tmp_path / "config.ini.php").write_text(CONFIG.format(port=server.port))
        yield server


@contextmanager
def landing_page(page: str) -> Iterator[str]:
    """Serve a page that sets the click's cookie, from another origin; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Set-Cookie", "subid=c-of-the-cookie; Path=/")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def visit(address: str, profile: Path) -> str:
    """Open a page in a fresh browser, wait for it, and return its document as HTML."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={profile}"),
        # In the page's virtual time, which stops during a request.
        *("--virtual-time-budget=5000", "--dump-dom", address),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_told(document: str) -> dict[str, Any]:
    """Return what the page's script has written."""
    found = re.search(r"<pre id=\"told\">(.*?)</pre>", document, re.DOTALL)
    assert found is not None, document
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    return told


def find_rows(directory: Path, sql: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(directory / "postback.db", timeout=10)) as db:
        return list(db.execute(sql))


PIXEL_PAGE = """\
<!doctype html>
{tag}
<img id="plain" src="{base}/{key}/postback?status=sale&amp;payout=7&amp;tid=t1">
<pre id="told"></pre>
<script>
addEventListener("load", () => {{
    const sizes = [...document.images].map(image => [image.naturalWidth, image.naturalHeight]);
    document.getElementById("told").textContent = JSON.stringify({{sizes}});
}});
</script>
"""


def test_a_pixel_and_a_cookie_record_the_conversion(tmp_path: Path, receiver: LiveServer) -> None:
    printed = call_process(tmp_path, "url", "--json").objects[0]["pixel_tag"]
    # The click id is in the cookie: the page does not know it.
    tag = printed.replace("subid={subid}&amp;", "")
    assert tag != printed
    base = f"http://127.0.0.1:{receiver.port}"

    with landing_page(PIXEL_PAGE.format(tag=tag, base=base, key=KEY)) as page:
        told = read_told(visit(page, tmp_path / "profile"))

    assert told["sizes"] == [[1, 1], [1, 1]]
    kept = "SELECT source, query FROM postbacks ORDER BY query"
    assert find_rows(tmp_path, kept) == [
        ("pixel", "status=lead&subid=c-of-the-cookie"),
        ("pixel", "status=sale&payout=7&tid=t1&subid=c-of-the-cookie"),
    ]
    sql = "SELECT subid, status, payout FROM conversions_view"
    assert find_rows(tmp_path, sql) == [("c-of-the-cookie", "sale", "7")]


SCRIPT_PAGE = """\
<!doctype html>
<pre id="told"></pre>
<script>
const base = "{base}/{key}/postback";
const ask = async (query, options) => {{
    const answer = await fetch(base + query, options);
    return {{
        status: answer.status,
        body: await answer.text(),
        verdict: answer.headers.get("X-Postback-Result"),
        reason: answer.headers.get("X-Postback-Reason"),
    }};
}};
(async () => {{
    const told = {{
        lead: await ask("?subid=c1&status=lead"),
        again: await ask("?subid=c1&status=lead"),
        preflighted: await ask("?subid=c2&return=thanks", {{
            method: "POST",
            headers: {{"X-Landing-Page": "spring", "Content-Type": "text/plain"}},
        }}),
        wrong_key: await fetch("{base}/wrong/postback").then(() => "readable", () => "unreadable"),
    }};
    document.getElementById("told").textContent = JSON.stringify(told);
}})();
</script>
"""


def test_a_script_of_another_origin_reads_the_answer(tmp_path: Path, receiver: LiveServer) -> None:
    base = f"http://127.0.0.1:{receiver.port}"

    with landing_page(SCRIPT_PAGE.format(base=base, key=KEY)) as page:
        told = read_told(visit(page, tmp_path / "profile"))

    assert told["lead"] == {"status": 200, "body": "Success", "verdict": "recorded", "reason": None}
    assert told["again"]["verdict"] == "repeated"
    assert told["again"]["reason"].startswith("known already")
    assert (told["preflighted"]["body"], told["preflighted"]["verdict"]) == ("thanks", "recorded")
    assert told["wrong_key"] == "unreadable"


def test_a_script_as_return_is_shown_and_does_not_run(tmp_path: Path, receiver: LiveServer) -> None:
    script = "<script>document.title = 'it ran'; document.body.append('it ran')</script>"
    address = f"http://127.0.0.1:{receiver.port}/{KEY}/postback?subid=c1&return={quote(script)}"

    document = visit(address, tmp_path / "profile")

    assert html.escape(script, quote=False) in document
    assert "<script>" not in document
    assert "<title>it ran" not in document
