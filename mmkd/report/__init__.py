"""Report: trained runs to one HTML file that is complete in itself, for people who'd rather look.

From opened runs (`mmkd.pipeline.run.Run`) to figures, charts, item cards and a page of all of them.
"""

from mmkd.report.page import write_report

__all__ = ["write_report"]
