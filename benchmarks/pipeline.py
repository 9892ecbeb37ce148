"""The whole job beside the engine alone, on the same cores, in alternating pairs.

    python benchmarks/pipeline.py                      five pairs of 160 images, bfloat16
    python benchmarks/pipeline.py --images 64 --pairs 1

Ceiling: the engine alone, fed from memory with the very same requests, already decoded and
tokenised. What the job loses against it goes to reading, decoding, Ray and writing on the same
cores. Both sides are timed from the first request that reaches the engine to the last answer (the
job's: in the driver's hands), so that neither start-up counts. The last line is JSON.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

SLOTS, NEW_TOKENS = 16, 32


def make_model(folder: Path) -> None:
    """The bench model with a byte tokenizer and a CLIP processor, as a checkpoint on disk."""
    import torch
    from bench_model import IMAGE_SIZE, IMAGE_TOKEN, build
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

    build("small", dtype=torch.bfloat16).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 1, "</s>": 2, "<image>": IMAGE_TOKEN}
    vocab |= {symbol: 3 + i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    ).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(
        folder
    )


def make_shards(folder: Path, num_images: int) -> Path:
    """A tar of drawn 640x480 JPEGs."""
    from llava_batch.demo.scenes import draw, make_scene

    folder.mkdir()
    with tarfile.open(folder / "bench.tar", "w") as tar:
        for number in range(num_images):
            image = draw(make_scene(number, aspect=4 / 3), short_side=480)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            info = tarfile.TarInfo(f"{number:06}.jpg")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    return folder / "bench.tar"


def settings(model: Path, shard: Path, output: Path, dtype: str):
    """The job of both sides."""
    from llava_batch.job import Job

    return Job(
        input=(str(shard),),
        output=str(output),
        model=str(model),
        dtype=dtype,
        slots=SLOTS,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        quiet=True,
    )


def engine_alone(job) -> dict:
    """The engine over the job's requests, held in memory."""
    import torch

    from llava_batch.checkpoint import Checkpoint
    from llava_batch.engine import Engine, Request
    from llava_batch.prepare.image_processor import load_image_processor
    from llava_batch.prepare.pixels import configure_pillow, decode
    from llava_batch.prompts.templates import llava_15
    from llava_batch.read.find import find_units
    from llava_batch.read.kinds import read_rows
    from llava_batch.read.reading import Reading

    torch.set_num_threads(len(_cores()))
    configure_pillow(max_pixels=job.max_pixels, allow_truncated=False)
    checkpoint = Checkpoint.find(job)
    processor = load_image_processor(checkpoint)
    (unit,) = find_units(job.input)
    (segment,) = llava_15([f"<image>\n{job.prompt}"], None)
    ids: list[int] = []
    for token in checkpoint.encode(segment, first=True):
        ids += [token] * (576 if token == checkpoint.image_token_id else 1)
    import pyarrow as pa

    rows = read_rows(unit, Reading.of(job, (), pa.schema([])))
    requests = [
        Request(
            id=row.key,
            pixels=processor.pixels(decode(row.images[0], job.max_pixels))[None],
            prompt_ids=ids,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
        )
        for row in rows
    ]
    engine = Engine.load(checkpoint.folder, dtype=job.dtype, slots=SLOTS)
    begin = time.time()
    num_answers = sum(1 for _ in engine.generate(requests))
    return {"images_per_s": num_answers / (time.time() - begin)}


def whole_job(job) -> dict:
    """The job through Ray, as a user runs it."""
    from llava_batch import pipeline
    from llava_batch.generate import actor

    begun = Path(job.output).with_suffix(".begun")
    ended = 0.0
    as_they_come = pipeline.answers

    class TimedGenerate(actor.Generate):
        """Notes when the first rows reach it."""

        async def __call__(self, table):
            if not begun.exists():
                begun.write_text(str(time.time()))
            return await super().__call__(table)

    def timed_answers(*arguments):
        nonlocal ended
        for batch in as_they_come(*arguments):
            ended = time.time()
            yield batch

    # The pipeline takes the actor from its module when it needs it, and its own function by name.
    vars(actor).update(Generate=TimedGenerate)
    vars(pipeline).update(answers=timed_answers)
    summary = pipeline.run(job)
    if summary.run["ok"] != summary.run["rows"]:
        raise RuntimeError(f"not every row was answered: {summary.run}")
    stages = summary.throughput["stages"]
    return {
        "images_per_s": summary.run["rows"] / (ended - float(begun.read_text())),
        "bottleneck": summary.throughput["bottleneck"],
        "slot_occupancy": summary.throughput["slot_occupancy"],
        "stage_images_per_busy_s": {
            name: counters["rows"] / max(counters["busy_s"], 1e-9)
            for name, counters in stages.items()
        },
    }


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0)


def _side(name: str, folder: Path, number: int, dtype: str) -> dict:
    """One side in a process of its own; its last line is its result."""
    command = [sys.executable, __file__, "--side", name, "--folder", str(folder),
               "--number", str(number), "--dtype", dtype]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--side", choices=["engine", "job"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        job = settings(
            args.folder / "model",
            args.folder / "shards" / "bench.tar",
            args.folder / f"out-{args.number}",
            args.dtype,
        )
        print(json.dumps(engine_alone(job) if args.side == "engine" else whole_job(job)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "model")
        make_shards(folder / "shards", args.images)
        pairs = []
        for number in range(args.pairs):
            alone = _side("engine", folder, number, args.dtype)
            whole = _side("job", folder, number, args.dtype)
            pairs.append((alone, whole))
            ratio = whole["images_per_s"] / alone["images_per_s"]
            print(f"pair {number}: engine {alone['images_per_s']:.2f} images/s, "
                  f"job {whole['images_per_s']:.2f}, ratio {ratio:.2f}", flush=True)  # fmt: skip
    ratios = [whole["images_per_s"] / alone["images_per_s"] for alone, whole in pairs]
    last = pairs[-1][1]
    for name, value in last["stage_images_per_busy_s"].items():
        print(f"{name}: {value:.1f} images in each second that it worked")
    result = {
        "engine_images_per_s": statistics.median(a["images_per_s"] for a, _ in pairs),
        "job_images_per_s": statistics.median(w["images_per_s"] for _, w in pairs),
        "median_ratio": statistics.median(ratios),
        "ratios": ratios,
        **{name: last[name] for name in ("bottleneck", "slot_occupancy")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
