"""Bodies of real senders: read as fields, or stored as they came; none is lost.

Each row is one of a kind, from public documents of networks and from what HTTP clients do.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cli_calls import Ran
from conftest import (
    CLICK_KEY,
    FORM,
    PIXEL_KEY,
    POSTBACK_KEY,
    Answer,
    Client,
    ReceiverWith,
    write_config,
)
from live import live_server

from postbackd.cli import entry as cli

JSON = "application/json"
MULTIPART = "multipart/form-data; boundary=X"
LIMIT = 64 * 1024


def post(
    client: Client,
    body: bytes,
    content_type: str = "",
    *,
    query: str = "",
    method: str = "POST",
    path: str = f"/{POSTBACK_KEY}/postback",
    **headers: str,
) -> Answer:
    """Send a body; an empty type is none."""
    return client.request(
        f"{path}?{query}",
        method=method,
        body=body,
        environ={"CONTENT_TYPE": content_type},
        headers={name.replace("_", "-").title(): value for name, value in headers.items()},
    )


def run(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    """Run a command on the client's database."""
    status = cli.main([*words, "--config", str(client.directory / "config.ini.php")])
    captured = capsys.readouterr()
    return Ran(status, captured.out, captured.err)


def read_body(client: Client) -> tuple[bytes | None, str | None]:
    """Return the values that the newest postback has stored besides its query."""
    [row] = client.rows("SELECT body, body_type FROM postbacks ORDER BY id DESC LIMIT 1")
    return row["body"], row["body_type"]


def pack_gzip(content: bytes) -> bytes:
    """Pack without the time of day."""
    return gzip.compress(content, mtime=0)


