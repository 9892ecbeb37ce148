"""The report: one self-contained page about an output folder, or about two of them side by side.

`write_report` reads the answers, `_run.json` and `_thumbnails.bin` of a folder and writes one
HTML file that opens from disk, loads nothing from anywhere and runs no script but its own.
"""

from llava_batch.report.page import write_report

__all__ = ["write_report"]
