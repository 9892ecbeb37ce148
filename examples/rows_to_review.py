#!/usr/bin/env python3
"""List the answers that a person should look at first: cut short, or the least confident.

examples/rows_to_review.py demo-out/answers
examples/rows_to_review.py demo-out/answers 50 > review.csv

The answers are plain tables: any tool that reads Parquet can ask this, here DuckDB
(`pip install duckdb`).
"""

import csv
import sys

import duckdb

QUERY = """
    SELECT id, finish_reason, round(mean_logprob, 3) AS mean_logprob, answer
    FROM read_parquet(?)
    WHERE status = 'ok'
    ORDER BY finish_reason = 'length' DESC, mean_logprob, id
    LIMIT ?
"""


def main(out: str, num_rows: str = "20") -> None:
    """Print the rows of `out` to review as CSV."""
    found = duckdb.execute(QUERY, [f"{out.rstrip('/')}/**/*.parquet", int(num_rows)])
    writer = csv.writer(sys.stdout)
    writer.writerow(column[0] for column in found.description)
    writer.writerows(found.fetchall())


if __name__ == "__main__":
    main(*sys.argv[1:])
