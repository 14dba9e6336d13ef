"""Config files of editors, word processors and chats, and with keys of other programs.

Each row is one of a kind; the files go through the real command.
"""

import codecs
from pathlib import Path

import pytest
from cli_calls import Ran

from postbackd.cli import entry as cli

GUARD = ";<?php exit; ?>\n"
KEY = "k7Hq2xWm9TzB4vNc"
TEXT = f'{GUARD}[system]\npostback_key = "{KEY}"\n'


def run(directory: Path, capsys: pytest.CaptureFixture[str], content: bytes, *words: str) -> Ran:
    """Run a command with a config file of these bytes."""
    file = directory / "config.ini.php"
    file.write_bytes(content)
    status = cli.main([*words, "--config", str(file)])
    told = capsys.readouterr()
    return Ran(status, told.out, told.err)


ENCODED = [
    ("utf-16", "UTF-16"),  # D65: with a mark
    ("utf-16-le", "UTF-16"),
    ("utf-16-be", "UTF-16"),
    ("utf-32", "UTF-32"),
    ("utf-32-le", "UTF-32"),
    ("utf-32-be", "UTF-32"),
]


@pytest.mark.parametrize("words", [("key", "show"), ("key", "rotate"), ("log",), ("url",)])
@pytest.mark.parametrize(("encoding", "name"), ENCODED)
def test_an_encoding_is_called_by_its_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    encoding: str,
    name: str,
    words: tuple[str, ...],
) -> None:
    ran = run(tmp_path, capsys, TEXT.encode(encoding), *words)

    assert (ran.status, ran.out) == (1, "")
    assert f"the file is {name}: save it as UTF-8" in ran.err


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("\n", "\r\n"), f"; комментарий\n{TEXT}"])
def test_an_encoding_is_known_without_its_mark_whatever_the_first_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    content = codecs.BOM_UTF16_BE + text.encode("utf-16-be")

    assert "the file is UTF-16" in run(tmp_path, capsys, content, "key", "show").err


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"PK\x03\x04\x14\x00", "a document of a word processor, or an archive"),
        (b"{\\rtf1\\ansi ;<?php exit; ?>}", "rich text (RTF)"),
        (b"<!DOCTYPE html><html><body>[system]", "a web page"),
        (b"\x1f\x8b\x08\x00", "packed with gzip"),
    ],
)
def test_a_file_of_another_program_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, name: str
) -> None:
    assert (
        f"the file is {name}: save it as plain text"
        in run(tmp_path, capsys, content, "key", "show").err
    )


