"""Reports: a run directory becomes one static page, several runs become a comparison."""

from unmask.report.compare import comparison_rows, write_comparison
from unmask.report.page import write_report

__all__ = ["comparison_rows", "write_comparison", "write_report"]
