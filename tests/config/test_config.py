"""What the settings in config.ini.php mean."""

import datetime
import importlib.metadata
import re
import subprocess
import sys
from dataclasses import fields, replace
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.config import settings as config
from postbackd.config.entries import KNOWN_KEYS, ConfigError
from postbackd.config.settings import OldKey, Settings, example_text, find_config, load

GUARD = ";<?php exit; ?>\n"
TODAY = datetime.date(2026, 3, 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.ini.php"


def written(file: Path, text: str) -> Settings:
    file.write_bytes((GUARD + text).encode("utf-8", "surrogateescape"))
    return load(file)


def with_line(section: str, line: str) -> str:
    """Make a file with a key on line 3 and one more line, on line 5."""
    heading = "" if section == "system" else f"[{section}]"
    return f"[system]\npostback_key = s3cret\n{heading}\n{line}\n"


# The key.


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[system]\npostback_key = "s3cret"\n', b"s3cret"),
        ("postback_key = s3cret\n", b"s3cret"),
        ("postback_key = above\n[system]\npostback_key = s3cret\n", b"s3cret"),
        ("postback_key = s3cret\n[other]\npostback_key = below\n", b"s3cret"),
        ("[a]\npostback_key = one\n[b]\npostback_key = s3cret\n[c]\nd = 1\n", b"s3cret"),
        ("[system]\npostback_key = ключ\n", "ключ".encode()),
        ("[system]\npostback_key = \udcffx\n", b"\xffx"),
        ("[system]\npostback_key = true\n", b"1"),
    ],
)
def test_the_key_is_found_where_the_original_finds_it(file: Path, text: str, key: bytes) -> None:
    assert written(file, text).postback_key == key


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "has no postback_key"),
        ("[system]\nsalt = x\n", None, "has no postback_key"),
        ("[system]\nPOSTBACK_KEY = x\n", None, "has no postback_key"),
        ('[system]\npostback_key = ""\n', 3, "is empty"),
        ("[system]\npostback_key =\n", 3, "is empty"),
        ("[system]\npostback_key = no\n", 3, "bare word 'no', which PHP reads as empty"),
        ("[system]\npostback_key = NULL\n", 3, "bare word 'NULL', which PHP reads as empty"),
        ("postback_key = off\n", 2, "bare word 'off', which PHP reads as empty"),
        ("[system]\npostback_key[] = s3cret\n", 3, "is written as a list"),
        ("[system]\npostback_key = s3cret=\n", 3, "'=' needs quotes"),
        ('[system]\npostback_key = "s3cret\n', 3, "never closed"),
    ],
)
def test_a_file_without_a_key_is_refused(
    file: Path, text: str, line: int | None, said: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        written(file, text)

    assert str(refusal.value).startswith(f"{file}, line {line}: " if line else f"{file} has no")
    assert said in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


def test_a_key_lost_to_a_second_section_is_explained(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"no postback_key.* Line 4: \[system\] stands for the"):
        written(file, "[system]\npostback_key = s3cret\n[system]\nsalt = x\n")


def test_old_keys_are_good_through_their_last_day(file: Path) -> None:
    settings = written(
        file,
        '[system]\npostback_key = "now"\n'
        'postback_key_old = "older until 2026-03-02, oldest until 2026-03-01 ,forever,"\n',
    )

    assert settings.old_keys == (
        OldKey(b"older", datetime.date(2026, 3, 2)),
        OldKey(b"oldest", datetime.date(2026, 3, 1)),
        OldKey(b"forever", None),
    )
    assert settings.postback_keys(TODAY) == (b"now", b"older", b"forever")
    assert settings.secrets() == (b"now", b"older", b"oldest", b"forever")


def test_old_keys_stand_beside_a_key_above_the_first_section(file: Path) -> None:
    settings = written(file, "postback_key = now\npostback_key_old = then\n")

    assert settings.postback_keys(TODAY) == (b"now", b"then")
    assert settings.warnings == ()


def test_every_key_is_masked(file: Path) -> None:
    settings = written(
        file,
        "[system]\npostback_key = a1\npostback_key_old = a2\npixel_key = a3\nclick_key = a4\n"
        "[rates]\napp_id = a5\n",
    )

    assert settings.secrets() == (b"a1", b"a2", b"a3", b"a4", b"a5")
    assert not re.search(r"a[1-5]\b", repr(settings))


def test_what_an_address_of_a_source_holds_of_keys_is_masked(file: Path) -> None:
    settings = written(
        file,
        "[system]\npostback_key = a1\n[rates]\n"
        'ecb_url = "https://us%40er:pa%2Fss@h/x?access_key=k%201&base=USD&Token=k2&key="\n',
    )

    assert settings.secrets() == (b"a1", b"us@er", b"pa/ss", b"k 1", b"k2")


def test_every_setting_that_no_repr_shows_is_masked(file: Path) -> None:
    """Whoever adds a secret hides it from repr, and learns here where else it is to be named."""
    settings = written(file, "[system]\npostback_key = a1\n")
    hidden = {f.name for f in fields(settings) if not f.repr}
    values: dict[str, Any] = {"rate_urls": {"ecb": "https://h/?key=secret-of-rate_urls"}}

    for name in hidden:
        secret = f"secret-of-{name}"
        kind = type(getattr(settings, name))
        value = values.get(name, secret.encode() if kind is bytes else secret)
        assert secret.encode() in replace(settings, **{name: value}).secrets()
    assert hidden >= {"postback_key", "pixel_key", "click_key", "app_id", "rate_urls"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pixel_key = s3cret", "pixel_key is also a postback key"),
        ("click_key = s3cret", "click_key is also a postback key"),
        ("pixel_key = 0ld\npostback_key_old = 0ld", "pixel_key is also a postback key"),
        ("click_key = 0ld\npostback_key_old = 0ld until 2020-01-01", "click_key is also a post"),
        ("click_key = 0ld\npixel_key = 0ld", "click_key is also the pixel_key"),
    ],
)
def test_each_key_must_be_its_own(file: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"line 4: \[system\] {said}") as refusal:
        written(file, f"[system]\npostback_key = s3cret\n{line}\n")

    assert not re.search("s3cret|0ld", str(refusal.value))


