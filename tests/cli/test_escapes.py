"""Text of senders on a terminal: letters stay, control and invisible characters become escapes."""

import json
import sys
import unicodedata

import pytest
from conftest import Client
from hypothesis import given
from hypothesis import strategies as st

from postbackd.bulk.formulas import unguard_formula
from postbackd.cli import entry as cli
from postbackd.cli.sanitize import guard_formula_except_amounts
from postbackd.escapes import escape_controls, escape_controls_in_json, visible_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Чай 茶 😀", "plain Чай 茶 😀"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\tb\nc\rd\0", r"a\tb\nc\rd\x00"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\u200b\ufeff\u2028", r"\u200b\ufeff\u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud83d", r"\ud83d"),
    ],
)
def test_what_a_terminal_would_obey_is_made_visible(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


# Signs of category Cf that are visible: they are written around or before digits.
SEEN = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2}
SEEN |= {0x110BD, 0x110CD}
# Invisible characters whose category is that of a letter, a mark or a sign.
UNSEEN = [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0xFFFC, 0x16FE4, 0x1D159]
UNSEEN += [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x2065]


def list_unseen() -> list[str]:
    """List all control characters and invisible letters."""
    categories = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    every = range(sys.maxunicode + 1)
    found = [code for code in every if unicodedata.category(chr(code)) in categories]
    return [chr(code) for code in {*found, *UNSEEN} - SEEN]


@pytest.mark.parametrize("around", [("a", "b"), (" ", " "), ("Ч", "я"), ("0", "0")])
def test_two_texts_that_look_alike_are_told_apart(around: tuple[str, str]) -> None:
    texts = {letter: letter.join(around) for letter in list_unseen()}

    hidden = {ascii(letter) for letter, text in texts.items() if escape_controls(text) == text}
    hidden_in_lines = {ascii(one) for one, text in texts.items() if visible_lines(text) == text}

    assert hidden == set()
    # Those are our own, in a log.
    assert hidden_in_lines == {r"'\n'", r"'\t'"}


def test_json_has_the_same_letters_as_escapes_that_a_program_undoes() -> None:
    text = "".join(f"a{letter}" for letter in list_unseen())
    line = json.dumps({"subid": text}, ensure_ascii=False)

    shown = escape_controls_in_json(line)

    assert json.loads(shown) == {"subid": text}
    assert escape_controls(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",
        "क्\u200dष",
        "👨\u200d👩\u200d👧 👩🏽\u200d🚀 🏴\u200d☠\ufe0f",
        "❤\ufe0f ❤\ufe0f\u200d🔥 ☎\ufe0e ©\ufe0f ‼\ufe0f",
        "1\ufe0f\u20e3 #\ufe0f\u20e3",
        "e\u0301 ё a\u0328\u0301",
        "1\xa0234,50 a\u3000b",
    ],
)
def test_what_does_something_where_it_stands_stays(text: str) -> None:
    assert escape_controls(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("c1\u200d", r"c1\u200d"),
        ("c\u200c1", r"c\u200c1"),
        ("😀\u200d", r"😀\u200d"),
        ("c1\ufe0f", r"c1\ufe0f"),
        ("\ufe0fc1", r"\ufe0fc1"),
        ("❤\ufe0f\ufe0f", "❤\ufe0f\\ufe0f"),
        ("c1\xa0", r"c1\xa0"),
        ("\u3000c1\u2009", r"\u3000c1\u2009"),
    ],
)
def test_what_does_nothing_where_it_stands_is_shown(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


# Formulas in a pipe.


def print_log(client: Client, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    assert cli.main(["log", "--config", str(client.directory / "config.ini.php")]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]


@pytest.mark.parametrize(
    "value",
    ["=1+1", "+1", "-x", "@SUM(A1)", "=cmd|' /C calc'!A0", "＝1", "＋1", "－1", "＠1", "'=1"],
)
def test_no_text_in_a_pipe_is_a_formula_and_it_comes_back(
    client: Client, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    client.app.get("/s3cret-key-of-the-tests/postback", {"subid": value, "from": value})

    [[_, network, subid, *_]] = print_log(client, capsys)

    assert (network, subid) == (f"'{value}", f"'{value}")
    assert unguard_formula(subid) == value


@pytest.mark.parametrize("amount", ["-3", "-12.5 EUR", "12.5 EUR"])
def test_an_amount_below_zero_is_a_number_in_a_pipe(
    client: Client, capsys: pytest.CaptureFixture[str], amount: str
) -> None:
    number, _, currency = amount.partition(" ")
    client.send(f"subid=c1&payout={number}&currency={currency}")

    [cells] = print_log(client, capsys)

    assert cells[4] == (amount if currency else f"{amount} USD")


@given(st.text(st.sampled_from("'=+-@1 E\\R")))
def test_any_cell_of_a_pipe_comes_back(cell: str) -> None:
    assert unguard_formula(guard_formula_except_amounts(cell)) == cell