REFUSED = [
    # Where PHP refuses the line for another reason.
    (f"postback_key = “{KEY}!”", "It holds “ (U+201C), ” (U+201D), typographic quotes"),
    (f"postback_key = “{KEY}(x)”", "typographic quotes"),
    (f"postback_key ＝ \"{KEY}\"", "＝ (U+FF1D), full-width characters"),
    (f"postback_key = &quot;{KEY}&quot;", "HTML's"),
    # In the name.
    (f"postback_key\u00a0= {KEY}", "U+00A0, blanks that are none to PHP"),
    (f"postback\u2013key = {KEY}", "– (U+2013), a dash that an editor made longer"),
    (f"\u200bpostback_key = {KEY}", "U+200B, characters that nobody sees"),
    (f"“postback_key” = {KEY}", "typographic quotes"),
    (f"ｐｏｓｔｂａｃｋ＿ｋｅｙ = {KEY}", "full-width characters"),
    (f"postback_key ＝ {KEY}", "full-width characters"),
    # A Cyrillic o, a Greek one.
    (f"p\u043estback_key = {KEY}", "\u043e (U+043E), letters that only look like Latin ones"),
    (f"pοstback_kеy = {KEY}", "letters that only look like Latin ones"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_what_an_editor_did_to_the_key_is_named_and_the_key_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    ran = run(tmp_path, capsys, f"{GUARD}[system]\n{line}\n".encode(), "url")

    assert ran.status == 1
    assert "ine 3" in ran.err
    assert said in ran.err
    assert KEY not in ran.err


MARKED = [
    # Around the value, with straight quotes or without.
    (f"postback_key = “{KEY}”", "has typographic quotes (“ ”)"),
    (f"postback_key = „{KEY}“", "has typographic quotes (“ „)"),
    (f"postback_key = «{KEY}»", "has typographic quotes (« »)"),
    (f"postback_key = ‘{KEY}’", "has typographic quotes (‘ ’)"),
    (f'postback_key = "“{KEY}”"', "has typographic quotes (“ ”)"),
    (f"postback_key = ”{KEY}”", "has typographic quotes (”)"),
    (f"postback_key = `{KEY}`", "has typographic quotes (`)"),
    # Invisible, in the value.
    (f'postback_key = "{KEY}\u200b"', "holds U+200B, which nobody sees"),
    (f"postback_key = {KEY}\u00a0", "holds U+00A0, which nobody sees"),
]


@pytest.mark.parametrize(("line", "said"), MARKED)
def test_check_names_what_an_editor_put_around_or_into_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    text = f"{GUARD}[system]\n{line}\n[rates]\nsource = none\n"

    ran = run(tmp_path, capsys, text.encode(), "check")

    assert any(f"line 3: [system] postback_key {said}" in line for line in ran.lines), ran.out
    assert KEY not in ran.out


def test_a_key_in_such_quotes_goes_on_working(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(tmp_path, capsys, f"{GUARD}[system]\npostback_key = “{KEY}”\n".encode(), "url")

    assert f"/%E2%80%9C{KEY}%E2%80%9D/postback" in ran.out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("currency = “EUR”", "[system] currency is '“EUR”'; write three letters"),
        ("public_url = «https://t.example»", "[system] public_url is '«https://t.example»'"),
        ("trusted_proxies = “none”", "[system] trusted_proxies is"),
        ("[postback]\nrepeats = “update”", "[postback] repeats is '“update”'"),
        ("[postback]\npark_days = ‘90’", "[postback] park_days is '‘90’'"),
        ("[rates]\nsource = „ecb“", "[rates] source is '„ecb“'"),
    ],
)
def test_a_value_that_is_refused_for_them_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    ran = run(tmp_path, capsys, f"{TEXT}{line}\n".encode(), "url")

    assert (ran.status, said in ran.err) == (1, True), ran.err
    assert "It has typographic quotes" in ran.err


def test_comments_and_keys_of_others_may_have_any_quotes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{TEXT}; “so it is”\n[db]\npassword = “x”\nname = «k»\n[redis]\nuri = “x”\n"

    ran = run(tmp_path, capsys, text.encode(), "key", "show")

    assert (ran.status, ran.lines[0], ran.err) == (0, KEY, "")


READ = [
    # Q10: as the original's installer and an editor of Windows leave it.
    f'\ufeff; <?php exit(); __halt_compiler(); ?>\r\n[system]\r\npostback_key = "{KEY}" ; ours\r\n'
    'salt = "x"\r\n[db]\r\nname = "k"\r\nprefix = "keitaro_"\r\n',
    f";<?php exit; ?>\n[system]\npostback_key = {KEY}\n;?>\n",  # Q10
]


@pytest.mark.parametrize("text", READ)
def test_a_key_of_the_original_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    ran = run(tmp_path, capsys, text.encode(), "key", "show")

    assert (ran.status, ran.lines) == (0, [KEY])


def test_a_colon_is_no_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Q11
    ran = run(tmp_path, capsys, f"{GUARD}postback_key: {KEY}\n".encode(), "key", "show")

    assert (ran.status, ran.out) == (1, "")
    assert "Line 2: there is no '=' here" in ran.err
    assert KEY not in ran.err


UNSAFE = [
    ("a b", "a blank"),
    (f"{KEY} ", "a blank"),  # Q16
    ("a%20b", "'%'"),
    ("a?b", "'?' or '#'"),
    ("a#b", "'?' or '#'"),
    ("a/b", "a slash"),
    ("ключ", "a letter beyond ASCII"),
    ("é", "a letter beyond ASCII"),
    (".", "nothing but a dot or two"),
    ("..", "nothing but a dot or two"),
    ("a\\tb", "a quote, bracket or other sign"),
    ("a{b}", "a quote, bracket or other sign"),
    ("a|b", "a quote, bracket or other sign"),
    ("a<b>", "a quote, bracket or other sign"),
    ("a\x01b", "a control character"),
    ("a b%c", "'%', a blank"),
]


@pytest.mark.parametrize(("unsafe", "said"), UNSAFE)
@pytest.mark.parametrize("name", ["postback_key", "postback_key_old", "pixel_key", "click_key"])
def test_check_warns_of_a_key_that_no_url_carries_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, unsafe: str, said: str
) -> None:
    if name == "postback_key_old" and " " in unsafe:
        pytest.skip("a blank ends an old key")
    first = "" if name == "postback_key" else f'postback_key = "{KEY}"\n'
    text = f'{GUARD}[system]\n{first}{name} = "{unsafe}"\n[rates]\nsource = none\n'

    ran = run(tmp_path, capsys, text.encode(), "check")

    [line] = [line for line in ran.lines if "breaks the Postback URL" in line]
    assert f"[system] {name} breaks the Postback URL, which cannot carry it as it is" in line
    assert said in line


