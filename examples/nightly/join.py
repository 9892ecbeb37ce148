"""Each image of a Delta table with its answer, joined by id in DuckDB.

    python examples/nightly/join.py IMAGES ANSWERS > captions.csv

Prints key, status and answer as CSV; an image that was not asked yet has neither.
"""

import csv
import sys
from pathlib import PurePosixPath

import duckdb
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

JOIN = """
    select images.key, answers.status, answers.answer
    from images left join answers on answers.id =
        ? || '/' || replace(replace(replace(images.key, '%', '%25'), '#', '%23'), '~', '%7E')
    order by images.key
"""
"""A row's id is its table's name and its key, in which three characters are escaped."""


def columns(uri: str, names: str) -> pa.Table:
    """Some columns of a Delta table, as its own library scans it."""
    found = QueryBuilder().register("t", DeltaTable(uri)).execute(f"select {names} from t")
    return pa.RecordBatchReader.from_stream(found).read_all()


def main() -> None:
    uri, answers_uri = sys.argv[1:]
    images = columns(uri, "key")
    answers = columns(answers_uri, "id, status, answer")
    connection = duckdb.connect()
    connection.register("images", images)
    connection.register("answers", answers)
    rows = connection.execute(JOIN, [PurePosixPath(uri).name])
    out = csv.writer(sys.stdout)
    out.writerow(("key", "status", "answer"))
    out.writerows(rows.fetchall())


if __name__ == "__main__":
    main()
