"""Publish: what an output folder holds → a table of the lake, beside it, in one commit a run.

    delta:URI                          `delta.py`, written by deltalake
    iceberg:CATALOG.NAMESPACE.TABLE    `iceberg.py`, written by pyiceberg

The table is the folder's: its rows are those of the units that stand there, and no others. Which of them it
has, its rows say themselves (`unit_version`), so a kill anywhere, or a note that was lost, changes nothing:
what is missing is added, what is of an earlier answer replaced, what the folder holds no more removed, all in
one commit. Files are never shared: rows are read from the folder and written by the table's own library.
"""
