"""The catalogue of all metrics, once: names, kinds, labels with their values, meaning.

Pure data.  The services make their metrics from it and cannot expose another; docs/metrics.md is
written from it; alerts and dashboard are checked against it.
"""

from typing import Final

from .gateway import GATEWAY
from .master import MASTER
from .relay import RELAY
from .spec import OTHER, Kind, Label, MetricSpec, by_name

__all__ = ["CATALOGUE", "GATEWAY", "MASTER", "OTHER", "RELAY", "Kind", "Label", "MetricSpec",
           "by_name"]  # fmt: skip

CATALOGUE: Final[dict[str, tuple[MetricSpec, ...]]] = {
    "relay": RELAY,
    "master": MASTER,
    "gateway": GATEWAY,
}
"""By service."""
