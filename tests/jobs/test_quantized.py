"""A whole job with 4-bit weights: the flag reaches the workers' engines and the record of the run."""

import json
import subprocess
import sys

import pyarrow.dataset as ds
import pytest

from llava_batch import Job, run
from llava_batch.demo.scenes import caption
from llava_batch.demo.scoring import score_caption
from llava_batch.demo.shards import shard_scenes, write_shards
from llava_batch.errors import UsageError

COUNT, SEED = 4, 77

pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")


def test_a_job_with_4_bit_weights_captions_scenes_and_says_so(local_ray, tmp_path) -> None:
    shards = write_shards(tmp_path / "in", count=COUNT, seed=SEED)
    job = Job(
        input=tuple(map(str, shards)), output=str(tmp_path / "out"), quantization="nf4",
        max_new_tokens=48, quiet=True,
    )  # fmt: skip
    run(job)
    rows = sorted(ds.dataset(tmp_path / "out").to_table().to_pylist(), key=lambda row: row["id"])
    assert [row["status"] for row in rows] == ["ok"] * 2 * COUNT
    scenes = shard_scenes(count=2 * COUNT, seed=SEED)
    right = sum(score_caption(s, row["answer"])[1] for s, row in zip(scenes, rows, strict=True))
    assert right >= 2 * COUNT - 1, [
        (row["answer"], caption(s)) for s, row in zip(scenes, rows, strict=True)
    ]
    said = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert said["settings"]["quantization"] == "nf4"
    with pytest.raises(UsageError, match="quantization"):
        run(job.but(quantization=None))
    run(job.but(quantization=None, output=str(tmp_path / "plain")))
    plain = {row["id"]: row for row in ds.dataset(tmp_path / "plain").to_table().to_pylist()}
    assert all(row["mean_logprob"] != plain[row["id"]]["mean_logprob"] for row in rows)


def test_a_dry_run_counts_the_weights_as_they_are_quantized(local_ray, tmp_path) -> None:
    shards = write_shards(tmp_path / "in", count=1, seed=SEED)
    job = Job(input=(str(shards[0]),), output=str(tmp_path / "out"), dry_run=True)
    told = {how: run(job.but(quantization=how)).outlook["weights_bytes"] for how in (None, "nf4")}
    # 4 layers of 4 · 128² and 3 · 128 · 384 weights leave 4 bytes each for half a byte and a scale.
    saved = 4 * (4 * 128**2 + 3 * 128 * 384) * (4 - 0.5 - 4 / 64)
    assert told[None] - told["nf4"] == saved
    assert not (tmp_path / "out").exists()


def test_an_installed_torchao_does_not_speak_in_the_driver() -> None:
    pytest.importorskip("torchao")
    code = (
        "import sys\n"
        "import llava_batch.engine.model.load\n"  # as settling --dtype auto does
        "assert 'torchao' in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