@pytest.mark.parametrize("key", ["x/y", "x?y", "x#y", "x y", "x\ty", "x\x01y", ".."])
def test_a_key_that_breaks_a_url_draws_a_warning(file: Path, key: str) -> None:
    settings = written(file, f'[system]\npostback_key = "{key}"\n')

    assert settings.postback_key == key.encode()
    assert len(settings.warnings) == 1
    assert settings.warnings[0].startswith("line 3: [system] postback_key breaks the Postback URL")
    assert key not in settings.warnings[0]


@pytest.mark.parametrize("key", ["e89bcbe", "a+b", "a@b:c", "7d2c-11e.x"])
def test_other_keys_draw_none(file: Path, key: str) -> None:
    assert written(file, f'[system]\npostback_key = "{key}"\n').warnings == ()


# The other settings.


def test_the_defaults(file: Path) -> None:
    settings = written(file, "[system]\npostback_key = k\n")

    assert settings == Settings(
        path=file,
        postback_key=b"k",
        old_keys=(),
        pixel_key=b"",
        click_key=b"",
        currency="USD",
        public_url="http://127.0.0.1:8000",
        public_url_is_set=False,
        trusted_proxies=(ip_network("127.0.0.1"), ip_network("::1")),
        timezone="UTC",
        db_path=file.with_name("postback.db"),
        unknown_subid="park",
        park_days=90,
        repeats="ignore",
        rebills=False,
        unreject=False,
        decimal_comma=False,
        fallback_encoding="",
        rate_sources=("ecb", "cbr"),
        rate_urls={},
        app_id="",
        max_change=Decimal("1.5"),
        logs_postbacks=False,
        anonymize_ip=False,
        warnings=(),
    )


