"""The only place that chooses an engine."""

from .choice import EngineUnavailableError, choose_engine, load_engine, open_engine

__all__ = ["EngineUnavailableError", "choose_engine", "load_engine", "open_engine"]
