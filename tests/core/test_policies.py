"""Policies: reading, checking, partial writes, and the fold of the topic."""

import json
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InvalidField
from pipeline.core.policies import (
    MAX_CAP,
    Extra,
    Policy,
    PolicyTable,
    merge_partial,
    parse_policy,
    parse_policy_file,
    policy_fields,
    policy_from_object,
    policy_json,
    unset_policy,
)
from pipeline.core.scopes import PERIODS
from pipeline.core.windows import parse_ms

CONTRACT_EXAMPLE = (
    b'{"scope":"port:harbor-7","unit":"tokens","period":"month","enabled":true,'
    b'"soft_cap":100000,"hard_cap":500000,"warn_threshold_pct":80,"on_stale":"allow",'
    b'"extra":{"amount":50000,"until":"2026-12-01T00:00:00Z"},'
    b'"notify":["mailto:a@b.c","https://example.org/hook"]}'
)
KEY = b"port:harbor-7|tokens|month"
UNTIL_MS = parse_ms("2026-12-01T00:00:00Z")


def body(**changes: Any) -> dict[str, Any]:
    return {"scope": "port:harbor-7", "unit": "tokens", "period": "month", **changes}


def record(**changes: Any) -> bytes:
    return json.dumps(body(**changes)).encode()


def test_the_contracts_example_is_canonical() -> None:
    policy = parse_policy(KEY, CONTRACT_EXAMPLE)
    assert policy.extra == Extra(50000, UNTIL_MS)
    assert policy_json(policy) == CONTRACT_EXAMPLE


def test_defaults() -> None:
    policy = parse_policy(KEY, record(soft_cap=None, notify=None, enabled=None))
    assert policy == Policy("port:harbor-7", "tokens", "month")
    assert policy.enabled
    assert policy.warn_threshold_pct == 80
    assert policy.on_stale == "allow"


def test_cost_caps_are_decimal_strings_in_nanos() -> None:
    policy = policy_from_object(
        body(unit="cost", soft_cap="0.5", hard_cap="5.000000001", extra=None)
    )
    assert (policy.soft_cap, policy.hard_cap) == (500_000_000, 5_000_000_001)
    assert policy_fields(policy)["hard_cap"] == "5.000000001"
    assert policy_fields(policy)["soft_cap"] == "0.5"


def test_a_topic_record_may_hold_unknown_fields_and_a_file_may_not() -> None:
    assert parse_policy(KEY, record(hard_capp=5)).hard_cap is None
    with pytest.raises(InvalidField) as caught:
        policy_from_object(body(hard_capp=5))
    assert caught.value.field == "hard_capp"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("scope", {"scope": None}),
        ("scope", {"scope": 7}),
        ("scope", {"scope": "team:x"}),
        ("unit", {"unit": None}),
        ("unit", {"unit": "words"}),
        ("period", {"period": "year"}),
        ("enabled", {"enabled": "yes"}),
        ("enabled", {"enabled": 1}),
        ("soft_cap", {"soft_cap": -1}),
        ("hard_cap", {"hard_cap": 1.0}),
        ("hard_cap", {"hard_cap": True}),
        ("hard_cap", {"hard_cap": "5"}),
        ("hard_cap", {"hard_cap": MAX_CAP + 1}),
        ("soft_cap", {"soft_cap": 2, "hard_cap": 1}),
        ("hard_cap", {"unit": "cost", "hard_cap": 5}),
        ("hard_cap", {"unit": "cost", "hard_cap": 5.5}),
        ("hard_cap", {"unit": "cost", "hard_cap": "-5"}),
        ("hard_cap", {"unit": "cost", "hard_cap": "1e3"}),
        ("hard_cap", {"unit": "cost", "hard_cap": "0.0000000001"}),
        ("warn_threshold_pct", {"warn_threshold_pct": 101}),
        ("warn_threshold_pct", {"warn_threshold_pct": -1}),
        ("warn_threshold_pct", {"warn_threshold_pct": 80.0}),
        ("on_stale", {"on_stale": "maybe"}),
        ("extra", {"extra": 5}),
        ("extra.amount", {"extra": {"until": "2026-12-01T00:00:00Z"}}),
        ("extra.amount", {"extra": {"amount": -1, "until": "2026-12-01T00:00:00Z"}}),
        ("extra.until", {"extra": {"amount": 1}}),
        ("extra.until", {"extra": {"amount": 1, "until": "tomorrow"}}),
        ("notify", {"notify": "mailto:a@b.c"}),
        ("notify", {"notify": ["ftp://x"]}),
        ("notify", {"notify": [1]}),
    ],
)
def test_invalid_fields_are_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_policy(KEY, record(**changes))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [None, b"", b"port:other|tokens|month", b"port:harbor-7|tokens|day", b"port:harbor%2D7|\xff"],
)
def test_the_key_must_match_the_body(key: bytes | None) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_policy(key, record())
    assert caught.value.field == "key"


