"""Reports of hooktrain runs as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_report.page import write_report as write_report
    from hooktrain_report.plugin import ReportPlugin as ReportPlugin

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
