"""What the service log says of a changed config: each setting by its name, no key."""

import logging
from pathlib import Path

import pytest
from conftest import write_config

from postbackd.config.watch import ConfigWatch

CHANGES = [
    ({}, {}, "nothing that counts has changed"),
    ({}, {"postback_key": "second-key"}, "[system] postback_key *** -> another"),
    ({}, {"pixel_key": None}, "[system] pixel_key *** -> none"),
    ({"click_key": None}, {}, "[system] click_key none -> ***"),
    ({}, {"postback_key_old": "older, old until 2030-12-31"},
     "[system] postback_key_old none -> ***, *** until 2030-12-31"),
    ({}, {"public_url": "https://t.example"},
     "[system] public_url http://127.0.0.1:8000 -> https://t.example"),
    ({}, {"trusted_proxies": "192.0.2.0/24"}, "[system] trusted_proxies"),
    ({}, {"unknown_subid": "accept"}, "[postback] unknown_subid park -> accept"),
    ({}, {"park_days": "7"}, "[postback] park_days 90 -> 7"),
    ({}, {"repeats": "update"}, "[postback] repeats ignore -> update"),
    ({}, {"rebills": "yes"}, "[postback] rebills no -> yes"),
    ({}, {"unreject": "yes"}, "[postback] unreject no -> yes"),
    ({}, {"decimal_comma": "yes"}, "[postback] decimal_comma no -> yes"),
    ({}, {"fallback_encoding": "latin-1"}, "[postback] fallback_encoding none -> "),
    ({}, {"source": "ecb,cbr"}, "[rates] source none -> ecb,cbr"),
    ({}, {"postbacks": "yes"}, "[log] postbacks no -> yes"),
    ({}, {"anonymize_ip": "yes"}, "[log] anonymize_ip no -> yes"),
    ({}, {"repeats": "update", "park_days": "7"},
     "[postback] park_days 90 -> 7; [postback] repeats ignore -> update"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "says"), CHANGES)
def test_a_change_is_logged_with_what_has_changed(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    before: dict[str, str | None],
    after: dict[str, str | None],
    says: str,
) -> None:
    path = write_config(tmp_path, before)
    watch = ConfigWatch(path)
    watch.current(100.0)
    write_config(tmp_path, after)
    # A comment, so that the file differs in any case.
    path.write_text(f"{path.read_text()}; edited\n")

    with caplog.at_level(logging.INFO, "postback"):
        watch.current(200.0)

    [said] = [r.getMessage() for r in caplog.records if "was read anew" in r.getMessage()]
    assert f"is in force: {says}" in said
    assert not any(key in caplog.text for key in ("key-of-the-tests", "second-key", "older"))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {"postback_key": "second"}, "a former key is accepted no more"),
        ({"postback_key_old": "b, c"}, {"postback_key": "d"}, "3 former keys are accepted no more"),
        ({}, {"postback_key": "second", "postback_key_old": "s3cret-key-of-the-tests"}, None),
        ({}, {"repeats": "update"}, None),
    ],
)
def test_a_key_that_is_dropped_is_a_warning_that_names_the_way_to_keep_it(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    before: dict[str, str | None],
    after: dict[str, str | None],
    says: str | None,
) -> None:
    path = write_config(tmp_path, before)
    watch = ConfigWatch(path)
    watch.current(100.0)
    write_config(tmp_path, after)

    watch.current(200.0)

    warnings = [r.getMessage() for r in caplog.records if "accepted no more" in r.getMessage()]
    assert len(warnings) == (says is not None)
    assert says is None or (says in warnings[0] and "--keep-old-until" in warnings[0])
