"""Named presets: prompt text and settings of LLaVA-1.5's original evaluation, one for a benchmark.

A preset says what stands after the question, the system text, how an image becomes square, and how
many tokens an answer may have; all of them decode greedily. It does not know the benchmark's
questions: options (ScienceQA, MMBench, SEED) and OCR tokens (TextVQA) are part of the question's
text, as LLaVA's own question files have them.

Source: the evaluation scripts and question files of LLaVA-1.5 (arXiv 2310.03744).
"""

from dataclasses import dataclass
from types import MappingProxyType

from llava_batch.errors import UsageError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system text of every preset. In the prompt one space follows it: `…questions. USER: …`."""

_SHORT = "\nAnswer the question using a single word or phrase."
_UNANSWERABLE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + _SHORT
)
_LETTER = "\nAnswer with the option's letter from the given choices directly."
_LETTER_CN = "\n请直接回答选项字母。"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How one benchmark's questions were asked of LLaVA-1.5. The `suffix` follows a question unless
    it stands there already, as it does in LLaVA's own question files."""

    name: str
    suffix: str
    max_new_tokens: int
    system: str = SYSTEM
    image_aspect: str = "pad"
    family: str = "llava"
    """transformers' name of the model that was evaluated so; of another only the text behind the question
    and the length of answers are the benchmark's."""


def _preset(name: str, suffix: str, max_new_tokens: int) -> tuple[str, Preset]:
    return name, Preset(name=name, suffix=suffix, max_new_tokens=max_new_tokens)


PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    dict(
        [
            _preset("vqav2", _SHORT, 128),
            _preset("gqa", _SHORT, 128),
            _preset("pope", _SHORT, 128),
            _preset("mme", _SHORT, 128),
            _preset("textvqa", _SHORT, 128),
            _preset("vizwiz", _UNANSWERABLE, 128),
            _preset("scienceqa", _LETTER, 1024),
            _preset("mmbench", _LETTER, 1024),
            _preset("mmbench_cn", _LETTER_CN, 1024),
            _preset("seed", _LETTER, 128),
            _preset("llava_bench", "", 1024),
            _preset("mm_vet", "", 1024),
        ]
    )
)


def preset(name: str) -> Preset:
    """The preset called `name`; `UsageError` names the ones that there are."""
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: there is no such preset; give one of {_names()}")
    return PRESETS[name]


def _names() -> str:
    return ", ".join(PRESETS)
