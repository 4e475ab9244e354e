"""Leases: each reason, the order of the checks, instants at their edges, and proofs."""

import dataclasses
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.protocol import lease as ls

from wavry_peer.protocol import base64url, keyset, lease, packets, paseto
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.constants import RejectReason as R
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import LeaseError
from wavry_peer.protocol.lease import KeyId, LeaseClaims, TrustedKey
from wavry_peer.protocol.packets import LeasePresent, SessionId

NOW_MS = ls.NOW_MS
MINUTE_MS = 60_000


def at(ms: int) -> str:
    """RFC 3339 text of an instant `ms` milliseconds from now."""
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=NOW_MS + ms)
    return instant.isoformat().replace("+00:00", "Z")


def check(claims: LeaseClaims, now_ms: int = NOW_MS, **changes: Any) -> None:
    wanted: dict[str, Any] = {
        "relay_id": ls.RID,
        "session_id": ls.SID,
        "role": c.Role.CLIENT,
        "now_ms": now_ms,
    }
    lease.check_claims(claims, **{**wanted, **changes})


def opened(**changes: Any) -> LeaseClaims:
    return lease.open_lease(ls.sign_json(ls.claims_dict(**changes)), ls.KEYS)


def present(
    token: bytes = b"token",
    *,
    key: SigningKey | None = ls.PEER,
    session: SessionId = ls.SID,
    role: c.Role = c.Role.CLIENT,
    counter: int = 1,
    cookie: bytes = c.NO_COOKIE,
    renew: bool = False,
) -> bytes:
    return packets.build_present(
        session,
        role,
        token,
        counter=counter,
        cookie=cookie,
        sign=key and key.sign,
        renew=renew,
    )


def body_of(datagram: bytes) -> LeasePresent:
    body = packets.parse_packet(datagram).body
    assert isinstance(body, LeasePresent)
    return body


def refused(call: Callable[[], Any]) -> LeaseError:
    with pytest.raises(LeaseError) as caught:
        call()
    return caught.value


# -- The good lease ----------------------------------------------------------------------------


def test_what_the_master_signs_is_what_the_relay_reads() -> None:
    claims = ls.make_claims()
    token = lease.sign_lease(claims, ls.SIGNING).encode()
    read = lease.open_lease(token, ls.KEYS)
    assert read == claims
    check(read)
    lease.check_proof(read, body_of(present(token)))
    assert read.session_id == ls.SID
    assert read.expires_ms == NOW_MS + 300_000
    assert read.proof_key == ls.PEER.public_key


def test_the_token_is_a_v1_lease() -> None:
    parts = paseto.parse(lease.sign_lease(ls.make_claims(), ls.SIGNING))
    assert msgspec.json.decode(parts.footer) == {"kid": "kid-1"}
    issued, expires = "2025-06-15T15:06:40Z", "2025-06-15T15:11:40Z"
    assert msgspec.json.decode(parts.message) == {
        "iss": "wavry-master",
        "iat": issued,
        "nbf": issued,
        "exp": expires,
        "jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "sub": "alice",
        "sid": ls.SID_TEXT,
        "role": "client",
        "rid": "rly-1",
        "kid": "kid-1",
        "slimit": 50_000,
        "hlimit": 100_000,
        "cnf": ls.PEER_CNF,
        "iat_rfc3339": issued,
        "nbf_rfc3339": issued,
        "exp_rfc3339": expires,
    }


@pytest.mark.parametrize("role", c.Role)
def test_both_roles(role: c.Role) -> None:
    token = lease.sign_lease(ls.make_claims(role=role), ls.SIGNING).encode()
    check(lease.open_lease(token, ls.KEYS), role=role)


def test_claims_that_this_version_does_not_know_are_ignored() -> None:
    read = opened(aud="later", tier={"name": ["x"]}, weight=1.5)
    assert read == ls.make_claims()


def test_claims_without_the_v1_copies_are_read() -> None:
    read = opened(iat_rfc3339=None, nbf_rfc3339=None, exp_rfc3339=None)
    assert read.expires_ms == NOW_MS + 300_000


# -- The order of the checks -------------------------------------------------------------------


