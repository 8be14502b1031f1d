"""Many slides: on one machine, in one process or several; or on a Dask cluster.

What happens inside a slide is `histoseg.job`'s, and the same wherever it runs.
"""

from __future__ import annotations

from histoseg.fleet.conductor import run_fleet
from histoseg.fleet.run import FleetError, ModelChoice, Order
from histoseg.fleet.sources import SlideSource, Sources, expand_paths, find_slides
from histoseg.fleet.words import format_failures

__all__ = [
    "FleetError",
    "ModelChoice",
    "Order",
    "SlideSource",
    "Sources",
    "expand_paths",
    "find_slides",
    "format_failures",
    "run_fleet",
]