def raw_deflate(content: bytes) -> bytes:
    """Pack without zlib's head and tail, as some clients do."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def multipart(*parts: tuple[str, str]) -> bytes:
    """Write parts: the text behind `form-data; `, and the content."""
    written = [
        f"--X\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n"
        for head, content in parts
    ]
    return "".join([*written, "--X--\r\n"]).encode()


JSON_BODIES = [
    # D01, and amounts as JSON may write them.
    (b'{"subid":"C1","status":"sale","payout":12.5,"tid":"J1"}', "sale", "12.5", "J1"),
    (b'{"subid":"C1","status":"lead","payout":12.50,"tid":17}', "lead", "12.5", "17"),
    # Through a float it would be 0.30000000000000004, or 9007199254740993 one less.
    (
        b'{"subid":"C1","payout":0.1000001,"tid":9007199254740993}',
        "sale",
        "0.1",
        "9007199254740993",
    ),
    (b'{"subid":"C1","payout":-5,"tid":-0}', "sale", "-5", "-0"),
    # No plain digits: unreadable, as everywhere.
    (b'{"subid":"C1","payout":1e3}', "sale", None, ""),
    (b'{"subid":"C1","payout":NaN}', "sale", None, ""),
    (b'{"subid":"C1","payout":null,"tid":null}', "sale", None, ""),
    # A number as click id, in another order, with blanks, a mark, a line break within a string.
    (b'\xef\xbb\xbf { "status" : "lead" , "click_id" : "C1" } \n', "lead", None, ""),
    (b'{"subid":"C1\n","status":"lead"}', "lead", None, ""),
    (json.dumps({"subid": "C1", "status": "lead"}).encode("utf-16"), "lead", None, ""),
    (json.dumps({"subid": "C1", "status": "lead"}).encode("utf-16-le"), "lead", None, ""),
    # A name twice: the last counts, except an empty one.
    (b'{"subid":"C1","tid":"a","tid":"b"}', "sale", None, "b"),
    (b'{"subid":"C1","payout":5,"payout":""}', "sale", "5", ""),
    # PHP's names at the top: a dot is an underscore.
    (b'{"sub.id":"C1","status":"lead"}', "lead", None, ""),
    # A nested field is no value of ours.
    (b'{"subid":"C1","status":"lead","order":{"status":"sale","tid":"x"}}', "lead", None, ""),
    (b'{"subid":"C1","status":"lead","tid":["x"]}', "lead", None, ""),
    (b'{"subid":"C1","payout":"7.25","currency":"usd"}', "sale", "7.25", ""),
    (b'{"subid":"C1","SubStatus":true,"Status":"lead"}', "lead", None, ""),
]


# Other types that senders use.
JSON_TYPES = [
    "application/json; charset=utf-8",
    "Text/JSON",
    "application/vnd.api+json",
    "text/plain",
    "application/octet-stream",
    "",
    "json",
]


@pytest.mark.parametrize(
    ("body", "status", "amount", "tid", "content_type"),
    [
        *((*row, JSON) for row in JSON_BODIES),
        *((*JSON_BODIES[0], content_type) for content_type in JSON_TYPES),
    ],
)
def test_a_json_object_is_read_like_a_form(
    client: Client, body: bytes, status: str, amount: str | None, tid: str, content_type: str
) -> None:
    client.click("C1")

    assert post(client, body, content_type).verdict == "recorded"

    [made] = client.conversions("C1")
    assert (made.status, made.amount, made.tid) == (status, amount, tid)
    stored, stored_type = read_body(client)
    assert stored is not None
    assert stored.strip().startswith((b"{", b"\xef\xbb\xbf"))
    assert stored_type == (content_type or None)


def test_words_of_json_are_words_and_a_null_status_is_no_sale(client: Client) -> None:
    client.click("C1")

    approved = post(client, b'{"subid":"C1","status":true}', JSON, query="lead_status=true")
    unknown = post(client, b'{"subid":"C1","status":null}', JSON)

    assert (approved.verdict, unknown.verdict) == ("recorded", "unmapped")
    assert [c.status for c in client.conversions("C1")] == ["lead"]


def test_the_query_beside_json_counts_first(client: Client) -> None:
    # D02.
    client.click("C1")

    post(
        client,
        b'{"click_id":"C1","payout":"10","status":"1"}',
        JSON,
        query="sale_status=1&rejected_status=2",
    )
    post(client, b'{"subid":"C1","status":"sale"}', JSON, query="status=rejected")

    [made] = client.conversions("C1")
    assert (made.status, made.previous_status, made.amount) == ("rejected", "sale", "10")


def test_a_form_beside_a_query_that_says_what_words_mean(client: Client) -> None:
    # Q01.
    client.click("C1")
    for status, verdict in (("1", "recorded"), ("1", "repeated"), ("2", "updated")):
        body = f"subid=C1&tid=XX-1&payout=1.00&status={status}".encode()
        answer = post(client, body, FORM, query="sale_status=1&rejected_status=2")
        assert answer.verdict == verdict

    [made] = client.conversions("C1")
    assert (made.status, made.previous_status, made.amount) == ("rejected", "sale", "1")


FORMS = [
    # D03: no type at all; D04: sendBeacon with a string. D56: each of them with GET, too.
    ("", b"subid=C1&status=lead&payout=3"),
    ("text/plain;charset=UTF-8", b"subid=C1&status=lead&payout=3"),
    ("text/plain", b"subid=C1&status=lead&payout=3\r\n"),
    # An HTML form with enctype="text/plain".
    ("text/plain", b"subid=C1\r\nstatus=lead\r\npayout=3\r\n"),
    # The types of libraries that know no type, and invalid types.
    ("application/octet-stream", b"subid=C1&status=lead&payout=3"),
    ("*/*", b"subid=C1&status=lead&payout=3"),
    ("form", b"subid=C1&status=lead&payout=3"),
    # Q02, and a form's type on JSON, as `curl -d` sends it; and the other way round.
    ("application/x-www-form-urlencoded;charset=UTF-8", b"subid=C1&status=lead&payout=3"),
    (FORM, b'{"subid":"C1","status":"lead","payout":3}'),
    (JSON, b"subid=C1&status=lead&payout=3"),
    # JSON that was serialised twice.
    (JSON, json.dumps(json.dumps({"subid": "C1", "status": "lead", "payout": 3})).encode()),
    ("", json.dumps("subid=C1&status=lead&payout=3").encode()),
    # Raw letters and blanks, as they are.
    ("", "subid=C1&status=lead&payout=3&name=Jürgen Groß".encode()),
    # multipart, with a nested name, a file, a part of a type of its own.
    (
        MULTIPART,
        multipart(('name="subid"', "C1"), ('name="status"', "lead"), ('name="payout"', "3")),
    ),
    (
        'Multipart/Form-Data; boundary="X"',
        multipart(
            ('name="subid"', "C1"),
            ('name="f"; filename="a.csv"\r\nContent-Type: text/csv', "subid=other"),
            ('name="status"\r\nContent-Type: text/plain; charset=utf-8', "lead"),
            ('name="payout"', " 3 "),
            ('name="a[b]"', "x"),
        ),
    ),
]


# A string that says nothing of ours.
@pytest.mark.parametrize("body", [b'"hello"', b'"', b'""', b'"\\ud83d"', b'"[1, 2]"'])
def test_a_json_string_of_anything_is_stored_as_it_came(client: Client, body: bytes) -> None:
    answer = post(client, body, JSON)

    assert answer.verdict == "invalid"
    assert read_body(client) == (body, JSON)
    assert client.postbacks()[0].warnings != []


@pytest.mark.parametrize(("content_type", "body"), FORMS)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_form_is_read_whatever_it_is_called(
    client: Client, content_type: str, body: bytes, method: str
) -> None:
    client.click("C1")

    answer = post(client, body, content_type, method=method)

    assert answer.verdict == "recorded"
    [made] = client.conversions("C1")
    assert (made.status, made.amount, made.tid) == ("lead", "3", "")


PACKINGS: list[tuple[str, Callable[[bytes], bytes], bool]] = [
    # D05. The last value: whether there is a warning.
    ("gzip", pack_gzip, False),
    ("deflate", zlib.compress, False),
    ("deflate", raw_deflate, False),
    ("gzip, X-GZIP", lambda body: pack_gzip(pack_gzip(body)), False),
    ("deflate , gzip", lambda body: pack_gzip(zlib.compress(body)), False),
    # Two members, one behind the other, and blocks filled up.
    ("gzip", lambda body: pack_gzip(body[:5]) + pack_gzip(body[5:]) + bytes(9), False),
    ("identity", bytes, False),
    # Packed without a header; unpacked by a proxy that left the header.
    ("", pack_gzip, True),
    ("gzip", bytes, True),
    ("br", bytes, True),
]


@pytest.mark.parametrize(("encoding", "pack", "warns"), PACKINGS)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b"subid=C1&status=lead&payout=3"),
        ("", b"subid=C1&status=lead&payout=3"),
        (JSON, b'{"subid":"C1","status":"lead","payout":3}'),
        (MULTIPART, multipart(('name="subid"', "C1"), ('name="status"', "lead"))),
    ],
)
def test_a_body_is_read_however_it_is_packed(
    client: Client,
    content_type: str,
    body: bytes,
    encoding: str,
    pack: Callable[[bytes], bytes],
    warns: bool,
) -> None:
    client.click("C1")
    headers = {"content_encoding": encoding} if encoding else {}

    answer = post(client, pack(body), content_type, **headers)

    assert answer.verdict == "recorded"
    assert [c.status for c in client.conversions("C1")] == ["lead"]
    [kept] = client.postbacks()
    assert (kept.warnings != []) == warns
    # The stored body is unpacked.
    assert read_body(client)[0] in {None, body}


def test_files_are_left_out_with_a_warning(client: Client) -> None:
    file = ('name="subid"; filename="subid.txt"', "C2")
    post(client, multipart(('name="subid"', "C1"), file, ('name="tid"', "1")), MULTIPART)

    [kept] = client.postbacks()
    assert (kept.subid, kept.query) == ("C1", "subid=C1&tid=1")
    assert kept.warnings == ["1 files in the body were left unread"]


def test_what_a_form_says_stands_in_the_query_alone(client: Client) -> None:
    post(client, b"subid=C1&status=lead", "text/plain")
    assert read_body(client) == (None, None)

    # The query counts, and the body's value is not lost.
    post(client, b"subid=C2&status=lead", FORM, query="subid=C1")
    assert client.postbacks()[-1].query == "subid=C1&status=lead"
    assert read_body(client) == (b"subid=C2&status=lead", FORM)


UNREAD = [
    ("text/xml", b'<?xml version="1.0"?><postback subid="C1" status="sale"/>', {}),
    ("application/xml", b"<subid>C1</subid>", {}),
    ("application/soap+xml", b"<a>C1</a>", {}),
    ("application/msgpack", b"\x82\xa5subid\xa2C1", {}),
    ("text/plain", b"sale of C1, thank you", {}),
    ("text/plain", b"subid: C1\nstatus: sale\n", {}),
    ("", b"<img src='x?subid=C1'>", {}),
    ("", b"\x00\x01\x02=", {}),
    (JSON, b'{"subid":"C1","payout":{payout}}', {}),
    (JSON, b'{"subid":"C1"', {}),
    (JSON, b"{'subid':'C1'}", {}),
    (JSON, b"5", {}),
    (JSON, b'["C1"]', {}),
    (JSON, b"[" * 60000, {}),
    (JSON, b'{"a":' * 9000 + b"1" + b"}" * 9000, {}),
    (MULTIPART, b"subid=C1", {}),
    (MULTIPART, multipart(('name="subid"', "C1"))[:-7], {}),
    ("multipart/form-data", multipart(('name="subid"', "C1")), {}),
    ("multipart/mixed; boundary=X", multipart(('name="subid"', "C1")), {}),
    (FORM, b"\x1b\x2a\x00", {"content_encoding": "br"}),
    (JSON, b"(\xb5/\xfd\x04\x00", {"content_encoding": "zstd"}),
    (FORM, pack_gzip(b"subid=C1&payout=100")[:-9], {"content_encoding": "gzip"}),
    (FORM, pack_gzip(b"subid=C1") + b"\x01", {"content_encoding": "gzip"}),
    (FORM, pack_gzip(b"subid=C1"), {"content_encoding": "gzip, gzip, gzip"}),
    (FORM, pack_gzip(b"") * 9, {"content_encoding": "gzip"}),
]


@pytest.mark.parametrize(("content_type", "body", "headers"), UNREAD)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_cannot_be_read_is_stored_as_it_came_with_a_warning(
    client: Client, content_type: str, body: bytes, headers: Mapping[str, str], method: str
) -> None:
    client.click("C1")

    answer = post(client, body, content_type, method=method, **headers)

    assert (answer.status, answer.verdict) == (200, "invalid")
    assert client.postbacks()[-1].warnings != []
    assert read_body(client) == (body, content_type or None)
    assert client.conversions() == []


def test_a_body_that_says_nothing_spoils_no_query(client: Client) -> None:
    client.click("C1")

    bodies = [(b"", FORM), (b"", JSON), (b"\r\n", ""), (b"{}", JSON), (b"x", "a/b")]
    for body, content_type in bodies:
        post(client, body, content_type, query="subid=C1&status=lead&payout=5")

    assert [c.amount for c in client.conversions("C1")] == ["5"]
    assert [p.verdict for p in client.postbacks()] == ["recorded", *["repeated"] * 4]
    assert [len(p.warnings) for p in client.postbacks()] == [0, 0, 0, 0, 1]
    stored = [row["body"] for row in client.rows("SELECT body FROM postbacks ORDER BY id")]
    assert stored == [None, None, None, b"{}", b"x"]


def test_what_unpacks_to_more_than_is_read_is_a_413(client: Client) -> None:
    for body, encoding in (
        (pack_gzip(bytes(LIMIT + 1)), "gzip"),
        (pack_gzip(b"x" * LIMIT) + pack_gzip(b"x"), "gzip"),
        (zlib.compress(bytes(10**7)), "deflate"),
        (pack_gzip(pack_gzip(bytes(10**7))), "gzip, gzip"),
    ):
        assert post(client, body, FORM, content_encoding=encoding).status == 413

    assert post(client, b"x" * (LIMIT + 1), JSON).status == 413
    assert post(client, b"x" * (LIMIT + 1), JSON, method="GET").status == 413
    assert client.postbacks() == []
    assert post(client, pack_gzip(b"x" * LIMIT), "a/b", content_encoding="gzip").status == 200
    assert read_body(client) == (b"x" * LIMIT, "a/b")


def test_no_more_than_the_bound_is_unpacked(client: Client) -> None:
    import tracemalloc  # noqa: PLC0415

    bomb = pack_gzip(bytes(60_000_000))
    assert len(bomb) < LIMIT
    client.click("C1")

    tracemalloc.start()
    assert post(client, bomb, FORM, content_encoding="gzip").status == 413
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2_000_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"%s":{%s}}' % (b"k" * 30000, b",".join(b'"%d":1' % number for number in range(3000))),
        b'{"a":[' + b"[]," * 20000 + b"[]]}",
        b'{"a":' * 80 + b"1" + b"}" * 80,
        b"{" + b",".join(b'"a%d":1' % number for number in range(6000)) + b"}",
        multipart(*((f'name="a{number}"', "1") for number in range(900))),
    ],
)
def test_a_body_of_too_many_fields_is_read_within_bounds_and_stored(
    client: Client, body: bytes
) -> None:
    content_type = MULTIPART if body.startswith(b"--") else JSON
    post(client, body, content_type, query="subid=C1")

    [kept] = client.postbacks()
    assert len(kept.query) < 4 * LIMIT
    assert read_body(client) == (body, content_type)
    assert (kept.warnings != []) == (content_type == JSON)


def test_a_key_in_a_body_is_hidden_whatever_the_body_is(client: Client) -> None:
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in POSTBACK_KEY)
    for body, content_type in (
        (json.dumps({"subid": "C1", "url": f"/{POSTBACK_KEY}/postback"}).encode(), JSON),
        (f'{{"subid":"C1","a":{{"{escaped}":"{escaped}"}}}}'.encode(), JSON),
        (json.dumps({"subid": "C1", "url": POSTBACK_KEY}).encode("utf-16"), JSON),
        (multipart(('name="subid"', "C1"), ('name="key"', POSTBACK_KEY)), MULTIPART),
        (f"<a>{POSTBACK_KEY}</a>".encode(), "text/xml"),
        (b"x", f"text/{POSTBACK_KEY}"),
        (f"a={POSTBACK_KEY}".encode(), "text/plain"),
    ):
        post(client, body, content_type)
        post(client, pack_gzip(body), content_type, content_encoding="gzip")
    post(client, b"\x00", FORM, content_encoding=POSTBACK_KEY)

    for row in client.rows("SELECT * FROM postbacks"):
        text = " ".join(
            value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for value in row.values()
        )
        assert POSTBACK_KEY not in text
        assert escaped not in text
        assert "***" in text


def test_a_parked_json_postback_is_applied_when_its_click_comes(client: Client) -> None:
    body = '{"subid":"C1","payout":12.50,"tid":"Ж","order":{"id":7}}'.encode()
    assert post(client, body, JSON, query="sale_status=x").verdict == "parked"

    client.click("C1")

    [made] = client.conversions("C1")
    assert (made.status, made.amount, made.tid) == ("sale", "12.5", "Ж")
    [kept] = client.postbacks()
    assert kept.settled_verdict == "recorded"
    assert read_body(client) == (body, JSON)


def test_equal_json_is_the_same_postback_and_a_later_one_of_another_body_is_not(
    receiver_with: ReceiverWith,
) -> None:
    client = receiver_with(unreject="yes")
    client.click("C1")
    for status in ("sale", "rejected", "sale"):
        body = json.dumps({"subid": "C1", "tid": "T", "status": status, "payout": 5}).encode()
        post(client, body, JSON)
    assert [c.status for c in client.conversions("C1")] == ["rejected"]

    post(client, b'{"subid":"C1","tid":"T","status":"sale","payout":6}', JSON)

    assert [(c.status, c.amount) for c in client.conversions("C1")] == [("sale", "6")]


MENDED = [
    # D62: PHP arrays in a form.
    (
        FORM,
        b"venda%5Bsrc%5D=C1&venda%5Bvalor%5D=97.00&venda%5Bstatus%5D=Finalizada",
        ["venda[src]=subid", "venda[valor]=payout"],
        "97",
    ),
    (FORM, b"venda[src]=C1&venda[valor]=97.00", ["venda[src]=subid", "venda[valor]=payout"], "97"),
    (FORM, b"v.1[a b]=C1&v%5B%5D=1&v[]=97", ["v_1[a b]=subid", "v[1]=payout"], "97"),
    # D06: JSON within a field; nested in it; a list in it; in a field with brackets of its own.
    (
        FORM,
        b"AwinTransactionPush=%7B%22transactionId%22%3A24%2C%22commission%22%3A%220.67%22%2C"
        b"%22clickRef%22%3A%22C1%22%7D",
        ["AwinTransactionPush[clickRef]=subid", "AwinTransactionPush[commission]=payout"],
        "0.67",
    ),
    (FORM, b'p={"a":{"b":["C1",{"c":0.50}]}}', ["p[a][b][0]=subid", "p[a][b][1][c]=payout"], "0.5"),
    (FORM, b'p[x]={"id":"C1","v":4}', ["p[x][id]=subid", "p[x][v]=payout"], "4"),
    (
        FORM,
        b'p=[{"id":"C1","v":4}]',
        ["p[0][id]=subid", "p[0][v]=payout"],
        "4",
    ),
    # A JSON body: nested, a list at the top, JSON within a string.
    (JSON, b'{"data":{"click":"C1","sum":4.50}}', ["data[click]=subid", "data[sum]=payout"], "4.5"),
    (JSON, b'[{"id":"C1","sum":4.50}]', ["0[id]=subid", "0[sum]=payout"], "4.5"),
    (JSON, b'{"d":"{\\"id\\":\\"C1\\",\\"sum\\":4}"}', ["d[id]=subid", "d[sum]=payout"], "4"),
    (JSON, '{"данные":{"клик":"C1"}}'.encode(), ["данные[клик]=subid"], None),
    (
        MULTIPART,
        multipart(('name="venda[src]"', "C1"), ('name="venda[valor]"', "97.00")),
        ["venda[src]=subid", "venda[valor]=payout"],
        "97",
    ),
]


@pytest.mark.parametrize(("content_type", "body", "renames", "amount"), MENDED)
def test_replay_reaches_nested_fields(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    content_type: str,
    body: bytes,
    renames: list[str],
    amount: str | None,
) -> None:
    client.click("C1")
    assert post(client, body, content_type).verdict == "invalid"
    words = [word for rename in renames for word in ("--rename", rename)]

    dry = run(client, capsys, "replay", "--verdict", "invalid", *words, "--dry-run", "--json")
    assert dry.objects[0]["what"] == "added"
    ran = run(client, capsys, "replay", "--verdict", "invalid", *words, "--json")

    assert (ran.status, ran.objects[0]["verdict"]) == (0, "recorded")
    [summary] = ran.err.splitlines()
    assert summary.startswith("postback: What changed: sales 0 -> 1")
    [made] = client.conversions("C1")
    assert (made.status, made.amount) == ("sale", amount)
    again = run(client, capsys, "replay", "--verdict", "invalid", *words, "--json")
    assert (again.status, again.objects[0]["what"]) == (0, "left")


@pytest.mark.parametrize(
    ("content_type", "body", "name"),
    [
        (FORM, b"venda[src]=C1", "venda[src]"),
        (JSON, b'{"data":{"click":"C1"}}', "data[click]"),
        (FORM, b"push=%7B%22ref%22%3A%22C1%22%7D", "push[ref]"),
    ],
)
def test_a_postback_without_click_id_names_its_nested_fields(
    client: Client, content_type: str, body: bytes, name: str
) -> None:
    post(client, body, content_type)
    post(client, body, content_type, query="subid=C1&status=lead")

    first, second = client.postbacks()
    assert f"'{name}'" in " ".join(first.warnings)
    assert second.warnings == []


def test_replay_says_so_when_no_field_has_such_a_name(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    post(client, b"venda[src]=C1&venda[valor]=97.00", FORM)

    words = ("--rename", "venda[value]=payout", "--rename", "venda[src]=subid")
    ran = run(client, capsys, "replay", "--verdict", "invalid", *words)

    assert ran.status == 1
    assert (
        "no postback has a field 'venda[value]'; the nearest that came: 'venda[valor]'" in ran.err
    )
    assert "venda[src]'" not in ran.err.partition("field")[2].partition(";")[0]


def test_log_shows_a_body_to_scripts(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    post(client, b'{"subid":"C1"}', JSON)
    post(client, b"\xff<a>\x00", "text/xml")

    first, second = run(client, capsys, "log", "--json").objects
    assert (first["body"], first["body_type"]) == ('{"subid":"C1"}', JSON)
    assert second["body"] == "\ufffd<a>\x00"
    assert run(client, capsys, "log").status == 0


# --- Where the `?` is missing ------------------------------------------------------------------

MISADDRESSED = [
    # D49, escaped once and twice, with a slash, with no sign at all.
    "postback&subid=C1&status=sale&payout=5",
    "postback%3Fsubid=C1&status=sale&payout=5",
    "postback%253Fsubid=C1&status=sale&payout=5",
    "postback%26subid=C1&status=sale&payout=5",
    "postback/&subid=C1&status=sale&payout=5",
    "postback/%3fsubid=C1&status=sale&payout=5",
    "postback/subid=C1&status=sale&payout=5",
    "postbacksubid=C1&status=sale&payout=5",
    # A later `?`, and slashes in a value.
    "postback&subid=C1&status=sale?payout=5",
    "postback&subid=C1&status=sale&payout=5&return=https://x.example/a/b",
]


@pytest.mark.parametrize("rest", MISADDRESSED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_address_without_its_question_mark_is_stored_as_invalid(
    client: Client, capsys: pytest.CaptureFixture[str], rest: str, method: str
) -> None:
    client.click("C1")
    path, _, query = rest.partition("?")

    answer = post(client, b"", query=query, path=f"/{POSTBACK_KEY}/{path}", method=method)

    assert (answer.status, answer.verdict) == (200, "invalid")
    assert "?" in answer.reason
    assert client.conversions() == []
    [kept] = client.postbacks()
    assert (kept.verdict, kept.subid, kept.original_status) == ("invalid", "C1", "sale")
    assert "? between the address" in (kept.reason or "")
    # Nothing is lost: an operator books it.
    assert run(client, capsys, "replay", "--verdict", "invalid").status == 0
    assert [(c.status, c.amount) for c in client.conversions("C1")] == [("sale", "5")]


def test_the_pixel_and_clicks_without_their_question_mark(client: Client) -> None:
    client.click("C1")
    for key in (POSTBACK_KEY, PIXEL_KEY):
        pixel = client.get(f"/{key}/postback.gif&subid=C1&status=lead")
        assert (pixel.verdict, pixel.headers["Content-Type"]) == ("invalid", "image/gif")
    click = client.get(f"/{CLICK_KEY}/click&subid=C2")
    assert (click.status, click.verdict) == (200, "invalid")
    assert "?" in click.text

    assert [(p.source, p.verdict) for p in client.postbacks()] == [("pixel", "invalid")] * 2
    assert [row["subid"] for row in client.rows("SELECT subid FROM clicks")] == ["C1"]


def test_a_path_is_not_decoded_again(client: Client) -> None:
    client.get(f"/{POSTBACK_KEY}/postback&subid=a%2541&status=lead")

    assert [p.subid for p in client.postbacks()] == ["a%41"]


def test_return_is_answered_there_too_and_head_stores_nothing(client: Client) -> None:
    path = f"/{POSTBACK_KEY}/postback&subid=C1&return=OK"
    assert client.get(path).text == "OK"
    assert client.request(path, method="HEAD").verdict == "invalid"
    assert len(client.postbacks()) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/wrong/postback&subid=C1",
        f"/{PIXEL_KEY}/postback&subid=C1",
        f"/{CLICK_KEY}/postback&subid=C1",
        f"/{POSTBACK_KEY}/postbacks",
        f"/{POSTBACK_KEY}/postback;subid=C1",
        f"/{POSTBACK_KEY}/postback/more",
        f"/{POSTBACK_KEY}/click&subid=C1",
        f"/{POSTBACK_KEY}&subid=C1",
        f"/x/{POSTBACK_KEY}/postback&subid=C1",
        "/postback&subid=C1",
        "//postback&subid=C1",
    ],
)
def test_under_no_right_key_or_name_it_is_the_404_of_all(client: Client, path: str) -> None:
    answer = client.get(path)

    assert (answer.status, answer.body) == (404, client.get("/nowhere").body)
    assert client.postbacks() == []


# --- HEAD ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "subid=C1&status=sale&payout=5&currency=eur",
        "subid=C1&payout=oops&cost=1&currency=gbp",
        "subid=late&status=lead&tid=1",
        "subid=C1&currency=LEAD&payout=1",
        "",
    ],
)
@pytest.mark.parametrize("path", ["postback", "postback.gif"])
@pytest.mark.parametrize("settings", [{}, {"unknown_subid": "accept"}])
def test_head_has_the_headers_of_get(
    receiver_with: ReceiverWith, query: str, path: str, settings: dict[str, str]
) -> None:
    client = receiver_with(**settings)
    client.click("C1")
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, tid, verdict, reason)"
        " VALUES ('2026-03-02T11:00:00.000Z', 'http', 'subid=late&status=sale&tid=1', 'late', '1',"
        " 'parked', '')"
    )
    url = f"/{POSTBACK_KEY}/{path}?{query}"
    before = client.postbacks(), client.snapshot(), client.rows("SELECT * FROM clicks")

    head = client.request(url, method="HEAD")

    assert (client.postbacks(), client.snapshot(), client.rows("SELECT * FROM clicks")) == before
    assert dict(head.headers) == dict(client.get(url).headers)


# --- A real server -------------------------------------------------------------------------------


def test_a_server_hands_over_bodies_of_every_shape(tmp_path: Path) -> None:
    write_config(tmp_path, {"unknown_subid": "accept"})
    packed = pack_gzip(b"subid=C2&status=lead")
    as_json = b'{"subid":"C3","payout":12.50}'
    with live_server(tmp_path) as server:
        for number, (head, body) in enumerate(
            [
                ("GET", b"subid=C1&status=lead"),
                (f"POST,Content-Type: {FORM},Content-Encoding: gzip", packed),
                (f"POST,Content-Type: {JSON}", as_json),
                ("GET,Transfer-Encoding: chunked", b"b\r\nsubid=C4&a=\r\n0\r\n\r\n"),
                ("POST,Content-Type: text/xml", b"<subid>C5</subid>"),
            ],
            1,
        ):
            method, *headers = head.split(",")
            if "chunked" not in head:
                headers.append(f"Content-Length: {len(body)}")
            lines = [f"{method} /{POSTBACK_KEY}/postback HTTP/1.1", "Host: h", *headers]
            request = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body
            expected = b"invalid" if b"xml" in request else b"recorded"
            assert b"X-Postback-Result: " + expected in server.send(request), number