@dataclasses.dataclass
class Attempt:
    """A PRESENT on its way through the checks; each fault spoils one part of it."""

    claims: dict[str, Any] = dataclasses.field(default_factory=ls.claims_dict)
    footer_kid: str = ls.KID
    key: SigningKey = ls.SIGNING
    keys: dict[KeyId, TrustedKey] = dataclasses.field(default_factory=lambda: dict(ls.KEYS))
    token_tail: bytes = b""
    proof_key: SigningKey | None = ls.PEER

    def admit(self) -> None:
        token = ls.sign_json(self.claims, kid=self.footer_kid, key=self.key) + self.token_tail
        claims = lease.open_lease(token, self.keys)
        check(claims)
        lease.check_key(claims, self.keys)
        lease.check_proof(claims, body_of(present(token, key=self.proof_key)))


def change_claims(**changes: Any) -> Callable[[Attempt], None]:
    return lambda attempt: attempt.claims.update(changes)


def change(**changes: Any) -> Callable[[Attempt], None]:
    def apply(attempt: Attempt) -> None:
        for name, value in changes.items():
            setattr(attempt, name, value)

    return apply


REVOKED = {ls.KID: TrustedKey(ls.SIGNING.public_key, "revoked")}
# Faults that exclude one another (both about the key, or about `exp`) overwrite each other: the
# earlier one is applied last.
ORDER: list[tuple[R, str, Callable[[Attempt], None]]] = [
    (R.INVALID_SIGNATURE, "shape", change(token_tail=b"=")),
    (R.UNKNOWN_KEY, "key set", change(keys={KeyId("another"): ls.KEYS[ls.KID]})),
    (R.INVALID_SIGNATURE, "signature", change(key=ls.STRANGER)),
    (R.INVALID_SIGNATURE, "claims do not fit", change_claims(jti="not-a-uuid")),
    (R.INVALID_SIGNATURE, "kid", change_claims(kid="kid-2")),
    (R.INVALID_SIGNATURE, "cnf", change_claims(cnf="A" * 42 + "B")),
    (R.WRONG_RELAY, "relay", change_claims(rid="rly-2")),
    (R.INVALID_SIGNATURE, "sid", change_claims(sid=ls.SID_TEXT.replace("1", "9"))),
    (R.INVALID_SIGNATURE, "role", change_claims(role="server")),
    (R.NOT_YET_VALID, "nbf", change_claims(nbf=at(30_001))),
    (R.EXPIRED, "exp", change_claims(exp=at(0))),
    (R.INVALID_SIGNATURE, "hour", change_claims(exp=at(3_600_001))),
    (R.REVOKED, "key was revoked", change(keys=REVOKED)),
    (R.PROOF_REQUIRED, "proof", change(proof_key=None)),
]


def test_an_attempt_without_a_fault_passes() -> None:
    Attempt().admit()


@pytest.mark.parametrize("first", range(len(ORDER)), ids=[f"{r.name}-{m}" for r, m, _ in ORDER])
def test_each_fault_alone(first: int) -> None:
    reason, message, spoil = ORDER[first]
    attempt = Attempt()
    spoil(attempt)
    error = refused(attempt.admit)
    assert error.reason is reason
    assert message in str(error)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(len(ORDER)), 2)))
def test_of_two_faults_the_earlier_one_is_named(first: int, second: int) -> None:
    reason, message, spoil = ORDER[first]
    attempt = Attempt()
    ORDER[second][2](attempt)
    spoil(attempt)
    error = refused(attempt.admit)
    assert error.reason is reason
    assert message in str(error)


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_of_all_faults_from_one_on_the_first_is_named(first: int) -> None:
    attempt = Attempt()
    for _, _, spoil in reversed(ORDER[first:]):
        spoil(attempt)
    error = refused(attempt.admit)
    assert error.reason is ORDER[first][0]
    assert ORDER[first][1] in str(error)


# -- open_lease --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "active", "retiring", "revoked"])
def test_a_key_of_the_set_verifies_whatever_its_status(status: str) -> None:
    keys = {ls.KID: TrustedKey(ls.SIGNING.public_key, status)}
    assert lease.open_lease(ls.sign_json(ls.claims_dict()), keys).sub == "alice"


def test_no_key_at_all() -> None:
    assert refused(lambda: lease.open_lease(ls.sign_json(ls.claims_dict()), {})).reason is (
        R.UNKNOWN_KEY
    )


def test_the_key_of_another_kid_does_not_verify() -> None:
    keys = {ls.KID: TrustedKey(ls.STRANGER.public_key), KeyId("kid-2"): ls.KEYS[ls.KID]}
    error = refused(lambda: lease.open_lease(ls.sign_json(ls.claims_dict()), keys))
    assert error.reason is R.INVALID_SIGNATURE


