"""Text pasted into `postback explain`: commands, tags, links of chats, lines of logs, bodies.

Each row is one of a kind, from manuals of the programs that write it, support threads and
documentation of networks; hosts, keys and ids are made up. Whatever is around it, the postback is
a sale of 5 for the click C1.
"""

import json
import os
import select
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from cli_calls import Terminal, call_process
from conftest import POSTBACK_KEY, Client

from postbackd.cli import entry as cli
from postbackd.cli.commands import explain
from postbackd.explain.addresses import UnclearError
from postbackd.explain.pasted import read_pasted

PATH = f"/{POSTBACK_KEY}/postback"
PLACE = f"https://t.example.com{PATH}"
QUERY = "subid=C1&status=sale&payout=5"
TARGET = f"{PATH}?{QUERY}"
URL = f"{PLACE}?{QUERY}"
IN_HTML = URL.replace("&", "&amp;")

COMMANDS = [
    f"curl -s '{URL}'",  # D46
    f'curl "{URL}"',
    f"$ curl {URL}",
    f"sudo curl -fsS '{URL}' >/dev/null 2>&1",
    f"*/5 * * * * curl -m 5 '{URL}' || true",
    f"curl -o /dev/null -w '%{{http_code}}' '{URL}' | head",
    f"curl --user-agent 'x y' -H 'Accept: */*' -e https://a.example/ --url '{URL}'",
    f"curl -G {PLACE} -d subid=C1 --data-urlencode status=sale -d payout=5",
    f"curl '{PLACE}?subid=C1' --url-query status=sale --url-query payout=5",
    f"curl '{URL}",
    f"curl '{URL}' \\\n  -H 'accept: */*' \\\n  --compressed",
    f'curl.exe "{URL.replace("&", "^&")}" ^\n  -H "accept: */*"',
    f"curl ‘{URL}’",
    f"curl “{URL}”",
    f'wget -qO- "{URL}"',  # D46
    f"wget -O /dev/null -t 3 --user-agent=x '{URL}'",
    f"http GET '{PLACE}' subid==C1 status==sale payout==5",
    f"http '{URL}'",
    f"https t.example.com{PATH} subid==C1 status==sale payout==5 Accept:text/plain",
    f"http :8000{PATH} subid==C1 status==sale payout==5",
    f'Invoke-WebRequest -Uri "{URL}" -UseBasicParsing',
    f"PS C:\\> iwr '{URL}'",
    f"fetch('{URL}')",
    f'fetch("{URL}", {{\n  "headers": {{"accept": "*/*"}},\n  "method": "GET"\n}});',
    f"axios.get('{URL}')",
    f"$.get('{URL}')",
    f"new Image().src = '{URL}';",
    f"file_get_contents('{URL}');",
    f"curl_setopt($ch, CURLOPT_URL, '{URL}');",
    f'requests.get("{URL}", timeout=5)',
    f'urllib.request.urlopen("{URL}")',
]
POSTS = [
    f"curl -X POST {PLACE} -d 'subid=C1&status=sale&payout=5'",  # D46
    f"curl {PLACE} -d subid=C1 -d status=sale -d payout=5",
    f"curl -sSLXPOST '{PLACE}' --data-raw '{QUERY}'",
    f"curl -sd'{QUERY}' {PLACE}",
    f"curl --request POST --url {PLACE} --header 'x: y' --data '{QUERY}'",
    f"curl '{PLACE}' --data-urlencode subid=C1 --data-urlencode 'status=sale' -d payout=5",
    f"curl '{PLACE}?subid=C1' --data-raw $'status=sale\\u0026payout=5'",
    f"wget --post-data='{QUERY}' {PLACE}",
    f"wget -q --method=POST --body-data '{QUERY}' {PLACE}",
    f"http -f POST {PLACE} subid=C1 status=sale payout=5",
    f"http --form POST {PLACE}?subid=C1 status=sale payout=5",
    f"Invoke-RestMethod -Method Post -Uri '{PLACE}' -Body '{QUERY}'",
    f"irm {PLACE} -Method POST -Body @{{subid='C1'; status=\"sale\"; payout=5}}",
    f'iwr -Uri "{PLACE}" `\n  -Method "POST" `\n  -Body "{QUERY}"',
    f'fetch("{PLACE}", {{"method": "POST", "body": "{QUERY}"}})',
    f"fetch('{PLACE}', {{method: 'POST', body: new URLSearchParams({{subid: 'C1', status: 'sale',"
    " payout: 5})})",
    f"navigator.sendBeacon('{PLACE}', '{QUERY}')",
    f"requests.post('{PLACE}', data={{'subid': 'C1', 'status': 'sale', 'payout': 5}})",
    f"POST {PATH} HTTP/1.1\r\nHost: t.example.com\r\nContent-Type:"
    f" application/x-www-form-urlencoded\r\nContent-Length: 29\r\n\r\n{QUERY}",
    json.dumps({"request_method": "POST", "request_uri": PATH, "request_body": QUERY}),
]
MARKUP = [
    f'<img src="{IN_HTML}" width="1" height="1" style="display:none">',
    f"<img height=1 src={URL} />",
    f"<iframe src='{IN_HTML}'></iframe>",
    f'<a href="{IN_HTML.replace("&amp;", "&#38;")}">postback</a>',
    f'<script async src="{IN_HTML.replace("&amp;", "&#x26;")}"></script>',
    f'<p>See <a href="https://help.example/">help</a>: <img src="{IN_HTML}"></p>',
    f"&lt;img src=&quot;{URL.replace('&', '&amp;amp;')}&quot;&gt;",
    f"<img src=“{URL}”>",
    f"[postback]({URL})",  # D48
    f'[{URL}]({URL} "our postback")',
    f"![pixel]({URL})",
    f"<{URL}|{URL}>",  # D48
    f"the postback is <{URL}|postback>, is it not?",
    f"<{URL}>",
    f"[url={URL}]postback[/url]",
    f"[img]{URL}[/img]",
    f"[postback|{URL}]",
    f"[{URL} postback]",
    f'=HYPERLINK("{URL}"; "postback")',
    f"`{URL}`",
    f"```\n{URL}\n```",
    f"```bash\ncurl '{URL}'\n```",
    f"**{URL}**",
]
SENTENCES = [
    f"Our postback is {URL}.",
    f"Please put {URL}, then save!",
    f"(see {URL})",
    f"({URL}).",
    f"“{URL}”",
    f"«{URL}»",
    f"‘{URL}’.",
    f'"{URL}";',
    f"Postback URL: {URL}",
    f"Hello,\n\nhere is what we send:\n{URL}\n\nBest regards\nThe network",
    f"\u200b{URL}\u2060",
    f"{URL[:40]}\u200b{URL[40:]}\u00ad",
    f"\ufeff{URL}\u00a0",
    f"t.example.com{PATH}?{QUERY}",
    f"//t.example.com{PATH}?{QUERY}",
    f"[2026-11-25 10:00:00] Received postback {URL}",
    f"[Full request URI: {URL}]",
    f"{URL} <{URL}>",
    f"HTTPS://T.EXAMPLE.COM:8443{PATH}?{QUERY}",
    # With blanks, escaped in a program's source, written harmless.
    f"{PLACE}?subid=C1 &status=sale & payout=5",
    f"{PLACE} ? subid=C1& status=sale& payout=5",
    URL.replace("/", "\\/"),
    f'"url": "{URL.replace("/", chr(92) + "/").replace("&", chr(92) + "u0026")}",',
    URL.replace("https:", "hxxps[:]").replace("t.example.com", "t[.]example[.]com"),
    # As zsh writes what is pasted into it.
    URL.replace("?", "\\?").replace("&", "\\&").replace("=", "\\="),
    # A path or a query behind words of a log, whole or in brackets.
    f"Received postback: {QUERY}",  # Q09
    f"GET {URL}",  # Q09
    f"[INFO] {QUERY}",
    f"[2026-11-25 10:00:00] [INFO] Received postback: {QUERY}",
    f"2026-11-25 10:00:00 postback: {QUERY} from 1.2.3.4",
    f"query string: ?{QUERY}",
    f"[2026-11-25 10:00:00] Received postback {TARGET}",
    f"[2026-11-25 10:00:00] [INFO] Received postback: {TARGET} (200)",
    "subid=C1 status=sale payout=5",
    "subid=C1, status=sale, payout=5",
    "subid=C1;status=sale;payout=5;",
    "subid=C1\tstatus=sale\tpayout=5",
]
LINES = [
    f"GET {PLACE}?\n  subid=C1&\n  status=sale&\n  payout=5",  # D47
    f"{PLACE}\n  ?subid=C1\n  &status=sale\n  &payout=5",
    f"{PLACE}?subid=\nC1&status=sale&payout=5",
    f"{PLACE}?subid=C1&sta\ntus=sale&payout=5",
    f"{PLACE}?subid=C1&\\\nstatus=sale&\\\r\npayout=5",
    f"{PATH}?\r\n\r\nsubid=C1&\r\n\r\nstatus=sale&payout=5",
    "subid=C1\nstatus=sale\npayout=5",
    "subid: C1\nstatus: sale\npayout: 5",
    'subid = "C1",\nstatus = "sale",\npayout = "5"',
    "Array\n(\n    [subid] => C1\n    [status] => sale\n    [payout] => 5\n)",
    "| subid | C1 |\n| status | sale |\n| payout | 5 |",
    "subid\tC1\nstatus\tsale\npayout\t5",
    f"{PLACE}\nsubid=C1\nstatus=sale\npayout=5",
    f"{PLACE}\nsubid=C1&status=sale&payout=5",
    f"Request URL: {URL}\nRequest Method: GET\nStatus Code: 200 OK",
    f":authority: t.example.com\n:method: GET\n:path: {PATH}?{QUERY}\n:scheme: https",
    f"GET {PATH}?{QUERY} HTTP/1.1\nHost: t.example.com\nUser-Agent: x",
    # The source of a mail.
    f"{PLACE}?subid=3DC1&status=\n=3Dsale&payout=3D5",
]
ENCODED = [
    quote(URL, safe=""),  # D73
    quote(URL, safe="").replace("%3A", "%3a").replace("%2F", "%2f"),
    quote(quote(URL, safe=""), safe=""),
    quote(QUERY, safe=""),
    f"https://l.facebook.com/l.php?u={quote(URL, safe='')}&h=AT0",
    f"https://www.google.com/url?q={quote(URL, safe='')}&sa=D",
    f"https://eur01.safelinks.protection.outlook.com/?url={quote(URL, safe='')}&data=05%7C",
]
LOGS = [
    # Q09
    f'1.2.3.4 - - [25/Nov/2026:10:00:00 +0000] "GET {TARGET} HTTP/1.1" 200 7 "-" "curl/7.88.1"',
    f'1.2.3.4 - - [25/Nov/2026:10:00:00 +0000] "GET {TARGET} HTTP/2.0" 200 7 "-" "Wget/1.21"',
    f't.example.com:443 1.2.3.4 - - [25/Nov/2026:10:00:00 +0000] "GET {TARGET} HTTP/1.1" 200 7',
    f'1.2.3.4 - - [25/Nov/2026:10:00:00 +0000] "GET {TARGET}"',
    f'INFO:     1.2.3.4:51000 - "GET {TARGET} HTTP/1.1" 200 OK',
    f"2026/11/25 10:00:00 [error] 7#7: *1 upstream timed out, client: 1.2.3.4, server: t, request:"
    f' "GET {TARGET} HTTP/1.1", upstream: "http://127.0.0.1:8000{TARGET}", host: "t"',
    f'http 2026-11-25T10:00:00.18Z app/lb/50 1.2.3.4:2817 10.0.0.1:80 0.0 0.0 0.0 200 200 34 366'
    f' "GET https://t.example.com:443{TARGET} HTTP/1.1" "curl/7.46.0" - -',
    f"Nov 25 10:00:00 lb haproxy[14389]: 1.2.3.4:33317 [25/Nov/2026:10:00:00.655] in~ pb/s1"
    f' 10/0/30/69/109 200 27 - - ---- 1/1/1/1/0 0/0 {{t.example.com}} "GET {TARGET} HTTP/1.1"',
    f'[2026-11-25T10:00:00.000Z] "GET {TARGET} HTTP/1.1" 200 - 0 7 2 1 "-" "x" "id" "t"',
    f"2026-11-25 10:00:00 10.0.0.1 GET {PATH} {QUERY} 443 - 1.2.3.4 curl/7 - 200 0 0 15",
    f"2026-11-25 10:00:00 10.0.0.1 GET {PATH} {QUERY} 443 - 1.2.3.4 curl 200 0 0 15",
    "2026-11-25\t10:00:00\tFRA6\t7\t1.2.3.4\tGET\td1.cloudfront.net"
    f"\t{PATH}\t200\t-\tcurl/7\t{QUERY}\t-\tMiss",
    f'at=info method=GET path="{TARGET}" host=t.example.com fwd="1.2.3.4" status=200',
    f"time=2026-11-25T10:00:00Z level=info method=GET uri={TARGET} status=200",
    # D72
    json.dumps({"request_method": "GET", "request_uri": TARGET, "status": 200}),
    json.dumps({"time": "x", "request": f"GET {TARGET} HTTP/1.1", "status": "200"}),  # Q09
    json.dumps({"method": "GET", "uri": PATH, "args": QUERY, "status": 200}, indent=2),
    f'{{"request_uri":"{TARGET}","http_user_agent":"\\x22x\\x22","status":200}}',
    # Caddy
    json.dumps(
        {
            "level": "info",
            "logger": "http.log.access",
            "request": {"remote_ip": "1.2.3.4", "method": "GET", "uri": TARGET, "headers": {}},
            "status": 200,
        }
    ),
    "2026/11/25 10:00:00.000\tINFO\thttp.log.access\thandled request\t"
    + json.dumps({"request": {"method": "GET", "host": "t.example.com", "uri": TARGET}}),
    # Traefik, Cloudflare, Google, AWS, Azure
    json.dumps({"RequestMethod": "GET", "RequestPath": TARGET, "RequestHost": "t", "status": 1}),
    json.dumps({"ClientRequestMethod": "GET", "ClientRequestURI": TARGET, "RayID": "1"}),
    json.dumps({"httpRequest": {"requestMethod": "GET", "requestUrl": URL, "status": 200}}),
    json.dumps({"httpMethod": "GET", "path": PATH, "queryStringParameters": {
        "subid": "C1", "status": "sale", "payout": "5"}}),
    json.dumps({"rawPath": PATH, "rawQueryString": QUERY, "requestContext": {
        "http": {"method": "GET", "path": PATH}}}),
    json.dumps({"httpMethod": "GET", "requestUri": PATH, "requestQuery": QUERY}),
    # A container's, journald's, a browser's
    json.dumps({"log": f'1.2.3.4 - - "GET {TARGET} HTTP/1.1" 200 7\n', "stream": "stdout"}),
    json.dumps({"MESSAGE": f'1.2.3.4 - - "GET {TARGET} HTTP/1.1" 200 7', "PRIORITY": "6"}),
    json.dumps({"log": {"entries": [{"request": {"method": "GET", "url": URL}}]}}),
]  # fmt: skip

