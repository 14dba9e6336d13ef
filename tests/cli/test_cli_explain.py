"""`postback explain`: what a postback would do now, step by step, and nothing written."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from cli_calls import Ran, Terminal, call_on_terminal, call_process, without_styles
from conftest import CLICK_KEY, PIXEL_KEY, POSTBACK_KEY, Client, ReceiverWith
from hypothesis import given
from hypothesis import strategies as st
from test_cli_replay import read_files

from postbackd.cli import entry as cli
from postbackd.explain.addresses import Pasted, UnclearError
from postbackd.explain.parameters import read_parts
from postbackd.explain.pasted import read_pasted
from postbackd.intake.booking import BookingOptions, parse_stored
from postbackd.intake.query import SUBID_NAMES, store_query


def explain(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    config = str(client.directory / "config.ini.php")
    status = cli.main(["explain", *words, "--config", config])
    captured = capsys.readouterr()
    return Ran(status, captured.out, captured.err)


def tell(client: Client, capsys: pytest.CaptureFixture[str], pasted: str) -> dict[str, Any]:
    """Return the one object that `--json` prints."""
    ran = explain(client, capsys, pasted, "--json")
    assert (ran.status, ran.err) == (0, "")
    [told] = ran.objects
    return told


STREAM = [
    "subid=c1&status=lead&tid=t1&payout=1&sub_id_3=x",
    "clickid=c1&status=sale&tid=t1&revenue=10&currency=eur&from=net",
    "subid=c1&status=sale&tid=t1&payout=11&currency=XXX",
    "subid=c1&status=sale&tid=t2&payout=5&cost=1",
    "subid=c1&status=approved&sale_status=approved&tid=t3&payout=5.5&return=OK",
    "subid=c1&status=rejected&tid=t2",
    "subid=c1&status=lead&tid=t2",
    "subid=c2&status=rebill",
    "subid=c2&payout=oops",
    "subid=unknown&payout=3",
    "status=sale",
    "subid=c1&status=strange",
    "subid=c1&status=test&ignore=test",
    "subid=c1&status={status}&tid=[tid]",
    "subid=c2&payout=3&currency=zzz&tid=t9",
    f"subid=c2&tid=t10&{'x&' * 998}&&payout=3",
]
TIMES = {"created_at", "updated_at", "sale_at"}


@pytest.mark.parametrize("settings", [{}, {"unknown_subid": "accept", "repeats": "update"}])
def test_what_it_says_is_what_comes(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], settings: dict[str, str]
) -> None:
    client = receiver_with(**settings)
    client.clock.now = datetime.now(UTC)
    client.click("c1", offer="O1", campaign="C1", cost_model="cpa", sub_id_1="a")
    client.click("c2")
    client.allow_rebills("O1")
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at)"
        " VALUES ('EUR', '2026-01-01', 'ecb', '1.1', '')"
    )
    for query in STREAM:
        before = {c.id: c for c in client.conversions()}
        told = tell(client, capsys, query)
        answer = client.send(query)
        row = client.postbacks()[-1]
        assert (told["verdict"], told["reason"]) == (row.verdict, row.reason), query
        assert told["warnings"] == row.warnings
        assert told["answer"] == {
            "status": answer.status,
            "body": answer.text,
            "result": answer.verdict,
            "reason": answer.reason or None,
        }
        writes = {name: change["becomes"] for name, change in told["writes"].items()}
        if row.verdict not in {"recorded", "updated"}:
            assert writes == {}
            continue
        [now] = [c for c in client.conversions() if c.id == row.conversion_id]
        was = before.get(now.id)
        changed = {
            name: value
            for name, value in vars(now).items()
            if name != "id" and value != getattr(was, name, None)
        }
        assert {n: v for n, v in writes.items() if n not in TIMES} == {
            n: v for n, v in changed.items() if n not in TIMES
        }
        assert writes.keys() - {"updated_at"} == changed.keys() - {"updated_at"}


def test_it_writes_nothing(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead")
    client.send("subid=c2&status=lead")
    before = read_files(client)

    for pasted in ("subid=c1&payout=3", "subid=c2", "x", f"/{POSTBACK_KEY}/postback?subid=c1"):
        tell(client, capsys, pasted)

    assert read_files(client) == before


def test_what_is_left_unread_is_reported(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")

    told = tell(client, capsys, f"subid=c1&{'x&' * 1100}payout=3")

    parts = {part["name"]: part["meaning"] for part in told["parts"]}
    assert parts["…"] == "102 parameters after the first 1000 are left unread, as by PHP"
    assert parts["payout"] == "did not come: the amount is unknown"
    assert told["warnings"] == [parts["…"]]


def test_the_steps_are_lines_that_a_script_can_read_too(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="O1")

    ran = explain(
        client, capsys, "clickid=c1&x=1&payout=2&revenue=3&payout=4&tid[]=7&return=&cost={c}"
    )

    titles, *rows = [line.split("\t") for line in ran.lines]
    assert titles == ["step", "part", "meaning"]
    assert rows[:8] == [
        ["read", "clickid=c1", "the click id, as subid"],
        ["read", "x=1", "an unknown name; stored with the postback"],
        ["read", "payout=2", "left out: the name comes again, and the last one counts"],
        ["read", "revenue=3", "not asked: payout counts before it"],
        ["read", "payout=4", "the amount"],
        ["read", "tid[]=7", "left out: no plain parameter, as PHP reads names"],
        ["read", "return=", "empty: counts as not sent"],
        [
            *("read", "cost={c}"),
            "counts as not sent: cost is '{c}', a macro that the network did not replace",
        ],
    ]
    assert ["click", "c1"] in [row[:2] for row in rows]
    assert ["verdict", "recorded", "the first conversion of the click, as sale"] in rows
    assert ["write", "payout", "4"] in rows
    assert ["answer", "200", "Success"] in rows


KEYS = [
    (f"https://t.example/{POSTBACK_KEY}/postback?subid=c1", "in force", 200),
    (f"/{POSTBACK_KEY}/postback/?subid=c1", "in force", 200),
    (f"{POSTBACK_KEY}/postback?subid=c1", "in force", 200),
    ("/old-key-for-good/postback?subid=c1", "old", 200),
    ("/old-key-until-then/postback?subid=c1", "old", 200),
    ("/old-key-that-is-over/postback?subid=c1", "ended", 404),
    (f"/{POSTBACK_KEY.upper()}/postback?subid=c1", "other case", 404),
    (f"/{POSTBACK_KEY[:-1]}/postback?subid=c1", "misspelt", 404),
    (f"/{POSTBACK_KEY.replace('-', '%252D')}/postback?subid=c1", "encoded", 404),
    (f"/tracker/{POSTBACK_KEY}/postback?subid=c1", "prefixed", 404),
    ("/some-other-tracker-of-yours/postback?subid=c1", "unknown", 404),
    (f"/postback/{POSTBACK_KEY}?subid=c1", "none", 404),
    (f"/{POSTBACK_KEY}?subid=c1", "none", 404),
    ("/postback?subid=c1", "none", 404),
    (f"/{PIXEL_KEY}/postback.gif?subid=c1&status=lead", "pixel", 200),
    (f"/{PIXEL_KEY}/postback?subid=c1", "pixel", 404),
    ("/***/postback?subid=c1", "hidden", 200),
    (
        f'1.2.3.4 - - [2/Mar/2026] "GET /{POSTBACK_KEY}/postback?subid=c1 HTTP/1.1" 200',
        "in force",
        200,
    ),
    (f"subid=c1&ref=http://h/{POSTBACK_KEY}/postback?x", None, 200),
    (f"subid=c1&note={POSTBACK_KEY.upper()}", None, 200),
    (POSTBACK_KEY, None, 200),
]


@pytest.mark.parametrize(("pasted", "state", "status"), KEYS)
def test_the_key_is_judged_and_never_shown(
    receiver_with: ReceiverWith,
    capsys: pytest.CaptureFixture[str],
    pasted: str,
    state: str | None,
    status: int,
) -> None:
    ends = ("-for-good", "-until-then until 2999-12-31", "-that-is-over until 2020-01-01")
    client = receiver_with(postback_key_old=", ".join(f"old-key{end}" for end in ends))
    client.click("c1")

    told = tell(client, capsys, pasted)
    shown = explain(client, capsys, pasted).out

    assert (told["key"] and told["key"]["state"]) == state
    assert told["answer"]["status"] == status
    assert told["is_kept"] == (status == 200)
    everything = (json.dumps(told) + shown).lower()
    for key in (POSTBACK_KEY, POSTBACK_KEY[:-1], PIXEL_KEY, "old-key", "some-other-tracker"):
        assert key not in everything


def test_behind_the_right_key_it_would_be_booked(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")

    told = tell(client, capsys, "/wrong/postback?subid=c1&payout=3")

    assert (told["is_kept"], told["verdict"]) == (False, "recorded")
    assert told["writes"]["payout"] == {"was": None, "becomes": "3"}


def test_what_was_parked_for_a_click_that_has_come_is_applied_first(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.clock.now = datetime.now(UTC)
    client.send("subid=late&status=lead&tid=t1")
    client.write("INSERT INTO clicks (subid) VALUES ('late')")

    told = tell(client, capsys, "subid=late&status=sale&tid=t1")

    assert [conversion["status"] for conversion in told["conversions"]] == ["lead"]
    assert told["rule"].startswith("this conversion is a lead")
    assert told["verdict"] == "updated"


def test_the_pixels_key_takes_leads_only(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")

    told = tell(client, capsys, f"/{PIXEL_KEY}/postback.gif?subid=c1")

    assert (told["verdict"], told["answer"]["body"]) == ("refused", "(43 bytes of GIF)")
    assert told["rule"].startswith("under the pixel's key")


HINTS = [
    ("aff_sub=Click-17&payout=3", "aff_sub contains the known click 'Click-17'"),
    ("aff_sub=Click-17", "`postback replay --verdict invalid --rename aff_sub=subid --dry-run`"),
    ("subid=junk&x=c1&from=n 1", "parked --network 'n 1' --rename x=subid --dry-run`"),
    ("note=sub:Click-17;x", "something around it: subid= must have the click id alone"),
    ("subid=junk&note=sub:Click-17;x", "note contains the known click 'Click-17'"),
    ("subid=CLICK-17", "click 'Click-17' is known, and differs in upper and lower case only"),
    ("subid=CLICK-17", "`postback replay --subid CLICK-17 --set subid=Click-17 --dry-run`"),
    ("subid=(Click-17)", "subid contains the known click 'Click-17' with something around it"),
    ("subid=Click-170000-ab", "click 'Click-170000-abcdef' is known, and begins so"),
    ("subid=c1&payout=5¤cy=eur", "'¤cy' was '&currency'"),
    ("subid=c1&payout=5%A4cy=eur", "'¤cy' was '&currency'"),
    ("subid=c1&amp;payout=5", "'&amp;' is how HTML writes '&'"),
    ("subid=c1&payout=12,50", "has a decimal comma: the network should send 12.50"),
    ("subid=c1&payout=1%2C234.50", "commas between thousands: the network should send 1234.50"),
    ("subid=c1&payout=12.50,3.00", "is 2 amounts joined by a comma"),
    ("subid=c1&payout=x10.5", "would be read as 10.5 without the text around it"),
    ("subid=c1&payout={payout}", "a macro came unreplaced"),
    ("Subid=c1", "'Subid' is not 'subid': names are in lower case"),
    ("subid=c1&state=x", "`postback replay --since 7d --rename state=status --dry-run`"),
    ("subid=c1&status=lead&amount=5", "write payout= in its place in the network's URL"),
    ("subid=c1&status=lead&txid=5", "'txid' is what others call 'tid'"),
    ("subid=c1&status=spam&rejected_status=spam;duplicate", "rejected_status=spam,duplicate"),
    ("subid=c1&status=spam&ignore=a|Spam", "ignore has '|' between its words: write commas"),
    ("subid=c1&status=fdp&deposit_status=fdp,x", "'deposit_status' is no list here"),
    ("subid=c1&status=fdp&deposit_status=fdp,x", "use sale_status for its words"),
    ("subid=c1&status=r&registration_status=r", "use lead_status for its words"),
    ("subid=c1?payout=10&status=rejected", "should read 'subid=c1&payout=10'"),
    ("subid=c1&sale-status=x", "'sale-status' is not 'sale_status'"),
    ("subid=c1&curency=eur", "'curency' is unknown to us, and may be 'currency'"),
    ("subid=c1&status=Approved&from=net", "mapped to sale: put 'sale_status=Approved'"),
    ("subid=c1&status=Approved&from=net", "`postback replay --verdict unmapped --network net"),
    ("subid=c1&status=Ok&from=net", "mapped to sale: put 'sale_status=Ok'"),
    ("subid=c1&status=gone&from=net", "mapped to rejected: put 'rejected_status=gone'"),
    ("subid=c1&status=zur%C3%BCck&from=net", "mapped to rejected: put"),
    ("subid=c1&status=taken+back&from=net", "mapped to rejected: put"),
    ("subid=c1&status=approved&from=other", "for a sale, sale_status=approved; and correct"),
    ("subid=c1&status=Declined&from=net", "for a rejection, rejected_status=Declined; and"),
    ("subid=c1&status=hold", "for a lead, lead_status=hold; and correct"),
    (
        "subid=c1&status=odd",
        "sale_status=odd, for one on hold lead_status=, for one taken back rejected_status=",
    ),
    ("subid=c2&tid=t2", "`postback offers set 'O 1' --allow-rebills`"),
    ("/gone-key-of-the-tests/postback?subid=c1", "the address that `postback url` prints"),
    ('"HEAD /x/postback?subid=c1 HTTP/1.1"', "it came as HEAD, which records nothing"),
    ("subid=c1&x=" + "y" * 9000, "longer than 8190 bytes"),
]


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    """A tracker with some clicks, and a network that has mapped its word once."""
    client = receiver_with(postback_key_old="gone-key-of-the-tests until 2020-01-01")
    for subid in ("c1", "c2", "Click-17", "Click-170000-abcdef"):
        client.click(subid, offer="O 1")
    client.send(
        "subid=c2&status=approved&sale_status=ok,approved&rejected_status=gone,zur%C3%BCck,taken+back"
        "&from=net&tid=t1"
    )
    return client


@pytest.mark.parametrize(("pasted", "hint"), HINTS)
def test_did_you_mean(
    tracker: Client, capsys: pytest.CaptureFixture[str], pasted: str, hint: str
) -> None:
    assert hint in "\n".join(tell(tracker, capsys, pasted)["did_you_mean"])


def test_names_mangled_by_html_are_reported_once(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    hints = tell(tracker, capsys, "subid=c1&payout=5%C2%A4cy=eur")["did_you_mean"]

    assert len(hints) == 1


def test_what_is_right_draws_no_hints(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    # With a letter beyond ASCII, unescaped.
    query = "subid=c1&status=sale&payout=12.5&currency=eur&tid=t7&from=net&aff=Click-17&sub_id_1=ü"

    assert tell(tracker, capsys, query)["did_you_mean"] == []


# Parameters put together at random: they are described one by one, and must agree with the reader
# of postbacks, which reads all of them.
NAMES = st.sampled_from(
    [*SUBID_NAMES, "payout", "revenue", "profit", "tid", "status", "from", "x", "amp;tid", "Payout"]
)
VALUES = st.sampled_from(["c1", "", "{x}", "12.50", "12,50", " 7 ", "%20", "[a]", "sale", "%zz"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_the_parts_come_to_what_the_whole_is_read_as(pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={value}" for name, value in pairs)
    terms = BookingOptions("USD")
    whole = parse_stored(query, terms)

    told = {
        part.meaning.partition(",")[0]: parse_stored(f"{part.name}={part.value}", terms)
        for part in read_parts(query, terms)
        if part.value is not None
    }

    assert whole.incoming.subid == (
        told["the click id"].incoming.subid if "the click id" in told else None
    )
    assert whole.incoming.amount == (
        told["the amount"].incoming.amount if "the amount" in told else None
    )
    assert whole.incoming.tid == (
        told["the transaction id"].incoming.tid if "the transaction id" in told else ""
    )
    assert ("the network's name" in told) == (whole.network is not None)


@pytest.mark.parametrize(
    ("text", "pasted"),
    [
        ("subid=c1", Pasted("subid=c1")),
        ("  'subid=c1&a=b' ", Pasted("subid=c1&a=b")),
        ("subid=<x>", Pasted("subid=<x>")),
        ("?subid=c1", Pasted("subid=c1", b"/")),
        ("http://h/k/postback?a=b", Pasted("a=b", b"/k/postback")),
        ("https://u:p@h:8443/k%20k/postback", Pasted("", b"/k k/postback")),
        ("http://h", Pasted("", b"/")),
        ("http://[::1/k/postback?a=[x]", Pasted("a=[x]", b"/k/postback")),
        ("curl -s http://h/k/postback?a=b", Pasted("a=b", b"/k/postback")),
        ("a=http://h/k", Pasted("a=http://h/k")),
        ("/k/postback?a=/b?c", Pasted("a=/b?c", b"/k/postback")),
        ("k/postback?a=b", Pasted("a=b", b"/k/postback")),
        ("k/postback", Pasted("", b"/k/postback")),
        (
            'x "POST /k/postback?a=\\xD0\\x96 HTTP/1.0" 200',
            Pasted("a=Ð\x96", b"/k/postback", "POST"),
        ),
        ('"HEAD /k/postback"', Pasted("", b"/k/postback", "HEAD")),
    ],
)
def test_whatever_is_pasted_is_found(text: str, pasted: Pasted) -> None:
    assert read_pasted(text)._replace(notes=()) == pasted


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_nothing_that_is_pasted_breaks_it(text: str) -> None:
    with suppress(UnclearError):
        pasted = read_pasted(text)

        assert read_parts(store_query(pasted.query), BookingOptions("USD"))


def test_standard_input_keeps_the_key_out_of_the_shells_history(client: Client) -> None:
    client.click("c1")
    url = f"\ufeff/{POSTBACK_KEY}/postback?subid=c1&status=lead\r\n"

    ran = call_process(client.directory, "explain", "-", "--json", stdin=url.encode())

    assert (ran.objects[0]["key"]["state"], ran.objects[0]["verdict"]) == ("in force", "recorded")


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        (b"", "the text is empty: paste the URL"),
        (b"subid=c1\nsubid=c2\n", "2 lines came: paste one postback, on one line"),
        ("subid=c1".encode("utf-16-le"), "the input contains NUL bytes"),
    ],
)
def test_what_is_no_line_is_refused(client: Client, stdin: bytes, sentence: str) -> None:
    client.get("/health")

    ran = call_process(client.directory, "explain", "-", stdin=stdin)

    assert (ran.status, ran.out) == (1, "")
    assert sentence in ran.err


def test_the_address_for_clicks_takes_no_postbacks(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/health")

    ran = explain(client, capsys, f"/{CLICK_KEY}/click?subid=c1")

    assert ran.status == 1
    assert "this is the address for clicks" in ran.err


def test_on_a_terminal_it_asks_for_the_paste_and_ctrl_c_ends_it(client: Client) -> None:
    client.get("/health")
    terminal = Terminal(client.directory, "explain", "-")
    try:
        terminal.wait_for("paste the URL or the query")
        terminal.press_ctrl_c()
        ran = terminal.finish()
    finally:
        terminal.kill()

    assert ran.status == 130
    assert "Traceback" not in ran.out


def test_a_hostile_query_moves_no_cursor_and_fits_a_narrow_terminal(client: Client) -> None:
    client.click("c1")

    pasted = "subid=c1&x%1b[31m=%1b]0;boo&status=%e2%80%ae&from=" + "n" * 300
    ran = call_on_terminal(client.directory, "explain", pasted, columns=20)

    lines = without_styles(ran.out).splitlines()
    assert max(map(len, lines)) <= 20
    assert "\x1b" not in "".join(lines)
    assert "\u202e" not in ran.out


def test_a_part_in_another_case_is_reported_with_the_name_it_is_read_as() -> None:
    meanings = [
        part.meaning for part in read_parts("Payout=5&tid=1&amp;tid=2&tid=", BookingOptions("USD"))
    ]

    assert meanings[:4] == [
        "the amount, read as payout",
        "left out: the name comes again, and the last one counts",
        "the transaction id",
        "left out: empty, and the name came before with a value",
    ]


def test_what_is_taken_with_a_warning_does_not_count_as_not_sent(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for query in ("subid=c1?payout=5", "subid=a_{x}", "subid=c1&lead_status=rejected"):
        told = explain(tracker, capsys, query).out

        assert "\nwarning" in told
        assert "counts as not sent" not in told