def footer_token(footer: bytes) -> bytes:
    return paseto.sign(msgspec.json.encode(ls.claims_dict()), ls.SIGNING, footer=footer).encode()


BAD_TOKENS: list[bytes] = [
    b"",
    b".",
    b"v4.public.",
    b"v4.local.AAAA",
    b"\xff" * 300,
    "v4.public.é".encode(),
    footer_token(b""),
    footer_token(b"not json"),
    footer_token(b"\xff"),
    footer_token(b'"kid-1"'),
    footer_token(b"[]"),
    footer_token(b"{}"),
    footer_token(b'{"kid":1}'),
    footer_token(b'{"kid":""}'),
    footer_token(b'{"kid":null}'),
    footer_token(b'{"kid":"kid-1"'),
    footer_token(b'{"kid":"kid-1"}}'),
    footer_token(b'{"kid":"' + b"k" * 65 + b'"}'),
    footer_token(b'{"kid":"\\ud800"}'),
]


@pytest.mark.parametrize("token", BAD_TOKENS)
def test_tokens_without_the_shape_of_a_lease(token: bytes) -> None:
    error = refused(lambda: lease.open_lease(token, ls.KEYS))
    assert error.reason is R.INVALID_SIGNATURE
    assert "shape" in str(error)


BAD_CLAIMS: list[Any] = [
    b"",
    b"null",
    b"[]",
    b"\xff",
    b'{"iss":"',
    *(
        {name: None}
        for name in ls.claims_dict()
        if "rfc3339" not in name and name not in ("rid", "cnf")
    ),
    {"jti": "AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee"},
    {"jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n"},
    {"jti": "{aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee}"},
    {"sid": ls.SID_TEXT.replace("-", "")},
    {"sid": ls.SID_TEXT + "\n"},
    {"sub": ""},
    {"sub": "s" * 65},
    {"sub": 5},
    {"iss": ""},
    {"kid": ""},
    {"role": 0},
    {"rid": ""},
    {"rid": ["rly-1"]},
    {"slimit": -1},
    {"slimit": 2**32},
    {"hlimit": "1"},
    {"hlimit": 1.5},
    {"hlimit": True},
    {"hlimit": 10**100},
    {"cnf": ""},
    {"cnf": ls.PEER_CNF + "="},
    {"cnf": ls.PEER_CNF + "\n"},
    {"cnf": ls.PEER_CNF[:-1]},
]


@pytest.mark.parametrize("changes", BAD_CLAIMS, ids=str)
def test_signed_claims_that_do_not_fit(changes: Any) -> None:
    wanted = changes if isinstance(changes, bytes) else ls.claims_dict(**changes)
    error = refused(lambda: lease.open_lease(ls.sign_json(wanted), ls.KEYS))
    assert error.reason is R.INVALID_SIGNATURE
    assert "claims do not fit" in str(error)


def test_cnf_that_is_not_canonical_is_refused_before_anyone_uses_it() -> None:
    value = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(
        ls.PEER_CNF[-1]
    )
    assert value % 4 == 0
    for bits in (1, 2, 3):
        last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[value + bits]
        error = refused(lambda last=last: opened(cnf=ls.PEER_CNF[:-1] + last))
        assert error.reason is R.INVALID_SIGNATURE
        assert "cnf" in str(error)


@pytest.mark.parametrize("character", ["+", "/", "=", " ", "\n", "\u00e9"])
def test_cnf_of_another_alphabet_is_refused_before_anyone_uses_it(character: str) -> None:
    error = refused(lambda: opened(cnf=ls.PEER_CNF[:-1] + character))
    assert error.reason is R.INVALID_SIGNATURE
    assert "cnf" in str(error)


def at_depth(frames: int, call: Callable[[], Any]) -> Any:
    return call() if frames == 0 else at_depth(frames - 1, call)


def test_deep_nesting_is_refused_like_any_other_misfit() -> None:
    # Nobody signed this footer.  On a stack that is half full its nesting is too deep to skip.
    nested = b"[" * 365 + b"]" * 365
    token = paseto.sign(b"", ls.SIGNING, footer=b'{"kid":"kid-1","x":' + nested + b"}").encode()
    assert len(token) <= c.MAX_TOKEN_BYTES
    error = at_depth(600, lambda: refused(lambda: lease.open_lease(token, ls.KEYS)))
    assert error.reason is R.INVALID_SIGNATURE