KINDS = {
    "commands and code": COMMANDS,
    "tags, links of chats, forums and sheets": MARKUP,
    "sentences": SENTENCES,
    "several lines": LINES,
    "encoded as a whole, or within a link": ENCODED,
    "lines of logs": LOGS,
}


def tell(client: Client, capsys: pytest.CaptureFixture[str], pasted: str) -> dict[str, Any]:
    """Return the one object that `explain --json` prints."""
    status = cli.main(
        ["explain", pasted, "--json", "--config", str(client.directory / "config.ini.php")]
    )
    told = capsys.readouterr()
    assert (status, told.err) == (0, "")
    found: dict[str, Any] = json.loads(told.out)
    return found


@pytest.fixture
def tracker(client: Client) -> Client:
    """A tracker with the click C1."""
    client.click("C1")
    return client


@pytest.mark.parametrize("kind", KINDS)
def test_the_postback_in_what_is_pasted_is_found(
    tracker: Client, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for pasted in KINDS[kind]:
        told = tell(tracker, capsys, pasted)
        written = {name: value["becomes"] for name, value in told["writes"].items()}
        assert (told["verdict"], told["method"]) == ("recorded", "GET"), pasted
        assert (written["status"], written["payout"]) == ("sale", "5"), pasted
        assert (told["key"] or {"state": "in force"})["state"] == "in force", pasted
        assert told["warnings"] == [], pasted


def test_a_body_beside_the_address_is_read_as_the_receiver_reads_it(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for pasted in POSTS:
        told = tell(tracker, capsys, pasted)
        written = {name: value["becomes"] for name, value in told["writes"].items()}
        assert (told["verdict"], told["method"]) == ("recorded", "POST"), pasted
        assert (written["status"], written["payout"]) == ("sale", "5"), pasted
        assert [part["name"] for part in told["parts"][:3]] == ["subid", "status", "payout"], pasted


# A body with a type reaches the receiver with that type.
TYPED = [
    ('{"subid":"C1","status":"sale","payout":5}', "read as the body of a POST"),  # D73
    (f'curl {PLACE} --json \'{{"subid":"C1","payout":5}}\'', "read as a command for curl"),
    (f"http POST {PLACE} subid=C1 payout:=5", "read as a command for HTTPie"),
    (f"curl -F subid=C1 -F payout=5 {PLACE}", "read as a command for curl"),
    (
        f"fetch('{PLACE}', {{method: 'POST', body: JSON.stringify({{subid: 'C1', payout: 5}})}})",
        "read as a call by a program",
    ),
]


@pytest.mark.parametrize(("pasted", "note"), TYPED)
def test_a_body_that_is_no_form_is_given_to_the_receiver(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str, note: str
) -> None:
    told = tell(tracker, capsys, pasted)

    assert (told["method"], told["verdict"]) == ("POST", "recorded")
    assert told["writes"]["payout"]["becomes"] == "5"
    assert note in " ".join(told["pasted"])


NOTES = [
    (f"curl {URL}", "the address has no quotes around it: a shell ends it at the first '&'"),
    (f"curl -d @body.txt {PLACE}", "the body is in a file, which is not read"),
    (f"wget --post-file=body.txt {PLACE}", "the body is in a file, which is not read"),
    (f"fetch('{PLACE}?subid=' + subid)", "a part of the address comes from a variable"),
    (f"{URL}.", "the text behind the address is left out: '.'"),
    (f"see {URL}", "the address is read, and the text around it left out"),
    (f"{URL}\u200b", "1 invisible characters (such as zero-width spaces) are left out"),
    (quote(URL, safe=""), "the address was percent-encoded as a whole"),
    (quote(QUERY, safe=""), "the query was percent-encoded as a whole"),
    (
        f"https://l.facebook.com/l.php?u={quote(URL, safe='')}",
        "the address within a link of 'l.facebook.com'",
    ),
    (f"{PLACE}?\nsubid=C1", "the lines are joined to one address"),
    ("C1", "this is one word without '='"),
]


@pytest.mark.parametrize(("pasted", "note"), NOTES)
def test_how_it_was_found_is_reported(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str, note: str
) -> None:
    assert note in "\n".join(tell(tracker, capsys, pasted)["pasted"])


AS_IT_IS = [
    # Macros and signs that end an address stay.
    (f"{PLACE}?subid={{subid}}", "{subid}"),
    (f"{PLACE}?subid=!!!clickRef!!!", "!!!clickRef!!!"),
    (f"{PLACE}?subid=[id]", "[id]"),
    (f"{PLACE}?subid=##SUB(action)##", "##SUB(action)##"),
    (f"{PLACE}?subid=a(b)", "a(b)"),
    (f"{PLACE}?subid=a|b", "a|b"),
    ("subid=<x>", "<x>"),
    # An address within a value is a part of the query.
    (f"subid=C1&ref={URL}", "C1"),
    ("subid=https://a.example/k/postback?x", "https://a.example/k/postback?x"),
    # A browser leaves an entity without ';' in an attribute alone.
    (f'<img src="{PLACE}?subid=C1&currency=EUR">', "C1"),
    # The body of a postback may contain an address.
    (f"curl '{PLACE}' -d 'subid=C9&url=https://a.example/x'", "C9"),
]


@pytest.mark.parametrize(("pasted", "subid"), AS_IT_IS)
def test_what_belongs_to_the_postback_stays(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str, subid: str
) -> None:
    parts = {part["name"]: part["value"] for part in tell(tracker, capsys, pasted)["parts"]}

    assert parts["subid"] == subid
    assert parts.get("currency") in {None, "EUR"}


UNMARKED = [
    f"{PLACE}&subid=C1&status=sale&payout=5",  # D49
    f"{PATH}&subid=C1&status=sale&payout=5",
    f"{PATH}/&subid=C1&status=sale&payout=5",
    f"t.example.com{PATH}&subid=C1&status=sale&payout=5",
    f"{PLACE}%3Fsubid=C1&status=sale&payout=5",
    f"{PATH};subid=C1&status=sale&payout=5",
    f"{PLACE}/subid=C1&status=sale&payout=5",
    f"{PLACE}subid=C1&status=sale&payout=5",
    f"{PATH}&subid=C1?status=sale&payout=5",
    f"curl '{PLACE}&subid=C1&status=sale&payout=5'",
    f'1.2.3.4 - - "GET {PATH}&subid=C1&status=sale&payout=5 HTTP/1.1" 404 9',
]


@pytest.mark.parametrize("pasted", UNMARKED)
def test_a_question_mark_that_is_missing_is_named(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str
) -> None:
    told = tell(tracker, capsys, pasted)

    assert "the '?' is missing behind /postback" in "\n".join(told["did_you_mean"])
    assert told["key"]["state"] == "in force"
    assert (told["verdict"], told["is_kept"], told["lacks_mark"]) == ("recorded", False, True)
    assert told["writes"]["payout"]["becomes"] == "5"
    assert tracker.conversions() == []


@pytest.mark.parametrize(
    "pasted",
    [
        f"{PATH}&subid=C1&note={POSTBACK_KEY}",
        f"{URL} {POSTBACK_KEY}",
        f"curl '{PLACE}' -d 'subid=C1&note={POSTBACK_KEY}'",
        f"<img src='{URL}&note={POSTBACK_KEY}'>",
        json.dumps({"request_uri": f"{PATH}?subid=C1&x={POSTBACK_KEY}", "key": POSTBACK_KEY}),
        f"https://{POSTBACK_KEY}.example/?u={quote(URL, safe='')}",
    ],
)
def test_no_key_is_shown_however_it_came(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str
) -> None:
    assert POSTBACK_KEY not in json.dumps(tell(tracker, capsys, pasted))


HINTS = [
    ("subid=C1?payout=10&status=rejected", "a second '?' is in subid"),  # D67
    ("subid=C1&status=sale&payout=1%2C234.50", "has commas between thousands"),  # D39
    ("aff_sub=C1&status=sale", "aff_sub contains the known click 'C1'"),  # Q15
    ("cid=C1&status=sale", "cid contains the known click 'C1'"),  # Q15
    ("subid=c1&status=sale", "click 'C1' is known, and differs in upper and lower case"),  # Q15
    (f"{PLACE}?subid=C1?status=rejected", "a second '?' is in subid"),
    ("subid=C1&status=spam&rejected_status=spam;duplicate", "has ';' between its words"),  # D50
    ("subid=C1&status=fdp&deposit_status=fdp,x", "'deposit_status' is no list here"),  # D51
    ("subid=C1&status=sale&payout=5¤cy=EUR", "'¤' was '&curren'"),  # D74
    ("subid=C1&status=sale&payout=5%C2%A4cy=EUR", "'¤' was '&curren'"),
    (f"see {PLACE}?subid=C1&payout=5¤cy=EUR.", "'¤' was '&curren'"),
    (f"{PLACE}?subid=C1%26status=sale%26payout=5", "status= stands within 'C1&status=sale&pay"),
    (f"{PLACE}?subid%3DC1%26status%3Dsale", "subid= stands within 'subid=C1&status=sale'"),
    (f"{URL.replace('postback', 'Postback')}", "this one is answered 404"),
    (f"{PLACE}.php?{QUERY}", "this one is answered 404"),
    (f"https://t.example.com/?{QUERY}", "this one is answered 404"),
]  # fmt: skip


@pytest.mark.parametrize(("pasted", "hint"), HINTS)
def test_what_is_wrong_in_it_is_reported(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str, hint: str
) -> None:
    hint = hint.replace("'¤' was '&curren'", "'¤cy' was '&currency'")

    assert hint in "\n".join(tell(tracker, capsys, pasted)["did_you_mean"])


REFUSED = [
    ("   ", "the text is empty"),
    ("\u200b", "the text is empty"),
    (f"{URL}\n{URL.replace('C1', 'C2')}", "has 2 addresses: paste one postback"),
    (f"{URL} and {PLACE}?subid=C2", "has 2 addresses: paste one postback"),
    ("subid=C1\nsubid=C2", "2 lines came: paste one postback"),
    (f'"GET {PATH}?a=1 HTTP/1.1"\n"GET {PATH}?a=2 HTTP/1.1"', "2 lines came"),
    ("<?xml version='1.0'?><postback><subid>C1</subid></postback>", "this is XML or HTML"),
    ("<!doctype html><html><body>x</body></html>", "this is XML or HTML"),
    ('{"subid": "C1"', "this begins like JSON, and is not valid"),
    ("{'subid': 'C1', 'status': 'sale'}", "the quotes are not double ones"),
    ('["C1", "C2"]', "this is a JSON array"),
    ("affiliate@network.example", "this is a mail address"),
    ("C1,5,T1,sale", "this is a line of a file: see `postback import`"),
    ("C1;5;T1;sale", "this is a line of a file: see `postback import`"),
    ("where is my conversion", "this is a text without an address or a query"),
    ("curl --help", "this is a command for curl without an address"),
    ("Invoke-WebRequest -Method POST", "this is a command for PowerShell without an address"),
]


@pytest.mark.parametrize(("pasted", "sentence"), REFUSED)
def test_what_is_no_postback_is_called_what_it_is(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str, sentence: str
) -> None:
    config = str(tracker.directory / "config.ini.php")

    status = cli.main(["explain", pasted, "--config", config])

    told = capsys.readouterr()
    assert (status, told.out) == (1, "")
    assert sentence in told.err


HOSTILE = [
    URL + ")" * 50_000,
    URL + "?" * 50_000,
    "[" * 50_000,
    "[url]http://x" * 5_000,
    "iwr http://x" + "-Body @{" * 5_000,
    f"{URL}&x={'x' * 60}\n" + "y\n" * 20_000,
    '{"a":' * 20_000,
    "<a href=" * 20_000,
    "curl '" + "x" * 100_000,
    "] " * 50_000 + "=",
    "]" * 100_000 + "/postback=",
    "subid\t" + " " * 50_000 + "x\nstatus: " + " " * 50_000 + "x",
    "a " * 50_000 + "subid=" + "&" * 50_000,
]


@pytest.mark.parametrize("pasted", HOSTILE, ids=lambda pasted: pasted[:20])
def test_what_is_long_and_odd_is_read_or_refused_at_once(pasted: str) -> None:
    began = time.process_time()
    with suppress(UnclearError):
        read_pasted(pasted)

    # Much less than the minutes for all pairs of signs.
    assert time.process_time() - began < 5


def test_a_line_of_our_own_log_is_read(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    tracker.send("subid=C1&status=strange&payout=5")
    cli.main(["log", "--json", "--config", str(tracker.directory / "config.ini.php")])
    line = capsys.readouterr().out

    told = tell(tracker, capsys, line)

    assert (told["verdict"], told["parts"][1]["value"]) == ("unmapped", "strange")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_a_file_with_a_mark_is_read(tracker: Client, encoding: str) -> None:
    ran = call_process(
        tracker.directory, "explain", "-", "--json", stdin=f"{URL}\r\n".encode(encoding)
    )

    assert ran.objects[0]["verdict"] == "recorded"


def test_on_a_terminal_the_lines_that_were_pasted_are_taken_together(tracker: Client) -> None:
    terminal = Terminal(tracker.directory, "explain", "-", "--json", columns=2000)
    terminal.wait_for("then press Enter")
    terminal.type(f"curl '{PLACE}' \\\n  -d '{QUERY}'\n")

    assert '"verdict": "recorded"' in terminal.finish().out


@pytest.mark.parametrize("end", ["\\", "&", "?", "`", "^", "& "])
def test_a_line_that_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    # No more lines are there at once: a person types.
    monkeypatch.setattr(select, "select", lambda *_: ([], [], []))
    keyboard, terminal = os.openpty()
    lines = [f"first {end}\n", "second\n", "third\n"]
    os.write(keyboard, "".join(lines).encode())

    raw = explain.read_terminal(terminal)

    os.close(keyboard)
    os.close(terminal)
    assert raw.decode() == "".join(lines[:2])


def test_lines_that_are_there_at_once_belong_together() -> None:
    keyboard, terminal = os.openpty()
    os.write(keyboard, b"subid=C1\nstatus=sale\n")

    raw = explain.read_terminal(terminal)

    os.close(keyboard)
    os.close(terminal)
    assert raw == b"subid=C1\nstatus=sale\n"
