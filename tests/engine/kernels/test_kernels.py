"""Attention kernels: what is passed to them is right, what is missing is said, what errs is not used."""

import builtins
import copy
import importlib.util
import sys
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import stand_in
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_llava import SHAPES, by_key, engine, image, prompt, reference, requests, tiny

from llava_batch.driver.refusals import refuse_what_is_missing
from llava_batch.driver.settle import settle
from llava_batch.engine import Request
from llava_batch.engine.kernels import choose, cpu, cpu_build, cuda, norms, plain, self_test
from llava_batch.engine.kernels.contract import Kernels, Place
from llava_batch.engine.model.llava import place_of
from llava_batch.engine.model.memory import activation_bytes
from llava_batch.engine.passes import Packed, Prefix, Rows
from llava_batch.errors import UsageError
from llava_batch.job import Job

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VARLENS = {"varlen": stand_in.varlen_attn, "old varlen": stand_in.varlen_attn_without_lengths}


@pytest.fixture(params=["sdpa", "flash", *VARLENS])
def kernel(request, monkeypatch):
    stand_in.install(monkeypatch, VARLENS.get(request.param, stand_in.varlen_attn))
    return cuda.kernels(request.param.split()[-1])


SLOW: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


def slots_of(kv_heads, dim, length):
    """Keys and values of four slots, as the packed path's cache holds them: `[S, H, L, D]`, and more behind."""
    return [torch.randn(8, length, kv_heads, dim).transpose(1, 2)[:4] for _ in range(2)]


@settings(max_examples=25, **SLOW)
@given(data=st.data())
def test_prefill_equals_the_plain_form(kernel, data):
    kv_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    window = data.draw(st.none() | st.integers(1, 12))
    count = data.draw(st.integers(1, 4))
    new = tuple(data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)))
    fresh = data.draw(st.booleans())
    past = tuple(0 if fresh else data.draw(st.integers(0, 9)) for _ in new)
    slots = tuple(data.draw(st.permutations(range(4)))[:count])
    rows = Rows(slots=slots, past=past, new=new)
    torch.manual_seed(0)
    keys, values = slots_of(kv_heads, 8, 20)
    query = torch.randn(1, kv_heads * group, sum(new), 8)
    fed = [torch.randn(1, kv_heads, sum(new), 8) for _ in range(2)]
    error = self_test._prefill_error(kernel, rows, query, fed, [keys, values], 0.3, window)
    assert error < 1e-5
    begin = 0
    for slot, start, size in zip(slots, past, new, strict=True):
        for stored, part in zip((keys, values), fed, strict=True):
            assert torch.equal(
                stored[slot, :, start : start + size], part[0, :, begin : begin + size]
            )
        begin += size


@settings(max_examples=25, **SLOW)
@given(data=st.data())
def test_decode_equals_the_plain_form(kernel, data):
    kv_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    window = data.draw(st.none() | st.integers(1, 12))
    count = data.draw(st.integers(1, 4))
    past = data.draw(st.lists(st.integers(0, 18), min_size=count, max_size=count))
    torch.manual_seed(0)
    keys, values = slots_of(kv_heads, 8, 20)
    query = torch.randn(count, kv_heads * group, 1, 8)
    step = Prefix(
        places=20 * torch.arange(count) + torch.tensor(past),
        lengths=torch.tensor(past, dtype=torch.int32) + 1,
        span=data.draw(st.integers(max(past) + 1, 20)),
    )
    new = [torch.randn(count, kv_heads, 1, 8) for _ in range(2)]
    stored = step.store(keys, values, *new)
    found = kernel.decode(query, *stored, step, 0.3, window)
    rows = Rows(slots=tuple(range(count)), past=tuple(past), new=(1,) * count)
    expected = plain.decode_attention(query, keys, values, rows, 0.3, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["flash", *VARLENS])
