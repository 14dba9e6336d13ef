"""Escapes control characters and invisible ones in text that is shown: all escaping is here.

Stored values come from anyone who knows a key. A terminal would obey a control character, and two
click ids that differ only by an invisible character look alike. Both are shown as an escape
(`\\x1b`, `\\u200b`) in every form of output, and in the service log. Bytes that are no UTF-8 are
shown as U+FFFD.
"""

import json
import re

from postbackd.raw_text import STAND_INS, show_text

# Characters that are always escaped. Sources: the general categories Cc, Cf, Zl, Zp and Cs and the
# property Default_Ignorable_Code_Point of the Unicode Character Database; and characters that fonts
# draw as nothing. The characters of category Cf that are visible (U+0600 to 0605, 06DD, 070F, 0890,
# 0891, 08E2, 110BD, 110CD) stay, and so do combining marks.
_HIDDEN = "".join(
    (
        r"\x7f-\x9f",  # DEL, C1
        r"\xad",  # soft hyphen
        r"\u034f",  # combining grapheme joiner
        r"\u061c",  # turns the writing direction, as 200E, 200F, 202A to 202E, 2066 to 2069 do
        r"\u115f\u1160\u3164\uffa0",  # fillers of Hangul
        r"\u17b4\u17b5",  # Khmer vowels that are never shown
        r"\u180b-\u180f",  # Mongolian variation selectors and vowel separator
        r"\u200b\u200e\u200f",  # without width
        r"\u2028-\u202e",  # line ends
        r"\u2060-\u206f",  # word joiner, invisible signs of arithmetic
        r"\u2800",  # Braille without a dot
        r"\ud800-\udfff",  # lone halves of surrogate pairs
        r"\ufe00-\ufe0d",  # variation selectors but for those of emoji
        r"\ufeff",  # byte order mark
        r"\ufff0-\ufffc",  # interlinear annotation, and what stands for an object
        r"\U00013430-\U0001343f",  # how hieroglyphs are put together
        r"\U00016fe4",  # filler of Khitan
        r"\U0001bca0-\U0001bca3",  # shorthand
        r"\U0001d159\U0001d173-\U0001d17a",  # musical notation
        r"\U000e0000-\U000e0fff",  # tags, and more variation selectors
    )
)

# Emoji, and letters that are joined: Arabic and related scripts, those of and around India,
# Mongolian.
_EMOJI = (
    r"\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u27ff\u2900-\u2bff\u3030\u303d\u3297\u3299"
    r"\U0001f000-\U0001faff"
)
_JOINED = r"\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"

# Joiners between those stay: Persian words and pictures of families need them.
_JOINER = rf"(?<![{_JOINED}{_EMOJI}\ufe0f])[\u200c\u200d]|[\u200c\u200d](?![{_JOINED}{_EMOJI}])"
# The selectors of text and emoji style stay after a character they apply to, and in keycaps.
_STYLE = rf"(?<![{_EMOJI}#*0-9])[\ufe0e\ufe0f]|(?<=[#*0-9])[\ufe0e\ufe0f](?!\u20e3)"
# A blank other than U+0020 looks like one between words, and is invisible at either end.
_BLANKS = r"\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_AT_AN_END = rf"\A[{_BLANKS}]+|[{_BLANKS}]+\Z"

_UNSAFE_IN_JSON = re.compile(rf"[\x00-\x1f{_HIDDEN}]|{_JOINER}|{_STYLE}")
_UNSAFE_IN_LINES = re.compile(rf"[\x00-\x08\x0b-\x1f{_HIDDEN}]|{_JOINER}|{_STYLE}")
_UNSAFE = re.compile(rf"{_UNSAFE_IN_JSON.pattern}|{_AT_AN_END}")
# A text without a match is safe; this is ten times as fast.
_SUSPECT = re.compile(
    rf"[\x00-\x1f{_HIDDEN}\u200c\u200d\ufe0e\ufe0f{_BLANKS}{STAND_INS}]|\\U0010fe"
)


def escape_controls(text: str) -> str:
    """Escape control characters and invisible ones, such as `\\x1b`."""
    return _UNSAFE.sub(_escape, show_text(text)) if _SUSPECT.search(text) else text


def visible_lines(text: str) -> str:
    """Escape the same in a text whose line ends and tabs are ours."""
    return _UNSAFE_IN_LINES.sub(_escape, show_text(text)) if _SUSPECT.search(text) else text


def escape_controls_in_json(line: str) -> str:
    """Escape the same in a line of JSON, with JSON's escapes."""
    return _UNSAFE_IN_JSON.sub(_escape_for_json, show_text(line)) if _SUSPECT.search(line) else line


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _escape_for_json(found: re.Match[str]) -> str:
    # json.dumps has escaped C0 already; the others are inside strings only.
    return json.dumps(found[0])[1:-1] if found[0] != "\x7f" else "\\u007f"
