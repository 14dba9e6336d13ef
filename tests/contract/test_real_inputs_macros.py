"""Unreplaced macros in every known style; and click ids that only look like one."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from conftest import Client
from hypothesis import given
from hypothesis import strategies as st
from tree import ROOT

from postbackd.intake.macros import is_macro

# Facts about the networks' postbacks, from their public documents.
NETWORKS = json.loads((ROOT / "tests" / "networks.json").read_text("utf-8"))["networks"]
_WRITTEN = re.compile(r"[\[{#$][^\s,;)]*[\]}#]")


def list_texts(facts: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """List every text of the networks' facts, with its name."""
    if isinstance(facts, str):
        yield name, facts
    for key, fact in facts.items() if isinstance(facts, dict) else ():
        yield from list_texts(fact, key)
    for fact in facts if isinstance(facts, list) else ():
        yield from list_texts(fact, name)


def test_every_macro_of_the_networks_is_one() -> None:
    written = {
        (name, macro) for name, text in list_texts(NETWORKS) for macro in _WRITTEN.findall(text)
    }

    assert len({macro for _, macro in written}) > 150
    assert [macro for _, macro in sorted(written) if not is_macro(macro)] == []
    # The pattern that searches them has missed none.
    texts = [text for name, text in list_texts(NETWORKS) if name.endswith("_macro")]
    assert [text for text in texts if not is_macro(text)] == []


# Each style with a name in it. Sources: the contract's list; public pages on the macros of Awin,
# Adsterra, TUNE, Branch, BitLabs, TikTok, Outbrain, Campaign Manager, Mailchimp and others.
STYLES = [
    *("{N}", "{{N}}", "{{{N}}}", "${N}", "#{N}", "%{N}", "@{N}", "{$N}", "{@N}", "{!N}", "{% N %}"),
    *("[N]", "[[N]]", "[[[N]]]", "[=N=]", "[%N%]", "#N#", "##N##", "%N%", "%%N%%", "!!!N!!!"),
    *("<N>", "<<N>>", "<%N%>", "<%= N %>", "@@N@@", "*|N|*", "(N)", "$N$", ":N:", "$(N)", "%(N)s"),
    *("%7BN%7D", "%7b%7bN%7d%7d", "%5BN%5D"),
    *("{N:usd}", "{N|default}", "{{ N | default }}", "{N50%}", "{N0.5}", "{N, 2}", "{N=x}"),
    *("${(N)!}", "##N(action)##", "{N: lead=install sale=bill}", "[N|lower]", "{N()}", "{N?}"),
    *("{N}{N}", "#N##N#", "{N}_{N}", "[N]-[N]", "{N}.{N}:{N}", "%N%%N%"),
]
NAMES = ["x", "click_id", "Sub ID 1", "get.utm-source", "_TransID", "сумма", "a" * 40, "s2"]

MACROS = [
    *("{}", "{{}}", "${}", "[]", "REPLACE", "optional", "undefined", "NULL", "None", "NaN"),
    *("__CLICK_ID__", "__X__", "__CAMPAIGN_ID2__", "%ecid!", "{USER:UID}", "[%VALUE:USD%]"),
    # Quotes around nothing, PHP that nobody ran, what a sentence leaves behind a macro.
    *('""', "''", '"null"', '"{click_id}"', "<?=$x?>", "<?php echo $click_id; ?>", "{x},", "[x]."),
    # Encoded once too often, in any style.
    *("%7Bclick_id%7D", "%23%23x%23%23", "%21%21%21x%21%21%21", "%24%7Bx%7D", "%3Cclick_id%3E"),
    *("(null)", "<nil>", "[object Object]", "{1}", "[123]", "{amount50%}", "{" + "x" * 64 + "}"),
]


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_a_macro_with_every_name(style: str) -> None:
    assert [name for name in NAMES if not is_macro(style.replace("N", name))] == []


@pytest.mark.parametrize("text", MACROS)
def test_what_stands_for_nothing_or_for_a_value_is_a_macro(text: str) -> None:
    assert is_macro(text)


CLICK_IDS = [
    *(
        "C1",
        "0",
        "1",
        "-1",
        "12345678901234567890",
        "2ph7hd9f8s7k",
        "7FD1C40B",
        "w1",
        "x",
        "none-1",
    ),
    *("6c945967-0403-44ee-8c3f-df688869cd04", "6C9459670403", "5f3b1c9e8d7a6b5c4d3e2f1a"),
    *(
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "V1StGXR8_Z5jdHi6B-myT",
        "dGVzdA==",
        "a+b/c=",
        "YWJj_-8=",
        "==",
    ),
    *("abc_def-1", "_abc_", "__abc__", "__utma", "-abc-", "~abc~", ".a.", "a.b.c", "a:b:c", "::1"),
    *("GA1.2.1234567890.1596403881", "fb.1.1596403881668.1116446470", "IwAR0x_y-Z", "fb:1:2"),
    *("CjwKCAjw-abc_BwE", "EAIaIQobChMI", "w4e1_abc", "wsid:8f2c|42", "aff_123|sub=4", "u1;u2"),
    *(
        "{x",
        "x}",
        "[x",
        "x]",
        "}{",
        "x{x}",
        "{x}y",
        "r-{x}",
        "#x",
        "x#",
        "##",
        "#",
        "%",
        "%x",
        "50%",
    ),
    *("<x", "x>", "$x", "$100", "$12.50", "(x", "x)", "(5.40)", "(123)", "$5$", ":1:", ":", "::"),
    *(
        "item(2)",
        "list[1]",
        "a[b]c",
        "@x",
        "@x@",
        "!x",
        "!!!",
        "*x*",
        "!!!x",
        '{"a": "b"}',
    ),
    *("REPLACED", "replace1", "nullable", "undefined1", "nan0", "nonentity", "optional_", "nil"),
    # .NET's GUIDs; ids in quotes.
    *("{6C945967-0403-44EE-8c3f-df688869cd04}", "(6c945967-0403-44ee-8c3f-df688869cd04)"),
    *('"C1"', "'C1'", '"', "'", '"null', '"""', "%20x", "%41bc"),
    *("", " ", "é", "клик-1", "点击1", "100%sure", "a%b%c", "{" + "x" * 65 + "}", "{x}" * 200),
    *(
        "__click_id__",
        "__X",
        "X__",
        "____",
        "$argon2id$v=19$x",
        "$2y$10$abcdef",
        "12:30:45",
        "10:20",
    ),
]


