"""HTTP bodies and signaling messages: round trips, misfits, and nothing said that is secret."""

import json
import re
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.pretty import pretty_repr
from support.protocol import structs as struct_support

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http import api, signaling
from wavry_peer.protocol.redaction import REDACTED, RedactedStruct, fault_text

SECRET = "Tr0ub4dor-and-3-horses"
UUID = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"

BODIES = sorted(
    (kind for kind in vars(api).values() if isinstance(kind, type) and issubclass(kind, api.Body)),
    key=lambda kind: kind.__name__,
)
BODIES.remove(api.Body)
CLIENT_MESSAGES = list(signaling.ClientMessage.__args__)
SERVER_MESSAGES = list(signaling.ServerMessage.__args__)
MESSAGES = list(dict.fromkeys(CLIENT_MESSAGES + SERVER_MESSAGES))


def name_of(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))


def refused(call: Callable[[], Any]) -> MessageError:
    with pytest.raises(MessageError) as caught:
        call()
    return caught.value


def fault_of(call: Callable[[], Any]) -> MessageError | None:
    """The one error that is allowed, or None where the call went well."""
    try:
        call()
    except MessageError as error:
        return error
    return None


def decoder_of(kind: type[Any]) -> Callable[[bytes], Any]:
    if kind in CLIENT_MESSAGES:
        return signaling.decode_client_message
    if kind in SERVER_MESSAGES:
        return signaling.decode_server_message
    return lambda raw: api.decode_body(kind, raw)


def code_of(kind: type[Any]) -> str:
    return "invalid_message" if kind in MESSAGES else "invalid_body"


def sample(kind: type[Any]) -> dict[str, Any]:
    """One good instance as JSON values, with every field set where it can be."""
    found: dict[str, Any] = msgspec.to_builtins(SAMPLES[kind])
    return found


def test_every_body_and_message_is_known_here() -> None:
    assert {kind.__name__ for kind in BODIES} <= set(api.__all__)
    assert len(BODIES) > 25
    assert len(MESSAGES) == 13
    assert set(SAMPLES) == {*BODIES, *MESSAGES}


# -- Round trips -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(BODIES).flatmap(struct_support.instances))
def test_bodies_round_trip(body: Any) -> None:
    assert api.decode_body(type(body), msgspec.json.encode(body)) == body


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(MESSAGES).flatmap(struct_support.instances), st.booleans())
def test_messages_round_trip(message: Any, as_bytes: bool) -> None:
    frame = signaling.encode_message(message)
    sent = frame.encode() if as_bytes else frame
    for kinds, decode in (
        (CLIENT_MESSAGES, signaling.decode_client_message),
        (SERVER_MESSAGES, signaling.decode_server_message),
    ):
        if type(message) in kinds:
            assert decode(sent) == message
        else:
            assert refused(lambda decode=decode: decode(sent)).code == "invalid_message"


def test_error_body() -> None:
    body = api.ErrorBody("not_found", "no such session")
    assert msgspec.json.encode(body) == b'{"error":"not_found","message":"no such session"}'
    assert api.decode_body(api.ErrorBody, b'{"error":"a","message":"b","later":1}').error == "a"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ('{"type":"BIND","token":"t"}', signaling.Bind(token="t")),
        ('{"type":"BOUND","username":"bob"}', signaling.Bound(username="bob")),
        (
            '{"type":"OFFER_RIFT","target_username":"bob","hello_base64":"aGk="}',
            signaling.OfferRift(target_username="bob", hello_base64="aGk="),
        ),
        (
            '{"type":"ANSWER_RIFT","from_username":"bob","ack_base64":"aGk="}',
            signaling.AnswerRift(from_username="bob", ack_base64="aGk="),
        ),
        (
            '{"type":"REQUEST_RELAY","target_username":"bob","region":"eu","exclude_relays":["r1"]}',
            signaling.RequestRelay(target_username="bob", region="eu", exclude_relays=("r1",)),
        ),
        (
            (
                '{"type":"RELAY_CREDENTIALS","relay_id":"r1","token":"t",'
                f'"addr":"203.0.113.7:4500","session_id":"{UUID}","expires_at":5}}'
            ),
            signaling.RelayCredentials(
                relay_id="r1", token="t", addr="203.0.113.7:4500", session_id=UUID, expires_at=5
            ),
        ),
        ('{"type":"BYE"}', signaling.Bye()),
        ('{"type":"PING"}', signaling.Ping()),
        ('{"type":"PONG"}', signaling.Pong()),
        ('{"type":"ERROR","code":"c","message":"m"}', signaling.Error(code="c", message="m")),
    ],
)
def test_frames_of_the_protocol_by_hand(frame: str, message: Any) -> None:
    assert signaling.encode_message(message) == frame
    assert decoder_of(type(message))(frame.encode()) == message


