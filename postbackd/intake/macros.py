"""Macros of affiliate networks that arrive unreplaced.

The styles are the contract's, those of the networks whose postback documents are public, of
measurement and traffic platforms, and of the template languages that they are built with.
"""

import re
from urllib.parse import unquote

# Longer than any row of macros that is sent, and short enough to be matched at no cost.
LONGEST_CHARACTERS = 512

# The words of JavaScript, Python and PHP for a missing value, then two placeholders without signs.
_NOTHINGS = frozenset({"undefined", "null", "none", "nan"})
_BARE_MACROS = _NOTHINGS | {"replace", "optional"}
_LONGEST_BARE_MACRO = max(map(len, _BARE_MACROS))
_QUOTES = "\"'"
_STARTS = frozenset("{$[#%<!_(:@*" + _QUOTES)

_NAME = r"[\w .:\-]{1,64}"
_LETTER = r"(?=[\w .\-]*[^\W\d])"


def _write_style(start: str, end: str, barred: str) -> str:
    """Write the pattern of a style: a name, `$` or `(` before it, a modifier behind it.

    A modifier is any text without the end sign of the macro: `{x|default}`, `{x50%}`,
    `##X(action)##`, `${(x)!}`. Without quotes: `{"a": 1}` is JSON.
    """
    return rf"{start}[$@!*]?\(?{_NAME}(?:[^\w .:\-\"{barred}][^\"{barred}]{{0,64}})?{end}"


_CURLY = r"{}"
_SQUARE = r"\[\]"
_STYLES = (
    _write_style(r"\{\{\{", r"\}\}\}", _CURLY),
    _write_style(r"\{\{", r"\}\}", _CURLY),
    # `${x}`, `#{x}`, `%{x}`, `@{x}`.
    _write_style(r"[$#%@]?\{", r"\}", _CURLY),
    r"[$#%@]?\{\}|\{\{\}\}|\[\]",
    rf"\{{%{_NAME}%\}}",
    _write_style(r"\[\[\[", r"\]\]\]", _SQUARE),
    _write_style(r"\[\[", r"\]\]", _SQUARE),
    _write_style(r"\[", r"\]", _SQUARE),
    _write_style(r"\[=", r"=\]", _SQUARE + "="),
    _write_style(r"\[%", r"%\]", _SQUARE + "%"),
    _write_style("##", "##", "#"),
    _write_style("#", "#", "#"),
    _write_style("<<", ">>", "<>"),
    _write_style("<%=?", "%>", "<>%"),
    # PHP that nobody ran.
    rf"<\?(?:=|php(?: echo)?)?\s*\$?{_NAME};?\s*\?>",
    _write_style("<", ">", "<>"),
    rf"%%{_NAME}%%|%{_NAME}%|!!!{_NAME}!!!|@@{_NAME}@@|\*\|{_NAME}\|\*",
    # Campaign Manager's `%ecid!`, Python's `%(x)s`, a shell's `$(x)`.
    rf"%[a-z]{{1,16}}!|%\({_NAME}\)[sd]|\$\({_LETTER}{_NAME}\)",
    # TikTok's; in lower case it may be anything.
    "__[A-Z](?:[A-Z0-9]|_(?!_)){0,62}__",
    # With a letter: an amount may be in parentheses, a number between other signs.
    rf"\({_LETTER}{_NAME}\)|\${_LETTER}{_NAME}\$|:{_LETTER}[\w .\-]{{1,64}}:",
    # Percent-encoded once too often.
    rf"(?i:(?:%7B){{1,3}}{_NAME}(?:%7D){{1,3}}|%5B{_NAME}%5D)",
)
_MACRO = "|".join(_STYLES)
# `#s2##s3#`, `{transactionid}_{goal}`: what stands alone between two of them is a seam.
_MACROS = re.compile(rf"(?:{_MACRO})(?:[-_.:|,/ ]?(?:{_MACRO})){{0,15}}[.,;|/]?")
# What .NET writes for a GUID in braces or parentheses: an id, and no name of anything.
_GUID = re.compile(r"[{(][0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}[)}]")
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")

# A part of a value that only a placeholder looks like, whole or without one of its ends. Digits
# alone in brackets are an index, and a lone `#` or `%` may be anything.
_SIGNS = re.compile(r"[{}\[<#!$%]")
_PART = re.compile(
    r"[{}]|\[\[?[A-Za-z_][\w.\-]{0,63}\]|^\[\w+$|<[A-Za-z_][\w.\-]{0,63}>|!!!\w{1,64}!!!"
    r"|#[A-Za-z_]\w{0,63}#|%%\w{1,64}%%|%7[BDbd]"
)


def is_macro(text: str) -> bool:
    """Return whether a value is, as a whole, one or several unreplaced macros."""
    if text[:1] in _STARTS:
        return len(text) <= LONGEST_CHARACTERS and _is_marked_macro(text)
    return len(text) <= _LONGEST_BARE_MACRO and text.lower() in _BARE_MACROS


def _is_marked_macro(text: str) -> bool:
    if text[0] in _QUOTES:
        # `""`, `"null"`, `'{x}'`: quotes of a program that wrote nothing between them.
        inner = text[1:-1]
        is_quoted = len(text) > 1 and text[0] == text[-1]
        return is_quoted and (not inner or (inner[0] not in _QUOTES and is_macro(inner)))
    if _MACROS.fullmatch(text):
        return _GUID.fullmatch(text) is None
    # Encoded once too often.
    return _ESCAPE.match(text) is not None and _MACROS.fullmatch(unquote(text)) is not None


def holds_macro(text: str) -> bool:
    """Tell whether a part of a value looks like a placeholder that nothing replaced."""
    if not _SIGNS.search(text) or len(text) > LONGEST_CHARACTERS or _GUID.fullmatch(text):
        return False
    return _PART.search(text) is not None


def is_nothing(text: str) -> bool:
    """Return whether a macro is a word that a script writes for a missing value."""
    return text.lower() in _NOTHINGS