def test_the_engine_answers_through_each_kernel_as_alone(monkeypatch, name, shape):
    calls = stand_in.install(monkeypatch, VARLENS.get(name, stand_in.varlen_attn))
    made = engine(shape, attention=name.split()[-1], lag=True)
    pixels, base = image(7), prompt(7, 24)
    given = requests(3, max_new_tokens=5, turns=((2, 9, 8),))
    given += [
        Request(id=f"q{n}", pixels=pixels, prompt_ids=[*base, *range(5, 6 + n)], max_new_tokens=3)
        for n in range(3)
    ]
    found = by_key(list(made.generate(given)))
    for request in given:
        for turn, answer in enumerate(reference(shape, request)):
            assert found[(request.id, turn, 0)].token_ids == answer
    assert made.stats.tokens_reused > 0
    assert (
        set(calls)
        == {
            "flash": {"flash_attn_varlen_func", "flash_attn_with_kvcache"},
            "varlen": {"varlen_attn", "varlen_attn by length"},
            "old varlen": {"varlen_attn"},
        }[name]
    )


@pytest.mark.parametrize(
    ("name", "call"), [("flash", "flash_attn_with_kvcache"), ("varlen", "varlen_attn")]
)
def test_a_decode_without_a_window_asks_for_none_so_that_queries_share_their_keys(
    monkeypatch, name, call
):
    """flash-attn and torch's copy of it group queries (`seqlenq_ngroups_swapped`) only if both sides of
    the window are negative, and `causal` leaves them so where each row has one query."""
    stand_in.install(monkeypatch)
    module = sys.modules["flash_attn" if name == "flash" else "torch.nn.attention.varlen"]
    whole, seen = getattr(module, call), []

    @wraps(whole)
    def noted(*tensors, **how):
        seen.append(how["window_size"])
        return whole(*tensors, **how)

    monkeypatch.setattr(module, call, noted)
    keys, values = slots_of(2, 8, 20)
    past = torch.tensor([5, 0, 19, 7])
    step = Prefix(places=past, lengths=past.int() + 1, span=20)
    for window in (None, 6):
        cuda.kernels(name).decode(torch.randn(4, 4, 1, 8), keys, values, step, 0.3, window)
    assert seen == [(-1, -1), (5, 0)]


@pytest.mark.parametrize(("max_tokens", "window"), [(100, 24), (25, 24), (24, None)])
@pytest.mark.parametrize("name", ["native", "torch", "sdpa"])
def test_a_window_as_long_as_a_slot_is_none(monkeypatch, name, max_tokens, window):
    if choose.why_not(name, Place(device="cpu", dtype=torch.float32)) or (
        name == "native" and cpu_build.why_not_built(torch.float32)
    ):
        pytest.skip("its kernels cannot be had here")
    made = engine("mistral", attention=name, max_tokens=max_tokens)
    seen = set()

    def watched(attend):
        def attending(*tensors_and_pass, **how):
            seen.add(how["window"] if how else tensors_and_pass[-1])
            return attend(*tensors_and_pass, **how)

        return attending

    whole = made.llava.kernels
    made.llava.kernels = replace(
        whole, prefill=watched(whole.prefill), decode=watched(whole.decode)
    )
    monkeypatch.setattr(cpu, "attend", watched(cpu.attend))  # fused layers call it themselves
    given = [Request(id=str(n), prompt_ids=list(range(3, 9 + n)), max_new_tokens=9) for n in (0, 7)]
    found = by_key(list(made.generate(given)))
    assert seen == {window}
    for request in given:
        assert found[(request.id, 0, 0)].token_ids == reference("mistral", request)[0]


