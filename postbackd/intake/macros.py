"""Literal placeholders of affiliate networks, as they arrive where nothing replaced them.

The styles are the contract's, those of the networks whose postback documents are public, of
measurement and traffic platforms, and of the template languages that they are built with.
"""

import re

# Longer than every row of macros that anybody sends, and short enough to be searched at no cost.
LONGEST_CHARACTERS = 512

# What JavaScript, Python and PHP write for nothing, and two words that stand for a value to come.
_NOTHINGS = frozenset({"undefined", "null", "none", "nan"})
_BARE_MACROS = _NOTHINGS | {"replace", "optional"}
_LONGEST_BARE_MACRO = max(map(len, _BARE_MACROS))
_STARTS = frozenset("{$[#%<!_(:@*")

_NAME = r"[\w .:\-]{1,64}"
_LETTER = r"(?=[\w .\-]*[^\W\d])"


def _write_style(start: str, end: str, barred: str) -> str:
    """Write the pattern of a style: a name, `$` or `(` before it, a modifier behind it.

    Modifiers are anything without what ends the macro: `{x|default}`, `{x50%}`, `##X(action)##`,
    `${(x)!}`. Not with quotes: `{"a": 1}` is JSON.
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
    _write_style("<", ">", "<>"),
    rf"%%{_NAME}%%|%{_NAME}%|!!!{_NAME}!!!|@@{_NAME}@@|\*\|{_NAME}\|\*",
    # Campaign Manager's `%ecid!`, Python's `%(x)s`, a shell's `$(x)`.
    rf"%[a-z]{{1,16}}!|%\({_NAME}\)[sd]|\$\({_LETTER}{_NAME}\)",
    # TikTok's; in small letters it may be anything.
    "__[A-Z](?:[A-Z0-9]|_(?!_)){0,62}__",
    # An amount may stand in parentheses, a number between other signs.
    rf"\({_LETTER}{_NAME}\)|\${_LETTER}{_NAME}\$|:{_LETTER}[\w .\-]{{1,64}}:",
    # Encoded once too often.
    rf"(?i:(?:%7B){{1,3}}{_NAME}(?:%7D){{1,3}}|%5B{_NAME}%5D)",
)
_MACRO = "|".join(_STYLES)
# `#s2##s3#`, `{transactionid}_{goal}`: what stands alone between two of them is a seam.
_MACROS = re.compile(rf"(?:{_MACRO})(?:[-_.:|,/ ]?(?:{_MACRO})){{0,15}}")


def is_macro(text: str) -> bool:
    """Tell whether a value is, as a whole, one or several placeholders that nothing replaced."""
    if text[:1] in _STARTS:
        return len(text) <= LONGEST_CHARACTERS and _MACROS.fullmatch(text) is not None
    return len(text) <= _LONGEST_BARE_MACRO and text.lower() in _BARE_MACROS


def is_nothing(text: str) -> bool:
    """Tell whether a macro is a word that a script writes where it has no value."""
    return text.lower() in _NOTHINGS
