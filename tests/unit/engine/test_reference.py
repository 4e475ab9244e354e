"""The pure engine against the conformance suite."""

from support.engine.conformance import EngineConformance

from wavry_relay.shm.control import EngineKind


class TestReferenceEngine(EngineConformance):
    kind = EngineKind.REFERENCE