def test_the_id_star_has_no_policy_of_its_own() -> None:
    value = record(scope="port:*")
    assert parse_policy(b"port:*|tokens|month", value).scope == "port:*"
    with pytest.raises(InvalidField):
        parse_policy(b"port:%2A|tokens|month", value)
    with pytest.raises(InvalidField):
        merge_partial("port=*", "tokens", "month", None, {})


@pytest.mark.parametrize("value", [b"", b"[]", b"null", b"{", b"\xff", b'{"scope":"\xff"}'])
def test_what_is_no_object_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidField):
        parse_policy(KEY, value)


def test_soft_line_and_extra() -> None:
    policy = policy_from_object(
        body(hard_cap=101, extra={"amount": 100, "until": "1970-01-02T00:00:00Z"})
    )
    assert (policy.hard_cap_at(0), policy.soft_line_at(0)) == (201, 160)
    assert (policy.hard_cap_at(86_400_000), policy.soft_line_at(86_400_000)) == (101, 80)
    assert Policy("all", "tokens", "day", soft_cap=7).soft_line_at(0) == 7
    assert Policy("all", "tokens", "day").soft_line_at(0) is None


@given(st.integers(0, 10**20), st.integers(0, 100), st.integers(0, 10**20))
def test_the_soft_line_is_an_exact_percentage(hard_cap: int, pct: int, used: int) -> None:
    line = Policy("all", "cost", "day", hard_cap=hard_cap, warn_threshold_pct=pct).soft_line_at(0)
    assert line is not None
    assert (used > line) == (used * 100 > pct * hard_cap)


class TestMergePartial:
    def merge(self, current: Policy | None = None, **changes: Any) -> Policy:
        return merge_partial("port:a", "tokens", "month", current, changes)

    def test_a_port_without_a_policy(self) -> None:
        unset = unset_policy("port:a", "tokens", "month")
        assert unset == Policy(
            "port:a", "tokens", "month", enabled=False, soft_cap=100_000, hard_cap=500_000
        )
        assert unset_policy("port:*", "tokens", "month") is None
        assert unset_policy("port:a", "tokens", "day") is None
        assert unset_policy("user:a", "tokens", "month") is None

    def test_the_first_partial_write_starts_from_the_defaults(self) -> None:
        default = Policy("port:a", "tokens", "month", soft_cap=100_000, hard_cap=500_000)
        assert self.merge() == default
        assert self.merge(enabled=False) == msgspec.structs.replace(default, enabled=False)
        assert self.merge(hard_cap=200_000).soft_cap == 100_000
        assert self.merge(hard_cap=100_000).soft_cap == 100_000
        assert self.merge(hard_cap=99_999).soft_cap is None
        assert self.merge(hard_cap=0).soft_cap is None
        assert self.merge(hard_cap=None).soft_cap == 100_000
        assert self.merge(soft_cap=5).hard_cap == 500_000
        with pytest.raises(InvalidField):
            self.merge(soft_cap=500_001)
        with pytest.raises(InvalidField):
            self.merge(soft_cap=2, hard_cap=1)

    @pytest.mark.parametrize(
        ("scope", "unit", "period"),
        [
            ("port:*", "tokens", "month"),
            ("port:a", "cost", "month"),
            ("port:a", "tokens", "week"),
            ("user:a", "tokens", "month"),
            ("all", "tokens", "month"),
        ],
    )
    def test_every_other_budget_starts_empty(self, scope: str, unit: str, period: str) -> None:
        assert merge_partial(scope, unit, period, None, {}) == Policy(scope, unit, period)

    def test_only_what_is_named_changes(self) -> None:
        current = parse_policy(KEY, CONTRACT_EXAMPLE)
        merged = merge_partial(*_budget(current), current, {"hard_cap": 600_000})
        assert merged == msgspec.structs.replace(current, hard_cap=600_000)
        cleared = merge_partial(
            *_budget(current),
            current,
            {"soft_cap": None, "extra": None, "warn_threshold_pct": None, "notify": None},
        )
        assert cleared == Policy("port:harbor-7", "tokens", "month", hard_cap=500_000)

    def test_names_of_the_budget_and_unknown_fields(self) -> None:
        assert self.merge(scope="port:a", unit="tokens", period="month").enabled
        with pytest.raises(InvalidField):
            self.merge(scope="port:b")
        with pytest.raises(InvalidField):
            self.merge(hardcap=1)


