"""Reads currencies: codes of ISO 4217, and signs such as `$`."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Source: ISO 4217, the list of codes in use; without XTS and XXX, which are no money.
ISO_CODES = frozenset(
    re.findall(
        r"\w+",
        """
        AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL
        BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF
        DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG
        HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK
        LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN
        NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR
        SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY
        TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VES VND VUV WST XAF XAG XAU XBA XBB
        XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XUA YER ZAR ZMW ZWG
        """,
    )
)
# The coins in which networks pay. No source quotes them: their rates are set by hand.
COINS = frozenset({"USDT", "USDC", "BTC", "ETH", "LTC"})
CODES = ISO_CODES | COINS
_FORMER_CODES = {"RUR": "RUB"}

# The signs of each currency, case-folded. Source: the Unicode names of the signs, and CLDR's table
# of currencies for the longer ones.
_SIGNS_OF_ONE = """
USD us$ usd$ u$s
CAD ca$ c$
AUD au$ a$
NZD nz$
HKD hk$
SGD sg$ s$
TWD nt$
MXN mx$
BRL r$
EUR € euro
RUB ₽ руб руб. р.
UAH ₴ грн грн.
KZT ₸
INR ₹
TRY ₺
KRW ₩
ILS ₪
VND ₫
PHP ₱
NGN ₦
THB ฿
BTC ₿
GEL ₾
AZN ₼
CRC ₡
PYG ₲
GHS ₵
PLN zł
CZK kč
HUF ft
BGN лв лв.
RON lei
CNY cn¥ 元
JPY jp¥ 円
"""
_DOLLARS = (
    *("USD", "CAD", "AUD", "NZD", "HKD", "SGD", "TWD", "MXN", "ARS", "CLP", "COP", "UYU", "DOP"),
    *("CUP", "BBD", "BMD", "BND", "BSD", "BZD", "FJD", "GYD", "JMD", "KYD", "LRD", "NAD", "SBD"),
    *("SRD", "TTD", "XCD"),
)
_CROWNS = ("SEK", "NOK", "DKK", "ISK")


class _Sign(NamedTuple):
    """The currencies that a sign may mean, and the one that it means by default."""

    codes: tuple[str, ...]
    default: str | None


_SIGNS: Mapping[str, _Sign] = {
    **{
        sign: _Sign((code,), code)
        for code, *signs in (line.split() for line in _SIGNS_OF_ONE.strip().splitlines())
        for sign in signs
    },
    "$": _Sign(_DOLLARS, "USD"),
    "£": _Sign(("GBP", "EGP", "GIP", "FKP", "SHP", "LBP", "SYP", "SDG", "SSP"), "GBP"),
    # Both are equally likely.
    "¥": _Sign(("JPY", "CNY"), None),
    "kr": _Sign(_CROWNS, None),
    "kr.": _Sign(_CROWNS, None),
}


def read_mark(text: str) -> str | None:
    """Read a code, in upper case, or a sign, case-folded; None for other text."""
    code = _FORMER_CODES.get(text.upper(), text.upper())
    if code in CODES:
        return code
    return text.casefold() if text.casefold() in _SIGNS else None


def settle_currency(marks: Iterable[str], said: str | None, tracker: str) -> str | None:
    """Find the one currency that all marks can mean; None where there is none, or several.

    `said` is the code that the file has elsewhere, if any. `tracker` is the tracker's currency: a
    sign that may mean it, and means another one by default, is ambiguous.
    """
    code = said
    # Codes first: they decide between the meanings of a sign.
    for mark in sorted(marks, key=lambda mark: mark not in CODES):
        meant = _find_meaning(mark, code, tracker)
        if meant is None or code not in {None, meant}:
            return None
        code = meant
    return code


def _find_meaning(mark: str, said: str | None, tracker: str) -> str | None:
    if mark in CODES:
        return mark
    codes, default = _SIGNS[mark]
    if said in codes:
        return said
    # A tracker in Canadian dollars may get a report in US dollars.
    return None if tracker in codes and tracker != default else default
