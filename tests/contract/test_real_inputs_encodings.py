"""Bytes that are no UTF-8: read in a fallback encoding, or stored unchanged, shown as U+FFFD."""

import json
import sqlite3

import pytest
from conftest import CLICK_KEY, Client, ReceiverWith
from hypothesis import given
from hypothesis import strategies as st

from postbackd.cli.entry import main
from postbackd.config.entries import ConfigError
from postbackd.config.settings import load
from postbackd.intake.query import read_fields, store_query
from postbackd.raw_text import give_bytes, has_stand_ins, is_single_byte, read_text, show_text

PAID, HELD = "Оплачен", "Ожидает"


def escape(text: str, encoding: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode(encoding))


@pytest.mark.parametrize("encoding", ["windows-1251", "koi8-r", "cp866"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_words_in_a_fallback_encoding_are_those_of_the_lists(
    receiver_with: ReceiverWith, encoding: str, method: str
) -> None:
    client = receiver_with(fallback_encoding=encoding)
    client.click("C1")
    # The lists were pasted as UTF-8, the network sends its own.
    lists = f"sale_status={escape(PAID.upper(), 'utf-8')}&lead_status={escape(HELD, 'utf-8')}"
    query = f"subid=C1&{lists}&status={escape(PAID, encoding)}&sub_id_1={escape('Ж', encoding)}"

    client.send(query) if method == "GET" else client.post("", query)

    [made] = client.conversions("C1")
    assert (made.status, made.original_status) == ("sale", PAID)
    assert made.sub_ids == {"sub_id_1": "Ж"}


def test_raw_bytes_names_and_cookies_are_read_so_too(receiver_with: ReceiverWith) -> None:
    client = receiver_with(fallback_encoding="latin-1")
    client.click("clé")

    client.send("status=lead", cookie="subid=cl%E9")
    client.send("subid=cl\xe9&status=sale")

    assert [p.verdict for p in client.postbacks()] == ["recorded", "updated"]
    assert [(c.subid, c.status) for c in client.conversions()] == [("clé", "sale")]
    assert read_fields("%E9=1", "latin-1") == {"é": "1"}


def test_what_waited_for_its_click_is_read_in_the_fallback(receiver_with: ReceiverWith) -> None:
    client = receiver_with(fallback_encoding="windows-1251")
    client.send("subid=%C6&status=lead&from=%C6")

    client.click("Ж")

    assert [(c.subid, c.network) for c in client.conversions()] == [("Ж", "Ж")]


def test_utf_8_goes_before_the_fallback(receiver_with: ReceiverWith) -> None:
    client = receiver_with(fallback_encoding="latin-1")
    client.click("C1")

    client.send("subid=C1&tid=%C3%A9&from=%C3%A9%E9")

    assert [(c.tid, c.network) for c in client.conversions("C1")] == [("é", "Ã©é")]


def test_two_words_never_become_one(client: Client) -> None:
    for subid in ("C1", "C2", "C3"):
        client.click(subid)
    paid, held = escape(PAID, "windows-1251"), escape(HELD, "windows-1251")
    lists = f"sale_status={paid}&rejected_status={held}"

    for subid, word in (("C1", paid), ("C2", held), ("C3", escape("Отменен", "windows-1251"))):
        client.send(f"subid={subid}&{lists}&status={word}")

    assert [(c.subid, c.status) for c in client.conversions()] == [
        ("C1", "sale"),
        ("C2", "rejected"),
    ]


def test_transaction_ids_clicks_and_sub_ids_stay_apart(client: Client) -> None:
    for subid in ("%FF", "%FE"):
        client.get(f"/{CLICK_KEY}/click?subid={subid}")
        client.send(f"subid={subid}&status=lead&tid=%E0&sub_id_1=%E2")
        client.send(f"subid={subid}&status=rejected&tid=%E1")
        client.send(f"subid={subid}&status=lead&tid=%E0")

    assert [p.verdict for p in client.postbacks()] == ["recorded", "recorded", "repeated"] * 2
    assert [c.status for c in client.conversions()] == ["lead", "rejected"] * 2
    assert len({c.subid for c in client.conversions()}) == 2


def test_a_postback_that_waits_is_read_as_the_live_one(client: Client) -> None:
    client.send("subid=%FF&status=lead&tid=%FE")
    client.send("status=sale", cookie="subid=%FF")

    client.get(f"/{CLICK_KEY}/click?subid=%FF")

    assert [p.settled_verdict for p in client.postbacks()] == ["recorded", "updated"]
    assert client.postbacks()[1].query == "status=sale&subid=%FF"


def test_everybody_is_shown_the_sign_for_it(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get(f"/{CLICK_KEY}/click?subid=a%FF")
    answer = client.send("subid=a%FF&status=b%FE&tid=c%FD&return=d%FC&payout=e%FB")
    client.send("subid=a%FF&status=lead&tid=c%FD&from=f%FA&sub_id_1=g%F9")
    monkeypatch.setenv("POSTBACK_CONFIG", str(client.directory / "config.ini.php"))

    assert answer.text == "d\ufffd"
    shown = []
    for command in ("log", "log --json", "conversions", "conversions --json", "conversions --csv"):
        assert main(command.split()) == 0
        shown.append(capsys.readouterr().out)
    main(["explain", "subid=a%FF&status=b%FE&tid=c%FD&payout=e%FB"])
    shown.append(capsys.readouterr().out)
    for text in shown:
        assert "a\ufffd" in text
        assert not has_stand_ins(text)
        assert "U0010fe" not in text
    assert "'b\ufffd'" in shown[0]
    assert json.loads(shown[3])["tid"] == "c\ufffd"


@pytest.mark.parametrize("name", ["subid", "tid", "status", "from", "sub_id_1", "campaign"])
def test_a_nul_within_a_value_is_no_end_of_it(client: Client, name: str) -> None:
    client.get(f"/{CLICK_KEY}/click?subid=a%00b&campaign=a%00b&sub_id_2=%00a%00b%00")

    client.send(f"subid=a%00b&status=lead&{name}=a%00b".replace("&campaign=a%00b", ""))

    kept = [
        row
        for table in ("clicks", "conversions_view", "postbacks", "campaigns")
        for row in client.rows(f"SELECT * FROM {table}")
    ]
    texts = [value for row in kept for value in row.values() if isinstance(value, str)]
    assert any("a\ufffdb" in text for text in texts)
    assert [text for text in texts if "\0" in text or "\\u0000" in text] == []
    [[sub_ids]] = [row.values() for row in client.rows("SELECT sub_ids FROM clicks")]
    assert json.loads(sub_ids)["sub_id_2"] == "a\ufffdb"


# --- Properties of all bytes ----------------------------------------------------------------


@given(st.binary(max_size=12))
def test_bytes_can_be_had_back(raw: bytes) -> None:
    text = read_text(raw)

    assert give_bytes(text) == raw
    assert show_text(text) == raw.decode("utf-8", "replace")
    with sqlite3.connect(":memory:") as db:
        assert db.execute("SELECT ?", (text,)).fetchone() == (text,)
    db.close()


@pytest.mark.parametrize("raw", [chr(0x10FEFF).encode(), b"\xff" + chr(0x10FE80).encode(), b"\xff"])
def test_a_sign_that_stands_for_a_byte_is_taken_for_its_own_bytes(raw: bytes) -> None:
    assert give_bytes(read_text(raw)) == raw
    assert len({read_text(chr(0x10FEFF).encode()), read_text(b"\xff")}) == 2


@given(st.binary(max_size=8))
def test_a_cookies_click_id_is_stored_as_its_bytes(raw: bytes) -> None:
    stored = store_query("", cookie_subid=read_text(raw))

    assert stored.isascii()
    assert give_bytes(read_fields(stored).get("subid", "")) == raw or raw.startswith(b"%")


@given(st.binary(max_size=12), st.sampled_from(["windows-1251", "latin-1", "cp1252", "koi8-r"]))
def test_a_fallback_never_raises(raw: bytes, encoding: str) -> None:
    text = read_text(raw, encoding)

    text.encode()


# --- The setting ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good", ["windows-1251", "CP1252", "latin-1", "ISO-8859-6", "koi8-r", "tis-620"]
)
def test_an_encoding_of_one_byte_a_character_is_taken(good: str) -> None:
    assert is_single_byte(good)


@pytest.mark.parametrize(
    "bad",
    [
        *("utf-8", "utf-16", "ascii", "gbk", "big5", "shift_jis", "euc-kr", "gb18030", "cp037"),
        *(
            "rot13",
            "base64",
            "idna",
            "punycode",
            "unicode_escape",
            "utf-7",
            "hex",
            "undefined",
            "raw_unicode_escape",
            "x",
            "../x",
        ),
    ],
)
def test_any_other_is_refused_with_a_sentence(receiver_with: ReceiverWith, bad: str) -> None:
    client = receiver_with(fallback_encoding=bad)

    with pytest.raises(ConfigError, match=r"line \d+.*fallback_encoding.*write 'windows-1251'"):
        load(client.directory / "config.ini.php")


@pytest.mark.parametrize("off", ["none", "None", ""])
def test_none_is_off(receiver_with: ReceiverWith, off: str) -> None:
    client = receiver_with(fallback_encoding=off)

    settings = load(client.directory / "config.ini.php")

    assert (settings.fallback_encoding, settings.warnings) == ("", ())
