"""Keys are found however they are escaped, nothing else is touched, and no time tells of a key."""

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from spellings import SPELLINGS, escape_every_letter

from postbackd import masking
from postbackd.masking import HIDDEN, KeyMask

# A generated key, and one as people invent them.
RANDOM_KEY = b"0123456789abcdef0123456789abcdef"
CHOSEN_KEY = "s3cret/key-of the+tésts".encode()
KEYS = (RANDOM_KEY, CHOSEN_KEY)


AROUND = [
    ("", ""),
    ("subid=c1&ref=http://h/", "/postback?x=1&payout=12.50"),
    ("{'HTTP_COOKIE': b'", "\\n'}"),
    ('{"note":"x\\/', '\\u0020"}'),
    ("пароль «", "» é"),
    ("payout=100%&x=", "%&cost=1"),
]
AROUND_IN_AN_ADDRESS = [
    ("ref=http%3A%2F%2Fh%2F", "%2Fpostback&payout=12%2E50"),
    ("ref=http%253A%252F%252Fh%252F", "%252Fpostback"),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("key", KEYS, ids=["random", "chosen"])
def test_a_key_is_hidden_however_it_is_spelt_and_nothing_else_changes(
    key: bytes, spelling: str
) -> None:
    mask = KeyMask(KEYS)
    spelt = SPELLINGS[spelling](key)

    around = AROUND + AROUND_IN_AN_ADDRESS if "escaped" in spelling else AROUND
    for before, behind in around:
        assert mask.hide(f"{before}{spelt}{behind}") == f"{before}{HIDDEN}{behind}"
        assert spelt not in mask.hide_in_message(f"{before}{spelt}{behind}")


SOME_KEYS = [
    *(b"s3cret-key", b"old/key+1", b"abc", b"plainkey", b"anotherplainkey", b"-dash-key-"),
    *(b"one-two-three", b"two-three-four", b"one-two-six-three", b"two-six", b'quote"d-key'),
    "key\U0001f600key".encode(),
]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("subid=c1", "subid=c1"),
        ("ref=http://h/s3cret-key/postback&subid=c1", "ref=http://h/***/postback&subid=c1"),
        ("ref=s3cret%2Dkey", "ref=***"),
        ("old%2Fkey%2B1=x", "***=x"),
        ("x=1&s3cret-key=old/key+1&y=2", "x=1&***=***&y=2"),
        ("s3cret-key%2Cs3cret-key", "***%2C***"),
        ("s3cret-key-s3cret-key", "***-***"),
        # Overlapping keys, or one within the other: both are hidden as a whole.
        ("one-two-three-four", "***"),
        ("one-two-six-three.", "***."),
        ("x=plainkey&y=plainkeys&z=anotherplainkey", "x=***&y=plainkeys&z=***"),
        (r"x=key\U0001F600key", "x=***"),
        # Behind a layer of backslashes there may be two more.
        (r'"x\n%2573%2533cret-key"', r'"x\n***"'),
        (r"'%2571uote\"d-key'", "'***'"),
        # A part of a longer word, or shorter than what is hidden: a word of the trade.
        ("subid=xs3cret-keyx", "subid=xs3cret-keyx"),
        ("subid=s3cret-keyx", "subid=s3cret-keyx"),
        ("subid=abc", "subid=abc"),
        # In the text as it is read the key is a part of a word.
        ("subid=%73s3cret-key", "subid=%73s3cret-key"),
        ('"a\\ns3cret-key\\tb"', '"a\\n***\\tb"'),
        # An end that is no letter ends a word.
        ("sub_id=x-dash-key-", "sub_id=x***"),
    ],
)
def test_a_key_is_hidden_where_it_stands_by_itself(text: str, hidden: str) -> None:
    assert KeyMask(SOME_KEYS).hide(text) == hidden


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("GET /s3cret-keypostback?x=1", "GET /***postback?x=1"),
        ("GET /postbacks3cret-key?x=1", "GET /postback***?x=1"),
        ("GET /%73%33cret-keyclick", "GET /***click"),
        # Keys that were rotated away: they are unknown, but their place in a path is known.
        ("GET /rotated-away/postback?x=1", "GET /***/postback?x=1"),
        ("ref=http%3A%2F%2Fh%2Frotated-away%2Fclick", "ref=http%3A%2F%2Fh%2F***%2Fclick"),
        ("ref=http%253A%252F%252Fh%252Frotated%252Fpostback.gif", None),
        (r'{"ref":"http:\/\/h\/rotated-away\/postback"}', r'{"ref":"http:\/\/h\/***\/postback"}'),
        ('File "/opt/x/lib/python3.11/site-packages/postback.py", line 3', "="),
        ("/var/lib/postback/postback.db cannot be read", "="),
        # Text that cannot be encoded at all.
        ("\ud800 s3cret-key \udcff", "\ud800 *** \udcff"),
    ],
)
def test_a_message_shows_no_key_glued_to_a_word_and_none_that_is_unknown(
    line: str, hidden: str | None
) -> None:
    shown = KeyMask([b"s3cret-key"]).hide_in_message(line)

    if hidden is None:
        hidden = line.replace("rotated", HIDDEN)
    assert shown == (line if hidden == "=" else hidden)


