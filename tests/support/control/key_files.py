"""Steps that `test_key_files` cuts off in a child process; imported there by name."""

import secrets
from pathlib import Path
from typing import Any

from wavry_cp.master.keys import files as keys
from wavry_cp.master.keys.files import init_keys
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.keys.rules import KeyStep, next_keys
from wavry_peer.protocol.keyset import KeySet, link_root, sign_keyset

FINAL_SERIAL = {"create": 2, "activate": 3, "remove": 4, "revoke": 2, "root": 2}
_BEFORE = {"activate": ("create",), "remove": ("create", "activate")}


def prepared(home: Path, scenario: str) -> Path:
    """A key directory right before the change."""
    init_keys(home, now_s=1000, random_bytes=secrets.token_bytes)
    for step in _BEFORE.get(scenario, ()):
        change(home, step)
    return home


def change(home: Path, scenario: str) -> None:
    """One change, as a master makes it."""
    live = LiveKeys.open(home)
    keys.change_document(home, _document(live, scenario))


def _document(live: LiveKeys, scenario: str) -> KeySet:
    root = live.root()
    assert root is not None
    chain = live.keyset.root_chain
    following = live.keyset.keys
    if scenario == "root":
        new_root = live.next_root()
        chain = (*chain, link_root(root, new_root.public_key, issued_at=2000))
        root = new_root
    else:
        following = next_keys(
            following, KeyStep(scenario), now_s=2000, **_arguments(live, scenario)
        )
    serial = live.keyset.serial + 1
    return sign_keyset(following, serial=serial, issued_at=2000, root=root, root_chain=chain)


def _arguments(live: LiveKeys, scenario: str) -> dict[str, Any]:
    by_status = {key.status: key.kid for key in live.keyset.keys}
    if scenario == "create":
        return {"new_key": live.next_key()}
    if scenario == "activate":
        return {"kid": by_status["pending"]}
    if scenario == "remove":
        return {"kid": by_status["retiring"]}
    return {"kid": live.active_kid, "new_key": live.next_key()}


def outcome(home: Path, scenario: str) -> dict[str, Any]:
    """What a start finds after the kill, and after the same change is made again."""
    live = LiveKeys.open(home)
    serial = live.keyset.serial
    assert live.active.public_key
    if serial < FINAL_SERIAL[scenario]:
        change(home, scenario)
    live = LiveKeys.open(home)
    signing = {f"signing-{key.kid}.key" for key in live.keyset.keys if key.status != "revoked"}
    wanted = {"keys.json", "root.key", *signing}
    found = {path.name for path in home.iterdir()}
    # The private key of a removed key may outlive a kill; it is named by no document.
    leftovers = {name for name in found - wanted if not name.startswith("signing-")}
    return {
        "serial": serial,
        "resumed_serial": live.keyset.serial,
        "leftovers": sorted(leftovers | (wanted - found)),
    }
