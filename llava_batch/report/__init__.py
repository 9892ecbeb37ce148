"""The report: one self-contained page about an output folder, or about two of them side by side.

`write_report` reads the answers, `_run.json` and `_thumbnails.parquet` of a folder and writes one
HTML file that opens from disk, loads nothing from anywhere and runs no script but its own.
`sample_rank` is how it draws its sample, for whoever chooses the thumbnails.
"""

from llava_batch.report.page import write_report
from llava_batch.report.sample import image_of, sample_rank

__all__ = ["image_of", "sample_rank", "write_report"]
