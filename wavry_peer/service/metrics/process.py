"""Metrics of the operating system's process, the same for every service."""

from typing import Final

from .spec import MetricSpec, counter, gauge, named_by_operator

__all__ = ["PROCESS", "build_info"]

PROCESS: Final = (
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes."),
    gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
    gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
    counter("process_cpu_seconds", "Total user and system CPU time spent in seconds."),
    gauge("process_open_fds", "Number of open file descriptors."),
    gauge("process_max_fds", "Maximum number of open file descriptors."),
)
"""Exposed by the client library; its words.  The relay's is its supervisor, not its workers."""


def build_info(service: str) -> MetricSpec:
    """Return ``wavry_…_build_info`` of a service."""
    version = named_by_operator("version", r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", 1, "the software")
    return gauge(f"wavry_{service}_build_info", f"Always 1; version of the {service}.", version)