def test_a_token_over_the_limit_is_refused_unread() -> None:
    token = ls.sign_json(ls.claims_dict(filler="f" * 500))
    assert len(token) > c.MAX_TOKEN_BYTES
    error = refused(lambda: lease.open_lease(token, ls.KEYS))
    assert error.reason is R.INVALID_SIGNATURE
    assert "1100" in str(error)


def test_every_flipped_bit_of_a_token_is_refused() -> None:
    token = lease.sign_lease(ls.make_claims(), ls.SIGNING).encode()
    for bit in range(8 * len(token)):
        changed = bytearray(token)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LeaseError) as caught:
            lease.open_lease(bytes(changed), ls.KEYS)
        assert caught.value.reason in (R.INVALID_SIGNATURE, R.UNKNOWN_KEY)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_an_edited_token_is_refused(data: st.DataObject) -> None:
    token = lease.sign_lease(ls.make_claims(), ls.SIGNING).encode()
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 8)))
    letters = st.sampled_from(b"ABCDabcd0123-_.=\n ")
    new = bytes(data.draw(st.lists(letters, max_size=8)))
    edited = token[:start] + new + token[end:]
    if edited == token:
        return
    error = refused(lambda: lease.open_lease(edited, ls.KEYS))
    assert error.reason in (R.INVALID_SIGNATURE, R.UNKNOWN_KEY)


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=1500) | st.text(max_size=1200).map(str.encode))
def test_garbage_tokens_raise_nothing_but_lease_error(token: bytes) -> None:
    assert refused(lambda: lease.open_lease(token, ls.KEYS)).reason is R.INVALID_SIGNATURE


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.sampled_from(sorted(ls.claims_dict())), json_values, max_size=4))
def test_any_signed_claims_raise_nothing_but_lease_error(changes: dict[str, Any]) -> None:
    try:
        claims = lease.open_lease(ls.sign_json({**ls.claims_dict(), **changes}), ls.KEYS)
        check(claims)
    except LeaseError:
        return
    assert claims.rid == ls.RID


# -- check_claims: rid, sid, role --------------------------------------------------------------


def test_a_lease_for_no_relay_or_another_one() -> None:
    for claims in (
        opened(rid=None),
        opened(rid="rly-2"),
        opened(rid="RLY-1"),
        opened(rid="rly-1 "),
    ):
        assert refused(lambda claims=claims: check(claims)).reason is R.WRONG_RELAY


def test_the_session_of_the_packet_must_be_the_lease_s() -> None:
    error = refused(lambda: check(opened(), session_id=ls.OTHER_SID))
    assert error.reason is R.INVALID_SIGNATURE
    assert "sid" in str(error)


@pytest.mark.parametrize(
    ("claimed", "role"),
    [
        ("server", c.Role.CLIENT),
        ("client", c.Role.SERVER),
        ("Client", c.Role.CLIENT),
        ("", c.Role.CLIENT),
        ("admin", c.Role.SERVER),
        ("0", c.Role.CLIENT),
    ],
)
def test_the_role_of_the_packet_must_be_the_lease_s(claimed: str, role: c.Role) -> None:
    error = refused(lambda: check(opened(role=claimed), role=role))
    assert error.reason is R.INVALID_SIGNATURE
    assert "role" in str(error)


# -- check_claims: instants --------------------------------------------------------------------


def test_exp_has_no_tolerance() -> None:
    claims = opened(exp=at(0))
    assert refused(lambda: check(claims)).reason is R.EXPIRED
    assert refused(lambda: check(claims, NOW_MS + 1)).reason is R.EXPIRED
    check(claims, NOW_MS - 1)


def test_one_millisecond_is_enough() -> None:
    check(opened(exp=at(1)))


def test_a_part_of_a_millisecond_is_not_enough() -> None:
    assert refused(lambda: check(opened(exp="2025-06-15T15:06:40.000999Z"))).reason is R.EXPIRED


@pytest.mark.parametrize("skew_s", [0, 1, 30])
def test_nbf_may_be_ahead_by_the_skew_and_no_more(skew_s: int) -> None:
    check(opened(nbf=at(skew_s * 1000)), skew_s=skew_s)
    error = refused(lambda: check(opened(nbf=at(skew_s * 1000 + 1)), skew_s=skew_s))
    assert error.reason is R.NOT_YET_VALID