@pytest.mark.parametrize("text", CLICK_IDS)
def test_no_click_id_is_a_macro(text: str) -> None:
    assert not is_macro(text)


@given(
    st.sampled_from(STYLES),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,40}", fullmatch=True).filter(
        lambda n: n[-1:] != "-"
    ),
)
def test_any_name_in_any_style_is_a_macro(style: str, name: str) -> None:
    assert is_macro(style.replace("N", name))


@given(
    st.from_regex(r"[A-Za-z0-9\-.~+/=][A-Za-z0-9\-._~+/=:|,;{}\[\]#%$<>()!]{0,80}", fullmatch=True)
)
def test_what_begins_as_an_id_is_none_but_for_a_few_words(text: str) -> None:
    words = {"replace", "optional", "undefined", "null", "none", "nan"}

    assert is_macro(text) == (text.lower() in words)


@pytest.mark.parametrize(
    "start", ["{", "{{{", "{ ", "[", "[%", "#", "%", "%7B", "$", "(", ":", "_", "<%"]
)
def test_a_hostile_value_is_judged_without_long_search(start: str) -> None:
    # Either result must come at once: a search of exponential time would never end.
    assert not is_macro(f"{start * 20}{'a ' * 200}")
    assert not is_macro(start * 400)


PARTS = [
    *("aff_{click_id}", "{click_id}1", "net-{transaction_id}", "{click_id", "click_id}", "{{x}"),
    *("a_!!!x!!!", "x-[click_id]", "x<click_id>", "#s2#-7", "%7Bx%7D-1", "1%%x%%"),
]


@pytest.mark.parametrize("text", PARTS)
@pytest.mark.parametrize("name", ["subid", "tid"])
def test_an_id_with_a_macro_within_is_taken_with_a_warning(
    client: Client, name: str, text: str
) -> None:
    client.click("C1")
    client.click(text)

    client.send(f"subid=C1&status=lead&{name}={quote(text, safe='')}")

    [kept] = client.postbacks()
    assert (kept.subid, kept.tid) == ((text, "") if name == "subid" else ("C1", text))
    [warning] = kept.warnings
    assert warning == f"a macro that the network did not replace stands within {name} {text!r}"


@pytest.mark.parametrize("text", ["list[1]", "item(2)", "#7", "50%", "a|b", "100%25", "$5", "x#y"])
def test_an_id_with_signs_of_its_own_draws_no_warning(client: Client, text: str) -> None:
    client.click(text)

    client.send(f"subid={quote(text, safe='')}&status=lead")

    assert client.postbacks()[0].warnings == []


# D12, D13, D14, D15, D16, D17, D64, and each parameter that is asked.
@pytest.mark.parametrize(
    "macro",
    [
        *(
            "!!!clickRef!!!",
            "##SUB_ID_SHORT(action)##",
            "{conversion_revenue:usd}",
            "${(click_id)!}",
        ),
        *(
            "{status: lead=install sale=bill}",
            "{{ click_id | default }}",
            "undefined",
            "{amount50%}",
        ),
        *("[%USER:UID%]", "#s2##s3#", "__CLICKID__", "{}", "None", "%aff_sub%"),
    ],
)
def test_a_macro_counts_as_not_sent_with_a_warning(client: Client, macro: str) -> None:
    client.click("C1", offer="O1")
    escaped = quote(macro, safe="")

    unusable = client.send(f"subid={escaped}&status=sale")
    client.send(
        f"subid=C1&status=lead&payout={escaped}&tid={escaped}&cost={escaped}&currency={escaped}"
        f"&from={escaped}&sub_id_3={escaped}"
    )
    unmapped = client.send(f"subid=C1&status={escaped}&payout=1")

    assert (unusable.verdict, unmapped.verdict) == ("invalid", "unmapped")
    [made] = client.conversions("C1")
    assert (made.amount, made.tid, made.cost, made.currency) == (None, "", None, None)
    assert (made.network, made.sub_ids) == (None, {})
    _, kept, _ = client.postbacks()
    for name in ("payout", "tid", "cost", "currency", "from", "sub_id_3"):
        [warning] = [text for text in kept.warnings if text.startswith(f"{name} is ")]
        assert macro[:10] in warning
        assert warning.endswith(
            "writes for nothing" if macro in {"undefined", "None"} else "did not replace"
        )


def test_two_sales_with_a_literal_transaction_id_each_draw_a_warning(client: Client) -> None:
    client.click("C2")

    for payout in (1, 2):
        client.send(f"subid=C2&status=sale&payout={payout}&tid=!!!transactionId!!!")

    assert [c.tid for c in client.conversions("C2")] == [""]
    for kept in client.postbacks():
        assert "tid is '!!!transactionId!!!', a macro that the network did not" in kept.warnings[0]


def test_what_is_to_be_answered_is_never_a_macro(client: Client) -> None:
    client.click("C1")

    assert client.send("subid=C1&status=sale&return=%7BOK%7D").text == "{OK}"
