"""The demo model's accuracy on held-out scenes, through the whole pipeline.

    python benchmarks/accuracy.py                      400 scenes, float32
    python benchmarks/accuracy.py --dtype bfloat16 --slots 5

The scenes are drawn into Parquet shards, captioned, asked their questions, and asked dialogues whose
second turn needs the first; the answers are read back from the tables and scored. Seeds are those of
no training. The last line is JSON.
"""

import argparse
import io
import json
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llava_batch import Job, run
from llava_batch.demo.questions import dialogue, questions
from llava_batch.demo.scenes import draw
from llava_batch.demo.scoring import score_answer, score_caption
from llava_batch.demo.training.evaluate import held_out
from llava_batch.driver.cluster import connected


def write_shard(path: Path, scenes: list, turns: list[list[str]]) -> None:
    """One row for each scene: its key, its picture as PNG, its questions."""
    rows = []
    for number, (scene, texts) in enumerate(zip(scenes, turns, strict=True)):
        buffer = io.BytesIO()
        draw(scene, short_side=224).save(buffer, "PNG")
        rows.append({"key": f"{number:06}", "image": buffer.getvalue(), "question": texts})
    pq.write_table(pa.Table.from_pylist(rows), path)


def answered(folder: Path, name: str, job: Job) -> list[dict]:
    """The answer rows of `job` over the shard `name`, in order."""
    out = folder / f"out-{name}"
    run(job.but(input=(str(folder / f"{name}.parquet"),), output=str(out)))
    return ds.dataset(out).to_table().to_pylist()


def measure(job: Job, num_scenes: int, start: int) -> dict[str, tuple[int, int]]:
    """{question type: (right, asked)}."""
    scenes = held_out(num_scenes, start=start)
    asked = [questions(scene) for scene in scenes]
    talks = [(scene, turns) for scene in scenes if (turns := dialogue(scene))]
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()

    def count(name: str, good: bool) -> None:
        total[name] += 1
        right[name] += good

    with tempfile.TemporaryDirectory() as temporary, connected():
        folder = Path(temporary)
        write_shard(folder / "scenes.parquet", scenes, [[q.question for q in qs] for qs in asked])
        write_shard(
            folder / "talks.parquet",
            [scene for scene, _ in talks],
            [[turn.question for turn in turns[:2]] for _, turns in talks],
        )
        for scene, row in zip(scenes, answered(folder, "scenes", job), strict=True):
            exact, objects = score_caption(scene, row["answer"] or "")
            count("caption_exact", exact)
            count("caption_objects", objects)
        (folder / "scenes.parquet").rename(folder / "asked.parquet")
        rows = answered(folder, "asked", job.but(question_column="question"))
        flat = [question for qs in asked for question in qs]
        for question, row in zip(flat, rows, strict=True):
            count(question.type, score_answer(question, row["answer"] or ""))
        talking = job.but(question_column="question", dialogue=True)
        for (_, turns), row in zip(talks, answered(folder, "talks", talking), strict=True):
            count("dialogue", score_answer(turns[1], row["answer"] or ""))
    return {name: (right[name], total[name]) for name in total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-scenes", type=int, default=400)
    parser.add_argument("--start", type=int, default=500_000, help="first held-out scene")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--model", default="demo")
    args = parser.parse_args()
    job = Job(model=args.model, dtype=args.dtype, slots=args.slots, max_new_tokens=48, quiet=True)
    counts = measure(job, args.num_scenes, args.start)
    for name, (good, asked) in counts.items():
        print(f"{name:20} {good:5} of {asked:5}  {good / asked:6.1%}")
    kinds = {n: c for n, c in counts.items() if not n.startswith("caption")}
    overall = sum(g for g, _ in kinds.values()) / sum(a for _, a in kinds.values())
    worst = min(kinds, key=lambda name: kinds[name][0] / kinds[name][1])
    print(json.dumps({"overall": overall, "worst": worst, "types": counts}))


if __name__ == "__main__":
    main()
