"""One HTML file that compares runs, read from their folders; it needs no server, no account and no network.

`python -m evaluation.dashboard runs/<study>`. Python reads the folders and says what the runs differ in; the scripts beside
it draw the page in the browser, where filters act on every chart.
"""

from evaluation.dashboard.page import write_dashboard

__all__ = ["write_dashboard"]