@pytest.mark.parametrize(
    ("section", "line", "setting", "meaning"),
    [
        ("system", "pixel_key = p", "pixel_key", b"p"),
        ("system", "pixel_key = off", "pixel_key", b""),
        ("system", 'click_key = "c"', "click_key", b"c"),
        ("system", "currency = eur", "currency", "EUR"),
        ("system", 'timezone = "Europe/Berlin"', "timezone", "Europe/Berlin"),
        ("system", "timezone = +03:00", "timezone", "+03:00"),
        ("system", "timezone = ", "timezone", "UTC"),
        ("system", 'public_url = "https://t.example/"', "public_url", "https://t.example"),
        ("system", "public_url = http://[::1]:81/x/", "public_url", "http://[::1]:81/x"),
        ("system", 'public_url = "https://t.example"', "public_url_is_set", True),
        ("system", "trusted_proxies = 10.1.2.3/8", "trusted_proxies", (ip_network("10.0.0.0/8"),)),
        ("system", "trusted_proxies = none", "trusted_proxies", ()),
        ("system", 'trusted_proxies = "none"', "trusted_proxies", ()),
        ("db", "path = /srv/x.db", "db_path", Path("/srv/x.db")),
        ("postback", "unknown_subid = Accept", "unknown_subid", "accept"),
        ("postback", "park_days = 7", "park_days", 7),
        ("postback", 'park_days = ""', "park_days", 90),
        ("postback", "repeats = update", "repeats", "update"),
        ("postback", "rebills = yes", "rebills", True),
        ("postback", 'rebills = "yes"', "rebills", True),
        ("postback", "rebills = no", "rebills", False),
        ("postback", 'unreject = "On"', "unreject", True),
        ("postback", 'unreject = "0"', "unreject", False),
        ("rates", "source = none", "rate_sources", ()),
        ("rates", 'source = "none"', "rate_sources", ()),
        ("rates", 'source = "CBR, er-api, cbr"', "rate_sources", ("cbr", "er-api")),
        ("rates", "ecb_url = http://x/e.xml", "rate_urls", {"ecb": "http://x/e.xml"}),
        ("rates", 'er-api_url = "http://x/?a=b/"', "rate_urls", {"er-api": "http://x/?a=b/"}),
        ("rates", "er_api_url = http://x/", "rate_urls", {"er-api": "http://x/"}),
        ("rates", "app_id = 0123", "app_id", "0123"),
        ("rates", "max_change = 2", "max_change", Decimal(2)),
    ],
)
def test_a_setting_means(file: Path, section: str, line: str, setting: str, meaning: Any) -> None:
    settings = written(file, with_line(section, line))

    assert getattr(settings, setting) == meaning
    assert settings.warnings == ()


