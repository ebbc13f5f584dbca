"""The report: figures and one HTML page from what runs recorded.

`collect` reads runs into plain JSON, `page` renders it as one self-contained HTML page, `write_report` does both;
`write_comparison_report` writes the page of a comparison.
Needs plotly (the page) or matplotlib (static figures), and pyarrow for recorded tokens.
"""

from dgpo.report.comparison import write_comparison_report
from dgpo.report.data import collect
from dgpo.report.page import page, write_report

__all__ = ["collect", "page", "write_comparison_report", "write_report"]