def test_the_type_may_stand_anywhere_in_the_object() -> None:
    frame = '{"token":"t","type":"BIND"}'
    assert signaling.decode_client_message(frame) == signaling.Bind(token="t")


# -- Misfits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*BODIES, *MESSAGES], ids=name_of)
def test_unknown_fields_are_refused_and_named(kind: type[Any]) -> None:
    raw = msgspec.json.encode({**sample(kind), "surprise": SECRET})
    error = refused(lambda: decoder_of(kind)(raw))
    assert error.code == code_of(kind)
    assert "`surprise`" in str(error)
    assert SECRET not in str(error)


def fields(kinds: list[Any]) -> list[tuple[type[Any], str]]:
    return [(kind, name) for kind in kinds for name in kind.__struct_fields__]


WRONG: list[Any] = [
    {"deep": {"deeper": [SECRET]}},
    [[SECRET]],
    [{"x": SECRET}],
    2**70,
    -(10**400),
    1e308,
    "\0" + SECRET * 1000,
]


@pytest.mark.parametrize(
    ("kind", "name"), fields([*BODIES, *MESSAGES]), ids=lambda value: name_of(value)
)
def test_wrong_types_are_refused_and_the_field_is_named(kind: type[Any], name: str) -> None:
    tried = 0
    for wrong in WRONG:
        raw = json.dumps({**sample(kind), name: wrong}).encode()
        error = fault_of(lambda raw=raw: decoder_of(kind)(raw))
        if error is None:
            continue
        tried += 1
        assert error.code == code_of(kind)
        assert f"$.{name}" in str(error) or "unknown field" in str(error)
        assert SECRET not in "".join(traceback.format_exception(error))
    assert tried >= 4


@pytest.mark.parametrize(
    ("kind", "name"), fields([*BODIES, *MESSAGES]), ids=lambda value: name_of(value)
)
def test_a_required_field_that_is_missing_is_named(kind: type[Any], name: str) -> None:
    values = sample(kind)
    info = {field.name: field for field in msgspec.structs.fields(kind)}[name]
    if info.required or name in values:  # One at its default is not written.
        del values[name]
    raw = msgspec.json.encode(values)
    if not info.required:
        assert isinstance(decoder_of(kind)(raw), kind)
        return
    error = refused(lambda: decoder_of(kind)(raw))
    assert error.code == code_of(kind)
    assert f"`{name}`" in str(error)


def patterned() -> list[tuple[type[Any], str]]:
    return [
        (kind, name)
        for kind in [*BODIES, *MESSAGES]
        for name, text in struct_support.string_types(kind)
        if text.pattern
    ]


@pytest.mark.parametrize(("kind", "name"), patterned(), ids=name_of)
@pytest.mark.parametrize("change", [lambda t: t + "\n", lambda t: "\n" + t, lambda t: t + "\0"])
def test_patterns_hold_for_the_whole_text(
    kind: type[Any], name: str, change: Callable[[str], str]
) -> None:
    values = sample(kind)
    decoder_of(kind)(msgspec.json.encode(values))
    values[name] = change(values[name])
    assert f"$.{name}" in str(refused(lambda: decoder_of(kind)(msgspec.json.encode(values))))


