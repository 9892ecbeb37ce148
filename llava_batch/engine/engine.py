"""The engine: admit -> encode -> prefill -> decode -> collect, one short step at a time.

Every submitted request comes out of `step` exactly once for each of its answers (turns x samples),
in the order in which they end; a request that cannot be answered comes out as completions in error.
The engine takes its model over and is driven from one thread. It knows nothing of text, files,
Ray or other processes.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llava_batch.engine import load, sizing
from llava_batch.engine.cache import SlotCache, head_dim, kv_heads
from llava_batch.engine.checks import Limits, errors, images_of, refusal
from llava_batch.engine.choices import Ballot, score
from llava_batch.engine.ending import Decode, Ending, ending
from llava_batch.engine.llava import Llava, Normalisation, end_tokens
from llava_batch.engine.request import Completion, Request
from llava_batch.engine.runner import Runner
from llava_batch.engine.sampling import next_tokens
from llava_batch.engine.scheduler import Scheduler
from llava_batch.engine.sequence import Sequence, fingerprint, sequences
from llava_batch.engine.startup import Startup
from llava_batch.engine.stats import Stats

log = logging.getLogger(__name__)

NON_FINITE = "the model's scores for this row are not finite; try another dtype"


class Engine:
    """In-flight batched generation over a fixed number of slots."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        *,
        slots: int | str = "auto",
        max_tokens: int | str = "auto",
        attention: str = "auto",
        reuse: bool = True,
        prefill_tokens: int | str = "auto",
        normalisation: Normalisation | None = None,
        decode: Decode | None = None,
    ) -> None:
        """Take over a model that is in memory; see `load` for one on disk.

        slots: requests decoded at once, or "auto" for as many as memory holds.
        max_tokens: what a slot holds, prompt and answers of a whole dialogue together.
        attention: `native` (fused kernels for CPU, compiled once), `torch`, or `auto`.
        reuse: fork the K/V of equal images and prompt beginnings instead of computing them again.
        prefill_tokens: tokens of one prefill group at most (one longer prompt goes alone).
        decode: token ids to text; needed only for stop strings.
        """
        startup = Startup()
        self.llava = Llava(model, normalisation or Normalisation(), attention)
        startup.end("kernels")
        plan = sizing.plan(
            self.llava, slots=slots, max_tokens=max_tokens, prefill_tokens=prefill_tokens
        )
        self.num_slots, self.max_tokens = plan.num_slots, plan.max_tokens
        self.stats = Stats()
        self._decode_text = decode
        self._end_tokens = end_tokens(model)
        self._limits = Limits(
            max_tokens=plan.max_tokens,
            vocab_size=self.llava.vocab_size,
            image_token=self.llava.image_token,
            tokens_per_image=self.llava.tokens_per_image,
            image_size=self.llava.image_size,
            can_decode=decode is not None,
        )
        text_config = self.llava.text_config
        self.cache = SlotCache(
            num_layers=text_config.num_hidden_layers,
            num_slots=plan.num_slots,
            max_tokens=plan.max_tokens,
            num_heads=kv_heads(text_config),
            head_dim=head_dim(text_config),
            dtype=self.llava.dtype,
            device=self.llava.device,
        )
        log.info(
            "%d slots of %d tokens: %.2f GB of K/V cache in %s on %s, attention %s",
            *(plan.num_slots, plan.max_tokens, self.cache.num_bytes / 1e9),
            *(self.llava.dtype, self.llava.device, self.llava.attention),
        )
        self._scheduler = Scheduler(plan.num_slots, reuse=reuse)
        self._runner = Runner(
            self.llava,
            self.cache,
            self.stats,
            max_prefill_tokens=plan.prefill_tokens,
            reuse=reuse,
        )
        self._done: list[Completion] = []
        startup.end("cache")
        self.load_seconds = startup.seconds

    @classmethod
    def load(cls, model: str | Path, **options: Any) -> "Engine":
        """Load a checkpoint; `model` is a folder or a hub id. See `llava_batch.engine.load.load`."""
        return load.load(cls, model, **options)

    @property
    def num_waiting(self) -> int:
        """Answers that have no slot yet."""
        return len(self._scheduler.waiting)

    @property
    def num_active(self) -> int:
        """Answers that have a slot."""
        return len(self._scheduler.active)

    @property
    def has_work(self) -> bool:
        """Whether another `step` would do or bring anything."""
        return bool(self._scheduler.waiting or self._scheduler.active or self._done)

    def submit(self, request: Request) -> None:
        """Queue a request; a bad one comes out of the next step in error."""
        self.stats.requests += 1
        refused = refusal(request, self._limits)
        if refused is not None:
            self._done += errors(request, *refused)
            return
        images = [fingerprint(image) for image in images_of(request)]
        made = sequences(request, images, self.llava.image_token, self.llava.tokens_per_image)
        ballot = Ballot(request=request) if request.choices else None
        for sequence in made:
            sequence.ballot = ballot
        self._scheduler.add(made)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Fill the free slots, decode every active slot by one token, return what has ended."""
        self._admit_and_prefill()
        decoding = list(self._scheduler.active.values())
        if decoding:
            self._advance(decoding, self._runner.decode(decoding))
            self.stats.steps += 1
            self.stats.slot_steps += self.num_slots
            self.stats.occupied_slot_steps += len(decoding)
        return self._collect()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Answer requests as they come, pulling no more of them than fill the slots twice."""
        source = iter(requests)
        exhausted = False
        while not exhausted or self.has_work:
            while not exhausted and self.num_waiting < self.num_slots:
                request = next(source, None)
                if request is None:
                    exhausted = True
                else:
                    self.submit(request)
            yield from self.step()

    def _admit_and_prefill(self) -> None:
        """In waves: what was prefilled in one can be forked in the next."""
        while True:
            for admission in self._scheduler.admit():
                sequence = admission.sequence
                if admission.num_shared and admission.donor != sequence.slot:
                    self.cache.copy(admission.donor, sequence.slot, admission.num_shared)
                self.stats.tokens_reused += admission.num_shared
            todo = [s for s in self._scheduler.active.values() if s.num_pending > 1]
            if not todo:
                return
            for group, logits in self._runner.prefill(todo):
                if logits is None:
                    self._fail(group, "out_of_memory", "out of memory in prefill of this prompt")
                else:
                    self._advance(group, logits)

    def _advance(self, group: list[Sequence], logits: torch.Tensor) -> None:
        """Give every sequence its next token, and end those that are done.

        Logits `[sum K, V]` hold each sequence's last K = `num_scores` positions.
        """
        counts = [sequence.num_scores for sequence in group]
        for sequence in group:
            sequence.num_cached = len(sequence.ids)
            self._scheduler.cached(sequence)
        going = [sequence for sequence in group if sequence.ballot is None]
        if len(going) < len(group):
            parts = logits.split(counts)
            for sequence, part in zip(group, parts, strict=True):
                if sequence.ballot is not None:
                    self._vote(sequence, sequence.ballot, part)
            kept = [part for part, s in zip(parts, group, strict=True) if s.ballot is None]
            if not kept:
                return
            logits = torch.cat(kept)
        self._extend(going, logits)

    def _extend(self, going: list[Sequence], logits: torch.Tensor) -> None:
        """Append each row's next token, from logits `[B, V]`."""
        tokens, scores = next_tokens(logits, going, self._end_tokens, self.llava.best_token)
        for sequence, token, logprob in zip(going, tokens, scores, strict=True):
            if not math.isfinite(logprob):
                self._fail([sequence], "non_finite", NON_FINITE)
                continue
            sequence.ids.append(token)
            sequence.logprobs.append(logprob)
            end = ending(sequence, self._end_tokens, self._decode_text)
            if end is not None:
                self._finish(sequence, end)

    def _finish(self, sequence: Sequence, end: Ending) -> None:
        """The current turn's answer is complete; go on to the next turn or leave the slot."""
        sequence.cut(end.num_tokens)
        logprobs = sequence.logprobs
        self._done.append(
            Completion(
                id=sequence.request.id,
                turn=sequence.turn,
                sample=sequence.sample,
                token_ids=tuple(sequence.answer),
                finish_reason=end.reason,
                mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
                text=end.text,
            )
        )
        if not sequence.next_turn():
            self._scheduler.release(sequence)

    def _vote(self, sequence: Sequence, ballot: Ballot, logits: torch.Tensor) -> None:
        """A choice has been scored."""
        result = score(logits, sequence)
        if not math.isfinite(result):
            self._fail([sequence], "non_finite", NON_FINITE)
            return
        self._scheduler.release(sequence)
        completion = ballot.add(sequence.choice, result)
        if completion is not None:
            self._done.append(completion)

    def _fail(self, group: list[Sequence], code: str, message: str) -> None:
        """End sequences in error: the current turn and those that were still to come."""
        for sequence in group:
            # What is not finite must not stay: masked keys are multiplied by zero, not left out.
            self.cache.clear(sequence.slot)
            self._scheduler.forget(sequence.slot)
            self._scheduler.release(sequence)
            if sequence.ballot is not None and not sequence.ballot.close():
                continue
            self._done += [
                completion
                for completion in errors(sequence.request, code, message)
                if completion.sample == sequence.sample and completion.turn >= sequence.turn
            ]

    def _collect(self) -> list[Completion]:
        """Hand out what has ended since the last step."""
        done, self._done = self._done, []
        self.stats.completions += len(done)
        self.stats.errors += sum(completion.finish_reason == "error" for completion in done)
        return done
