"""What a checkpoint says of itself: where it lies, its tokenizer, its image processor, its template.

Loads no weights. Used by the driver (to refuse early) and by the actors that prepare and generate.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_batch.errors import UsageError, first_line
from llava_batch.job import Job
from llava_batch.prompts.templates import IMAGE, Guards, Render, from_chat_template, llava_15
from llava_batch.prompts.tokens import Encoder


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A LLaVA checkpoint in a local folder. Cheap to make and to pickle; parts load when asked for."""

    folder: str
    name: str
    trust_remote_code: bool = False

    @classmethod
    def find(cls, job: Job) -> "Checkpoint":
        """The checkpoint that `--model` names.

        Raises:
            UsageError: no such folder, or a hub id that is not to be had.
        """
        folder = _folder(job.model, job.revision)
        found = cls(folder=folder, name=job.model, trust_remote_code=job.trust_remote_code)
        if found.config.model_type != "llava":
            raise UsageError(
                f"--model {job.model}: is a {found.config.model_type} model; give a LLaVA checkpoint"
            )
        return found

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--model {self.name}: no model can be read there ({first_line(error)})"
            ) from None

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
        )
        if not tokenizer.is_fast:
            raise UsageError(
                f"--model {self.name}: its tokenizer has no tokenizer.json, which guarding needs; "
                "convert it with transformers"
            )
        return tokenizer

    @cached_property
    def image_processor(self) -> Any:
        """transformers' own processor on its PIL backend (torchvision's pixels drift from it)."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(
            self.folder,
            backend="pil",
            local_files_only=True,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def pads(self) -> bool:
        """Whether the checkpoint's own processing pads to a square."""
        return bool(getattr(self.image_processor, "do_pad", False))

    @property
    def commit(self) -> str | None:
        """The hub commit, where the folder is a hub snapshot."""
        path = Path(self.folder)
        return path.name if path.parent.name == "snapshots" else None

    @property
    def max_tokens(self) -> int:
        """Tokens of prompt and answer together that the language model takes."""
        return int(self.config.text_config.max_position_embeddings)

    @property
    def image_token_id(self) -> int:
        return int(self.config.image_token_id)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Image tokens for one image of this size: patches, and the class token where CLIP's tower
        has one and strategy `default` does not drop the first token (SigLIP's has none)."""
        tower = self.config.vision_config
        first: bool = tower.model_type != "siglip_vision_model"
        dropped: bool = self.config.vision_feature_select_strategy == "default"
        patches: int = (height // tower.patch_size) * (width // tower.patch_size)
        return patches + first - dropped

    @property
    def background(self) -> tuple[int, int, int]:
        """The mean colour that `pad` fills with, as the original LLaVA computes it."""
        mean = self.image_processor.image_mean
        return int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)

    @cached_property
    def guards(self) -> Guards:
        """Fences for this tokenizer's special tokens."""
        added = self.tokenizer.added_tokens_decoder.values()
        return Guards([t.content for t in added if t.special])

    def encode(self, segment: str, *, first: bool) -> list[int]:
        """Token ids of a segment, one id for each `<image>`; `first` puts the one BOS in front."""
        return self._encoder.ids(segment, first=first)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    def decode(self, ids: Any) -> str:
        """The answer's text, special tokens left out, blanks at both ends kept."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def renderer(self, template: str) -> Render:
        """The conversation format for `--template`: auto, llava-1.5, checkpoint, or a Jinja file."""
        if template == "llava-1.5":
            return llava_15
        if template not in ("auto", "checkpoint"):
            return from_chat_template(self._applying(_read_template(template)))
        own = self._chat_template()
        if own is None:
            if template == "checkpoint":
                raise UsageError(f"--template checkpoint: {self.name} brings no chat template")
            return llava_15
        render = from_chat_template(self._applying(own))
        if template == "auto" and _is_llava_15(render, self.tokenizer.bos_token or ""):
            return llava_15  # its hub template leaves out the </s> between turns
        return render

    def _chat_template(self) -> str | None:
        """The processor's template, else the tokenizer's."""
        from transformers import ProcessorMixin

        try:
            values, _ = ProcessorMixin.get_processor_dict(self.folder, local_files_only=True)
        except OSError:
            values = {}
        template: str | None = values.get("chat_template") or self.tokenizer.chat_template
        return template

    def _applying(self, template: str) -> Any:
        def apply(messages: list[dict[str, Any]]) -> str:
            text: str = self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            return text

        return apply

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 `[3, H, W]`: the checkpoint's resize and crop, neither rescaled nor normalised."""
        batch = self.image_processor(
            images=[image],
            do_pad=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
        )
        return np.ascontiguousarray(batch["pixel_values"][0], dtype=np.uint8)


def _is_llava_15(render: Render, bos: str) -> bool:
    """Whether a template gives LLaVA-1.5's text for one turn (whatever it puts between turns)."""
    try:
        (text,) = render([f"{IMAGE}\nq"], None)
    except UsageError:
        return False
    return text.removeprefix(bos).strip() == llava_15([f"{IMAGE}\nq"], None)[0]


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--template {path}: {first_line(error)}; give auto, llava-1.5, checkpoint or a Jinja file"
        ) from None


def _folder(model: str, revision: str | None) -> str:
    if model == "demo":
        from llava_batch.demo import model_path

        return str(model_path())
    if os.path.isdir(model):
        return os.path.abspath(model)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UsageError(f"--model {model}: no such folder; give demo, a local folder or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(
            model, revision=revision, ignore_patterns=["*.bin", "*.pth", "*.gguf"]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UsageError(
            f"--model {model}: neither a local folder nor to be had from the hub ({first_line(error)})"
        ) from None
