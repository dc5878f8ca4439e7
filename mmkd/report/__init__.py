"""Report: trained runs to one HTML file that is complete in itself, for people who'd rather look.

From opened runs (`mmkd.pipeline.run.Run`) to figures, charts, item cards and a page of all of them;
from sweeps to what was tried and what mattered.
"""

from mmkd.report.page import write_report
from mmkd.report.sweeps import write_sweep_report

__all__ = ["write_report", "write_sweep_report"]