def test_the_skew_is_30_s_unless_set() -> None:
    check(opened(nbf=at(30_000)))
    assert refused(lambda: check(opened(nbf=at(30_001)))).reason is R.NOT_YET_VALID


def test_the_horizon_is_one_hour() -> None:
    check(opened(exp=at(60 * MINUTE_MS)))
    error = refused(lambda: check(opened(exp=at(60 * MINUTE_MS + 1))))
    assert error.reason is R.INVALID_SIGNATURE
    assert "hour" in str(error)


@pytest.mark.parametrize(
    ("text", "unix_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999Z", -1),
        ("1969-12-31T23:59:59.999900Z", -1),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000),
        ("0001-01-01T00:00:00+23:59", -62_135_596_800_000 - 1439 * MINUTE_MS),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999),
        ("9999-12-31T23:59:59-23:59", 253_402_300_799_000 + 1439 * MINUTE_MS),
        ("2025-06-15T17:06:40+02:00", NOW_MS),
        ("2025-06-15T09:36:40-05:30", NOW_MS),
        ("2025-06-15T15:06:40-00:00", NOW_MS),
        ("2025-06-15t15:06:40z", NOW_MS),
        ("2025-06-15T15:06:40.5Z", NOW_MS + 500),
        ("2025-06-15T15:06:40.0019999Z", NOW_MS + 2),  # v1 writes nanoseconds; rounded to µs.
        ("2024-02-29T00:00:00Z", 1_709_164_800_000),
    ],
)
def test_instants_at_their_edges(text: str, unix_ms: int) -> None:
    claims = opened(exp=text)
    assert claims.expires_ms == unix_ms
    assert lease.unix_ms(opened(nbf=text).nbf) == unix_ms
    if unix_ms <= NOW_MS:
        assert refused(lambda: check(claims)).reason is R.EXPIRED


def test_the_last_year_is_beyond_the_horizon_and_never_reached_by_nbf() -> None:
    for text in ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-23:59"):
        assert "hour" in str(refused(lambda text=text: check(opened(exp=text))))
        assert refused(lambda text=text: check(opened(nbf=text))).reason is R.NOT_YET_VALID


@pytest.mark.parametrize(
    "value",
    [
        "2025-06-15T15:06:40",  # no zone: never guessed.
        "2025-06-15",
        "15:06:40Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "9999-12-31T23:59:59.9999999Z",
        "2025-02-29T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "2025-06-15T24:00:00Z",
        "2025-06-15T15:06:60Z",
        "2025-06-15T15:06:40+24:00",
        "2025-06-15T15:06:40.Z",
        "2025-06-15T15:06:40Z ",
        "-2025-06-15T15:06:40Z",
        "now",
        "",
        NOW_MS,
        1.5,
        True,
        [],
        {},
    ],
)
@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
def test_what_is_not_an_instant_is_refused(name: str, value: Any) -> None:
    error = refused(lambda: opened(**{name: value}))
    assert error.reason is R.INVALID_SIGNATURE
    assert "claims do not fit" in str(error)


offsets = st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))


