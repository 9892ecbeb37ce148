"""Memory that runs out in a decode step costs slots, and no answer."""

import pytest
from tiny_llava import by_key, engine, requests

from llava_batch.engine.forward.runner import Runner

pytestmark = pytest.mark.usefixtures("path")


def short_of(monkeypatch, most: int) -> None:
    """Decode steps of more than `most` rows find no memory."""
    decode = Runner.decode

    def tight(self, sequences):
        if len(sequences) > most:
            raise RuntimeError(
                "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
            )
        return decode(self, sequences)

    monkeypatch.setattr(Runner, "decode", tight)


@pytest.mark.parametrize("most", [1, 3])
def test_a_step_without_memory_goes_on_with_fewer_rows_and_the_same_answers(monkeypatch, most):
    turns = (tuple(range(3, 20)),)
    penalised = {"repetition_penalty": 1.5, "max_new_tokens": 9, "ignore_eos": True}
    given = [
        *requests(9),
        *requests(4, turns=turns, max_new_tokens=7, ignore_eos=True),
        *requests(4, turns=turns, **penalised),
        *requests(4, temperature=0.8, seed=3, **penalised),
    ]
    given = [type(r)(**{**vars(r), "id": f"{n}"}) for n, r in enumerate(given)]
    wanted = by_key(list(engine(slots=8).generate(given)))
    short_of(monkeypatch, most)
    made = engine(slots=8)
    found = by_key(list(made.generate(given)))
    assert {k: c.token_ids for k, c in found.items()} == {k: c.token_ids for k, c in wanted.items()}
    assert not made.stats.errors
    assert made.stats.memory_backoffs >= 1
    made._scheduler.check()


def test_a_row_that_alone_finds_no_memory_ends_in_error_and_so_does_every_other(monkeypatch):
    short_of(monkeypatch, 0)
    made = engine(slots=4)
    found = list(made.generate(requests(6)))
    # A first token comes from the prefill: an answer of one token needs no decode step.
    assert {c.error_code for c in found if c.finish_reason == "error"} == {"out_of_memory"}
    assert len(found) == 6