# Keys of all that a config file can hold, with everything that escapes are made of.
LETTERS = "abcXYZ019-_./ +%\\\"'&=?#xu25ключé€😀\n\t"
keys = st.text(LETTERS, min_size=6, max_size=14)
separators = st.sampled_from(["", "/", " ", "&", "=", "\\/", '"', "«", "%"])


@given(keys, st.lists(st.booleans(), min_size=60, max_size=60), separators, separators)
@example("a\\nb-cd", [True] * 60, "/", "/")
@example("%41bcdef", [False] * 60, "", "")
def test_any_key_is_found_whichever_of_its_letters_are_escaped(
    key: str, chosen: list[bool], before: str, behind: str
) -> None:
    raw = key.encode()
    once = "".join(
        f"%{byte:02X}" if escaped or byte > 126 or chr(byte) in "%+ " else chr(byte)
        for byte, escaped in zip(raw, chosen, strict=False)
    )
    twice = once.replace("%", "%25")
    mask = KeyMask([raw])

    for spelt in (key, once, twice, repr(key)[1:-1], repr(raw)[2:-1], json.dumps(key)[1:-1]):
        assert spelt not in mask.hide(f"{before}{spelt}{behind}")
        assert HIDDEN in mask.hide(f"{before}{spelt}{behind}")


texts = st.text(LETTERS) | st.lists(
    st.sampled_from(
        ["%", "%25", "%41", "%2F", "\\", "\\x41", "\\u0041", "\\ud83d", "&", "12.50", "\udcff", "é"]
    )
).map("".join)


@given(texts)
def test_a_text_without_a_key_is_not_touched(text: str) -> None:
    mask = KeyMask(KEYS)

    assert mask.hide(text) == text
    if "/" not in text and "%" not in text and "\\" not in text:
        assert mask.hide_in_message(text) == text


@given(texts, texts)
def test_money_beside_a_key_is_not_touched(before: str, behind: str) -> None:
    key = RANDOM_KEY.decode()
    # An escape before the key would change its first letters.
    assume(not before.endswith(("%", "%2", "%25", "\\", "\\x")) and "\\u" not in before[-6:])

    hidden = KeyMask([RANDOM_KEY]).hide(f"{before}&x={key}&payout=12.50{behind}")

    assert hidden == f"{before}&x={HIDDEN}&payout=12.50{behind}"


def test_a_mask_holds_no_key() -> None:
    held = repr(vars(KeyMask(KEYS)))

    assert not any(key.decode() in held for key in KEYS)


# The cost is counted, because a machine may be slow for other reasons.


class Counter:
    """Counts the hashed stretches of text, and their letters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace `hash` in the module."""
        self.stretches = self.letters = 0
        monkeypatch.setattr(masking, "hash", self._hash, raising=False)

    def count(self, hide: Callable[[str], str], text: str) -> tuple[int, int]:
        """Return both counts for one text without a key."""
        self.stretches = self.letters = 0
        assert hide(text) == text
        return self.stretches, self.letters

    def _hash(self, stretch: str) -> int:
        self.stretches += 1
        self.letters += len(stretch)
        return hash(stretch)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def write_guesses(key: bytes, right_letters: int, spell: Callable[[bytes], str]) -> str:
    """Write 8,000 bytes of guesses of which so many letters are right; the others never are."""
    wrong = re.sub(rb"[A-Za-z0-9]", b"z", key[right_letters:])
    guess = "/" + spell(key[:right_letters] + wrong)
    return (guess * (8000 // len(guess) + 1))[:8000]


@pytest.mark.parametrize("key", KEYS, ids=["random", "chosen"])
@pytest.mark.parametrize(
    "spell", [lambda guess: guess.decode("latin-1"), escape_every_letter], ids=["clear", "escaped"]
)
def test_right_letters_cost_what_wrong_ones_cost(
    counter: Counter, key: bytes, spell: Callable[[bytes], str]
) -> None:
    mask = KeyMask(KEYS)
    for hide in (mask.hide, mask.hide_in_message):
        costs = {counter.count(hide, write_guesses(key, right, spell)) for right in range(len(key))}

        assert len(costs) == 1
        assert min(costs) > (100, 100)


@pytest.mark.parametrize("part", ["/a", "a-b.", "%2Fa", "%252Fa", "\\/a", "\\u0041 ", "é", "%"])
def test_twice_the_text_costs_twice_at_most(counter: Counter, part: str) -> None:
    mask = KeyMask(KEYS)
    for hide in (mask.hide, mask.hide_in_message):
        short, long = (counter.count(hide, part * length)[1] for length in (2000, 4000))

        # Near the ends of a text there are fewer stretches.
        assert long <= 2 * short + 2 * len(CHOSEN_KEY) ** 2
        assert long <= 20 * len(CHOSEN_KEY) * 4000


def test_thirty_one_right_letters_in_a_line_of_a_log(counter: Counter) -> None:
    """With these, the pattern that was used before took longer than the universe will last."""
    guess = escape_every_letter(RANDOM_KEY[:31])
    line = f'127.0.0.1 - - "GET /{guess} HTTP/1.1" 404 9 "-" "-"'

    stretches, letters = counter.count(KeyMask(KEYS).hide_in_message, line)

    assert stretches < 100
    assert letters < 2500
