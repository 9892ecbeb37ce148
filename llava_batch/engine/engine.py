"""The engine: admit -> prefill (its images encoded first) -> decode -> collect, a short step at a time.

Every submitted request comes out of `step` exactly once for each of its answers (turns x samples),
in the order in which they end; a request that cannot be answered comes out as completions in error.
With `lag` the host reads the tokens of one decode step while the device is at the next: a row that has
ended is then decoded once too often, and what that step picked for it is given up.
The engine takes its model over and is driven from one thread. It knows nothing of text, files,
Ray or other processes.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llava_batch.engine.completions import Completions
from llava_batch.engine.device import is_out_of_memory
from llava_batch.engine.ending import Decode
from llava_batch.engine.forward.runner import Runner, device_option
from llava_batch.engine.model import load, sizing
from llava_batch.engine.model.llava import Llava, end_tokens
from llava_batch.engine.model.load_times import Startup, told
from llava_batch.engine.model.vision import Normalisation
from llava_batch.engine.picks import Picks
from llava_batch.engine.request import Completion, Request
from llava_batch.engine.sampling import Sampler
from llava_batch.engine.scheduler import Scheduler
from llava_batch.engine.sequence import Sequence, fingerprint, sequences
from llava_batch.engine.stats import Stats
from llava_batch.engine.validate import Limits, images_of, why_not

log = logging.getLogger(__name__)


class Engine:
    """In-flight batched generation over a fixed number of slots; `load` makes one of files.

    slots: requests decoded at once, or "auto" for as many as memory holds.
    slot_tokens: what a slot holds, prompt and answers of a whole dialogue together; "auto" is for one image,
        a prompt and its answer. A request that needs more takes several slots beside each other.
    max_tokens: of one request at most; "auto" is all of the model's positions.
    attention: `native` (fused kernels for CPU, compiled once), `flash`, `varlen`, `sdpa`, the plain
        `torch`, or `auto` for the first that can be had: `native` on CPU, `flash` and on on CUDA.
    reuse: fork the K/V of equal images and prompt beginnings, or take what lies in the slot, instead of computing it again.
    prefill_tokens: tokens of one prefill group at most (one longer prompt goes alone).
    decode: token ids to text, see `ending.Decode`; needed only for stop strings.
    lag: read a step's tokens while the next runs. graphs: capture the decode step in CUDA graphs.
        Both need `flash`, `varlen` or `sdpa`, and are by default on on CUDA and off elsewhere.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int | str = "auto",
        slot_tokens: int | str = "auto",
        max_tokens: int | str = "auto",
        attention: str = "auto",
        reuse: bool = True,
        prefill_tokens: int | str = "auto",
        normalisation: Normalisation | None = None,
        decode: Decode | None = None,
        lag: bool | None = None,
        graphs: bool | None = None,
    ) -> None:
        """Take over a model that is in memory; ValueError for an option that cannot be had here."""
        startup = Startup()
        self.llava = llava = Llava(model, normalisation or Normalisation(), attention)
        startup.end("kernels")
        plan = sizing.plan(
            llava,
            slots=slots,
            slot_tokens=slot_tokens,
            max_tokens=max_tokens,
            prefill_tokens=prefill_tokens,
        )
        self.num_slots, self.max_tokens = plan.num_rows, plan.max_tokens
        self.stats = Stats()
        self._limits = Limits.of(
            llava,
            max_tokens=plan.max_tokens,
            cache_tokens=plan.num_slots * plan.slot_tokens,
            can_decode=decode is not None,
        )
        self._lag = device_option("lag", lag, llava)
        self.cache = llava.allocate(
            num_slots=plan.num_slots, slot_tokens=plan.slot_tokens, max_tokens=plan.max_tokens
        )
        self._scheduler = Scheduler(
            plan.num_slots,
            slot_tokens=plan.slot_tokens,
            reuse=reuse,
            packed=llava.kernels.packed,
            most=plan.num_rows,
        )
        self._runner = Runner(
            llava,
            self.cache,
            self.stats,
            max_prefill_tokens=plan.prefill_tokens,
            reuse=reuse,
            graphs=device_option("graphs", graphs, llava),
        )
        ends = end_tokens(model)
        sampler = Sampler(ends, plan.num_slots, llava.device, llava.kernels.draw)
        self._picks = Picks(sampler, self._scheduler, self._runner.keep if self._lag else None)
        self._completions = Completions(self._scheduler, self.cache, self.stats, ends, decode)
        startup.end("cache")
        self.load_seconds = startup.seconds

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        slot_tokens: int | str = "auto",
        max_tokens: int | str = "auto",
        attention: str = "auto",
        **options: Any,
    ) -> "Engine":
        """Load `model` (a folder or a hub id) and make an engine of it.

        dtype "auto": see `load.choose_dtype`. quantization is None or one of `quantize.NAMES`, and
        leaves the fused kernels out. `options` are the constructor's own. How long each phase took
        is logged in one line and kept as the engine's `load_seconds`.

        Raises:
            ValueError: an option that is unknown, or that cannot be had here; a model that does not
                fit the card, with what would.
            OSError: no such folder, or a hub id that is not to be had.
        """
        loaded = load.read(
            model,
            dtype=dtype,
            device=device,
            quantization=quantization,
            revision=revision,
            slot_tokens=slot_tokens,
            max_tokens=max_tokens,
            attention=attention,
        )
        made = cls(
            loaded.model,
            slot_tokens=slot_tokens,
            max_tokens=max_tokens,
            attention=attention,
            normalisation=loaded.normalisation,
            decode=loaded.decode,
            **options,
        )
        made.load_seconds = loaded.seconds | made.load_seconds
        log.info("started in %s", told(made.load_seconds))
        return made

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
        return bool(self._scheduler.waiting or self._scheduler.active or self._completions)

    def submit(self, request: Request) -> None:
        """Queue a request; a bad one comes out of the next step in error."""
        self.stats.requests += 1
        refused = why_not(request, self._limits)
        if refused is not None:
            self._completions.refuse(request, *refused)
            return
        images = images_of(request)
        prints = [fingerprint(image) for image in images]
        counts = [self.llava.vision.num_tokens(image) for image in images]
        self._scheduler.add(sequences(request, prints, self.llava.image_token, counts))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self, on_progress: Callable[[], None] | None = None) -> list[Completion]:
        """Fill the free slots, decode every active slot by one token, return what has ended.

        on_progress: called after each group of prompts, which many free slots make many of in one step.
        """
        is_time = self._scheduler.is_time()
        # In waves: what was prefilled in one can be forked in the next.
        while self._admit(is_time):
            self._prefill(on_progress)
        num_flights = self._decode()
        return self._collect(still_up=num_flights if self._lag else 0)

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

    def _admit(self, is_time: bool) -> bool:
        """Give free slots to waiting sequences; whether any sequence is to be prefilled."""
        for admission in self._scheduler.admit() if is_time else ():
            sequence = admission.sequence
            if admission.num_shared and admission.donor != sequence.slot:
                widths = (admission.donor_width, sequence.width)
                self.cache.copy(admission.donor, sequence.slot, admission.num_shared, widths=widths)
            self.stats.tokens_reused += admission.num_shared
        return any(s.needs_prefill for s in self._scheduler.active.values())

    def _prefill(self, on_progress: Callable[[], None] | None) -> None:
        """Feed all that is pending, and pick each sequence's first token."""

        def take(group: list[Sequence], logits: torch.Tensor) -> None:
            self._pick_first(group, logits)
            if on_progress is not None:
                on_progress()

        todo = [s for s in self._scheduler.active.values() if s.needs_prefill]
        for lost in self._runner.prefill(todo, take):
            self._completions.fail(
                [lost], "out_of_memory", "out of memory in prefill of this prompt"
            )
        if not self._lag:
            self._land(still_up=0)

    def _pick_first(self, group: list[Sequence], logits: torch.Tensor) -> None:
        """Choose what comes first behind each prompt of a group, from logits `[sum K, V]`."""
        ends = accumulate(sequence.num_scores for sequence in group)
        scored = replace(self._runner.score(logits), rows=[end - 1 for end in ends])
        self._picks.make(group, scored, by_slot=False)

    def _decode(self) -> int:
        """One more token for every row that wants one; how many flights these are."""
        decoding = [s for s in self._scheduler.active.values() if s.can_decode]
        if any(s.request.logits_processor is not None and s.in_flight for s in decoding):
            # Such a processor must know the answer so far; what lands may end rows.
            self._land(still_up=0)
            decoding = [s for s in self._scheduler.active.values() if s.can_decode]
        if not decoding:
            return 0
        try:
            num_flights = self._picks.make(decoding, self._runner.decode(decoding), by_slot=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._back_off(decoding, error)
            return 0
        self._scheduler.step_went_well()
        occupied = sum(sequence.width for sequence in decoding)
        self.stats.note_step(len(decoding), occupied, self.num_slots)
        return num_flights

    def _back_off(self, decoding: list[Sequence], error: RuntimeError) -> None:
        """A decode step found no memory: go on with half as many rows, or end the only one in error."""
        self._land(still_up=0)
        log.warning("out of memory in a decode step of %d rows: %s", len(decoding), error)
        self.stats.memory_backoffs += 1
        # What landed may have ended rows.
        left = [s for s in decoding if s.slot >= 0 and s.can_decode]
        if len(decoding) == 1:
            self._completions.fail(
                left, "out_of_memory", "out of memory in a decode step of this row alone"
            )
        elif left:
            self._scheduler.back_off()
            self._picks.forget(range(self.cache.num_slots))

    def _land(self, *, still_up: int) -> None:
        """Take in what has been picked, but for the last `still_up` flights."""
        for flight in self._picks.landed(still_up=still_up):
            self._completions.take(flight)

    def _collect(self, *, still_up: int) -> list[Completion]:
        """Hand out what has ended since the last step."""
        self._land(still_up=still_up)
        if not self._scheduler.active:
            self._land(still_up=0)  # all that is still up was picked for rows that have ended
        return self._completions.hand_out()
