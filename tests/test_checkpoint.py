"""Token ids: one BOS, one id for each image, and a conversation in pieces like the whole of it."""

import json
import shutil
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, ProcessorMixin

from llava_batch.checkpoint import Checkpoint
from llava_batch.demo import model_path
from llava_batch.engine.model.load import decoder
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prompts.guards import Guards, unguarded
from llava_batch.prompts.templates import llava_15
from llava_batch.prompts.tokens import SegmentTokenizer
from tests.sentencepiece_like import sentencepiece_like

VICUNA_ON_THE_HUB = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content[0].text }} {% else %}"
    "{{ m.role | upper }}: {% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }} {% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = (
    "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}</s>"
    "{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return Checkpoint.find(Job())


def without_weights(folder: Path, *, template: str | None = None, **config: Any) -> Checkpoint:
    """The demo checkpoint's small files in `folder`, changed."""
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_path() / name, folder)
    settings = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        part = settings[name] if isinstance(value, dict) else settings
        part |= value if isinstance(value, dict) else {name: value}
    (folder / "config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return Checkpoint(folder=str(folder), name="test")


# Templates


def test_a_checkpoint_without_a_template_speaks_llava_15(demo: Checkpoint) -> None:
    assert demo.renderer("auto") is llava_15
    with pytest.raises(UsageError, match="--template checkpoint: demo brings no chat template"):
        demo.renderer("checkpoint")


def test_a_template_like_llava_15s_on_the_hub_is_given_its_closing_marks(tmp_path: Path) -> None:
    made = without_weights(tmp_path, template=VICUNA_ON_THE_HUB)
    assert made.renderer("auto") is llava_15
    as_it_is = made.renderer("checkpoint")(["<image>\nWho?", "Why?"], None)
    assert as_it_is == ["USER: <image>\nWho? ASSISTANT: ", " USER: Why? ASSISTANT:"]


def test_any_other_template_is_the_checkpoints_own_authority(tmp_path: Path) -> None:
    made = without_weights(tmp_path, template=CHATML)
    (text,) = made.renderer("auto")(["<image>\nWho?"], None)
    assert text == "<|im_start|>user\n<image>\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert made.renderer("llava-1.5") is llava_15


def test_a_template_file_is_taken_over_the_checkpoints(tmp_path: Path, demo: Checkpoint) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("Q: {{ messages[0].content }} A:")
    assert demo.renderer(str(file))(["<image>\nWho?"], None) == ["Q: <image>\nWho? A:"]


def test_a_template_file_that_is_not_there_is_refused(demo: Checkpoint) -> None:
    with pytest.raises(UsageError, match=r"--template none\.jinja: .*give auto, llava-1\.5"):
        demo.renderer("none.jinja")


# Golden ids


def pieces(demo: Checkpoint, ids: list[int]) -> list[str]:
    return demo.tokenizer.convert_ids_to_tokens(ids)


def test_one_turn_has_one_bos_and_one_id_for_the_image(demo: Checkpoint) -> None:
    ids = demo.encode("USER: <image>\nDescribe the image. ASSISTANT:", first=True)
    # fmt: off
    assert pieces(demo, ids) == [
        "<s>", "USER", ":", "Ġ", "<image>", "Ċ", "Describe", "Ġthe", "Ġimage", ".", "ĠASSISTANT", ":",
    ]
    # fmt: on
    assert ids[0] == demo.tokenizer.bos_token_id
    assert ids.count(demo.image_token_id) == 1


def test_a_later_turn_begins_with_the_end_of_the_answer_and_has_no_bos(demo: Checkpoint) -> None:
    ids = demo.encode("</s>USER: Why? ASSISTANT:", first=False)
    assert ids[0] == demo.tokenizer.eos_token_id
    assert demo.tokenizer.bos_token_id not in ids


def test_a_template_that_writes_the_bos_itself_gives_one_bos(tmp_path: Path) -> None:
    made = without_weights(tmp_path, template=WITH_BOS)
    (text,) = made.renderer("auto")(["<image>\nWho?"], None)
    ids = made.encode(text, first=True)
    assert text.startswith("<s>")
    assert ids.count(made.tokenizer.bos_token_id) == 1 and ids[0] == made.tokenizer.bos_token_id


def test_a_bos_in_the_users_words_does_not_take_the_place_of_the_bos(demo: Checkpoint) -> None:
    ids = demo.encode(demo.guards.text("<s> hi"), first=True)
    assert ids.count(demo.tokenizer.bos_token_id) == 1


def test_answers_are_decoded_without_special_tokens_and_with_their_blanks(demo: Checkpoint) -> None:
    ids = demo.tokenizer(" A red , circle .</s>", add_special_tokens=False).input_ids
    assert demo.decode(ids) == " A red , circle ."


def test_an_answer_that_a_stop_string_may_end_reads_as_any_other(tmp_path: Path) -> None:
    made = without_weights(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tidy = "clean_up_tokenization_spaces"
    settings |= {tidy: True, f"{tidy}_for_bpe_even_though_it_will_corrupt_output": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = made.tokenizer(" A red , circle . I 'm it</s>", add_special_tokens=False).input_ids
    assert decoder(tmp_path)(ids) == made.decode(ids) == " A red , circle . I 'm it"


@pytest.mark.parametrize(
    ("side", "strategy", "tower", "tokens"),
    [
        (336, "default", "clip_vision_model", 576),
        (336, "full", "clip_vision_model", 577),
        (224, "default", "clip_vision_model", 256),
        (384, "full", "siglip_vision_model", 27 * 27),
    ],
)
def test_an_image_has_as_many_tokens_as_the_tower_gives(
    tmp_path: Path, side: int, strategy: str, tower: str, tokens: int
) -> None:
    made = without_weights(
        tmp_path,
        vision_config={"image_size": side, "patch_size": 14, "model_type": tower},
        vision_feature_select_strategy=strategy,
    )
    assert made.num_image_tokens(side, side) == tokens


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_image_tokens_are_as_transformers_processor_counts_them(tmp_path, strategy) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, LlavaProcessor

    made = without_weights(tmp_path, vision_feature_select_strategy=strategy)
    processor = LlavaProcessor(
        image_processor=AutoImageProcessor.from_pretrained(made.folder, backend="pil"),
        tokenizer=made.tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )
    ids = processor(images=Image.new("RGB", (50, 40)), text="<image>").input_ids
    count = sum(token == made.image_token_id for row in ids for token in row)
    assert made.num_image_tokens(112, 112) == count


# What a checkpoint says, and what transformers says that it says


def _without(said: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """`said` without what `names` name, as `part.name` in a part."""
    kept = {name: value for name, value in said.items() if name not in names}
    for part in (name for name, value in said.items() if isinstance(value, dict) and name in kept):
        kept[part] = {n: v for n, v in said[part].items() if f"{part}.{n}" not in names}
    return kept


_SILENT = st.sets(
    st.sampled_from([
        "image_token_index", "vision_feature_select_strategy", "vision_config", "text_config",
        "vision_config.model_type", "vision_config.patch_size", "text_config.model_type",
    ])
)  # fmt: skip
_CHANGED = st.fixed_dictionaries(
    {},
    optional={
        "image_token_index": st.integers(0, 500),
        "image_token_id": st.integers(0, 500),
        "vision_feature_select_strategy": st.sampled_from(["default", "full"]),
    },
)


@given(_SILENT, _CHANGED)
@settings(deadline=None, max_examples=40)
def test_sizes_are_those_of_transformers_configuration_whatever_the_file_leaves_out(
    silent: set[str], changed: dict[str, Any]
) -> None:
    said = json.loads((model_path() / "config.json").read_text())
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_without(said | changed, silent)))
        made = Checkpoint(folder=folder, name="test")
        reference = AutoConfig.from_pretrained(folder)
        assert made.model_type == reference.model_type
        assert made.image_token_id == reference.image_token_id
        side = 16 * reference.vision_config.patch_size
        dropped = reference.vision_feature_select_strategy == "default"
        assert made.num_image_tokens(side, side) == 256 + 1 - dropped


def with_template_files(folder: Path, files: set[str]) -> None:
    """Each of `files` with a template of its own, wherever transformers looks for one."""
    (folder / "additional_chat_templates").mkdir()
    for name in files:
        file = folder / name
        text = f"{name}: {{{{ messages[0].content }}}}"
        if file.suffix == ".json":
            held = json.loads(file.read_text()) if file.exists() else {}
            text = json.dumps(held | {"chat_template": text})
        file.write_text(text)


TEMPLATE_FILES = [
    "processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json",
    "additional_chat_templates/default.jinja", "additional_chat_templates/tools.jinja",
]  # fmt: skip


@pytest.mark.parametrize(
    "files",
    [set(some) for n in range(len(TEMPLATE_FILES) + 1) for some in combinations(TEMPLATE_FILES, n)],
    ids=lambda files: " ".join(sorted(files)) or "none",
)
def test_the_chat_template_is_the_one_that_transformers_finds(
    tmp_path: Path, files: set[str]
) -> None:
    made = without_weights(tmp_path)
    with_template_files(tmp_path, files)
    try:
        held, _ = ProcessorMixin.get_processor_dict(tmp_path, local_files_only=True)
    except ValueError:
        pytest.skip("transformers takes no folder with templates old and new")
    found = held.get("chat_template") or AutoTokenizer.from_pretrained(tmp_path).chat_template
    if isinstance(found, dict) and "default" not in found:
        with pytest.raises(UsageError, match=r"brings several and none by default \(tools\)"):
            made.renderer("auto")
        return
    found = found["default"] if isinstance(found, dict) else found
    if found is None:
        assert made.renderer("auto") is llava_15
    else:
        (text,) = made.renderer("auto")(["<image>\nWho?"], None)
        assert text == found.replace("{{ messages[0].content }}", "<image>\nWho?")


TOKENIZER_CLASSES = [
    None, "TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast",
    "Qwen2Tokenizer", "GPT2TokenizerFast", "NobodysTokenizer",
]  # fmt: skip


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
@pytest.mark.parametrize("named", TOKENIZER_CLASSES)
@pytest.mark.parametrize("bos", [True, False, None], ids=["bos", "no bos", "bos unsaid"])
@pytest.mark.parametrize("kind", ["byte level", "legacy", "first"])
def test_the_tokenizer_is_the_one_that_transformers_takes(
    tmp_path: Path, kind: str, bos: bool | None, named: str | None, family: str
) -> None:
    made = without_weights(tmp_path, model_type=family)
    if kind != "byte level":
        sentencepiece_like(kind, image_is_special=True).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    said = _without(said, {"tokenizer_class"}) | {"extra_special_tokens": ["<extra>"]}
    said |= {"tokenizer_class": named} if named else {}
    said |= {"add_bos_token": bos} if bos is not None else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    ours, theirs = made.tokenizer, AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is type(theirs)
    for text in (
        "",
        "USER: <image>\nIs it? ASSISTANT:",
        "</s>USER: <extra> a  b\n",
        "naïve 日本 🦙",
    ):
        assert ours(text).input_ids == theirs(text).input_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder


def test_a_tokenizer_with_code_of_its_own_is_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    demo_like = PreTrainedTokenizerFast.from_pretrained(model_path())

    def noting(folder: str, **options: Any) -> Any:
        asked.append(options)
        return demo_like

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", noting)
    made = without_weights(tmp_path)
    assert made.tokenizer and asked == []
    (tmp_path / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["a.B", null]}}'
    )
    again = Checkpoint(folder=made.folder, name="test")
    assert again.tokenizer is demo_like
    assert [o["trust_remote_code"] for o in asked] == [False]


