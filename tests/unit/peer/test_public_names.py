"""What an application sees of the peer: exactly the documented names, and one set of options."""

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
from support.peer.peer_world import PeerWorld

import wavry_peer
from wavry_peer.options import PeerKeywords
from wavry_peer.protocol.errors import LocalError

SESSION = {
    "aclose",
    "is_closed",
    "max_datagram_bytes",
    "receive",
    "remote_username",
    "send",
    "session_id",
    "statistics",
    "wait_closed",
}
LISTENER = {"accept", "aclose", "username", "waiting"}
PEER = {"aclose", "connect", "listen", "start", "username"}


def public_names(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_help_of_the_classes_shows_documented_names_only() -> None:
    for kind, names in (
        (wavry_peer.Session, SESSION),
        (wavry_peer.Listener, LISTENER),
        (wavry_peer.Peer, PEER),
    ):
        assert public_names(kind) <= names
        for name in names:
            member: Any = inspect.getattr_static(kind, name, None)
            documented = f"{name}:" in (kind.__doc__ or "") if member is None else True
            assert documented, f"{kind.__name__}.{name} is not in the docstring"
            if callable(member) or isinstance(member, property):
                assert inspect.getdoc(member), f"{kind.__name__}.{name} has no docstring"


async def test_objects_have_the_documented_names_and_no_others(world: PeerWorld) -> None:
    async with (
        wavry_peer.Peer(world.gateway.url, **world.login("carol")) as peer,
        world.pair() as (alice, _bob),
    ):
        assert public_names(alice) == SESSION
        assert public_names(peer.listen(accept="all")) == LISTENER
        assert public_names(peer) == PEER


def test_keywords_are_the_fields_of_the_options() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(wavry_peer.PeerOptions)}
    assert fields == PeerKeywords.__annotations__
    for name in fields:
        assert f"    {name}: " in (wavry_peer.PeerOptions.__doc__ or "")
    for entry in (wavry_peer.connect, wavry_peer.listen, wavry_peer.Peer):
        hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
        assert hints["options"] == typing.Unpack[PeerKeywords]


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"token": ""}, "token is empty"),
        ({"credentials": ("alice",)}, "a user name and a password"),
        ({"home": "~/.wavry"}, "pathlib.Path"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(LocalError, match=says):
        wavry_peer.Peer("https://gateway.example", **keywords)


def test_options_do_not_change_and_do_not_show_secrets() -> None:
    options = wavry_peer.PeerOptions(credentials=("alice", "secret"), home=Path("/nowhere"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.token = "another"  # type: ignore[misc]
    assert "secret" not in repr(options)
