"""Tables and pictures of the summary of an evaluation or a comparison: presentation only."""

from analognoise.report.plot import plot_over_level, plot_over_time, save_figure
from analognoise.report.table import markdown_table, print_summary, summary_csv, terminal_table

__all__ = [
    "markdown_table",
    "plot_over_level",
    "plot_over_time",
    "print_summary",
    "save_figure",
    "summary_csv",
    "terminal_table",
]
