"""Generate: prepared rows → answer rows. The only file where Ray meets the engine.

The actor is asynchronous: Ray hands it several batches at once, all of them feed one engine that
steps in a thread of its own, so the engine never drains between batches. A row that is in error
already passes through; each other row becomes one answer row for each of its asks and samples.
"""

import asyncio
from dataclasses import replace
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from llava_batch.checkpoint import Checkpoint
from llava_batch.engine import Completion, Engine, Grid, Image, Request
from llava_batch.engine.model.llava import end_tokens
from llava_batch.errors import RowError
from llava_batch.generate.answer_rows import (
    RowDict,
    body,
    cut_off,
    failed,
    generated_schema,
    head,
    image_of,
    without_asks,
)
from llava_batch.generate.choices import choices_of
from llava_batch.generate.engine_thread import EngineLoop
from llava_batch.generate.json_schema import Constraint, is_cut_off
from llava_batch.generate.shared_lock import Gate
from llava_batch.ids import row_id
from llava_batch.job import Job
from llava_batch.tables import KEEP, packed, unpacked
from llava_batch.workers import process
from llava_batch.workers.counters import Counters
from llava_batch.workers.crash_guard import CrashGuard

Images = tuple[Image, ...]


class Generate:
    """The Ray Data actor: PREPARED rows in, answer rows out."""

    def __init__(
        self, job: Job, shared: Any, num_threads: int, slot_tokens: int | None = None
    ) -> None:
        """slot_tokens: what most rows take, prompt and answer together, where the job tells."""
        self._job, self._slot_tokens = job, slot_tokens
        self._num_threads = num_threads
        self._checkpoint = checkpoint = Checkpoint.find(job)
        self._choices = choices_of(job, checkpoint)
        self._loop = EngineLoop(self._load, stall_timeout_s=job.stall_timeout_s)
        engine = self._loop.engine
        self._constraint = (
            Constraint(
                job.json_schema,
                checkpoint.tokenizer,
                vocab_size=engine.llava.vocab_size,
                end_tokens=end_tokens(engine.llava.model),
            )
            if job.json_schema
            else None
        )
        self._guard = CrashGuard(shared, "generate", job.max_tries)
        self._counters = Counters(shared, "generate")
        self._gate = Gate()
        process.freeze_heap()
        self._counters.ready()

    def _load(self) -> Engine:
        import torch

        torch.set_num_threads(self._num_threads)
        job = self._job
        return Engine.load(
            self._checkpoint.folder,
            dtype=job.dtype,
            slots=job.slots or "auto",
            slot_tokens=self._slot_tokens or "auto",
            attention=job.attention,
            quantization=job.quantization,
        )

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """A packed batch in, a packed batch out."""
        return packed(await self.table(unpacked(batch)))

    async def table(self, table: pa.Table) -> pa.Table:
        """PREPARED rows in, answer rows out."""
        kept = [f for f in table.schema if f.name.startswith(KEEP)]
        rows = table.drop_columns(["pixels"]).to_pylist()
        pixels = [
            _as_images(table["pixels"][i], row["shapes"], row["layouts"]) if row["shapes"] else None
            for i, row in enumerate(rows)
        ]
        answered = await self._answers(rows, pixels)
        self._report(sum(not row["end"] for row in rows))
        flat = []
        for row, answers in zip(rows, answered, strict=True):
            beside = {field.name: row[field.name] for field in kept}
            flat += [answer | beside for answer in answers]
        return pa.Table.from_pylist(flat, schema=generated_schema(kept))

    async def _answers(
        self, rows: list[RowDict], pixels: list[Images | None]
    ) -> list[list[RowDict]]:
        async with self._gate.shared():
            if await asyncio.to_thread(self._guard.is_clean, rows):
                answered = await asyncio.gather(*map(self._answer, rows, pixels))
                self._guard.done(rows)
                return answered
        return [await self._careful(*pair) for pair in zip(rows, pixels, strict=True)]

    async def _careful(self, row: RowDict, pixels: Images | None) -> list[RowDict]:
        """A row that was in hand when a worker died: no other row is in hand beside it."""
        async with self._gate.alone():
            if not await asyncio.to_thread(self._guard.may_try, row):
                row = row | self._guard.verdict()
            answers = await self._answer(row, pixels)
            self._guard.done([row])
            return answers

    def _report(self, num_rows: int) -> None:
        stats = self._loop.engine.stats
        self._counters.add(
            num_rows,
            busy_s=self._loop.busy_s,
            steps=stats.steps,
            slot_steps=stats.slot_steps,
            occupied_slot_steps=stats.occupied_slot_steps,
            images_encoded=stats.images_encoded,
            tokens_prefilled=stats.tokens_prefilled,
            memory_backoffs=stats.memory_backoffs,
        )

    async def _answer(self, row: RowDict, pixels: Images | None) -> list[RowDict]:
        """The answer rows of one image, or the one row of a unit's end."""
        asks = row["asks"] or []
        if row["end"] or not asks:
            return [without_asks(row)]
        num_samples = self._job.num_samples
        per_ask = await asyncio.gather(*(self._ask(row, ask, pixels) for ask in asks))
        answers = [
            head(row, ask, sample, num_samples) | answer
            for ask, samples in zip(asks, per_ask, strict=True)
            for sample, answer in enumerate(samples)
        ]
        count = {"siblings": len(answers)}
        return [answer | {"position": i} | count for i, answer in enumerate(answers)]

    async def _ask(self, row: RowDict, ask: RowDict, pixels: Images | None) -> list[RowDict]:
        """What the answers fill in for one ask, once for each sample."""
        num_samples = self._job.num_samples
        for source in (row, ask):
            if source["error_code"]:
                return [failed(source["error_code"], source["error_message"])] * num_samples
        request = self._request(row, ask, pixels)
        completions = await self._loop.answer(request)
        problem = getattr(request.logits_processor, "problem", None)
        if problem:
            return [failed(RowError.ENGINE_FAILED, f"the JSON schema: {problem}")] * num_samples
        by_sample: list[list[Completion]] = [[] for _ in range(num_samples)]
        for completion in sorted(completions, key=lambda c: c.turn):
            by_sample[completion.sample].append(self._without_close(completion))
        return [self._body(ask, turns) for turns in by_sample]

    def _body(self, ask: RowDict, turns: list[Completion]) -> RowDict:
        """What one sample fills in; in error where its JSON has no end, in whichever turn."""
        texts = [self._text(c) for c in turns]
        if self._constraint is not None:
            for completion, text in zip(turns, texts, strict=True):
                if completion.finish_reason == "length" and is_cut_off(text):
                    return cut_off(text.strip(), self._job.max_new_tokens)
        return body(ask, turns, texts)

    def _request(self, row: RowDict, ask: RowDict, pixels: Images | None) -> Request:
        job = self._job
        first, *further = ask["token_ids"]
        return Request(
            id=row_id(image_of(row), ask["question_id"]),
            pixels=pixels,
            prompt_ids=first,
            turns=tuple(further),
            max_new_tokens=job.max_new_tokens,
            min_new_tokens=job.min_new_tokens,
            temperature=job.temperature,
            top_p=job.top_p,
            top_k=job.top_k,
            repetition_penalty=job.repetition_penalty,
            stop=job.stop,
            seed=job.seed,
            num_samples=job.num_samples,
            choices=tuple(choice.token_ids for choice in self._choices),
            logits_processor=self._constraint.processor() if self._constraint else None,
        )

    def _without_close(self, completion: Completion) -> Completion:
        """Of a choice only the tokens that are the answer, as of one that is decoded."""
        if completion.choice is None:
            return completion
        num_tokens = self._choices[completion.choice].num_tokens
        return replace(completion, token_ids=completion.token_ids[:num_tokens])

    def _text(self, completion: Completion) -> str:
        if completion.choice is not None:
            return self._choices[completion.choice].text
        if completion.text is not None:
            return completion.text
        return self._checkpoint.decode(completion.token_ids)


def _as_images(
    pixels: pa.Scalar, shapes: list[list[int]], layouts: list[list[int]]
) -> tuple[Image, ...]:
    """Each image's uint8 `[t, 3, H, W]`, a view of the Arrow buffer, with its grid."""
    flat = np.frombuffer(pixels.as_buffer(), dtype=np.uint8)
    ends = list(accumulate(map(prod, shapes)))
    return tuple(
        Image(flat[begin:end].reshape(shape), Grid(*layout) if layout else None)
        for begin, end, shape, layout in zip([0, *ends], ends, shapes, layouts, strict=False)
    )
