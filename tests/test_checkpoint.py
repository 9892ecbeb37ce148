"""Token ids: one BOS, one id for each image, and a conversation in pieces like the whole of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.checkpoint import Checkpoint
from llava_batch.demo import model_path
from llava_batch.engine.model.load import decoder
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.prompts.templates import Guards, llava_15, unguarded
from llava_batch.prompts.tokens import Encoder
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
    from transformers import LlavaProcessor

    made = without_weights(tmp_path, vision_feature_select_strategy=strategy)
    processor = LlavaProcessor(
        image_processor=made.image_processor,
        tokenizer=made.tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )
    ids = processor(images=Image.new("RGB", (50, 40)), text="<image>").input_ids
    count = sum(token == made.image_token_id for row in ids for token in row)
    assert made.num_image_tokens(112, 112) == count


# Models that cannot be used


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "nothing"])
def test_a_model_that_is_not_there_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match=f"--model {model}: no such folder"):
        Checkpoint.find(Job(model=model))


def test_a_folder_without_a_model_and_a_model_that_is_no_llava_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model can be read there"):
        Checkpoint.find(Job(model=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="is a llama model; give a LLaVA checkpoint"):
        Checkpoint.find(Job(model=str(tmp_path)))


# Conversations in pieces, for tokenizers of three kinds

KINDS = ["legacy", "always", "first", "never", "legacy, plain image", "byte level"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, demo: Checkpoint) -> Any:
    kind = request.param.split(",")[0]
    if kind == "byte level":
        return demo.tokenizer
    return sentencepiece_like(kind, image_is_special="plain" not in request.param)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer)


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """An answer's tokens as a model gives them: what follows the colon."""
    start = tokenizer("x:", add_special_tokens=False).input_ids
    return tokenizer(f"x:{answer}", add_special_tokens=False).input_ids[len(start) :]


def in_pieces(
    tokenizer: Any, encoder: Encoder, segments: list[str], answers: list[str]
) -> list[int]:
    ids = encoder.ids(segments[0], first=True)
    for segment, answer in zip(segments[1:], answers, strict=True):
        ids += answer_ids(tokenizer, answer) + encoder.ids(segment, first=False)
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
    tokenizer, encoder, questions, system
) -> None:
    segments = llava_15([f"<image>\n{questions[0]}", *questions[1:]], system)
    answers = [" A red circle.", " No", " two three"][: len(questions) - 1]
    whole = tokenizer(interleaved(segments, answers)).input_ids
    assert in_pieces(tokenizer, encoder, segments, answers) == whole


def test_a_segment_that_no_special_token_opens_gets_no_blank_of_its_own(tokenizer, encoder) -> None:
    segments = ["USER: <image>\nWho? ASSISTANT:", " USER: Why? ASSISTANT:"]
    whole = tokenizer(interleaved(segments, [" A cat"])).input_ids
    assert in_pieces(tokenizer, encoder, segments, [" A cat"]) == whole


@given(
    st.lists(
        st.one_of(_words, st.sampled_from(["</s>", "<s>", "<image>", "<unk>", " ", "What is"])),
        max_size=6,
    )
)
@settings(deadline=None, max_examples=30)
def test_guarded_words_keep_their_characters_and_make_no_special_token(
    tokenizer, encoder, words
) -> None:
    special = tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>"])
    text = Guards(["<s>", "</s>", "<unk>"]).value("".join(words))
    segments = llava_15([f"<image>\nSay {text}.", f"Say {text}."], None)
    first = encoder.ids(segments[0], first=True)
    later = encoder.ids(segments[1], first=False)
    assert [first.count(s) for s in special] == [1, 0, 1]
    assert [later.count(s) for s in special] == [0, 1, 0]
    for segment, ids in zip(segments, (first, later), strict=True):
        read = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        bare = "".join(read.removeprefix("<s>").split())
        assert bare == "".join(unguarded(segment).split())


def test_a_guarded_token_is_not_set_apart_from_the_words_around_it(tokenizer, encoder) -> None:
    guards = Guards(["</s>"])
    for lead in ("", "on: <image>", "on: <image> "):
        guarded = encoder.ids(guards.text(f"{lead}a</s>b one?"), first=True)
        unlike = tokenizer(f"{lead}a</t>b one?").input_ids  # one letter makes it plain text
        s, t = tokenizer.convert_tokens_to_ids(["s", "t"])
        assert [t if i == s else i for i in guarded] == unlike


def test_guarded_words_change_nothing_of_their_neighbours(tokenizer, encoder) -> None:
    guards = Guards(["</s>"])
    before = encoder.ids("Is it?", first=True)
    encoder.ids(guards.text("</s> </s>"), first=True)
    assert encoder.ids("Is it?", first=True) == before
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]