def test_the_database_stands_beside_the_config_file(file: Path) -> None:
    settings = written(file, with_line("db", "path = ../data/x.db"))

    assert settings.db_path == file.parent.parent / "data" / "x.db"


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        *((word, True) for word in ("yes", "on", "true", "1", '"yes"', '"ON"', '"true"', '"1"')),
        *((word, False) for word in ("no", "off", "false", "0", "none", "null", '"no"', '"0"')),
        ('""', False),
    ],
)
def test_a_switch_takes_the_words_of_php(file: Path, value: str, meaning: bool) -> None:
    settings = written(file, with_line("postback", f"decimal_comma = {value}"))

    assert settings.decimal_comma is meaning
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("section", "line", "said"),
    [
        ("postback", "park_days = x", "park_days is 'x'; write a whole number of days, 1 to 36500"),
        ("postback", "park_days = 0", "park_days is '0'; write"),
        ("postback", "park_days = -1", "park_days is '-1'; write"),
        ("postback", "park_days = 36501", "park_days is '36501'; write"),
        ("postback", "park_days = 1.5", "park_days is '1.5'; write"),
        ("postback", "park_days = ٣", "park_days is '٣'; write"),
        ("postback", "park_days = no", "park_days is the bare word 'no'"),
        ("postback", "unknown_subid = maybe", "is 'maybe'; write 'park' or 'accept'"),
        ("postback", "unknown_subid = no", "is the bare word 'no'"),
        ("postback", "repeats = all", "repeats is 'all'; write 'ignore' or 'update'"),
        ("postback", "decimal_comma = maybe", "is 'maybe'; write 'yes' or 'no'"),
        ("postback", "rebills = maybe", "is 'maybe'; write 'yes' or 'no'"),
        ("postback", "unreject = update", "is 'update'; write 'yes' or 'no'"),
        ("postback", "repeats[] = update", "is written as a list"),
        ("system", "currency = EURO", "currency is 'EURO'; write three letters"),
        ("system", "currency = off", "currency is the bare word 'off'"),
        ("system", "public_url = t.example", "public_url is 't.example'; write an address"),
        ("system", "public_url = ftp://t.example", "is 'ftp://t.example'; write"),
        ("system", 'public_url = "http://"', "is 'http://'; write"),
        ("system", 'public_url = "http://x:99999"', "is 'http://x:99999'; write"),
        ("system", 'public_url = "http://u:p@x"', "public_url is 'http://u:p@x'; write"),
        ("system", 'public_url = "http://x y"', "is 'http://x y'; write"),
        ("system", "trusted_proxies = 10.0.0.0/33", "'10.0.0.0/33' is no address or network"),
        ("system", 'trusted_proxies = "::1, proxy"', "'proxy' is no address or network"),
        ("system", "postback_key_old = a until 2026-13-01", "bad date '2026-13-01'"),
        ("system", "postback_key_old = a until 20261231", "bad date behind 'until'"),
        ("system", "postback_key_old = a until 0ld", "bad date behind 'until'"),
        ("system", "postback_key_old = a till 2026-12-31", "something else than KEY or KEY until"),
        ("rates", "source = ecb,nasa", "is 'ecb,nasa'; write 'none', or a comma list of 'ecb'"),
        ("rates", "source = yes", "is 'yes'; write 'none'"),
        ("rates", 'ecb_url = "x?app_id=0ld"', "ecb_url is 'x'; write an address"),
        ("rates", "max_change = 1", "max_change is '1'; write a number above 1"),
        ("rates", "max_change = NaN", "max_change is 'NaN'; write"),
    ],
)
def test_a_bad_value_is_refused_with_its_line(
    file: Path, section: str, line: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        written(file, with_line(section, line))

    assert str(refusal.value).startswith(f"{file}, line 5: [{section}] ")
    assert said in str(refusal.value)
    assert not re.search("s3cret|0ld", str(refusal.value))


# Warnings.


@pytest.mark.parametrize(
    ("section", "line", "said"),
    [
        ("postback", "park_day = 5", "[postback] park_day is unknown; the nearest known key is"),
        ("postback", "park_day = 5", "[postback] park_days"),
        ("system", "postback-key = x", "the nearest known key is [system] postback_key"),
        ("system", "park_days = 5", "it belongs below [postback]"),
        ("postbacks", "park_days = 5", "section [postbacks] is unknown; the nearest is [postback]"),
        ("qqq", "zzz = 5", "section [qqq] is unknown"),
        ("system", "# salt = x", "'#' begins no comment"),
        ("rates", "source = openexchangerates", "openexchangerates needs app_id"),
        ("system", "pixel_key = yes", 'is a bare word that PHP reads as "1"'),
    ],
)
def test_a_doubtful_line_draws_a_warning_that_names_it(
    file: Path, section: str, line: str, said: str
) -> None:
    warnings = written(file, with_line(section, line)).warnings

    assert len(warnings) == 1
    assert warnings[0].startswith("line 5: ")
    assert said in warnings[0]


def test_a_wrong_zone_is_warned_of_and_refuses_no_file(file: Path) -> None:
    settings = written(file, "[system]\npostback_key = k\ntimezone = Europe/Kiew\n")

    assert settings.warnings == (
        "line 4: [system] timezone: 'Europe/Kiew' is no time zone; the nearest is 'Europe/Kiev';"
        " write Europe/Moscow or +03:00.",
    )
    assert settings.timezone == "Europe/Kiew"


def test_a_file_of_the_original_draws_no_warning(file: Path) -> None:
    settings = written(
        file,
        '[system]\nsalt = "0!x"\ntimezone = UTC\nredis_uri = redis://127.0.0.1:6379/1\n'
        'debug = false\npostback_key = "e89bcbe"\n'
        '[db]\nhost = localhost\nname = k\nuser = k\npassword = !x\nprefix = "keitaro_"\nport =\n'
        "[redis]\nuri = x\n[clickhouse]\nhost = x\npassword = null\n",
    )

    assert settings.warnings == ()


def test_a_key_in_another_section_that_is_not_used_draws_a_warning(file: Path) -> None:
    settings = written(file, "postback_key = s3cret\n[system]\npostback_key = s3cret2\n")

    assert settings.warnings == ("line 2: this key is not used; the one on line 4 is.",)


@pytest.mark.parametrize(
    "first", [GUARD, "; <?php die('x'); ?>\n", "<?php exit; ?>\n", ";<?php exit(); /*\n"]
)
def test_a_guarded_file_draws_no_warning(file: Path, first: str) -> None:
    file.write_text(first + "[system]\npostback_key = k\n")

    assert load(file).warnings == ()


def test_a_file_without_the_guard_draws_a_warning(file: Path) -> None:
    file.write_text("[system]\npostback_key = k\n")

    (warning,) = load(file).warnings

    assert warning.startswith("line 1: the first line should be ;<?php exit; ?>")


def test_a_byte_order_mark_is_tolerated_with_a_warning(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + GUARD.encode() + b"[system]\npostback_key = k\n")

    settings = load(file)

    assert settings.postback_key == b"k"
    assert [warning[:40] for warning in settings.warnings] == [
        "line 1: the file begins with a byte orde"
    ]


def test_windows_line_ends_are_no_part_of_a_value(file: Path) -> None:
    settings = written(file, "[system]\r\npostback_key = k\r\ncurrency = EUR\r\n")

    assert (settings.postback_key, settings.currency) == (b"k", "EUR")


# The file.


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"POSTBACK_CONFIG": "/etc/p.ini"}, Path("/etc/p.ini")),
        ({"POSTBACK_CONFIG": "sub/p.ini"}, Path("sub/p.ini")),
        ({"POSTBACK_CONFIG": ""}, Path("config.ini.php")),
        ({}, Path("config.ini.php")),
    ],
)
def test_the_file_is_found(
    environ: dict[str, str], found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert find_config(environ) == tmp_path / found


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{file} cannot be read: No such file")):
        load(file)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        load(tmp_path)


def test_an_endless_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MAX_FILE_BYTES", 40)

    with pytest.raises(ConfigError, match="larger than 40 bytes"):
        written(file, "[system]\npostback_key = s3cret\n")


@given(st.binary(), st.sampled_from(["", "[system]\npostback_key = k\npostback_key_old = "]))
def test_no_bytes_raise_anything_but_a_refusal(file: Path, content: bytes, before: str) -> None:
    file.write_bytes(before.encode() + content)

    try:
        settings = load(file)
    except ConfigError:
        return
    assert settings.postback_key


def test_importing_builds_opens_and_logs_nothing() -> None:
    code = "import sys; sys.addaudithook(lambda e, a: e == 'open' and 'w' in str(a[1]) and 1/0)\n"

    done = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            code
            + "import logging; from postbackd.config import settings; print(logging.root.handlers)",
        ],
        cwd=Path(config.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("[]\n", "")


# The shipped example is the manual.


def test_the_example_shows_the_defaults(file: Path) -> None:
    text = example_text().replace('postback_key = ""', 'postback_key = "k"', 1)
    # Switch every optional line on: `;name = value` without a blank behind the semicolon.
    switched_on = re.sub(r"(?m)^;(?=[a-z_-]+ = )", "", text)

    file.write_text(text)
    as_shipped = load(file)
    file.write_text(switched_on)
    all_on = load(file)

    file.write_text(GUARD + "[system]\npostback_key = k\n")
    defaults = load(file)
    assert as_shipped == defaults
    assert all_on == replace(defaults, public_url_is_set=True)


def test_the_example_names_every_key_in_its_section() -> None:
    shown: dict[str, set[str]] = {}
    for line in example_text().splitlines():
        if heading := re.fullmatch(r"\[(.+)\]", line):
            section = shown.setdefault(heading[1], set())
        elif setting := re.match(r";?([a-z_-]+) = ", line):
            section.add(setting[1])

    # er_api_url is only another way to write er-api_url.
    known = {section: set(keys) - {"er_api_url"} for section, keys in KNOWN_KEYS.items()}
    assert shown == known


def test_the_example_has_no_key_and_is_guarded(file: Path) -> None:
    file.write_text(example_text())

    assert example_text().startswith(GUARD)
    with pytest.raises(ConfigError, match="postback_key is empty"):
        load(file)


def test_the_example_of_an_installed_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "share" / "config.ini.php.example"
    shipped.parent.mkdir()
    shipped.write_text("; shipped")
    entry = SimpleNamespace(name=shipped.name, locate=lambda: shipped)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "postbackd" / "config" / "settings.py"))
    monkeypatch.setattr(importlib.metadata, "files", lambda _name: [entry])

    assert example_text() == "; shipped"


def test_a_missing_example_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "__file__", str(tmp_path / "postbackd" / "config" / "settings.py"))
    monkeypatch.setattr(importlib.metadata, "files", lambda _name: None)

    with pytest.raises(ConfigError, match="install the package again"):
        example_text()
