"""What a peer keeps on disk: identity, pinned keys, logins."""

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavry_peer.errors import PeerKeyChangedError, PrivateFileError
from wavry_peer.home.identity import Identity, default_home, fingerprint, load_identity
from wavry_peer.home.known_peers import KnownPeers
from wavry_peer.home.logins import LoginStore, SavedLogin

URL = "https://gateway.example"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_identity_is_made_once_and_survives(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = load_identity(home)
    assert load_identity(home) == first
    assert mode(home / "identity.json") == 0o600
    assert mode(home) == 0o700
    assert [path.name for path in home.iterdir()] == ["identity.json"]


def test_two_processes_at_once_end_up_with_one_identity(tmp_path: Path) -> None:
    found: list[Identity] = []
    barrier = threading.Barrier(8)

    def load() -> None:
        barrier.wait()
        found.append(load_identity(tmp_path))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity.identity_key for identity in found}) == 1


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, open_mode: int) -> None:
    load_identity(tmp_path)
    path = tmp_path / "identity.json"
    path.chmod(open_mode)
    with pytest.raises(PrivateFileError, match="chmod 600"):
        load_identity(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version":1', b"\xff" * 50])
def test_a_damaged_identity_is_never_replaced_or_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(PrivateFileError, match="damaged") as caught:
        load_identity(tmp_path)
    assert caught.value.__cause__ is None
    assert path.read_bytes() == content


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir(mode=0o700)
    with pytest.raises(PrivateFileError):
        load_identity(tmp_path)
    os.mkfifo(tmp_path / "logins.json", 0o600)
    with pytest.raises(PrivateFileError, match="regular"):
        LoginStore.in_home(tmp_path).get(URL)


def test_no_secret_in_repr() -> None:
    identity = Identity.generate()
    for secret in (identity.signing.seed, identity.noise.private):
        assert repr(secret)[2:-1] not in repr(identity)
        assert secret.hex() not in repr(identity)
    assert "sesame" not in repr(SavedLogin("alice", "sesame"))


def test_home_from_the_environment(tmp_path: Path) -> None:
    assert default_home({"WAVRY_PEER_HOME": str(tmp_path)}) == tmp_path
    assert default_home({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "wavry"
    assert default_home({}).name == "wavry"


def test_pins_on_first_use_and_refuses_another_key(tmp_path: Path) -> None:
    peers = KnownPeers.in_home(tmp_path)
    old, new = b"\x01" * 32, b"\x02" * 32
    peers.check(URL, "bob", old)
    assert peers.pinned(URL, "bob") is None, "a check alone pins nothing"
    peers.pin(URL, "bob", old)
    again = KnownPeers.in_home(tmp_path)
    again.check(URL, "bob", old)
    again.pin(URL, "bob", old)
    for refuse in (again.check, again.pin):
        with pytest.raises(PeerKeyChangedError, match="wavry-peer forget bob") as caught:
            refuse(URL, "bob", new)
        assert fingerprint(old) in str(caught.value)
        assert fingerprint(new) in str(caught.value)
    again.check("https://another.example", "bob", new)
    again.check(URL, "alice", new)
    assert again.forget(URL, "bob")
    assert not again.forget(URL, "bob")
    again.pin(URL, "bob", new)
    assert mode(tmp_path / "known_peers.json") == 0o600


def test_pins_in_memory() -> None:
    peers = KnownPeers(None)
    peers.pin(URL, "bob", b"\x01" * 32)
    with pytest.raises(PeerKeyChangedError):
        peers.check(URL, "bob", b"\x02" * 32)
    assert peers.forget(URL, "bob")


def test_logins_by_gateway(tmp_path: Path) -> None:
    store = LoginStore.in_home(tmp_path)
    assert store.get(URL) is None
    store.put(URL, SavedLogin("alice", "t1", 5))
    store.put("https://another.example", SavedLogin("al", "t2"))
    store.put(URL, SavedLogin("alice", "t3", 6))
    assert store.get(URL) == SavedLogin("alice", "t3", 6)
    store.remove(URL)
    store.remove(URL)
    assert store.get(URL) is None
    assert store.get("https://another.example") == SavedLogin("al", "t2")
    assert mode(tmp_path / "logins.json") == 0o600
    (tmp_path / "logins.json").chmod(0o644)
    with pytest.raises(PrivateFileError, match="chmod 600"):
        store.get(URL)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(max_size=200))
def test_any_content_gives_a_clear_error(tmp_path: Path, noise: bytes) -> None:
    for name, read in (
        ("known_peers.json", lambda: KnownPeers.in_home(tmp_path).pinned(URL, "bob")),
        ("logins.json", lambda: LoginStore.in_home(tmp_path).get(URL)),
        ("identity.json", lambda: load_identity(tmp_path)),
    ):
        path = tmp_path / name
        path.write_bytes(noise)
        path.chmod(0o600)
        with pytest.raises(PrivateFileError):
            read()