GARBAGE: list[tuple[bytes, set[str]]] = [
    (b"", {"invalid_json"}),
    (b" ", {"invalid_json"}),
    (b"{", {"invalid_json"}),
    (b"{} {}", {"invalid_json", "invalid_body", "invalid_message"}),
    (b"NaN", {"invalid_json"}),
    (b"-Infinity", {"invalid_json"}),
    (b"\xff\xfe{\0}\0", {"invalid_json"}),
    (b"\xef\xbb\xbf{}", {"invalid_json"}),
    (b"null", {"invalid_body", "invalid_message"}),
    (b"[]", {"invalid_body", "invalid_message"}),
    (b"5", {"invalid_body", "invalid_message"}),
    (b'"text"', {"invalid_body", "invalid_message"}),
    (b"{}", {"invalid_body", "invalid_message"}),
    (b"[" * 60_000, {"invalid_body", "invalid_message"}),
    (b'{"a":' * 10_000, {"invalid_body", "invalid_message", "invalid_json"}),
    (b'{"username":' + b"[" * 60_000, {"invalid_body", "invalid_message", "invalid_json"}),
    (b'{"type":"BIND","token":"\xff"}', {"invalid_json", "invalid_body", "invalid_message"}),
    (b'{"type":"BIND","token":"\\ud800"}', {"invalid_json", "invalid_body", "invalid_message"}),
    (b'{"type":"BIND","token":NaN}', {"invalid_json", "invalid_body", "invalid_message"}),
    (b'{"type":5,"token":"a"}', {"invalid_message", "invalid_body"}),
    (b'{"type":null}', {"invalid_message", "invalid_body"}),
    (b'{"type":["BIND"]}', {"invalid_message", "invalid_body"}),
    (b'{"type":"bind","token":"a"}', {"invalid_message", "invalid_body"}),
]


@pytest.mark.parametrize(("raw", "codes"), GARBAGE, ids=[repr(raw)[:40] for raw, _ in GARBAGE])
def test_garbage(raw: bytes, codes: set[str]) -> None:
    for decode in (
        lambda: api.decode_body(api.UserCredentials, raw),
        lambda: signaling.decode_client_message(raw),
        lambda: signaling.decode_server_message(raw),
    ):
        error = refused(decode)
        assert error.code in codes
        assert len(str(error)) < 300


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"BIND","type":"PING","token":"a"}',
        '{"type":"PING","type":"BIND","token":"a"}',
        '{"token":"a","type":"BIND","type":"BYE"}',
    ],
)
def test_two_different_types_are_refused(frame: str) -> None:
    assert refused(lambda: signaling.decode_client_message(frame)).code == "invalid_message"


@pytest.mark.parametrize("frame", ["\ud800", '{"type":"BIND","token":"\ud800"}'])
def test_a_text_that_has_no_utf8_is_refused(frame: str) -> None:
    assert refused(lambda: signaling.decode_client_message(frame)).code == "invalid_json"


HEARTBEAT_NUMBERS = ["load_pct", "packet_loss_pct", "active_sessions", "keyset_serial"]


