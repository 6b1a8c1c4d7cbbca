"""The policies: their defaults, what they refuse, and that they stay as they were checked."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotcache.policy import AvailabilityPolicy, HoldPolicy, seconds

Policy = type[AvailabilityPolicy] | type[HoldPolicy]

ABOVE_ZERO: list[tuple[Policy, str]] = [
    (AvailabilityPolicy, "ttl"),
    (AvailabilityPolicy, "lock_ttl"),
    (HoldPolicy, "ttl"),
    (HoldPolicy, "max_lifetime"),
    (HoldPolicy, "lock_wait"),
]
ZERO_OR_MORE: list[tuple[Policy, str]] = [
    (AvailabilityPolicy, "stale_ttl"),
    (AvailabilityPolicy, "lock_timeout"),
    (AvailabilityPolicy, "min_ttl"),
]
ALL_SECONDS = ABOVE_ZERO + ZERO_OR_MORE

finite = st.floats(0, exclude_min=True, allow_infinity=False)


def make(policy: Policy, **fields: Any) -> AvailabilityPolicy | HoldPolicy:
    return policy(**fields)


def test_the_defaults_of_availability_are_those_of_the_docs() -> None:
    assert dataclasses.asdict(AvailabilityPolicy()) == {
        "key": "slots.availability",
        "ttl": 10.0,
        "stale_ttl": 60.0,
        "lock_key": None,
        "lock_timeout": 5.0,
        "lock_ttl": 10.0,
        "min_ttl": 1.0,
    }


def test_the_defaults_of_holds_are_those_of_the_docs() -> None:
    assert dataclasses.asdict(HoldPolicy()) == {
        "ttl": 600.0,
        "max_lifetime": 3600.0,
        "lock_wait": 3.0,
    }


@pytest.mark.parametrize(("policy", "field"), ALL_SECONDS)
def test_seconds_written_as_an_int_become_a_float(policy: Policy, field: str) -> None:
    value = getattr(make(policy, **{field: 601 if field == "max_lifetime" else 2}), field)
    assert type(value) is float


@pytest.mark.parametrize(("policy", "field"), ALL_SECONDS)
@pytest.mark.parametrize("value", [True, "10", None, b"1", [10]])
def test_seconds_of_another_type_are_refused(policy: Policy, field: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{field} must be a number of seconds, .* not "):
        make(policy, **{field: value})


@pytest.mark.parametrize(("policy", "field"), ALL_SECONDS)
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_negative_and_unbounded_seconds_are_refused(
    policy: Policy, field: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be a finite number of seconds, .* not "):
        make(policy, **{field: value})


@pytest.mark.parametrize(("policy", "field"), ABOVE_ZERO)
@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_zero_is_refused_where_it_makes_no_sense(policy: Policy, field: str, zero: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .* above 0, not"):
        make(policy, **{field: zero})


@pytest.mark.parametrize(("policy", "field"), ZERO_OR_MORE)
def test_zero_is_taken_where_it_means_never(policy: Policy, field: str) -> None:
    assert getattr(make(policy, **{field: 0}), field) == 0.0


@pytest.mark.parametrize("field", ["key", "lock_key"])
def test_a_name_must_be_text(field: str) -> None:
    with pytest.raises(TypeError, match=rf"^{field} must be a str, not 7"):
        make(AvailabilityPolicy, **{field: 7})


@pytest.mark.parametrize("field", ["key", "lock_key"])
def test_an_empty_name_is_refused_with_an_example(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must not be empty: write a name such as"):
        make(AvailabilityPolicy, **{field: ""})


def test_the_key_may_not_be_none() -> None:
    with pytest.raises(TypeError, match=r"^key must be a str, not None"):
        make(AvailabilityPolicy, key=None)


def test_a_hold_may_not_last_longer_than_any_hold_may() -> None:
    with pytest.raises(ValueError, match=r"ttl=61 is longer than max_lifetime=60: raise max_life"):
        HoldPolicy(ttl=61, max_lifetime=60)
    assert HoldPolicy(ttl=60, max_lifetime=60).ttl == 60.0


@pytest.mark.parametrize("policy", [AvailabilityPolicy(), HoldPolicy()], ids=["list", "hold"])
def test_a_policy_is_frozen(policy: AvailabilityPolicy | HoldPolicy) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.ttl = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("policy", [AvailabilityPolicy, HoldPolicy], ids=["list", "hold"])
def test_fields_are_given_by_name(policy: Policy) -> None:
    with pytest.raises(TypeError, match="positional"):
        policy(5.0)  # type: ignore[arg-type, call-arg]


@given(finite, finite)
def test_equal_settings_are_equal_policies_also_after_pickling(ttl: float, stale: float) -> None:
    policy = AvailabilityPolicy(key="rooms", ttl=ttl, stale_ttl=stale)
    assert policy == AvailabilityPolicy(key="rooms", ttl=ttl, stale_ttl=stale)
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_a_replaced_key_does_not_keep_the_lock_of_the_old_one() -> None:
    assert dataclasses.replace(AvailabilityPolicy(), key="rooms").lock_key is None


def test_a_replaced_field_is_checked_as_well() -> None:
    with pytest.raises(ValueError, match="ttl must be"):
        dataclasses.replace(AvailabilityPolicy(), ttl=-1)


@given(finite)
def test_seconds_that_are_fine_come_back_as_they_are(value: float) -> None:
    assert seconds("ttl", value, above_zero=True) == value