@settings(deadline=None, max_examples=80)
@given(st.datetimes(timezones=offsets), st.datetimes(timezones=offsets))
def test_no_instant_raises_anything_but_lease_error(nbf: datetime, exp: datetime) -> None:
    claims = opened(nbf=nbf.isoformat(), exp=exp.isoformat())
    exact = (exp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert claims.expires_ms == exact
    if lease.unix_ms(claims.nbf) > NOW_MS + 30_000:
        assert refused(lambda: check(claims)).reason is R.NOT_YET_VALID
    elif exact <= NOW_MS:
        assert refused(lambda: check(claims)).reason is R.EXPIRED
    elif exact > NOW_MS + 60 * MINUTE_MS:
        assert refused(lambda: check(claims)).reason is R.INVALID_SIGNATURE
    else:
        check(claims)


# -- check_proof -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, ls.PEER, ls.STRANGER])
def test_a_lease_without_a_key_proves_nothing(key: SigningKey | None) -> None:
    claims = opened(cnf=None)
    error = refused(lambda: lease.check_proof(claims, body_of(present(key=key))))
    assert error.reason is R.PROOF_REQUIRED
    with pytest.raises(ValueError, match="32 bytes"):
        _ = claims.proof_key


@pytest.mark.parametrize("renew", [False, True])
def test_the_key_of_the_lease_proves(renew: bool) -> None:
    datagram = present(renew=renew, counter=2**64 - 1, cookie=b"\xff" * 8)
    lease.check_proof(opened(), body_of(datagram))


@pytest.mark.parametrize("key", [None, ls.STRANGER, ls.SIGNING])
def test_no_proof_or_another_key(key: SigningKey | None) -> None:
    error = refused(lambda: lease.check_proof(opened(), body_of(present(key=key))))
    assert error.reason is R.PROOF_REQUIRED


@pytest.mark.parametrize(
    "other",
    [
        present(b"tokem"),
        present(session=ls.OTHER_SID),
        present(role=c.Role.SERVER),
        present(counter=2),
        present(cookie=b"\1" + bytes(7)),
        present(renew=True),
    ],
    ids=["token", "session", "role", "counter", "cookie", "type"],
)
def test_a_proof_of_another_packet_proves_nothing(other: bytes) -> None:
    good = present()
    lease.check_proof(opened(), body_of(good))
    moved = other[: -c.SIGNATURE_BYTES] + good[-c.SIGNATURE_BYTES :]
    error = refused(lambda: lease.check_proof(opened(), body_of(moved)))
    assert error.reason is R.PROOF_REQUIRED


def test_a_plain_signature_of_the_packet_proves_nothing() -> None:
    """The label in front keeps signatures of other protocols out."""
    good = present()
    unlabelled = good[: -c.SIGNATURE_BYTES]
    forged = unlabelled + ls.PEER.sign(unlabelled)
    error = refused(lambda: lease.check_proof(opened(), body_of(forged)))
    assert error.reason is R.PROOF_REQUIRED


def test_claims_made_by_hand_with_a_bad_cnf_are_refused_too() -> None:
    claims = msgspec.structs.replace(ls.make_claims(), cnf="A" * 42 + "B")
    error = refused(lambda: lease.check_proof(claims, body_of(present())))
    assert error.reason is R.INVALID_SIGNATURE


# -- Sizes -------------------------------------------------------------------------------------


def largest_claims(**changes: Any) -> LeaseClaims:
    """The longest claims that the master can make: its own kid and rid, any `sub`."""
    wanted: dict[str, Any] = {
        "sub": "s" * 64,
        "role": c.Role.SERVER,
        "rid": keyset.relay_id(ls.STRANGER.public_key),
        "kid": keyset.key_id(ls.SIGNING.public_key),
        "ttl_s": c.LEASE_TTL_MAX_S,
        "soft_kbps": lease.MAX_KBPS,
        "hard_kbps": lease.MAX_KBPS,
    }
    return ls.make_claims(**{**wanted, **changes})


def test_the_largest_lease_with_proof_fits_one_mtu() -> None:
    token = lease.sign_lease(largest_claims(), ls.SIGNING).encode()
    assert len(token) <= c.MAX_TOKEN_BYTES
    datagram = present(token, counter=2**64 - 1)
    assert len(datagram) <= 1280 - 40 - 8


def test_the_issuer_may_be_long_too() -> None:
    assert len(lease.sign_lease(largest_claims(issuer="i" * 64), ls.SIGNING)) <= c.MAX_TOKEN_BYTES


def test_a_lease_that_would_be_too_large_is_not_signed() -> None:
    claims = largest_claims(sub="\N{HIRAGANA LETTER A}" * 64, issuer="\N{HIRAGANA LETTER A}" * 64)
    assert "1100" in str(refused(lambda: lease.sign_lease(claims, ls.SIGNING)))


@settings(deadline=None, max_examples=60)
@given(
    sub=st.text(min_size=1, max_size=32),
    role=st.sampled_from(c.Role),
    now_s=st.integers(0, 250_000_000_000),
    ttl_s=st.integers(60, 900),
    soft=st.integers(0, lease.MAX_KBPS),
    hard=st.integers(0, lease.MAX_KBPS),
    cnf=st.binary(min_size=32, max_size=32).map(base64url.encode),
)
def test_any_lease_of_the_master_is_read_back(
    sub: str, role: c.Role, now_s: int, ttl_s: int, soft: int, hard: int, cnf: str
) -> None:
    claims = ls.make_claims(
        sub=sub, role=role, now_s=now_s, ttl_s=ttl_s, soft_kbps=soft, hard_kbps=hard, cnf=cnf
    )
    read = lease.open_lease(lease.sign_lease(claims, ls.SIGNING).encode(), ls.KEYS)
    assert read == claims
    assert read.expires_ms == (now_s + ttl_s) * 1000
    check(read, now_s * 1000, role=role)