@pytest.mark.parametrize("name", HEARTBEAT_NUMBERS)
@pytest.mark.parametrize(
    "literal",
    [
        *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-1", "1" * 400, "-" + "9" * 400),
        *("true", '"5"', "null", "0x10", "01", "+1", "1."),
    ],
)
def test_numbers_that_are_none_or_out_of_range(name: str, literal: str) -> None:
    raw = msgspec.json.encode({**sample(api.HeartbeatRequest), name: "HERE"})
    changed = raw.replace(b'"HERE"', literal.encode())
    error = refused(lambda: api.decode_body(api.HeartbeatRequest, changed))
    assert error.code in ("invalid_body", "invalid_json")
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("username", "a", True),
        ("username", "a" * 32, True),
        ("username", "a" * 33, False),
        ("username", "", False),
        ("username", "Bob", False),
        ("username", "bob-", False),
        ("username", ".bob", False),
        ("username", "b b", False),
        ("username", "böb", False),
        ("username", "\N{CYRILLIC SMALL LETTER A}lice", False),
        ("username", "a.b_c-d", True),
        ("password", "p" * 9, False),
        ("password", "p" * 10, True),
        ("password", "p" * 256, True),
        ("password", "p" * 257, False),
    ],
)
def test_bounds_of_names_and_passwords(name: str, value: str, fits: bool) -> None:
    raw = msgspec.json.encode({"username": "bob", "password": "0123456789", name: value})
    if fits:
        assert getattr(api.decode_body(api.UserCredentials, raw), name) == value
    else:
        assert f"$.{name}" in str(refused(lambda: api.decode_body(api.UserCredentials, raw)))


def test_body_size() -> None:
    raw = msgspec.json.encode(sample(api.UserCredentials))
    full = raw.ljust(api.MAX_BODY_BYTES)
    assert api.decode_body(api.UserCredentials, full).username == "bob"
    assert refused(lambda: api.decode_body(api.UserCredentials, full + b" ")).code == (
        "body_too_large"
    )
    small = refused(lambda: api.decode_body(api.UserCredentials, raw, max_bytes=len(raw) - 1))
    assert small.code == "body_too_large"


def test_frame_size_counts_bytes_and_not_characters() -> None:
    frame = '{"type":"PING"}'
    assert signaling.decode_client_message(frame.ljust(c.MAX_SIGNALING_FRAME_BYTES))
    long_text = '{"type":"OFFER_RIFT","hello_base64":"' + "é" * 33_000 + '"}'
    assert len(long_text) < c.MAX_SIGNALING_FRAME_BYTES
    for large in (frame.ljust(c.MAX_SIGNALING_FRAME_BYTES + 1), long_text, long_text.encode()):
        error = refused(lambda large=large: signaling.decode_client_message(large))
        assert error.code == "frame_too_large"


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([api.UserCredentials, api.LeaseRequest, api.VerifyResponse, *MESSAGES]),
    st.data(),
)
def test_hostile_json_raises_nothing_but_message_error(
    kind: type[Any], data: st.DataObject
) -> None:
    good = bytearray(msgspec.json.encode(SAMPLES[kind]))
    match data.draw(st.sampled_from(["bytes", "flip", "values"])):
        case "bytes":
            raw = data.draw(st.binary(max_size=200))
        case "flip":
            for _ in range(data.draw(st.integers(1, 4))):
                good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
            raw = bytes(good)
        case _:
            names = st.sampled_from(list(kind.__struct_fields__) or ["x"]) | st.text(max_size=5)
            leaf = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=9)
            value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
            changes = data.draw(st.dictionaries(names, value, max_size=3))
            raw = msgspec.json.encode({**sample(kind), **changes})
    for decode in (
        lambda: api.decode_body(kind, raw),
        lambda: signaling.decode_client_message(raw),
        lambda: signaling.decode_server_message(raw),
    ):
        error = fault_of(decode)
        if error is not None:
            assert re.fullmatch("[a-z_]+", error.code)
            assert len(str(error)) < 300


# -- Nothing secret is said --------------------------------------------------------------------

