"""The report: figures and one HTML page from what runs recorded.

`collect` reads runs into plain JSON, `page` renders it as one self-contained HTML page, `write_report` does both.
Needs plotly (the page) or matplotlib (static figures), and pyarrow for recorded tokens.
"""

from dgpo.report.data import collect
from dgpo.report.page import page, write_report

__all__ = ["collect", "page", "write_report"]