@pytest.mark.parametrize("shape", ["multi-head", "grouped-query"])
@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_what_a_prefill_gathers_of_its_rows_pasts_is_in_its_budget(monkeypatch, name, shape):
    """Forks of a long prompt feed a few tokens each, and all that they hold is copied for the kernel."""
    stand_in.install(monkeypatch)
    budget, taken, whole = 60, [], Packed.packed
    made = engine(shape, attention=name, slots=8, prefill_tokens=budget, lag=True)
    one = activation_bytes(made.llava.text_config, torch.float32)

    def noted(work, slots):
        found = whole(work, slots)
        copied = 0 if work.is_fresh else 2 * found.numel() * found.element_size()
        taken.append((len(work.slots), sum(work.new) * one + copied))
        return found

    monkeypatch.setattr(Packed, "packed", noted)
    given = [
        Request(id=str(n), pixels=image(7), prompt_ids=[*prompt(7, 24), 20 + n, 5, 6, 7])
        for n in range(9)
    ]
    found = list(made.generate([replace(request, max_new_tokens=2) for request in given]))
    assert {completion.error for completion in found} == {None}
    assert max(rows for rows, _ in taken) > 1, "some must be prefilled together"
    assert max(size for rows, size in taken if rows > 1) <= budget * one


def on_cuda(monkeypatch, *, capability=(9, 0), installed=("flash", "varlen"), faults=()):
    """A card that is not there, as far as choosing goes."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    lacking = {"flash": "flash-attn is not installed", "varlen": "torch 2.9 has none", "sdpa": None}
    monkeypatch.setattr(cuda, "why_not", lambda name: None if name in installed else lacking[name])
    monkeypatch.setattr(
        self_test, "why_not", lambda kernel, **_: "it errs" if kernel.name in faults else None
    )


class Config:
    num_attention_heads, num_key_value_heads, hidden_size = 4, 2, 64


def chosen_for(asked, dtype=torch.bfloat16):
    place = place_of(CUDA, dtype, quantized=False)
    return choose.choose(asked, place, CUDA, Config()).name


@pytest.mark.parametrize(
    ("card", "dtype", "chosen"),
    [
        ({}, torch.bfloat16, "flash"),
        ({"installed": ("varlen",)}, torch.bfloat16, "varlen"),
        ({"installed": ()}, torch.float16, "sdpa"),
        ({}, torch.float32, "sdpa"),
        ({"capability": (7, 5)}, torch.float16, "sdpa"),
        ({"faults": ("flash",)}, torch.bfloat16, "varlen"),
        ({"faults": ("flash", "varlen", "sdpa")}, torch.bfloat16, "torch"),
    ],
)
def test_auto_on_cuda_is_the_best_kernel_that_the_card_has(monkeypatch, card, dtype, chosen):
    on_cuda(monkeypatch, **card)
    assert chosen_for("auto", dtype) == chosen


@pytest.mark.parametrize(
    ("asked", "card", "dtype", "said"),
    [
        ("flash", {"installed": ()}, torch.bfloat16, "flash-attn is not installed"),
        ("varlen", {"installed": ()}, torch.bfloat16, "torch 2.9 has none"),
        ("flash", {}, torch.float32, "bfloat16 or float16, not in float32"),
        ("varlen", {"capability": (7, 5)}, torch.float16, "an old card is older than"),
        ("varlen", {"faults": ("varlen",)}, torch.bfloat16, "it errs"),
        ("native", {}, torch.bfloat16, "it needs a CPU device, this one is cuda"),
    ],
)
def test_a_kernel_that_is_asked_for_and_missing_is_an_error(monkeypatch, asked, card, dtype, said):
    on_cuda(monkeypatch, **card)
    with pytest.raises(ValueError, match=f"attention '{asked}' cannot be had: .*{said}"):
        chosen_for(asked, dtype)


def test_an_unknown_kernel_names_those_that_are_known():
    with pytest.raises(
        ValueError, match="'eager', must be one of auto, native, torch, flash, varlen"
    ):
        engine(attention="eager")


@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_the_kernels_of_a_card_are_refused_on_cpu(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be had: it needs a CUDA device"):
        engine(attention=name)


@pytest.mark.parametrize(
    ("job", "on_gpu", "said"),
    [
        (
            Job(attention="flash"),
            True,
            r"--attention flash: flash-attn is not installed: pip install .*; give auto",
        ),
        (Job(attention="flash"), False, "--attention flash: it needs a CUDA device"),
        (Job(attention="varlen"), False, "--attention varlen: it needs a CUDA device"),
        (Job(attention="varlen", dtype="float32"), True, "computes in bfloat16 or float16"),
    ],
)
def test_the_driver_refuses_kernels_before_any_worker_starts(monkeypatch, job, on_gpu, said):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=said):
        placed = settle(job).on(on_gpu=on_gpu, card=None).job
        refuse_what_is_missing(placed, on_gpu=on_gpu, card=None)


def test_the_flag_offers_what_the_engine_has():
    for name in choose.NAMES:
        assert Job(attention=name).attention == name
    with pytest.raises(UsageError, match=", ".join(choose.NAMES)):
        Job(attention="eager")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'llava-batch[flash]'" in (cuda.why_not("flash") or "")
    whole = builtins.__import__

    def without_varlen(name, *rest):
        if name == "torch.nn.attention.varlen":
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_varlen)
    assert "pip install 'torch>=2.11'" in (cuda.why_not("varlen") or "")


def test_a_varlen_without_windows_counts_as_missing(monkeypatch):
    def oldest(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        raise AssertionError

    stand_in.install(monkeypatch, oldest)
    assert "variable-length" in (cuda.why_not("varlen") or "")


def test_this_torch_has_a_varlen_that_fits():
    if not cuda._varlen_parameters():
        pytest.skip(f"torch {torch.__version__} has no variable-length attention")
    assert cuda.why_not("varlen") is None


def trying(kernel, window=None):
    shape = {"num_heads": 4, "kv_heads": 2, "head_dim": 16, "window": window}
    return self_test.why_not(kernel, **shape, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("window", [None, 30])
def test_a_kernel_that_is_right_passes_its_trial(window):
    assert trying(cuda.kernels("sdpa"), window) is None


def from_the_left(query, key, value, rows, scaling, window):
    """A kernel whose causal mask is aligned to the first key."""
    for row, (past, new) in enumerate(zip(rows.past, rows.new, strict=True)):
        rows._known[(row, window)] = torch.ones(new, past + new, dtype=torch.bool).tril()
    return cuda.sdpa_prefill(query, key, value, rows, scaling, window)


def too_long(query, key, value, step, scaling, window):
    longer = Prefix(places=step.places, lengths=step.lengths + 1, span=step.span)
    return cuda.sdpa_decode(query, key, value, longer, scaling, window)


def crashing(*_):
    raise RuntimeError("no kernel image is available")


def nothing(query, key, value, rows, scaling, window):
    return torch.full_like(query.transpose(1, 2), float("nan"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefill": from_the_left}, "prefill does not agree"),
        ({"prefill": nothing}, "prefill does not agree"),
        ({"decode": too_long}, "decode does not agree"),
        ({"decode": crashing}, "no kernel image"),
    ],
)
def test_a_kernel_that_errs_fails_its_trial(changes, said):
    right = {"prefill": cuda.sdpa_prefill, "decode": cuda.sdpa_decode}
    broken = Kernels(name="broken", packed=True, reads_span=True, **{**right, **changes})
    assert said in trying(broken)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_of_one_kernel_equal_those_of_transformers(shape, dtype, close):
    module = copy.deepcopy(tiny(shape)).to(dtype)
    theirs = [part for part in module.modules() if type(part).__name__ in norms.NORMS]
    norms.exchange_norms(module)
    ours = [part for part in module.modules() if isinstance(part, norms.OneKernelNorm)]
    assert len(ours) == len(theirs) == 2 * module.config.text_config.num_hidden_layers + 1
    assert not [part for part in module.modules() if type(part).__name__ in norms.NORMS]
    x = torch.randn(3, 5, 64).to(dtype)
    for one, other in zip(ours, theirs, strict=True):
        assert one.weight is other.weight
        torch.testing.assert_close(one(x), other(x), rtol=close, atol=close)