LEAKS = [
    # A secret where a name, a choice or a type should be.
    (api.UserCredentials, {"username": "bob", "password": "0123456789", SECRET: 1}),
    (api.UserCredentials, {"username": SECRET, "password": "0123456789"}),
    (api.UserCredentials, {"username": "bob", "password": [SECRET]}),
    (api.UserCredentials, {"username": "bob", "password": {"value": SECRET}}),
    (api.UserCredentials, {"username": "bob", "password": SECRET * 20}),
    (api.HeartbeatRequest, {"state": SECRET}),
    (api.RenewRequest, {"session_id": UUID, "role": SECRET, "jti": UUID}),
    (api.RenewRequest, {"session_id": SECRET, "role": "client", "jti": UUID}),
    (signaling.Bind, {"type": "BIND", "token": [SECRET]}),
    (signaling.Bind, {"type": "BIND", "token": SECRET * 20}),
    (signaling.Bind, {"type": SECRET}),
    (signaling.Bind, {"type": "BIND", "token": "t", SECRET: 1}),
    (signaling.Bind, {"type": "BIND", "token": "t", f"x` - at `$.{SECRET}": 1}),
    (signaling.Bind, {"type": f"x' - at `$.{SECRET}"}),
    (signaling.Bind, {"type": f"x\n' - at `$.{SECRET}`"}),
]


@pytest.mark.parametrize(("kind", "values"), LEAKS)
def test_errors_never_repeat_a_value(kind: type[Any], values: dict[str, Any]) -> None:
    error = refused(lambda: decoder_of(kind)(msgspec.json.encode(values)))
    assert SECRET not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("Object contains unknown field `usrname`", "Object contains unknown field `usrname`"),
        (
            "Object contains unknown field `kidd` - at `$.keyset.keys[...]`",
            "Object contains unknown field `kidd` - at `$.keyset.keys[...]`",
        ),
        (
            "Object contains unknown field `S3CRET` - at `$.client`",
            "Object has an unknown field - at `$.client`",
        ),
        ("Object contains unknown field ``", "Object has an unknown field"),
        (f"Object contains unknown field `{'a' * 40}`", "Object has an unknown field"),
        ("Object contains unknown field `a`b`", "Object has an unknown field"),
        (
            "Invalid enum value 'S3CRET' - at `$.state`",
            "Value is not one of those allowed - at `$.state`",
        ),
        ("Invalid value 'S3CRET'", "Value is not one of those allowed"),
        ("Invalid value 7 - at `$.type`", "Value is not one of those allowed - at `$.type`"),
        ("Expected `int`, got `str` - at `$.ttl_s`", "Expected `int`, got `str` - at `$.ttl_s`"),
    ],
)
def test_fault_text(said: str, wanted: str) -> None:
    assert fault_text(msgspec.ValidationError(said)) == wanted


SECRET_FIELDS = [
    (api.UserCredentials, "password"),
    (api.LoginResponse, "token"),
    (api.RegisterRequest, "enrolment_token"),
    (api.VerifyResponse, "relay_token"),
    (api.LeasePair, "client"),
    (api.LeasePair, "server"),
    (api.RenewResponse, "lease"),
    (api.Credentials, "token"),
    (signaling.Bind, "token"),
    (signaling.RelayCredentials, "token"),
    (signaling.Offer, "sdp"),
    (signaling.Answer, "sdp"),
    (signaling.Candidate, "candidate"),
]


@pytest.mark.parametrize(("kind", "name"), SECRET_FIELDS, ids=name_of)
def test_a_secret_is_not_in_a_repr(kind: type[Any], name: str) -> None:
    value = msgspec.structs.replace(SAMPLES[kind], **{name: SECRET})
    for text in (repr(value), str(value), f"{[value]}", pretty_repr(value)):
        assert SECRET not in text
        assert REDACTED in text
        assert kind.__name__ in text
    assert SECRET.encode() in msgspec.json.encode(value)  # on the wire it must be.


def test_a_secret_inside_another_body_is_hidden_too() -> None:
    pair = api.LeasePair(client=SECRET, server=SECRET)
    response = msgspec.structs.replace(SAMPLES[api.LeaseResponse], leases=pair)
    assert SECRET not in repr(response)
    assert SECRET not in pretty_repr(response)


