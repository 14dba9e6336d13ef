"""Other trackers' and networks' names for our parameters, and words that mean a status.

They are only for warnings, never for booking: only the sender knows whether `amount` is the payout
or what a buyer pays.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class NearName(NamedTuple):
    """A name that came, lower case and with `_` for `-`, and the parameter of ours it may be."""

    name: str
    ours: str


# Our name, the source, and the names there; all read in November 2026 in public documents. A
# macro's name is listed as a parameter: most people use one name for both.
_TABLE: tuple[tuple[str, str, str], ...] = (
    ("subid", "Voluum and PeerClick, parameters in postback URLs", "cid"),
    ("subid", "Binom, postback URL", "cnv_id uclick"),
    ("subid", "AnyTrack, postback URL parameters", "subid1 cid"),
    ("subid", "CashbackOS, postback setup", "aff_sub1 aff_sub2 aff_sub3 aff_sub4 aff_sub5"),
    ("subid", "TUNE and Wannads, macros", "aff_sub aff_click_id"),
    ("subid", "Affise, postback macros", "sub1 sub2 sub3 sub4 sub5 sub6 sub7 sub8"),
    ("subid", "Affise Reach and Swaarm, postback macros", "pub_click_id"),
    ("subid", "CAKE, Prodege, Acorn Ads, postback documents", "s1 s2 s3 s4 s5"),
    ("subid", "Awin, transaction notifications", "clickref"),
    ("subid", "Trackdesk, Trackier, MyLead, postbacks", "affs1 p1 ml_sub1"),
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

# Words that mean a status in any parameter; `new`, `ok` and `open` may mean anything. Our own words
# are those of the contract.
STATUS_WORDS = frozenset(
    {"lead", "sale", "rejected", "rebill"}
    | {"approved", "canceled", "cancelled", "chargeback", "confirmed", "declined", "hold"}
    | {"pending", "refunded", "reversed", "trash"}
)


def find_near_names(names: Iterable[str]) -> Iterator[tuple[str, NearName]]:
    """Find other trackers' names for our parameters."""
    for name in names:
        plain = name.lower().replace("-", "_")
        for ours in NEAR_NAMES.get(plain, ()):
            yield name, NearName(plain, ours)
