"""`make demo`: draw shards, caption them, ask questions of them, and show what came of it.

It is the main job on its embedded defaults, run twice (captions, then the questions that the Parquet
shard brings), and a table of pictures and answers. Run again, it finds everything answered.
"""

import sys

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from llava_batch.cli.terminal import DEMO_FOLDER, placed, run_and_tell
from llava_batch.demo.questions import Question
from llava_batch.demo.scoring import score_answer
from llava_batch.driver import cluster
from llava_batch.job import Job

_SHOWN = 6


def main() -> None:
    """The tour, in the folder `demo-out` under the current one."""
    # Answers of an earlier version's model are replaced.
    captions = placed(Job(overwrite=True), demo="answers")
    asked = captions.but(
        input=captions.input[1:], output=f"{DEMO_FOLDER}/questions", question_column="question"
    )
    with cluster.connected():
        run_and_tell(captions)
        print(
            "Now a question about each scene of the second shard ...", file=sys.stderr, flush=True
        )
        run_and_tell(asked.but(quiet=True))
    console = Console(highlight=False)
    _show_captions(console, captions.output)
    _show_questions(console, asked)
    console.print(
        f"\nAnswers: {captions.output}/*.parquet (captions), {asked.output}/*.parquet (questions).\n"
        "Your own images: jobs/caption.py --input FOLDER --output out "
        "--model llava-hf/llava-1.5-7b-hf"
    )


def _show_captions(console: Console, output: str) -> None:
    rows = ds.dataset(output).to_table(columns=["id", "answer", "status"]).to_pylist()
    table = Table(title="Captions", title_justify="left")
    table.add_column("image")
    table.add_column("answer")
    for row in rows[:: max(1, len(rows) // _SHOWN)][:_SHOWN]:
        table.add_row(row["id"], row["answer"])
    console.print(table)


def _show_questions(console: Console, asked: Job) -> None:
    truth = pq.read_table(asked.input[0], columns=["key", "question", "answer"]).to_pylist()
    rows = ds.dataset(asked.output).to_table(columns=["id", "key", "answer"]).to_pylist()
    given = {row["key"]: row for row in rows}
    table = Table(title="Questions", title_justify="left")
    for name in ("image", "question", "answer", "in the picture"):
        table.add_column(name)
    right = 0
    for number, row in enumerate(truth):
        answer = given[row["key"]]["answer"] or ""
        question = Question(type="", question=row["question"], answer=row["answer"])
        right += score_answer(question, answer)
        if number < _SHOWN:
            table.add_row(given[row["key"]]["id"], row["question"], answer, row["answer"])
    console.print(table)
    console.print(f"{right} of {len(truth)} answers fit the pictures.")


if __name__ == "__main__":
    main()