def test_a_secret_that_is_not_there_and_other_fields_are_shown() -> None:
    text = repr(api.LoginResponse(username="bob"))
    assert text == "LoginResponse(username='bob', token=None, expires_at=None)"


def test_every_field_that_sounds_secret_is_listed() -> None:
    """A field added later with such a name must be hidden, and tried above."""
    sounds = re.compile("token|password|secret|lease$|sdp|^candidate$|seed|private")
    found = {
        (kind, name)
        for kind in [*BODIES, *MESSAGES]
        for name, _ in struct_support.string_types(kind)
        if sounds.search(name) or kind is api.LeasePair
    }
    assert found == set(SECRET_FIELDS)
    for kind in [*BODIES, *MESSAGES]:
        assert issubclass(kind, RedactedStruct)
        assert {(kind, name) for name in kind.SECRET_FIELDS if name in kind.__struct_fields__} == {
            entry for entry in SECRET_FIELDS if entry[0] is kind
        }


# -- Samples -----------------------------------------------------------------------------------

KEY_TEXT = "A" * 43
RELAY = api.LeaseRelay(relay_id="rly-1", endpoints=("203.0.113.7:4500",))
KEYSET = api.KeySet(serial=1, issued_at=2, keys=(), root_public_key=KEY_TEXT, signature="A" * 86)
INFO = api.RelayInfo(
    relay_id="rly-1",
    endpoints=("203.0.113.7:4500",),
    region="eu",
    state="ready",
    reported="ready",
    load_pct=1.5,
    active_sessions=2,
    max_sessions=3,
    version="1",
    held_kids=("k",),
    keyset_serial=4,
    registered_at=5,
    last_heartbeat_at=6,
)
FAULT = api.RelayFault(cause="workers", text="1 of 2 workers is missing")
BLOCKED = api.BlockedHost(subnet="203.0.113.0/24", since=1, until=2, reason="bad_signature")
SESSION = api.SessionInfo(
    session_id=UUID,
    caller="alice",
    callee="bob",
    state="active",
    relay_id="rly-1",
    peer_noise_key=KEY_TEXT,
    created_at=1,
    expires_at=2,
)
USER = api.UserInfo(username="bob", created_at=1, last_login_at=2, online=True)
BETWEEN: dict[str, Any] = {"target_username": "bob", "from_username": "alice"}
CALL: dict[str, Any] = {
    **BETWEEN,
    "session_id": UUID,
    "identity_key": KEY_TEXT,
    "noise_key": KEY_TEXT,
    "sdp": "v=0",
}

