"""The pure engine against the conformance suite."""

from engine_conformance_support import EngineConformance

from wavry_relay.shm.control import EngineKind


class TestReferenceEngine(EngineConformance):
    kind = EngineKind.REFERENCE
