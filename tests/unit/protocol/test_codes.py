"""Error codes: one table, which every refusal of the code uses."""

import re
from pathlib import Path

import pytest

import wavry_cp
import wavry_peer
import wavry_relay
from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode

SOURCES = [
    (path, path.read_text())
    for package in (wavry_cp, wavry_peer, wavry_relay)
    for path in Path(package.__path__[0]).rglob("*.py")
]


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_has_a_status_and_a_next_step(code: ErrorCode) -> None:
    assert 400 <= code.status <= 503
    assert re.fullmatch(r"[A-Z].+\.", code.next_step)
    assert code.name.lower() == str(code) == code.value


def test_every_refusal_names_its_code_by_the_table() -> None:
    bare = {
        (path.name, found)
        for path, text in SOURCES
        for found in re.findall(r'\b(?:Refused|Message)Error\(\s*"([a-z_]+)"', text)
    }
    assert not bare


def test_every_code_is_used() -> None:
    text = "\n".join(text for path, text in SOURCES if path.name != "codes.py")
    unused = {code.name for code in ErrorCode if f"ErrorCode.{code.name}" not in text}
    assert not unused


def test_a_refusal_has_the_headers_of_its_status() -> None:
    assert RefusedError(ErrorCode.FORBIDDEN, "no").headers() == {}
    assert RefusedError(ErrorCode.UNAUTHORIZED, "who?").headers() == {"WWW-Authenticate": "Bearer"}
    assert RefusedError(ErrorCode.RATE_LIMITED, "", retry_after_s=1.2).headers() == {
        "Retry-After": "2"
    }
    assert RefusedError(ErrorCode.BUSY, "", retry_after_s=0.1).headers() == {"Retry-After": "1"}
    assert RefusedError(ErrorCode.RELAY_LACKS_KEY, "").headers() == {"Retry-After": "2"}
    assert RefusedError(ErrorCode.RELAY_UNAVAILABLE, "", status=409).headers() == {}