@pytest.mark.parametrize("safe", [KEY, "a-b_c.d~e", "a+b", "a&b=c", "a;b", "a:b@c", "...", "a.b"])
def test_a_key_that_a_url_carries_draws_no_such_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], safe: str
) -> None:
    text = f'{GUARD}[system]\npostback_key = "{safe}"\n[rates]\nsource = none\n'

    assert "breaks" not in run(tmp_path, capsys, text.encode(), "check").out


# Keys in config files of the original and of similar programs.
PASSED = [
    "lang = en",  # D71
    "language = ru",
    "salt = x",
    "dp = x",
    "redis_uri = redis://127.0.0.1:6379/1",
    "timezone = Europe/Moscow",
    "draft_storage = redis",
    "cache_storage = files",
    "debug = 0",
]


@pytest.mark.parametrize("line", PASSED)
def test_old_keys_of_the_original_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    ran = run(tmp_path, capsys, f"{TEXT}{line}\n[rates]\nsource = none\n".encode(), "check")

    assert "unknown" not in ran.out


STRANGE = [
    ("system", "license = x", "[system] license is unknown here."),
    ("system", "admin_email = x", "[system] admin_email is unknown here."),
    ("system", "qwerty = x", "[system] qwerty is unknown here."),
    ("system", "license_key = x", "[system] license_key is unknown here."),
    ("system", "secret_key = x", "[system] secret_key is unknown here."),
    ("system", "ключ = x", "[system] ключ is unknown here."),
    ("postback", "rеbills = yes", "is unknown. It holds е (U+0435), letters that only look like"),
    ("system", "clik_key = x", "the nearest known key is [system] click_key"),
    ("system", "post_key = x", "the nearest known key is [system] postback_key"),
    ("postback", "mode = x", "[postback] mode is unknown here."),
    ("rates", "proxy = x", "[rates] proxy is unknown here."),
    # A slip is near enough.
    ("postback", "repeat = update", "the nearest known key is [postback] repeats"),
    ("postback", "decimal = yes", "the nearest known key is [postback] decimal_comma"),
    ("postback", "parkdays = 5", "the nearest known key is [postback] park_days"),
    ("system", "pixelkey = x", "the nearest known key is [system] pixel_key"),
    ("system", "publicurl = x", "the nearest known key is [system] public_url"),
    ("system", "Click-Key = x", "the nearest known key is [system] click_key"),
    ("rates", "sources = ecb", "the nearest known key is [rates] source"),
    ("postback", "public_url = x", "it belongs below [system]"),
]


@pytest.mark.parametrize(("section", "line", "said"), STRANGE)
def test_a_hint_is_given_where_a_key_is_near_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, line: str, said: str
) -> None:
    heading = "" if section == "system" else f"[{section}]\n"

    ran = run(tmp_path, capsys, f"{TEXT}{heading}{line}\n".encode(), "check")

    [told] = [line for line in ran.lines if "unknown" in line and "line" in line]
    assert said in told
