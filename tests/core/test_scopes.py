"""Scopes and record keys: the contract's examples, and that keys never collide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InvalidField
from pipeline.core.scopes import (
    KINDS,
    PERIODS,
    UNITS,
    RecordKey,
    cell_scope,
    event_scopes,
    format_scope,
    is_star_id,
    is_wildcard,
    parse_key,
    parse_scope,
    record_key,
    scope_id,
    scope_kind,
    wildcard_of,
)

awkward_ids = st.text(st.sampled_from("a|%:*=~é 27CAF"), min_size=1, max_size=8)
ids = awkward_ids | st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=100)
kinds = st.sampled_from(KINDS)


@pytest.mark.parametrize(
    ("scope", "key"),
    [
        ("port:a|b", "port:a%7Cb|tokens|month"),
        ("port:harbor-7", "port:harbor-7|tokens|month"),
        ("all", "all|tokens|month"),
        ("port:*", "port:*|tokens|month"),
        ("port=*", "port:%2A|tokens|month"),
        ("port:%2A", "port:%252A|tokens|month"),
        ("user:x:y", "user:x%3Ay|tokens|month"),
        ("user:**", "user:**|tokens|month"),
        ("org:ä b", "org:ä b|tokens|month"),
    ],
)
def test_record_key(scope: str, key: str) -> None:
    assert record_key(scope, "tokens", "month") == key
    assert parse_key(key) == (scope, "tokens", "month")
    assert parse_key(key.encode()) == (scope, "tokens", "month")
    assert str(RecordKey(scope, "tokens", "month")) == key


@given(kinds, ids, st.sampled_from(UNITS), st.sampled_from(PERIODS))
def test_keys_of_events_come_back(kind: str, scope_id_: str, unit: str, period: str) -> None:
    scope = cell_scope(f"{kind}:{scope_id_}")
    key = record_key(scope, unit, period)
    assert parse_key(key) == (scope, unit, period)
    assert key.count("|") == 2
    assert scope_kind(scope) == kind
    assert scope_id(scope) == scope_id_
    assert format_scope(scope) == f"{kind}:{scope_id_}"
    assert wildcard_of(scope) == f"{kind}:*"
    assert not is_wildcard(scope)


@given(kinds, ids, kinds, ids)
def test_different_scopes_have_different_keys(k1: str, id1: str, k2: str, id2: str) -> None:
    scopes = {cell_scope(f"{k1}:{id1}"), cell_scope(f"{k2}:{id2}"), "all", "port:*", "user:*"}
    keys = {record_key(scope, "cost", "day") for scope in scopes}
    assert len(keys) == len(scopes) == 3 + len({(k1, id1), (k2, id2)})


def test_the_id_star_is_not_the_wildcard() -> None:
    (star,) = [scope for scope in event_scopes("*") if scope != "all"]
    assert star != parse_scope("port:*")
    assert is_star_id(star)
    assert not is_star_id("port:*")
    assert is_wildcard("port:*")
    assert format_scope(star) == "port:*"
    assert wildcard_of(star) == "port:*"
    assert not is_wildcard("port:a:*")
    assert cell_scope("port:a:*") == "port:a:*"


def test_event_scopes() -> None:
    assert event_scopes("p", "o", "g", "u") == ("all", "port:p", "org:o", "group:g", "user:u")
    assert event_scopes("p") == ("all", "port:p")
    assert event_scopes("*", "*", "*", "*") == ("all", "port=*", "org=*", "group=*", "user=*")
    assert wildcard_of("all") is None
    assert wildcard_of("org:*") is None


@pytest.mark.parametrize(
    "text",
    ["", "port", "port:", "team:x", "ALL", "all:", "Port:x", ":x", "port=*", "port:" + "x" * 129],
)
def test_bad_scopes_are_refused(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_scope(text)
    assert caught.value.field == "scope"


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidField):
        parse_scope("port:\ud800")


@pytest.mark.parametrize(
    "key",
    [
        "port:a|tokens",
        "port:a|tokens|year",
        "port:a|words|day",
        "port:a%7cb|tokens|day",
        "port:a%41|tokens|day",
        "port:a%|tokens|day",
        "port:a:b|tokens|day",
        "port:|tokens|day",
        "team:%2A|tokens|day",
        "port=*|tokens|day",
        "a|port:a|tokens|day",
        b"port:\xff|tokens|day",
        "!heartbeat|0",
        "",
    ],
)
def test_keys_that_are_not_canonical_are_refused(key: str | bytes) -> None:
    with pytest.raises(InvalidField):
        parse_key(key)