SAMPLES: dict[type[Any], Any] = {
    type(value): value
    for value in (
        api.RegisterRequest(
            relay_id="rly-1",
            public_key=KEY_TEXT,
            endpoints=("[2001:db8::7]:4500",),
            region="eu",
            asn=64496,
            max_sessions=10,
            max_bitrate_kbps=1000,
            features=("f",),
            version="1",
            name="fra-1",
            enrolment_token="t",
        ),
        api.RegisterResponse(challenge_id=UUID, challenge=KEY_TEXT, master_id=KEY_TEXT),
        api.PathReport(path="relay"),
        api.VerifyRequest(challenge_id=UUID, signature="A" * 86),
        api.VerifyResponse(
            relay_token="t",
            heartbeat_interval_ms=5000,
            keyset=KEYSET,
            master_public_key=KEY_TEXT,
            master_key_id="k",
        ),
        api.HeartbeatRequest(
            relay_id="rly-1",
            load_pct=1.5,
            active_sessions=1,
            bandwidth_in_kbps=2,
            bandwidth_out_kbps=3,
            packet_loss_pct=0.5,
            held_kids=("k",),
            keyset_serial=4,
            state="ready",
            blocks=(BLOCKED,),
        ),
        BLOCKED,
        api.Command(type="clear_blocks", subnet="203.0.113.0/24"),
        api.HeartbeatResponse(commands=(api.Command(type="drain"),)),
        INFO,
        api.RelayList(relays=(INFO,)),
        api.LeaseParty(sub="alice", cnf=KEY_TEXT),
        api.LeaseRequest(
            client=api.LeaseParty(sub="alice", cnf=KEY_TEXT),
            server=api.LeaseParty(sub="bob", cnf=KEY_TEXT),
            session_id=UUID,
            region="eu",
            exclude_relays=("r",),
            ttl_s=300,
        ),
        RELAY,
        api.LeasePair(client="c", server="s"),
        api.LeaseResponse(
            session_id=UUID,
            relay=RELAY,
            standby=RELAY,
            leases=api.LeasePair(client="c", server="s"),
            expires_at=1,
        ),
        api.RenewRequest(session_id=UUID, role="client", jti=UUID),
        api.RenewResponse(lease="l", expires_at=1),
        api.UserCredentials(username="bob", password="0123456789"),
        api.LoginResponse(username="bob", token="t", expires_at=1),
        api.CreateSessionRequest(target_username="bob", identity_key=KEY_TEXT, noise_key=KEY_TEXT),
        api.AcceptSessionRequest(identity_key=KEY_TEXT, noise_key=KEY_TEXT),
        api.RelaySessionRequest(region="eu", exclude_relays=("r",)),
        api.RenewSessionRequest(jti=UUID),
        api.Credentials(
            session_id=UUID,
            relay_id="r",
            token="t",
            addr="203.0.113.7:4500",
            addrs=("203.0.113.7:4500",),
            role="server",
            expires_at=1,
        ),
        SESSION,
        api.SessionList(sessions=(SESSION,)),
        USER,
        api.UserList(users=(USER,)),
        signaling.Bind(token="t"),
        signaling.Bound(username="bob"),
        signaling.Offer(**CALL),
        signaling.Answer(**CALL, accept=False),
        signaling.Candidate(**BETWEEN, session_id=UUID, candidate="candidate:1"),
        signaling.OfferRift(**BETWEEN, hello_base64="aGk="),
        signaling.AnswerRift(**BETWEEN, ack_base64="aGk="),
        signaling.RequestRelay(
            target_username="bob", session_id=UUID, region="eu", exclude_relays=("r",)
        ),
        signaling.RelayCredentials(
            relay_id="r",
            token="t",
            addr="203.0.113.7:4500",
            session_id=UUID,
            expires_at=1,
            addrs=("203.0.113.7:4500",),
            role="client",
            with_username="bob",
        ),
        signaling.Bye(**BETWEEN, session_id=UUID),
        signaling.Ping(),
        signaling.Pong(),
        signaling.Error(code="c", message="m"),
        FAULT,
    )
}


@pytest.mark.parametrize("text", ["1", "0.1.0", "0+source", "1.0-rc_1+g12ab", "a" * 64])
@pytest.mark.parametrize("field", ["version", "features"])
def test_version_and_features_of_a_relay_that_fit(field: str, text: str) -> None:
    assert _registered_with(field, text).version


@pytest.mark.parametrize(
    "text", ["", "-1", ".1", "1 2", "1\n", "1\x1b[31m", "<b>", "v\u00e9", '1"', "1,2", "a" * 65]
)
@pytest.mark.parametrize("field", ["version", "features"])
def test_version_and_features_of_a_relay_that_do_not_fit(field: str, text: str) -> None:
    with pytest.raises(MessageError, match=field):
        _registered_with(field, text)


def _registered_with(field: str, text: str) -> api.RegisterRequest:
    value = json.loads(msgspec.json.encode(SAMPLES[api.RegisterRequest]))
    value[field] = text if field == "version" else ["f", text]
    return api.decode_body(api.RegisterRequest, json.dumps(value).encode())
