"""Which engine a relay uses, and that it says so."""

import importlib.util

import pytest

from wavry_relay.engine import EngineUnavailableError, choose_engine
from wavry_relay.shm.control import EngineKind


def test_reference_is_always_there() -> None:
    assert choose_engine("reference") is EngineKind.REFERENCE


def test_auto_takes_what_is_built() -> None:
    built = importlib.util.find_spec("wavry_relay.engine._native") is not None
    assert choose_engine("auto") is (EngineKind.NATIVE if built else EngineKind.REFERENCE)


def test_native_that_is_not_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EngineUnavailableError, match="WAVRY_BUILD_NATIVE"):
        choose_engine("native")


def test_unknown_engine_is_an_error() -> None:
    with pytest.raises(EngineUnavailableError):
        choose_engine("turbo")
