"""Other trackers' and networks' names for our parameters, and words that mean a status.

They are only for warnings, never for booking: only the sender knows whether `amount` is the payout
or what a buyer pays.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class NearName(NamedTuple):
    """What a name that came is called here (no text of the sender's), and what of ours it may be.

    `is_known`: others do call ours so; else the name only looks like it.
    """

    name: str
    ours: str
    is_known: bool


# Our name, the source, and the names there; all read in November 2026 in public documents. A
# macro's name is listed as a parameter: most people use one name for both.
_TABLE: tuple[tuple[str, str, str], ...] = (
    ("subid", "Voluum and PeerClick, parameters in postback URLs", "cid"),
    ("subid", "Binom, postback URL", "cnv_id uclick"),
    ("subid", "AnyTrack, postback URL parameters", "subid1 cid"),
    ("subid", "CashbackOS, postback setup", "aff_sub1 aff_sub2 aff_sub3 aff_sub4 aff_sub5"),
    ("subid", "TUNE and Wannads, macros", "aff_sub aff_click_id"),
    ("subid", "Affise, postback macros", "sub1 sub2 sub3 sub4 sub5 sub6 sub7 sub8"),
    ("subid", "Everflow, postback macros", "sub9 sub10"),
    ("subid", "Kuala, link parameters", "subid2 subid3 subid4 subid5 subid6"),
    ("subid", "BitLabs, FlexOffers, LinkTrust, links", "uid fobs affiliatereferenceid"),
    ("subid", "Affise Reach and Swaarm, postback macros", "pub_click_id"),
    ("subid", "CAKE, Prodege, Acorn Ads, postback documents", "s1 s2 s3 s4 s5"),
    ("subid", "Awin, transaction notifications", "clickref"),
    ("subid", "Trackdesk, Trackier, MyLead, postbacks", "affs1 p1 ml_sub1"),
    ("subid", "the same, their further ones", "affs2 affs3 affs4 affs5 p2 p3 p4 p5"),
    ("subid", "Digistore24, ClickBank, postbacks", "sid1 extclid"),
    ("subid", "AdCombo, Zeydoo, Adtraction, postbacks", "subacc subacc4 ymid epi"),
    ("subid", "CJ, Rakuten, TUNE: titles of their reports", "sid u1 affiliate_sub_1"),
    ("subid", "Integr8, TUNE, Everflow, Posh Partners: a click's id there", "transaction_id"),
    ("status", "AnyTrack, postback URL parameters; Prodege, macro {state}", "state"),
    ("status", "Scaleo, as the programmes on it describe it", "conv_status"),
    ("status", "Binom, postback URL", "cnv_status cnv_status2"),
    ("status", "Tyr Ads, postback", "conversion_status"),
    ("status", "Admitad, postback URL", "payment_status"),
    ("status", "AlterCPA, tracker integration", "stage"),
    ("status", "GetCourse, Digistore24, postbacks", "deal_status transaction_type"),
    ("status", "the same with other nouns", "event_status order_status action_status lead_state"),
    ("status", "the same with other nouns", "transaction_status commission_status"),
    ("payout", "Affise, AnyTrack, postback URL parameters", "sum"),
    ("payout", "Scaleo, Zeydoo, Lucky.online, RapidPace, postbacks", "amount"),
    ("payout", "Admitad, postback URL", "payment_sum"),
    ("payout", "AnyTrack, Awin", "commission"),
    ("payout", "CashbackOS, BuyGoods, postbacks", "base_commission commission_amount"),
    ("payout", "Digistore24, ClickBank, postbacks", "amount_affiliate affiliate_earnings"),
    ("payout", "AlterCPA, tracker integration", "cash"),
    ("payout", "CAKE, macro #price#", "price"),
    ("payout", "Trackier, MyLead, CPAlead, macros", "payout_usd payout_decimal event_payout"),
    ("payout", "offerwalls, which pay a user a part of it", "reward"),
    ("payout", "the same in other words", "earning earnings income payment"),
    ("currency", "Binom, postback URL", "cnv_currency"),
    ("currency", "AffiliateProScript, documentation", "cur"),
    ("currency", "the same with other nouns", "currency_code payout_currency payment_currency"),
    ("tid", "Scaleo, AnyTrack, CashbackOS, postbacks", "transaction_id trans_id"),
    ("tid", "Voluum and PeerClick, parameters in postback URLs", "txid"),
    ("tid", "Affise, postback URL parameters", "action_id transactionid"),
    ("tid", "AffiliateProScript, Trackier, postbacks", "txn_id"),
    ("tid", "iMoneyNow, Impact, LinkTrust, names in postbacks", "transid actionid"),
    ("tid", "Kuala, macro {xid}", "xid"),
    ("tid", "Admitad, ClickBetter, CashbackOS, postbacks", "order_id orderid"),
    ("tid", "Affise Reach, Prodege, PeerClick, postbacks", "conversion_id"),
    ("tid", "CPAlead, Limonad, CAKE, postbacks", "lead_id leadid"),
    ("tid", "Tyr Ads, RapidPace, Spectr3, postbacks", "postback_id reference_id"),
    ("tid", "the same, written otherwise", "tx_id txnid tx transactionid conversionid deal_id"),
)

_OURS: dict[str, list[str]] = {}
for _ours, _source, _names in _TABLE:
    for _name in _names.split():
        if _ours not in _OURS.setdefault(_name, []):
            _OURS[_name].append(_ours)
NEAR_NAMES: Mapping[str, tuple[str, ...]] = {name: tuple(ours) for name, ours in _OURS.items()}

# Ours, where they may come with something around them: `click-id`, `status `, `?payout`.
_OWN: Mapping[str, str] = {
    **dict.fromkeys(("subid", "sub_id", "clickid", "click_id"), "subid"),
    **dict.fromkeys(("payout", "revenue", "profit"), "payout"),
    **{name: name for name in ("status", "currency", "tid")},
}

# What within a longer name says which of ours is meant: `payout_amount`, `external_click_id`. The
# first counts: `payout_status` is no payout.
_PARTS: tuple[tuple[str, str], ...] = (
    *((part, "status") for part in ("status", "stauts", "staus")),
    *((part, "currency") for part in ("currency", "curency", "valuta")),
    *((part, "tid") for part in ("transaction_id", "transactionid", "order_id", "txid")),
    *((part, "payout") for part in ("payout", "revenue", "commission", "comission", "commision")),
    *((part, "subid") for part in ("click_id", "clickid", "subid", "sub_id")),
)
# Lists of words: ours, and those of Keitaro 10, which has more types of conversions.
_LISTS = frozenset(
    {"lead_status", "sale_status", "rejected_status", "reject_status", "rebill_status"}
    | {"ignore_status", "trash_status", "deposit_status", "registration_status"}
)

# The longest name that is looked at; those of the table have some twenty characters.
NAME_CHARACTERS = 64
# What copying, quoting and a second `?` leave around a name; the blanks are those of web pages.
_AROUND = " _\t\r\n\v\0?&=/\\'\"`[](){}<>.,;:*$%#!+|~\xa0\u200b\u200e\ufeff"
# A Russian keyboard's letters that look like ours.
_LOOKALIKES = str.maketrans("асеорхукмтві", "aceopxykmtbi")

# Names that say, with such a value, that a conversion was taken back.
_FLAGS = frozenset(
    {"chargeback", "refund", "refunded", "reversal", "reversed", "rejected", "declined", "reject"}
    | {"canceled", "cancelled", "trash", "fraud", "returned", "void", "decline", "cancel"}
)
_YES = frozenset({"1", "true", "yes", "y"})

# Words that say what came of a conversion wherever they stand; `new`, `ok` and `open` may be
# anything. Ours are those of the contract.
STATUS_WORDS = frozenset(
    {"lead", "sale", "rejected", "rebill"}
    | {"approved", "canceled", "cancelled", "chargeback", "confirmed", "declined", "hold"}
    | {"pending", "refunded", "reversed", "trash"}
    | {"reject", "decline", "disapproved", "refund", "reversal", "approve"}
)
# Those that are money, or may become it; what is left of the words takes back.
_WORDS_OF_PROMISES = frozenset({"lead", "hold", "pending"})
_WORDS_OF_MONEY = frozenset({"sale", "rebill", "approved", "confirmed", "approve"})
_WORDS_OF_REJECTIONS = STATUS_WORDS - _WORDS_OF_PROMISES - _WORDS_OF_MONEY
# Which words in a list show that somebody took its name for that of the status.
_STRANGE_WORDS: Mapping[str, frozenset[str]] = {
    "lead_status": _WORDS_OF_MONEY | _WORDS_OF_REJECTIONS,
    "sale_status": _WORDS_OF_PROMISES | _WORDS_OF_REJECTIONS,
    "rebill_status": _WORDS_OF_PROMISES | _WORDS_OF_REJECTIONS,
    "rejected": _YES,
}


def find_near_names(names: Iterable[str]) -> Iterator[tuple[str, NearName]]:
    """Find the names by which others call parameters of ours, and those that are nearly ours."""
    for name in names:
        plain = spell_plainly(name)
        if plain in NEAR_NAMES:
            for ours in NEAR_NAMES[plain]:
                yield name, NearName(plain, ours, is_known=True)
        elif near := _find_own(plain):
            yield name, near


def spell_plainly(name: str) -> str:
    """Spell a name as the tables do; empty where it is too long for them."""
    if len(name) > NAME_CHARACTERS:
        return ""
    plain = name.lower()
    if not plain.isascii():
        plain = plain.translate(_LOOKALIKES)
    return plain.strip(_AROUND).replace("-", "_")


def _find_own(plain: str) -> NearName | None:
    if plain in _OWN:
        return NearName(f"a name like {plain}", _OWN[plain], is_known=False)
    if plain in _LISTS or plain.startswith("sub_id_"):
        return None
    for part, ours in _PARTS:
        if part in plain:
            return NearName(f"a name with {part} in it", ours, is_known=False)
    return None


def is_flag(name: str, value: str) -> bool:
    """Tell whether a parameter such as `chargeback=1` says that a conversion was taken back."""
    return value.lower() in _YES and spell_plainly(name).removeprefix("is_") in _FLAGS


def is_status_in_list(name: str, words: str) -> bool:
    """Tell whether a list such as `lead_status=rejected` is more likely the status itself."""
    return words.casefold() in _STRANGE_WORDS.get(name, ())
