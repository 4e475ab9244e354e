"""The operator's root key signs what the step means, and nothing that a master slips in."""

import secrets
import time
from typing import Any

import msgspec
import pytest

from wavry_cp.admin.key_rotation import _check_plan
from wavry_cp.admin.output import CommandError
from wavry_cp.master.keys.rules import KeyStep, next_keys
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.http.keys import KeyPlan
from wavry_peer.protocol.keyset import KeySet, PublishedKey, sign_keyset

ROOT = SigningKey.from_seed(b"R" * 32)


def key(name: str, status: Any = "pending") -> PublishedKey:
    return PublishedKey(kid=name, public_key=secrets.token_urlsafe(32), status=status)


BEFORE: KeySet = sign_keyset((key("a", "active"), key("b")), serial=4, issued_at=1, root=ROOT)


def now_s() -> int:
    """Asked by each test: hours may lie between its import and its run."""
    return int(time.time())


def plan(step: KeyStep, **arguments: Any) -> KeyPlan:
    following = next_keys(BEFORE.keys, step, now_s=now_s(), **arguments)
    return KeyPlan(serial=5, issued_at=now_s(), keys=following)


def refused(changed: KeyPlan, step: KeyStep, kid: str | None) -> bool:
    with pytest.raises(CommandError) as caught:
        _check_plan(BEFORE, changed, step, kid)
    return caught.value.code == "bad_plan"


def test_the_plan_of_each_step_is_signed() -> None:
    _check_plan(BEFORE, plan(KeyStep.ACTIVATE, kid="b"), KeyStep.ACTIVATE, "b")
    _check_plan(BEFORE, plan(KeyStep.ROLLBACK), KeyStep.ROLLBACK, None)
    with_new = plan(KeyStep.REVOKE, kid="a", new_key=key("c"))
    _check_plan(BEFORE, with_new, KeyStep.REVOKE, "a")
    with_pending = plan(KeyStep.REVOKE, kid="a", successor="b")
    _check_plan(BEFORE, with_pending, KeyStep.REVOKE, "a")


def test_another_step_another_key_or_another_document_is_not_signed() -> None:
    good = plan(KeyStep.ACTIVATE, kid="b")
    changed = msgspec.structs.replace
    assert refused(good, KeyStep.CREATE, None)
    assert refused(good, KeyStep.ACTIVATE, "a")
    assert refused(changed(good, serial=6), KeyStep.ACTIVATE, "b")
    assert refused(changed(good, issued_at=now_s() + 86_400), KeyStep.ACTIVATE, "b")
    assert refused(changed(good, keys=(*good.keys, key("z"))), KeyStep.ACTIVATE, "b")
    assert refused(changed(good, keys=good.keys[1:]), KeyStep.ACTIVATE, "b")
    stolen = tuple(changed(one, public_key=key("x").public_key) for one in good.keys)
    assert refused(changed(good, keys=stolen), KeyStep.ACTIVATE, "b")
    assert refused(plan(KeyStep.REVOKE, kid="a", successor="b"), KeyStep.ROLLBACK, None)
