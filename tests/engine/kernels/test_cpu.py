"""The fused CPU kernels compute what torch computes; without them the engine still runs."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import engine, reference, requests, tiny, wrapped
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from llava_batch.driver.refusals import refuse_what_is_missing
from llava_batch.engine.kernels import choose, cpu, cpu_build, plain
from llava_batch.engine.kernels.contract import Place
from llava_batch.engine.kernels.cpu_decoder import FusedMLP
from llava_batch.engine.passes import Rows
from llava_batch.errors import UsageError
from llava_batch.job import Job

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def kernels(dtype):
    missing = choose.why_not("native", Place(device="cpu", dtype=dtype))
    missing = missing or cpu_build.why_not_built(dtype)
    if missing:
        pytest.skip(missing)


def rows(draw, slots, length):
    count = draw(st.integers(1, slots))
    new = draw(st.lists(st.integers(1, length // 2), min_size=count, max_size=count))
    if draw(st.booleans()):
        new = [1] * count
    past = [draw(st.integers(0, length - size)) for size in new]
    chosen = draw(st.permutations(range(slots)))[:count]
    return Rows(slots=tuple(chosen), past=tuple(past), new=tuple(new))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_attention_equals_torch(dtype, data):
    kernels(dtype)
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    dim = 16 * data.draw(st.integers(1, 8))
    window = data.draw(st.none() | st.integers(1, 50))
    slots, length = 4, 150
    chosen = rows(data.draw, slots, length)
    torch.manual_seed(0)
    key = torch.randn(slots, kv_heads, length, dim).to(dtype)
    value = torch.randn(slots, kv_heads, length, dim).to(dtype)
    query = torch.randn(len(chosen.slots), chosen.length, kv_heads * group, dim).to(dtype)
    form = plain.decode_attention if chosen.is_decode else plain.prefill_attention
    expected = form(
        query.transpose(1, 2).float(), key.float(), value.float(), chosen, dim**-0.5, window
    )
    found = cpu.attend(query, key, value, chosen, scaling=dim**-0.5, window=window)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_query_has_the_same_bits_however_it_is_asked(dtype, data):
    """Behind any past, beside any row, padded or not, in a prefill or alone in a decode step."""
    kernels(dtype)
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    dim = 16 * data.draw(st.integers(1, 9))
    length = data.draw(st.integers(40, 300))
    how = {"scaling": dim**-0.5, "window": data.draw(st.none() | st.integers(1, length))}
    torch.manual_seed(0)
    key, value = (torch.randn(3, kv_heads, length, dim).to(dtype) for _ in range(2))
    query = torch.randn(1, length, kv_heads * group, dim).to(dtype)
    (whole,) = cpu.attend(query, key, value, Rows(slots=(1,), past=(0,), new=(length,)), **how)
    begin = data.draw(st.integers(0, length - 1))
    end, padding = data.draw(st.integers(begin + 1, length)), data.draw(st.integers(0, 5))
    size = end - begin
    part = torch.randn(2, padding + size, kv_heads * group, dim).to(dtype)
    part[0, padding:] = query[0, begin:end]
    pair = Rows(slots=(1, 2), past=(begin, 0), new=(size, min(padding + size, length)))
    found = cpu.attend(part[:, -pair.length :].contiguous(), key, value, pair, **how)
    assert torch.equal(found[0, -size:], whole[begin:end])
    step = Rows(slots=(2, 1), past=(0, begin), new=(1, 1))
    asked = torch.cat([part[1:, :1], query[:, begin : begin + 1]])
    assert torch.equal(cpu.attend(asked, key, value, step, **how)[1, 0], whole[begin])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_rows_share_is_read_in_one_place_and_changes_no_bit(dtype, data):
    kernels(dtype)
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    dim, length = 16 * data.draw(st.integers(1, 9)), data.draw(st.integers(40, 300))
    how = {"scaling": dim**-0.5, "window": data.draw(st.none() | st.integers(1, length))}
    torch.manual_seed(0)
    key, value = (torch.randn(4, kv_heads, length, dim).to(dtype) for _ in range(2))
    query = torch.randn(4, 1, kv_heads * group, dim).to(dtype)
    slots = tuple(data.draw(st.permutations(range(4))))
    past = tuple(data.draw(st.integers(0, length - 1)) for _ in slots)
    origins = tuple(data.draw(st.sampled_from([slot, slots[0]])) for slot in slots)
    shared = tuple(
        data.draw(st.integers(0, min(held, past[0]))) if slot != origin else 0
        for slot, held, origin in zip(slots, past, origins, strict=True)
    )
    for part in (key, value):
        for slot, origin, count in zip(slots, origins, shared, strict=True):
            part[slot, :, :count] = part[origin, :, :count]
    step = Rows(slots=slots, past=past, new=(1,) * 4)
    alone = cpu.attend(query, key, value, step, **how)
    for slot, origin, count in zip(slots, origins, shared, strict=True):
        if slot != origin:
            key[slot, :, : count // 64 * 64] = float("nan")
            value[slot, :, : count // 2 * 2] = float("nan")
    together = replace(step, origins=origins, shared=shared)
    found = cpu.attend(query, key, value, together, **how)
    assert torch.equal(found, alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_all_patches_equals_torch(dtype):
    kernels(dtype)
    query, key, value = (torch.randn(2, 77, 3, 32).to(dtype) for _ in range(3))
    every = Rows(slots=(0, 1), past=(0, 0), new=(77, 77))
    found = cpu.attend(
        query, key.transpose(1, 2), value.transpose(1, 2), every, scaling=0.2, causal=False
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.float().transpose(1, 2) for x in (query, key, value)), scale=0.2
    ).transpose(1, 2)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 40, 768])
def test_elementwise_kernels_equal_torch(dtype, width):
    kernels(dtype)
    x = torch.randn(5, 7, 2 * width).to(dtype)
    close = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-6}
    gelu = x.float() * torch.sigmoid(1.702 * x.float())
    torch.testing.assert_close(cpu.quick_gelu_(x.clone()).float(), gelu, **close)
    weight = torch.randn(2 * width).to(dtype)
    plain = x.float()
    norm = weight * (plain * torch.rsqrt(plain.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype)
    torch.testing.assert_close(cpu.rms_norm(x, weight, 1e-5), norm, **close)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 40, 768])
def test_the_rms_norm_gives_a_row_its_bits_whoever_is_beside_it(dtype, width):
    kernels(dtype)
    x, weight = torch.randn(131, width).to(dtype), torch.randn(width).to(dtype)
    for count in (1, 3, 4, 7, 131):
        together = cpu.rms_norm(x[:count], weight, 1e-5)
        for row, found in zip(x, together, strict=False):
            assert torch.equal(cpu.rms_norm(row[None], weight, 1e-5)[0], found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_is_torchs_of_every_number_that_bfloat16_has(dtype):
    """The infinite ones, those that are none and the smallest included."""
    kernels(dtype)
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).to(dtype)
    found = cpu.quick_gelu_(x.clone()).double()
    exact = x.double() * torch.sigmoid(1.702 * x.double())
    near = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, exact, rtol=near, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 40, 768])
def test_the_layer_norm_equals_torch_and_a_row_has_its_bits_alone(dtype, width):
    """Of entries that lie far from zero beside their spread, too."""
    kernels(dtype)
    x = (torch.randn(131, width) + torch.linspace(0, 30, 131)[:, None]).to(dtype)
    norm = cpu.LayerNorm(torch.randn(width).to(dtype), torch.randn(width).to(dtype), 1e-5)
    found = cpu.layer_norm(x, norm)
    exact = torch.nn.functional.layer_norm(
        x.double(), (width,), norm.weight.double(), norm.bias.double(), norm.epsilon
    )
    close = (
        {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 2e-5}
    )
    torch.testing.assert_close(found.double(), exact, **close)
    assert all(
        torch.equal(cpu.layer_norm(row[None], norm)[0], it)
        for row, it in zip(x, found, strict=True)
    )


def rms(values):
    return values.pow(2).mean().sqrt().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 16, 131])
def test_the_fused_feed_forward_equals_transformers(dtype, rows):
    """In double precision: in bfloat16 the two round at other places, and neither is the other's truth."""
    kernels(dtype)
    theirs = LlamaMLP(LlamaConfig(hidden_size=64, intermediate_size=176)).to(dtype)
    theirs.requires_grad_(False)
    x = torch.randn(2, rows, 64).to(dtype)
    exact = copy.deepcopy(theirs).double()(x.double())
    error = rms(FusedMLP(theirs)(x).double() - exact) / rms(exact)
    assert error < (6e-3 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_token_is_the_first_highest_and_its_logprob_is_torchs(dtype):
    kernels(dtype)
    logits = (4 * torch.randn(6, 1003)).to(dtype)
    logits[2, [5, 900]] = 50.0
    logits[4, 7] = float("nan")
    best, logprob = cpu.best_token(logits)
    assert best[2] == 5
    assert not torch.isfinite(logprob[4])
    for row in (0, 1, 2, 3, 5):
        assert best[row] == logits[row].argmax()
        expected = torch.log_softmax(logits[row].float(), -1)[best[row]]
        torch.testing.assert_close(logprob[row], expected, rtol=1e-5, atol=1e-5)


def test_without_a_compiler_the_engine_answers_with_torch(monkeypatch):
    monkeypatch.setattr(cpu_build, "why_not_built", lambda dtype: "no C++ compiler is installed")
    made = engine()
    assert made.llava.kernels.name == "torch"
    request = requests(1)[0]
    assert next(made.generate([request])).token_ids == reference("multi-head", request)[0]


def test_kernels_that_are_asked_for_and_missing_are_an_error(monkeypatch):
    monkeypatch.setattr(cpu_build, "why_not_built", lambda dtype: "no C++ compiler is installed")
    with pytest.raises(ValueError, match=r"native.*no C\+\+ compiler"):
        engine(attention="native")


def forget() -> None:
    """What this process knows of its compiler and what that has built."""
    cpu_build.library.cache_clear()
    cpu_build.why_not_built.cache_clear()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache of built kernels, for one test."""
    kernels(torch.bfloat16)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield tmp_path
    forget()


def compiler_like(folder, name: str, *flags: str) -> str:
    """The machine's compiler, under another name and always with these flags."""
    script = folder / name
    script.write_text(f'#!/bin/sh\nexec {cpu_build.compiler()} "$@" {" ".join(flags)}\n')
    script.chmod(0o755)
    return str(script)


def test_a_compiler_too_old_for_bfloat16_leaves_it_to_torch(own_cache, monkeypatch):
    old = compiler_like(own_cache, "old-g++", "-O0", "-mno-avx512bf16")
    monkeypatch.setenv("CXX", old)
    assert f"too old for bfloat16: {old}" in str(cpu_build.why_not_built(torch.bfloat16))
    assert cpu_build.why_not_built(torch.float32) is None
    half = copy.deepcopy(tiny()).bfloat16()
    assert wrapped(copy.deepcopy(half), attention="auto").llava.kernels.name == "torch"
    with pytest.raises(ValueError, match="'native' cannot be had: the compiler is too old"):
        wrapped(half, attention="native")


def test_what_another_compiler_has_built_is_not_loaded(own_cache, monkeypatch):
    old = compiler_like(own_cache, "old-g++", "-O0", "-mno-avx512bf16")
    new = compiler_like(own_cache, "new-g++", "-O0")
    monkeypatch.setenv("CXX", old)
    assert not hasattr(cpu_build.library(), "prefill_bfloat16")
    forget()
    monkeypatch.setenv("CXX", new)
    assert hasattr(cpu_build.library(), "prefill_bfloat16")


def test_without_a_compiler_what_another_machine_has_built_is_taken(own_cache, monkeypatch):
    monkeypatch.setenv("CXX", compiler_like(own_cache, "a-g++", "-O0"))
    assert cpu_build.why_not_built(torch.bfloat16) is None
    forget()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cpu_build.why_not_built(torch.bfloat16) is None
    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "another"))
    assert "no C++ compiler is installed" in str(cpu_build.why_not_built(torch.bfloat16))


def test_a_processor_without_the_instructions_is_refused_in_the_driver(monkeypatch):
    monkeypatch.setattr(cpu_build, "cpu_flags", lambda: frozenset({"avx2", "avx512f", "avx512bw"}))
    job = Job(attention="native", dtype="bfloat16")
    with pytest.raises(UsageError, match="--attention native: the processor lacks avx512vl, "):
        refuse_what_is_missing(job, on_gpu=False, card=None)