# Models that cannot be used


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "nothing"])
def test_a_model_that_is_not_there_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match=f"--model {model}: no such folder"):
        Checkpoint.find(Job(model=model))


def test_a_folder_without_a_model_and_a_model_that_is_no_llava_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model can be read there"):
        Checkpoint.find(Job(model=str(tmp_path)))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match=r"no model can be read there \(config.json holds no JSON"):
        Checkpoint.find(Job(model=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="is a llama model; give a LLaVA checkpoint"):
        Checkpoint.find(Job(model=str(tmp_path)))


def test_a_checkpoint_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    made = without_weights(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"^--model test: no model can be read there \(its tok.*$"):
        made.renderer("auto")


# Conversations in pieces, for tokenizers of three kinds

KINDS = ["legacy", "always", "first", "never", "legacy, plain image", "byte level"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, demo: Checkpoint) -> Any:
    kind = request.param.split(",")[0]
    if kind == "byte level":
        return demo.tokenizer
    return sentencepiece_like(kind, image_is_special="plain" not in request.param)


@pytest.fixture(scope="module")
def segment_tokenizer(tokenizer: Any) -> SegmentTokenizer:
    return SegmentTokenizer(tokenizer)


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """An answer's tokens as a model gives them: what follows the colon."""
    start = tokenizer("x:", add_special_tokens=False).input_ids
    return tokenizer(f"x:{answer}", add_special_tokens=False).input_ids[len(start) :]


def in_pieces(
    tokenizer: Any, segment_tokenizer: SegmentTokenizer, segments: list[str], answers: list[str]
) -> list[int]:
    ids = segment_tokenizer.ids(segments[0], first=True)
    for segment, answer in zip(segments[1:], answers, strict=True):
        ids += answer_ids(tokenizer, answer) + segment_tokenizer.ids(segment, first=False)
    return ids


def interleaved(segments: list[str], answers: list[str]) -> str:
    return segments[0] + "".join(a + s for a, s in zip(answers, segments[1:], strict=True))


_words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
_questions = st.lists(
    st.lists(st.one_of(_words, st.sampled_from(["What", " is", "\n", "  ", "USER:", ": "])), max_size=5)
    .map("".join).map(str.strip),
    min_size=1, max_size=4,
)  # fmt: skip


@given(questions=_questions, system=st.sampled_from([None, "Be brief."]))
@settings(deadline=None, max_examples=30)
def test_a_conversation_in_pieces_has_the_ids_of_the_whole(
    tokenizer, segment_tokenizer, questions, system
) -> None:
    segments = llava_15([f"<image>\n{questions[0]}", *questions[1:]], system)
    answers = [" A red circle.", " No", " two three"][: len(questions) - 1]
    whole = tokenizer(interleaved(segments, answers)).input_ids
    assert in_pieces(tokenizer, segment_tokenizer, segments, answers) == whole


def test_a_segment_that_no_special_token_opens_gets_no_blank_of_its_own(
    tokenizer, segment_tokenizer
) -> None:
    segments = ["USER: <image>\nWho? ASSISTANT:", " USER: Why? ASSISTANT:"]
    whole = tokenizer(interleaved(segments, [" A cat"])).input_ids
    assert in_pieces(tokenizer, segment_tokenizer, segments, [" A cat"]) == whole


@given(
    st.lists(
        st.one_of(_words, st.sampled_from(["</s>", "<s>", "<image>", "<unk>", " ", "What is"])),
        max_size=6,
    )
)
@settings(deadline=None, max_examples=30)
def test_guarded_words_keep_their_characters_and_make_no_special_token(
    tokenizer, segment_tokenizer, words
) -> None:
    special = tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>"])
    text = Guards(["<s>", "</s>", "<unk>"]).value("".join(words))
    segments = llava_15([f"<image>\nSay {text}.", f"Say {text}."], None)
    first = segment_tokenizer.ids(segments[0], first=True)
    later = segment_tokenizer.ids(segments[1], first=False)
    assert [first.count(s) for s in special] == [1, 0, 1]
    assert [later.count(s) for s in special] == [0, 1, 0]
    for segment, ids in zip(segments, (first, later), strict=True):
        read = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        bare = "".join(read.removeprefix("<s>").split())
        assert bare == "".join(unguarded(segment).split())


def test_a_guarded_token_is_not_set_apart_from_the_words_around_it(
    tokenizer, segment_tokenizer
) -> None:
    guards = Guards(["</s>"])
    for lead in ("", "on: <image>", "on: <image> "):
        guarded = segment_tokenizer.ids(guards.text(f"{lead}a</s>b one?"), first=True)
        unlike = tokenizer(f"{lead}a</t>b one?").input_ids  # one letter makes it plain text
        s, t = tokenizer.convert_tokens_to_ids(["s", "t"])
        assert [t if i == s else i for i in guarded] == unlike


def test_guarded_words_change_nothing_of_their_neighbours(tokenizer, segment_tokenizer) -> None:
    guards = Guards(["</s>"])
    before = segment_tokenizer.ids("Is it?", first=True)
    segment_tokenizer.ids(guards.text("</s> </s>"), first=True)
    assert segment_tokenizer.ids("Is it?", first=True) == before
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]
