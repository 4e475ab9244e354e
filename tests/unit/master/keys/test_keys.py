"""Key files: made once by a person, private, checked at every start."""

import os
import secrets
import stat
from pathlib import Path

import pytest

from wavry_cp.app.http import TokenFile, TokenFileError
from wavry_cp.master.keys.files import KeyFileError, init_keys, load_keys
from wavry_peer.protocol import base64url
from wavry_peer.protocol.keyset import decode_keyset


@pytest.fixture
def keys_dir(tmp_path):
    old = os.umask(0)  # the modes are ours, not the umask's
    try:
        init_keys(tmp_path / "keys", now_s=1000, random_bytes=secrets.token_bytes)
    finally:
        os.umask(old)
    return tmp_path / "keys"


def test_files_are_private_and_the_document_is_signed(keys_dir):
    ring = load_keys(keys_dir)
    names = sorted(path.name for path in keys_dir.iterdir())
    assert names == ["keys.json", "root.key", f"signing-{ring.active_kid}.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys_dir.iterdir()} == {0o600}
    assert stat.S_IMODE(keys_dir.stat().st_mode) == 0o700
    root = base64url.decode(ring.keyset.root_public_key)
    assert decode_keyset(ring.document, root_public_key=root) == ring.keyset
    assert (ring.keyset.serial, ring.keyset.keys[0].not_before) == (1, 1000)


def test_summary_and_repr_hold_no_secret(tmp_path):
    seeds = []

    def random_bytes(size):
        seeds.append(secrets.token_bytes(size))
        return seeds[-1]

    summary = init_keys(tmp_path / "keys", now_s=1, random_bytes=random_bytes)
    text = repr(summary) + repr(load_keys(tmp_path / "keys"))
    assert len(seeds) == 2
    for seed in seeds:
        assert base64url.encode(seed) not in text
        assert repr(seed)[2:-1] not in text


def test_keys_are_never_overwritten(keys_dir):
    before = {path.name: path.read_bytes() for path in keys_dir.iterdir()}
    with pytest.raises(KeyFileError, match="exists"):
        init_keys(keys_dir, now_s=1, random_bytes=secrets.token_bytes)
    assert {path.name: path.read_bytes() for path in keys_dir.iterdir()} == before
    (keys_dir / "keys.json").unlink()
    with pytest.raises(KeyFileError, match=r"root\.key exists"):
        init_keys(keys_dir, now_s=1, random_bytes=secrets.token_bytes)


def test_master_without_keys_names_the_command_and_makes_none(tmp_path):
    with pytest.raises(KeyFileError, match=r"wavryctl keys init --keys-dir"):
        load_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
@pytest.mark.parametrize("pattern", ["root.key", "signing-*.key", "keys.json"])
def test_file_that_others_can_read_is_refused(keys_dir, pattern, mode):
    (path,) = keys_dir.glob(pattern)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_keys(keys_dir)


def test_directory_that_others_can_enter_is_refused(keys_dir):
    keys_dir.chmod(0o755)
    with pytest.raises(KeyFileError, match="chmod 700"):
        load_keys(keys_dir)


def test_root_key_may_be_carried_away(keys_dir):
    (keys_dir / "root.key").unlink()
    assert load_keys(keys_dir).active_kid


@pytest.mark.parametrize(
    ("pattern", "content", "message"),
    [
        ("signing-*.key", None, "missing"),
        ("signing-*.key", base64url.encode(bytes(32)), "does not hold the key"),
        ("signing-*.key", "short", "holds no key"),
        ("signing-*.key", "", "holds no key"),
        ("signing-*.key", "\xff\xfe", "holds no key"),
        ("root.key", base64url.encode(bytes(32)), "not the root key"),
        ("keys.json", "{}", "damaged"),
        ("keys.json", "", "damaged"),
    ],
)
def test_damage_is_told_and_never_repaired_by_a_new_key(keys_dir, pattern, content, message):
    (path,) = keys_dir.glob(pattern)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    before = sorted(item.name for item in keys_dir.iterdir())
    with pytest.raises(KeyFileError, match=message):
        load_keys(keys_dir)
    assert sorted(item.name for item in keys_dir.iterdir()) == before


def test_tampered_document_is_refused(keys_dir):
    path = keys_dir / "keys.json"
    path.write_text(path.read_text().replace('"serial":1', '"serial":2'))
    with pytest.raises(KeyFileError, match="does not verify"):
        load_keys(keys_dir)


# -- Token files -------------------------------------------------------------------------------


def token_file(tmp_path, text, mode=0o600):
    path = tmp_path / "t"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_token_matches_itself_only(tmp_path):
    token = TokenFile(token_file(tmp_path, "t" * 32 + "\n"), "service")
    assert token.matches("t" * 32)
    for given in (None, "", "t" * 31, "t" * 33, "T" * 32, "\udcff", "é"):
        assert not token.matches(given)
    assert "tttt" not in repr(token)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("t" * 32, 0o644),
        ("t" * 32, 0o640),
        ("t" * 31, 0o600),
        ("", 0o600),
        ("t" * 20 + " " + "t" * 20, 0o600),
        ("\n".join(["t" * 32] * 3), 0o600),
        ("t" * 32 + "\n\n" + "t" * 32, 0o600),
        ("é" * 40, 0o600),
    ],
)
def test_bad_token_file_is_refused_without_quoting_it(tmp_path, text, mode):
    with pytest.raises(TokenFileError) as caught:
        TokenFile(token_file(tmp_path, text, mode), "service")
    assert "ttt" not in str(caught.value)


def test_missing_token_file_is_refused(tmp_path):
    with pytest.raises(TokenFileError, match="No such file"):
        TokenFile(tmp_path / "none", "service")


@pytest.mark.parametrize("name", ["root.key", "signing-", "keys.json"])
def test_keys_are_made_all_or_none(tmp_path, monkeypatch, name):
    real = os.fsync
    opened = []

    def full_disk(descriptor):
        opened.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        if opened[-1].name.startswith(name):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(KeyFileError, match="No space left"):
        init_keys(tmp_path / "keys", now_s=1, random_bytes=secrets.token_bytes)
    assert opened
    assert list((tmp_path / "keys").iterdir()) == []
    monkeypatch.undo()
    init_keys(tmp_path / "keys", now_s=1, random_bytes=secrets.token_bytes)
    assert load_keys(tmp_path / "keys").active_kid


def test_a_file_of_somebody_else_is_not_removed(tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    real = os.open

    def raced(path, *arguments, **options):
        if str(path).endswith("keys.json"):
            (keys / "keys.json").write_text("theirs")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", raced)
    with pytest.raises(KeyFileError, match="File exists"):
        init_keys(keys, now_s=1, random_bytes=secrets.token_bytes)
    assert [path.name for path in keys.iterdir()] == ["keys.json"]
    assert (keys / "keys.json").read_text() == "theirs"


@pytest.mark.parametrize("method", ["exists", "stat"])
def test_a_directory_that_cannot_be_looked_into_is_named(keys_dir, monkeypatch, method):
    def refused(self, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(keys_dir), method, refused)
    with pytest.raises(KeyFileError, match="Permission denied"):
        load_keys(keys_dir)
    with pytest.raises(KeyFileError, match="Permission denied"):
        init_keys(keys_dir, now_s=1, random_bytes=secrets.token_bytes)
