"""The native engine against the conformance suite of the reference."""

from support.engine.conformance import EngineConformance

from wavry_relay.shm.control import EngineKind


class TestNativeEngine(EngineConformance):
    kind = EngineKind.NATIVE
