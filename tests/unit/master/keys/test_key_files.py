"""Key files under change: a kill at any system call leaves a directory that loads and goes on."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import TESTS

from wavry_cp.master.keys import files as keys
from wavry_cp.master.keys.files import KeyFileError, init_keys, load_keys
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.keys.rules import KeyStep, next_keys
from wavry_peer.protocol import base64url
from wavry_peer.protocol.keyset import KeySet, decode_keyset, link_root, sign_keyset

KILLER = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from support.control import key_files as steps

directory, scenario = Path(sys.argv[1]), sys.argv[2]
names = ("open", "fsync", "replace", "unlink", "rename", "close")
point = 0
outcomes = []
while True:
    point += 1
    home = steps.prepared(directory / str(point), scenario)
    pid = os.fork()
    if pid == 0:
        left = point
        def wrapped(real):
            def call(*arguments, **options):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)
            return call
        for name in names:
            setattr(os, name, wrapped(getattr(os, name)))
        steps.change(home, scenario)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    outcomes.append(steps.outcome(home, scenario))
    if not os.WIFSIGNALED(status):
        break
print(json.dumps(outcomes))
"""
SCENARIOS = ("create", "activate", "remove", "revoke", "root")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_kill_9_at_every_system_call_leaves_keys_that_load(tmp_path: Path, scenario: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), scenario, str(TESTS)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 6, "the kill came at too few calls to mean anything"
    serials = [outcome["serial"] for outcome in outcomes]
    assert serials[0] < serials[-1], "neither before nor after the change was seen"
    assert serials == sorted(serials)
    for outcome in outcomes:
        assert outcome["resumed_serial"] == serials[-1], "the same change finishes it"
        assert outcome["leftovers"] == [], outcome


@pytest.fixture
def home(tmp_path: Path) -> Path:
    init_keys(tmp_path / "keys", now_s=1000, random_bytes=secrets.token_bytes)
    return tmp_path / "keys"


def next_document(live: LiveKeys, step: KeyStep, **arguments: object) -> KeySet:
    root = live.root()
    assert root is not None
    following = next_keys(live.keyset.keys, step, now_s=2000, **arguments)
    return sign_keyset(following, serial=live.keyset.serial + 1, issued_at=2000, root=root)


def test_a_full_disk_leaves_the_keys_in_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveKeys.open(home)
    created = next_document(live, KeyStep.CREATE, new_key=live.next_key())
    before = {path.name: path.read_bytes() for path in home.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(KeyFileError, match="No space left"):
        keys.change_document(home, created)
    monkeypatch.undo()
    assert load_keys(home).keyset.serial == 1
    assert before.items() <= {path.name: path.read_bytes() for path in home.iterdir()}.items()
    assert keys.change_document(home, created).keyset.serial == 2


def test_a_key_that_waits_is_used_again_and_a_stranger_is_not(home: Path) -> None:
    live = LiveKeys.open(home)
    first = live.next_key()
    assert live.next_key() == first, "a create that was cut off makes no second key"
    (home / f"new-{first.kid}.key").rename(home / "new-0123456789abcdef.key")
    assert live.next_key().kid != first.kid, "its name does not fit: nobody knows whose it is"


def test_a_start_deletes_no_key_that_an_old_document_does_not_name(home: Path) -> None:
    """keys.json may come from a backup: the newest key must survive that mistake."""
    backup = (home / "keys.json").read_bytes()
    live = LiveKeys.open(home)
    created = next_document(live, KeyStep.CREATE, new_key=live.next_key())
    kid = created.keys[-1].kid
    keys.change_document(home, created)
    (home / "keys.json").write_bytes(backup)
    LiveKeys.open(home)
    assert (home / f"signing-{kid}.key").exists()


def test_a_removed_or_revoked_key_is_deleted_and_never_used_again(home: Path) -> None:
    live = LiveKeys.open(home)
    old = live.active_kid
    new_key = live.next_key()
    document = next_document(live, KeyStep.REVOKE, kid=old, new_key=new_key)
    ring = keys.change_document(home, document)
    assert ring.active_kid == new_key.kid
    assert set(ring.signing_keys) == {new_key.kid}
    assert not (home / f"signing-{old}.key").exists()
    assert LiveKeys.open(home).next_key().kid not in (old, new_key.kid)


def test_the_root_that_waits_signs_for_relays_that_pin_the_old_one(home: Path) -> None:
    pinned = base64url.decode(load_keys(home).keyset.root_public_key)
    live = LiveKeys.open(home)
    root, following = live.root(), live.next_root()
    assert root is not None
    assert live.next_root() == following
    link = link_root(root, following.public_key, issued_at=5)
    document = sign_keyset(
        live.keyset.keys, serial=2, issued_at=5, root=following, root_chain=(link,)
    )
    ring = keys.change_document(home, document)
    assert decode_keyset(ring.document, root_public_key=pinned).serial == 2
    assert sorted(path.name for path in home.iterdir())[:2] == ["keys.json", "root.key"]
    found = keys.read_root(home, ring.keyset)
    assert found is not None
    assert found.public_key == following.public_key


def test_files_of_a_change_are_private(home: Path) -> None:
    old = os.umask(0)
    try:
        live = LiveKeys.open(home)
        live.next_root()
        keys.change_document(home, next_document(live, KeyStep.CREATE, new_key=live.next_key()))
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}
    shutil.rmtree(home)
