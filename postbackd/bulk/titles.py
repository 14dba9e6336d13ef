"""The titles of columns at networks and trackers, and our name for each.

Titles are compared by their letters and digits alone. Of several columns with one meaning the one
named first here is read, except for amounts: many reports have the commission and the order's value
side by side, so where two are equally likely the command stops and asks.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from postbackd.db.rows import SUB_ID_NAMES
from postbackd.intake.currencies import read_mark
from postbackd.intake.query import SUBID_NAMES

# The network's payout for the click, without doubt.
PAYOUT = "payout"
TIME = "time"
COLUMN_NAMES = ("subid", PAYOUT, "tid", "status", "currency", TIME)

_Titles = tuple[tuple[str, str], ...]

# Titles, and the reports or documents in which each is found as far as we know: not every one was
# checked, and networks rename columns. `hand-made`: of no network in particular.
SUBID_TITLES: _Titles = (
    ("Sub ID", "Keitaro, conversion log"),
    ("Click ID", "Voluum, BeMob, RedTrack, Binom, PeerClick: conversion reports"),
    ("External Click ID", "hand-made"),
    ("External ID", "hand-made"),
    ("Aff Sub", "TUNE, API"),
    ("Affiliate Click ID", "TUNE, conversion report"),
    ("Affiliate Sub ID 1", "TUNE, conversion report"),
    ("Affiliate Sub 1", "TUNE, conversion report"),
    ("Affiliate Info 1", "TUNE, API"),
    ("Aff Click ID", "hand-made"),
    ("Aff Sub 1", "Everflow's and Affise's parameter"),
    ("Click SubID", "Ingenious, transactions export (click_subid)"),
    # Before the click reference, which there is the network's own.
    ("Publisher Reference", "Partnerize, conversion export"),
    ("Pubref", "Partnerize, parameter of the link"),
    ("Click Ref", "Awin, transactions export"),
    ("clickRefs.clickRef", "Awin, publisher API as a table"),
    ("Click Reference", "Awin"),
    ("Sub 1", "Everflow, Affise: conversion reports"),
    ("Sub ID 1", "Impact, action listing (SubId1)"),
    ("Shared ID", "Impact, SharedId"),
    ("SID", "CJ, commission detail"),
    ("Shopper ID", "CJ, formerly SID"),
    ("Member ID (U1)", "Rakuten, signature orders report"),
    ("U1", "Rakuten, events API"),
    ("EPI", "Tradedoubler, transactions"),
    ("EPI 1", "Tradedoubler"),
    ("Afftrack", "ShareASale, parameter of the link"),
    ("Affiliate Tracking", "ShareASale, transaction detail"),
    ("Affiliate Tracking/afftrack", "ShareASale, transaction detail"),
    ("Tracking ID", "ClickBank, analytics"),
    ("TID (Tracking ID)", "ClickBank, transactions"),
    ("Campaign Key", "Digistore24, parameter of the link"),
    ("s1", "CAKE, conversion report"),
    ("Sub ID s1", "CAKE"),
    ("aff1", "hand-made"),
    ("dv1", "hand-made"),
    ("cid", "Digistore24, transactions; Voluum's parameter"),
    ("ID клика", "hand-made"),
    ("Клик ID", "hand-made"),
    ("Саб ID", "hand-made"),
)
TID_TITLES: _Titles = (
    ("tid", "Keitaro, conversion log"),
    ("Transaction ID", "Voluum, TUNE, Everflow, Awin"),
    ("txid", "Binom, PeerClick"),
    ("txn ID", "Trackier"),
    ("Transaction", "hand-made"),
    ("Transaction Number", "Tradedoubler"),
    ("Trans ID", "ShareASale, transaction detail"),
    ("Order ID", "Rakuten, CJ, Digistore24"),
    ("Order Number", "Tradedoubler"),
    ("Order NR", "Tradedoubler, event breakdown"),
    ("Lead NR", "Tradedoubler, event breakdown"),
    ("Order", "hand-made"),
    ("Receipt", "ClickBank, transactions"),
    ("Conversion ID", "Everflow, Affise, Partnerize"),
    ("Action ID", "Impact, Admitad"),
    ("Commission ID", "CJ, commission detail"),
    ("Lead ID", "hand-made"),
    ("Sale ID", "hand-made"),
    ("Criterion", "easy.affiliate, transactions API"),
    ("ID транзакции", "hand-made"),
    ("ID конверсии", "hand-made"),
    ("ID заказа", "hand-made"),
    ("Bestellnummer", "hand-made"),
)
STATUS_TITLES: _Titles = (
    ("Status", "Keitaro, Impact, Everflow, Affise, Admitad"),
    ("State", "Impact, API"),
    ("Conversion Status", "Binom, Partnerize"),
    ("Action Status", "CJ, commission detail"),
    ("Commission Status", "Awin, transactions export"),
    ("Transaction Status", "hand-made"),
    ("Payment Status", "Admitad, API, for what is approved"),
    ("Lead Status", "hand-made"),
    ("Sale Status", "hand-made"),
    ("Order Status", "hand-made"),
    ("Pending Status", "Tradedoubler, event breakdown"),
    ("Transaction Type", "Digistore24, ClickBank: a payment, a refund"),
    ("Txn Type", "ClickBank"),
    ("Статус", "hand-made"),
)
CURRENCY_TITLES: _Titles = (
    ("Payout Currency", "Everflow"),
    ("Commission Currency", "Awin"),
    ("Currency", "Affise, Admitad, Digistore24, Rakuten"),
    ("Currency Code", "hand-made"),
    ("Cur", "hand-made"),
    ("commissionAmount.currency", "Awin, publisher API as a table"),
    ("Валюта", "hand-made"),
    ("Währung", "hand-made"),
)
TIME_TITLES: _Titles = (
    ("Time", "Affise"),
    ("Date/Time", "Keitaro, conversion log"),
    ("Postback Timestamp", "Voluum, conversions"),
    ("Conversion Timestamp", "BeMob"),
    ("Conversion Time", "RedTrack, Partnerize"),
    ("Conversion Date", "Everflow"),
    ("Event Date", "CJ, commission detail"),
    ("Action Date", "Impact, Admitad"),
    ("Transaction Date", "Rakuten, Awin, ShareASale"),
    ("Time of Event", "Tradedoubler"),
    ("Date", "many"),
    ("Created At", "hand-made"),
    ("Created", "hand-made"),
    ("Timestamp", "hand-made"),
    ("Sale Date", "hand-made"),
    ("Order Date", "hand-made"),
    ("Posting Date", "CJ, commission detail"),
    ("Conversion Tracking Time", "Ingenious, transactions export"),
    ("Tracking Time", "easy.affiliate, transactions API; Ingenious"),
    ("Дата", "hand-made"),
    ("Время", "hand-made"),
    ("Datum", "hand-made"),
)
PAYOUT_TITLES: _Titles = (
    ("Payout", "Keitaro, Everflow, TUNE, Affise, BeMob"),
    ("Payout Amount", "hand-made"),
    ("Conversion Payout", "hand-made"),
    ("Publisher Payout", "hand-made"),
    ("Commission", "Awin, ShareASale, CJ: publisher commission"),
    ("Commission Amount", "Awin, transactions export"),
    ("Total Commission", "Rakuten, signature orders report"),
    ("Publisher Commission", "CJ, Tradedoubler, Partnerize"),
    ("Pub Commission Amount", "CJ, commission detail"),
    ("Affiliate Commission", "hand-made"),
    ("Affiliate Amount", "Digistore24"),
    ("Amount Affiliate", "Digistore24, transactions"),
    ("Affiliate Earnings", "hand-made"),
    ("Action Earnings", "Impact, action listing"),
    ("Earnings", "hand-made"),
    ("Account Amount", "ClickBank, the amount credited to the account"),
    ("Reward", "hand-made"),
    ("Payouts", "Affise, API"),
    ("commissionAmount.amount", "Awin, publisher API as a table"),
    ("Provision", "easy.affiliate, transactions API; commission in German"),
    ("Вознаграждение", "hand-made"),
    ("Выплата", "hand-made"),
    ("Комиссия", "hand-made"),
)
# Titles that may also mean what the customer paid: read where no other column may be the amount.
UNSURE_PAYOUT_TITLES: _Titles = (
    ("Revenue", "Keitaro, Voluum, Binom, RedTrack; a shop's turnover elsewhere"),
    ("Amount", "Impact's sale, ShareASale's sale, others' commission"),
    ("Sum", "hand-made"),
    ("Income", "hand-made"),
    ("Value", "hand-made"),
    ("Total", "hand-made"),
    ("Сумма", "hand-made"),
    ("Доход", "hand-made"),
    # Keitaro reads `profit` of a postback as the amount; in its conversion log it is revenue less
    # cost.
    ("Profit", "Keitaro"),
)

# Titles of clicks. New fields of a click get their titles here.
CLICK_TITLES: Mapping[str, _Titles] = {
    "clicked_at": (
        ("Clicked At", "ours"),
        ("Click Time", "Binom, RedTrack"),
        ("Click Date", "Binom"),
        ("Visit Timestamp", "Voluum, BeMob: visits"),
        ("Visit Time", "PeerClick"),
        ("Click Timestamp", "BeMob"),
        ("Date/Time", "Keitaro, click log"),
        ("Time", "Voluum's log; many"),
        ("Timestamp", "many"),
        ("Date", "Binom; many"),
        ("Created At", "hand-made"),
    ),
    "campaign": (
        ("Campaign Name", "Voluum, RedTrack, BeMob"),
        ("Campaign", "Keitaro, Binom"),
    ),
    "offer": (
        ("Offer Name", "Voluum, RedTrack, BeMob"),
        ("Offer", "Keitaro, Binom"),
    ),
    "cost_model": (("Cost Model", "Keitaro, Voluum"),),
    "external_id": (
        ("External ID", "Keitaro, click log; Voluum, BeMob: visits"),
        ("External Click ID", "hand-made"),
    ),
    "source": (
        ("Source", "Keitaro, click log"),
        ("Traffic Source Name", "Voluum, BeMob"),
        ("Traffic Source", "Voluum, Binom, RedTrack"),
    ),
    "cost": (("Cost", "Keitaro, Voluum, Binom, BeMob"), ("Click Cost", "hand-made")),
    "currency": (("Cost Currency", "hand-made"), ("Currency", "hand-made")),
    **{
        name: (
            (f"Sub ID {number}", "Keitaro, click log"),
            (f"Custom Variable {number}", "Voluum, BeMob: visits"),
            (f"Variable {number}", "Voluum"),
            (f"V{number}", "Voluum, conversions"),
            (f"Token {number}", "Binom"),
            (f"Sub {number}", "RedTrack"),
        )
        for number, name in enumerate(SUB_ID_NAMES, 1)
    },
}
CLICK_NAMES = (*SUBID_NAMES, *CLICK_TITLES)

# Our own `conversions --csv`: its `payout` is the amount in the tracker's currency.
OUR_EXPORT = frozenset(
    ("subid", "tid", "status", "amount", "currency", "payout", "createdat", "network")
)
_OURS: Mapping[str, str] = dict(
    zip(COLUMN_NAMES, ("subid", "amount", "tid", "status", "currency", "createdat"), strict=True)
)

_BETWEEN = re.compile(r"[\W_]+")
# `Commission (EUR)`, `Payout, $`, `amount_usd`. Lower-case letters are words in most titles:
# `total_all` does not mean Albanian lek.
_WITH_CURRENCY = re.compile(
    r"(.*[^\W_])[\s_,([-]+([A-Z]{3,4}|usd|eur|gbp|rub|[^\w\s]|[A-Za-z]{1,2}\$)[)\]]?\s*"
)


class Places(NamedTuple):
    """The place of each of our names, and the mark of a currency in the amount's title.

    `rivals` are other columns that may be the amount.
    """

    places: Mapping[str, int]
    currency: str | None = None
    rivals: Sequence[str] = ()


def squeeze_title(title: str) -> str:
    """Reduce a title to its letters and digits: `Sub ID 1` and `sub_id_1` are one."""
    return _BETWEEN.sub("", title.casefold())


def find_conversion_places(titles: Sequence[str], given: Mapping[str, str]) -> Places:
    """Find the columns of conversions; `given` are titles or numbers from options."""
    squeezed = [squeeze_title(title) for title in titles]
    named = {name: _find_given(text, squeezed) for name, text in given.items()}
    # ClickBank's TID is the click id: where somebody names it so, it is no transaction id as well.
    free = ["" if place in named.values() else title for place, title in enumerate(titles)]
    known = [squeeze_title(title) for title in free]
    places = {}
    currency: str | None = None
    rivals: Sequence[str] = ()
    ours = _OURS if set(squeezed) >= OUR_EXPORT else {}
    for name in COLUMN_NAMES:
        if name in named:
            place = named[name]
        elif name in ours:
            place = squeezed.index(ours[name])
        elif name == PAYOUT:
            place, currency, rivals = _find_payout(free, known)
        else:
            place = next((known.index(t) for t in _KNOWN[name] if t in known), None)
        if place is not None:
            places[name] = place
    return Places(places, currency, rivals)


def find_click_names(titles: Sequence[str]) -> list[str | None]:
    """Return our name for each column of clicks; None for unknown and repeated ones."""
    squeezed = [squeeze_title(title) for title in titles]
    names: list[str | None] = [_find_subid_name(title) for title in titles]
    names = [name if name not in names[:place] else None for place, name in enumerate(names)]
    for name, known in _KNOWN_OF_CLICKS.items():
        place = next((squeezed.index(title) for title in known if title in squeezed), None)
        if place is not None and names[place] is None:
            names[place] = name
    return names


def _find_subid_name(title: str) -> str | None:
    exact = title.strip().casefold()
    if exact in SUBID_NAMES:
        return exact
    return _SUBID_BY_LETTERS.get(squeeze_title(title))


def _find_given(text: str, squeezed: Sequence[str]) -> int | None:
    if squeeze_title(text) in squeezed and squeeze_title(text):
        return squeezed.index(squeeze_title(text))
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= len(squeezed):
        return int(text) - 1
    return None


def _find_payout(
    titles: Sequence[str], squeezed: Sequence[str]
) -> tuple[int | None, str | None, list[str]]:
    """Find the one column that is the amount, the currency in its title, and its rivals."""
    split = [_split_currency(title) for title in titles]
    for kind in (_SURE, _UNSURE):
        places = [
            place
            for place, (title, (bare, _)) in enumerate(zip(squeezed, split, strict=True))
            if title in kind or bare in kind
        ]
        if len(places) > 1:
            # A tracker's log has both, and its profit is revenue less cost.
            places = [place for place in places if squeezed[place] != "profit"]
        if places:
            rivals = [titles[place].strip() for place in places] if len(places) > 1 else []
            return places[0], split[places[0]][1], rivals
    return None, None, []


def _split_currency(title: str) -> tuple[str, str | None]:
    """Split `Commission (EUR)` into the title, squeezed, and the mark of a currency."""
    found = _WITH_CURRENCY.fullmatch(title.strip())
    mark = read_mark(found[2]) if found else None
    return (squeeze_title(found[1]), mark) if found and mark else (squeeze_title(title), None)


def _squeeze(titles: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(squeeze_title(title) for title, _ in titles))


_SURE, _UNSURE = _squeeze(PAYOUT_TITLES), _squeeze(UNSURE_PAYOUT_TITLES)
_KNOWN: Mapping[str, Sequence[str]] = {
    "subid": _squeeze(SUBID_TITLES),
    "tid": _squeeze(TID_TITLES),
    "status": _squeeze(STATUS_TITLES),
    "currency": _squeeze(CURRENCY_TITLES),
    TIME: _squeeze(TIME_TITLES),
}
_KNOWN_OF_CLICKS = {name: _squeeze(titles) for name, titles in CLICK_TITLES.items()}
_SUBID_BY_LETTERS = {squeeze_title(name): name for name in reversed(SUBID_NAMES)}
