"""`report.html` of a run and `index.html` of a cohort: pages for people, each in one file, for no network."""

from __future__ import annotations

from histoseg.outputs.report.cohort import CohortEntry, read_thumbnail, write_index
from histoseg.outputs.report.page import write_report
from histoseg.outputs.report.picture import Glance

__all__ = ["CohortEntry", "Glance", "read_thumbnail", "write_index", "write_report"]
