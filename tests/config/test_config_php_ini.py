"""config.ini.php is read as PHP reads it, and odd lines are named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree import find_data

from postbackd.config.php_ini import MAX_BRACKETS, IniError, is_plain, parse_ini

# Measured with PHP 8.2: parse_ini_string($text, true, INI_SCANNER_NORMAL). false: PHP refuses it.
VECTORS = [
    pytest.param(vector["ini"], vector["php"], id=vector["name"])
    for vector in json.loads(find_data("php_ini_vectors.json").read_text("utf-8"))
]
# The same, for the odd corners; ${WHERE} was /here in the environment.
MEASURED = json.loads(find_data("php_ini_measured.json").read_text("utf-8"))
ENVIRON = {"WHERE": "/here"}


def read(text: str) -> Any:
    try:
        return parse_ini(text, ENVIRON).values
    except IniError:
        return False


def as_php_counts(value: Any) -> Any:
    """PHP has one kind of array: its JSON shows 0, 1, 2 as a list, and nothing as []."""
    if isinstance(value, list):
        return {str(index): as_php_counts(inner) for index, inner in enumerate(value)}
    if isinstance(value, dict):
        return {key: as_php_counts(inner) for key, inner in value.items()}
    return value


@pytest.mark.parametrize(("ini", "php"), VECTORS)
def test_a_file_reads_as_php_reads_it(ini: str, php: Any) -> None:
    assert read(ini) == (php or {} if php is not False else False)


def test_odd_corners_read_as_measured_with_php() -> None:
    wrong = [ini for ini, php in MEASURED if as_php_counts(read(ini)) != as_php_counts(php)]

    assert len(MEASURED) > 800
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = b=c", 1),
        ("\n\na = b=c\n\n", 3),
        ("a = 1\r\nb = (2\r\n", 2),
        ("a = 1\rb = !\r", 2),
        ('[s]\na = "never closed\nb = 1\nc = 2\n', 2),
        ("[s]\na = 'never closed\nb = 1\n", 2),
        ('a = "over\ntwo lines"\nb = ^1', 3),
        ("[s]\n[never closed\na = 1", 2),
        ("[s]\na[k = 1\n", 2),
        ("[s]\na[k]\nb = 1", 2),
        ("a = 1\n= 2", 2),
        ("a = 1\nno = 2", 2),
        ("a = 1\nnull = 2", 2),
        ("a = 1\nb{c = 2", 2),
        ('a = 1\n"b" = 2', 2),
        ("a = 1\nb = ${", 2),
        ("a = 1\nb = ${x;y}", 2),
        ("a = 1\nb = x(y)", 2),
        ("a = 1\nb = yes no", 2),
        ('a = 1\nb = yes "x"', 2),
        ("a = 1\nb = )", 2),
        ("a = 1\nb = ;", 2),
        ("a = 1\nb = " + "(" * (MAX_BRACKETS + 1), 2),
    ],
)
def test_what_php_refuses_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(IniError, match=rf"^line {line}: ") as refusal:
        parse_ini(text, {})

    assert refusal.value.line == line


@pytest.mark.parametrize(
    "text", ["k = s3cret=x", "k = s3cret(", 'k = "s3cret', "k = yes s3cret", "k = s3cret yes"]
)
def test_a_refusal_shows_nothing_of_the_value(text: str) -> None:
    with pytest.raises(IniError) as refusal:
        parse_ini(text, {})

    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("\nk = !s3cret", 2, "calculates"),
        ("\nk = (s3cret)", 2, "calculates"),
        ("\nk = s3cret|2", 2, "calculates"),
        ("\nk = 6 & 3", 2, "calculates"),
        ("\nk = ~5", 2, "calculates"),
        ("\nk = 5^3", 2, "calculates"),
        ("\nk = E_ALL", 2, "constant"),
        ("\nk = PHP_VERSION", 2, "constant"),
        ("\nk = yes", 2, '"1"'),
        ("\nk = None", 2, "empty"),
        ("\nk = s3cret${X}", 2, "environment variable"),
        ('\nk = "s3cret${X}"', 2, "environment variable"),
        ("[s]\nk = 1\n[s]", 3, "[s] stands for the second time"),
        ("s = 1\n[s]", 2, "earlier key"),
        ("k = 1\nk = 2", 2, "'k' stands for the second time"),
        ("\nk = s3cret\t", 2, "blanks at the end"),
        ("\nk = s3cret # mine", 2, "'#' begins no comment"),
        ('\nk = "s3cret" # mine', 2, "the quotes end before"),
        ("\nk = s3cret's", 2, "apostrophe"),
        ("\nk = s3cret$\n", 2, "swallows"),
        ("\nk = s3cret$", 2, "drops the '$'"),
        ("\npostback_key s3cret", 2, "no '='"),
        ("\nk = s3cret\0", 2, "NUL"),
        ("\ufeffk = s3cret", 1, "byte order mark"),
    ],
)
def test_what_php_mangles_is_said_with_its_line(text: str, line: int, said: str) -> None:
    notes = parse_ini(text, {}).warnings

    assert [(note.line, said in note.sentence) for note in notes] == [(line, True)]
    assert "s3cret" not in notes[0].sentence


@pytest.mark.parametrize(
    "text",
    [
        ";<?php exit; ?>\n[s]\nk = \"a!b(c)|d&e~f^g\" ; fine\nl = 'x'\nm = plain\n",
        "<?php exit; ?>\n# not a comment, but harmless\nk =\n[t]\n[u]\nk = ''\n",
        "k = a{b}c[d]/e@f:g%20\n",
    ],
)
def test_an_ordinary_file_draws_no_note(text: str) -> None:
    assert parse_ini(text, {}).warnings == ()


def test_every_key_knows_its_line_and_where_its_value_stands() -> None:
    text = 'top = 1\r\n; c\r\n[s]\r\na = "x\r\ny" ; c\r\n\r\nb = z\r\n'

    ini = parse_ini(text, {})

    assert [ini.line(*key) for key in [(None, "top"), ("s", "a"), ("s", "b")]] == [1, 4, 7]
    assert [text[e.start : e.end] for e in ini.entries] == ["1", '"x\r\ny"', "z"]
    assert ini.line("s", "c") is None


def test_a_section_that_php_forgets_has_no_lines() -> None:
    ini = parse_ini("[s]\nlost = 1\n[s]\nkept = 2", {})

    assert ini.line("s", "lost") is None
    assert ini.line("s", "kept") == 4


def test_php_counts_in_32_bits_whatever_the_length_of_a_number() -> None:
    assert parse_ini("k = 0|" + "9" * 5000, {}).values == {"k": "-1"}


def test_a_variable_comes_from_the_environment() -> None:
    assert parse_ini('a = "x${NAME}y"', {"NAME": "-"}).values == {"a": "x-y"}


def test_a_representation_of_what_was_read_shows_no_value() -> None:
    assert "s3cret" not in repr(parse_ini("[s]\nk = s3cret", {}))


# Texts made of what has a meaning to PHP find more than texts of any characters.
PIECES = [*"ab=;[]\"'\\$!|&~^(){}# \t\n\r\0", "${", "${WHERE}", "[s]\n", "k = ", "yes", "E_ALL"]
PHP_TEXT = st.lists(st.sampled_from(PIECES)).map("".join)


@given(st.text() | PHP_TEXT)
def test_no_text_raises_anything_but_a_refusal(text: str) -> None:
    last_line = text.count("\n") + text.count("\r") + 1

    try:
        line = max((note.line for note in parse_ini(text, {}).warnings), default=1)
    except IniError as refusal:
        line = refusal.line

    assert 1 <= line <= last_line


@given(st.text(st.characters(exclude_characters='"\\$\0', exclude_categories=["Cs"])))
def test_a_quoted_key_is_read_as_it_stands(key: str) -> None:
    assert parse_ini(f'[system]\npostback_key = "{key}"\n', {}).values == {
        "system": {"postback_key": key}
    }


@given(st.text("abcEL_YNyesno019./-@") | st.sampled_from(["yes", "NULL", "E_ALL", "PHP_OS", ""]))
def test_a_plain_key_may_go_without_quotes(key: str) -> None:
    ini = parse_ini(f"k = {key}\n", {})

    assert not is_plain(key) or (ini.values == {"k": key} and not ini.warnings)