def _budget(policy: Policy) -> tuple[str, str, str]:
    return policy.scope, policy.unit, policy.period


caps = st.none() | st.integers(0, MAX_CAP)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    soft, hard = draw(caps), draw(caps)
    if soft is not None and hard is not None:
        soft, hard = sorted((soft, hard))
    extra = st.builds(Extra, st.integers(0, MAX_CAP), st.integers(0, 4_000_000_000_000))
    return Policy(
        draw(st.sampled_from(["all", "port:a|b", "user:*", "org:ä:%7C"])),
        draw(st.sampled_from(["tokens", "cost"])),
        draw(st.sampled_from(PERIODS)),
        draw(st.booleans()),
        soft,
        hard,
        draw(st.integers(0, 100)),
        draw(st.sampled_from(["allow", "deny"])),
        draw(st.none() | extra),
        tuple(draw(st.lists(st.just("mailto:a@b.c"), max_size=2))),
    )


@given(policies())
def test_policies_come_back(policy: Policy) -> None:
    assert parse_policy(policy.key.encode(), policy_json(policy)) == policy
    assert policy_from_object(policy_fields(policy)) == policy


class TestFile:
    def test_a_list_or_an_object(self) -> None:
        text = """
        policies:
          - {scope: "port:a", unit: tokens, period: month, hard_cap: 5}
          - scope: user:*
            unit: cost
            period: day
            hard_cap: "2.50"
            extra: {amount: "1", until: 2026-12-01T00:00:00Z}
        """
        first, second = parse_policy_file(yaml.safe_load(text))
        assert first == Policy("port:a", "tokens", "month", hard_cap=5)
        assert second.hard_cap == 2_500_000_000
        assert second.extra == Extra(1_000_000_000, UNTIL_MS)
        assert parse_policy_file([body()]) == [Policy("port:harbor-7", "tokens", "month")]

    @pytest.mark.parametrize(
        ("field", "objects"),
        [
            ("policies", None),
            ("policies", {"policies": {}}),
            ("policy", {"policy": []}),
            ("policies[1].hard_cap", [body(), body(period="day", hard_cap="x")]),
            ("policies[1]", [body(), body(hard_cap=1)]),
            ("policies[0].policy", ["port:a"]),
        ],
    )
    def test_mistakes_name_the_entry(self, field: str, objects: object) -> None:
        with pytest.raises(InvalidField) as caught:
            parse_policy_file(objects)
        assert caught.value.field == field


class TestPolicyTable:
    def test_the_last_valid_one_stays(self) -> None:
        table = PolicyTable()
        good = table.apply(0, KEY, CONTRACT_EXAMPLE)
        assert isinstance(good, Policy)
        assert table.apply(1, KEY, b"{}") == good
        assert table.policies == {good.key: good}
        (invalid,) = table.invalid.values()
        assert (invalid.offset, invalid.key, invalid.last_valid) == (1, KEY, good)
        assert invalid.field == "scope"
        assert table.apply(2, KEY, CONTRACT_EXAMPLE) == good
        assert not table.invalid

    def test_the_registry_helps_where_compaction_dropped_the_valid_one(self) -> None:
        table = PolicyTable()
        table.seed(KEY, CONTRACT_EXAMPLE)
        table.seed(b"port:b|tokens|month", b"rubbish")
        assert not table.policies
        kept = table.apply(5, KEY, b"{}")
        assert isinstance(kept, Policy)
        assert table.policies == {kept.key: kept}
        assert table.apply(6, b"port:b|tokens|month", b"{}") is None
        assert len(table.invalid) == 2

    def test_a_newer_valid_record_beats_the_registry(self) -> None:
        table = PolicyTable()
        table.seed(KEY, CONTRACT_EXAMPLE)
        newer = table.apply(0, KEY, record(hard_cap=1))
        assert table.apply(1, KEY, b"{}") == newer

    def test_deletion(self) -> None:
        table = PolicyTable()
        table.seed(KEY, CONTRACT_EXAMPLE)
        assert table.apply(0, KEY, None) is None
        assert table.apply(1, KEY, b"{}") is None
        table.apply(2, KEY, CONTRACT_EXAMPLE)
        assert table.apply(3, KEY, None) == KEY.decode()
        assert not table.policies
        assert not table.invalid
        assert table.apply(4, b"\xff", None) is None
        assert table.apply(5, None, b"{}") is None
