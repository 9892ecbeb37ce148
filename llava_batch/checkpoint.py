"""What a checkpoint says of itself: where it lies, its sizes, its tokenizer, its template.

Loads no weights. Used by the driver (to refuse early) and by the actors that prepare and generate.
What is asked of every run stands in `config.json` and is read there, without transformers; tokenizer
and template take transformers, but not torch. `config` alone, transformers' own, loads torch.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

from llava_batch.errors import UsageError, first_line
from llava_batch.job import Job
from llava_batch.prompts.guards import IMAGE, Guards
from llava_batch.prompts.image_tokens import Layout, Tiling, pairs, tokens_by_rows
from llava_batch.prompts.templates import (
    LLAVA_15_FRAME,
    Apply,
    Frame,
    Render,
    chat_template_frame,
    from_chat_template,
    llava_15,
)
from llava_batch.prompts.tokens import SegmentTokenizer

FAMILIES = ("llava", "llava_next", "llava_onevision", "vipllava")
"""transformers' names of what the engine takes."""
TILED = ("llava_next", "llava_onevision")
"""Those that cut an image of any resolution into tiles."""
PLAIN_TOKENIZERS = ("llava", "llava_next", "vipllava")
"""Those whose tokenizer.json transformers takes for the whole truth."""
NAMED_TOKENIZERS = {
    "Qwen2Tokenizer": "Qwen2Tokenizer",
    "TokenizersBackend": "PreTrainedTokenizerFast",
    "PreTrainedTokenizer": "PreTrainedTokenizerFast",
}
"""What transformers takes for the others, by the class that their tokenizer_config.json names, less `Fast`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A LLaVA checkpoint in a local folder. Cheap to make and to pickle; parts load when asked for."""

    folder: str
    name: str
    trust_remote_code: bool = False
    max_tiles: int | None = None
    """Of a grid, where the model cuts an image into tiles; None: as many as it was trained for."""

    @classmethod
    def find(cls, job: Job) -> "Checkpoint":
        """The checkpoint that `--model` names.

        Raises:
            UsageError: no such folder, or a hub id that is not to be had.
        """
        folder = _folder(job.model, job.revision)
        found = cls(
            folder=folder,
            name=job.model,
            trust_remote_code=job.trust_remote_code,
            max_tiles=job.max_tiles,
        )
        if found.model_type not in FAMILIES:
            raise UsageError(
                f"--model {job.model}: is a {found.model_type} model; give a LLaVA checkpoint "
                f"({', '.join(FAMILIES)})"
            )
        found.refuse_what_tiles_need(job)
        return found

    def refuse_what_tiles_need(self, job: Job) -> None:
        """Refuse flags about tiles for a model without any, and one about squares for a model with them.

        Raises:
            UsageError: the flag and what to do.
        """
        if self.tiling is None and self.max_tiles is not None:
            raise UsageError(
                f"--max-tiles {self.max_tiles}: {self.name} takes images whole, not in tiles; drop it"
            )
        if job.image_aspect != "auto" and (self.tiling is not None or self.is_pixtral):
            does = (
                "takes images in their own shape" if self.is_pixtral else "cuts images into tiles"
            )
            raise UsageError(
                f"--image-aspect {job.image_aspect}: {self.name} {does}, there is no square to make; drop it"
            )

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What a JSON file of the checkpoint says; None where there is no such file.

        Raises:
            UsageError: it cannot be read, or holds no object.
        """
        try:
            said = json.loads(Path(self.folder, name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unreadable(f"{name}: {first_line(error)}") from None
        if not isinstance(said, dict):
            raise self._unreadable(f"{name} holds no JSON object")
        return said

    def _unreadable(self, why: str) -> UsageError:
        return UsageError(f"--model {self.name}: no model can be read there ({why})")

    @cached_property
    def _said(self) -> dict[str, Any]:
        said = self.read_json("config.json")
        if said is None:
            raise self._unreadable("it has no config.json")
        return said

    @property
    def model_type(self) -> str | None:
        """transformers' name of the family; None where config.json does not say."""
        return self._said.get("model_type")

    @cached_property
    def config(self) -> Any:
        """transformers' own configuration, with its defaults. Loads torch."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise self._unreadable(first_line(error)) from None

    def _setting(self, kind: type, *path: str) -> Any:
        """A setting of config.json; transformers', with its default, where the file does not say."""
        said: Any = self._said
        for name in path:
            said = said.get(name) if isinstance(said, dict) else None
        return said if type(said) is kind else reduce(getattr, path, self.config)

    @cached_property
    def tokenizer(self) -> Any:
        try:
            tokenizer = self._load_tokenizer()
        except (OSError, ValueError) as error:
            raise self._unreadable(f"its tokenizer: {first_line(error)}") from None
        if not tokenizer.is_fast:
            raise UsageError(
                f"--model {self.name}: its tokenizer has no tokenizer.json, which guarding needs; "
                "convert it with transformers"
            )
        return tokenizer

    def _load_tokenizer(self) -> Any:
        said = self.read_json("tokenizer_config.json") or {}
        name = self._tokenizer_class(said)
        if name is None or self.trust_remote_code or "auto_map" in said:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        import transformers

        return getattr(transformers, name).from_pretrained(self.folder, local_files_only=True)

    def _tokenizer_class(self, said: dict[str, Any]) -> str | None:
        """What AutoTokenizer, which loads torch, would take; None where it has to say so itself."""
        if self.model_type in PLAIN_TOKENIZERS:
            return "PreTrainedTokenizerFast"
        return NAMED_TOKENIZERS.get(str(said.get("tokenizer_class")).removesuffix("Fast"))

    @property
    def commit(self) -> str | None:
        """The hub commit, where the folder is a hub snapshot."""
        path = Path(self.folder)
        return path.name if path.parent.name == "snapshots" else None

    @property
    def image_token_id(self) -> int:
        if "image_token_id" in self._said:  # the setting's other name; transformers weighs the two
            return int(self.config.image_token_id)
        return int(self._setting(int, "image_token_index"))

    @cached_property
    def tiling(self) -> Tiling | None:
        """How an image of any resolution is cut into tiles; None where images are taken whole.

        Raises:
            UsageError: settings that make no sense, or no grid of `max_tiles` tiles.
        """
        if self.model_type not in TILED:
            return None
        side, patch = self.tower_sizes
        try:
            resolutions = pairs(self.said_grids)
        except ValueError as error:
            raise self._unreadable(str(error)) from None
        made = Tiling(
            side=side,
            features=side // patch,
            whole=self.num_image_tokens(side, side),
            resolutions=resolutions,
            most_tiles=self._most_tiles,
            whole_if_several=self.model_type == "llava_onevision",
        )
        return made if self.max_tiles is None else made.at_most(self.max_tiles)

    @property
    def _most_tiles(self) -> int | None:
        """How many tiles' features a grid keeps: LLaVA-OneVision's `anyres_max_9` says nine."""
        if self.model_type != "llava_onevision":
            return None
        said: str = self._setting(str, "vision_aspect_ratio")
        number = said.removeprefix("anyres_max_")
        if not number.isdigit() or int(number) < 1:
            raise self._unreadable(f"vision_aspect_ratio is {said!r}, not such as 'anyres_max_9'")
        return int(number)

    @property
    def is_trained_on_several_images(self) -> bool:
        """Whether several images in one prompt are nothing new to the model."""
        return self.model_type == "llava_onevision" or self.is_pixtral

    @property
    def is_pixtral(self) -> bool:
        """Whether the tower takes images of any shape as they are."""
        return bool(self._setting(str, "vision_config", "model_type") == "pixtral")

    @property
    def said_grids(self) -> Any:
        """`image_grid_pinpoints` as the config has them: all the grids that the model was trained for."""
        return self._setting(list, "image_grid_pinpoints")

    @property
    def image_tokens_range(self) -> tuple[int, int]:
        """Fewest and most tokens that an image may take in a prompt."""
        if self.tiling is not None:
            return self.tiling.range
        side, patch = self.tower_sizes
        fewest, most = (patch, side // patch * patch) if self.is_pixtral else (side, side)
        return len(self.image_ids(fewest, fewest, None)), len(self.image_ids(most, most, None))

    def image_ids(self, height: int, width: int, layout: Layout | None) -> list[int]:
        """What stands for one image in a prompt: tiles of this size in pixels, laid out in this grid."""
        if self.tiling is not None:
            return [self.image_token_id] * self.tiling.num_tokens(layout)
        if self._row_ends is not None:
            (_, patch), (row_end, end) = self.tower_sizes, self._row_ends
            return tokens_by_rows(
                height, width, patch, image=self.image_token_id, row_end=row_end, end=end
            )
        return [self.image_token_id] * self.num_image_tokens(height, width)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Image tokens for one image or tile of this size: patches, and the class token where CLIP's tower
        has one and strategy `default` does not drop the first token (SigLIP's has none)."""
        first: bool = self._setting(str, "vision_config", "model_type") == "clip_vision_model"
        dropped: bool = self.model_type == "vipllava" or (
            self._setting(str, "vision_feature_select_strategy") == "default"
        )
        _, patch = self.tower_sizes
        return (height // patch) * (width // patch) + first - dropped

    @property
    def tower_sizes(self) -> tuple[int, int]:
        """Pixels along the side of the vision tower's images, and of a patch of them."""
        side: int = self._setting(int, "vision_config", "image_size")
        patch: int = self._setting(int, "vision_config", "patch_size")
        return side, patch

    @cached_property
    def _row_ends(self) -> tuple[int, int] | None:
        """The tokens that end a row of an image's patches, and the image: PixtralProcessor writes them."""
        said = self.read_json("processor_config.json") or {}
        if not self.is_pixtral or said.get("processor_class") != "PixtralProcessor":
            return None
        names = (
            said.get("image_break_token", "[IMG_BREAK]"),
            said.get("image_end_token", "[IMG_END]"),
        )
        row_end, end = (self.tokenizer.get_added_vocab().get(name) for name in names)
        if row_end is None or end is None:
            raise self._unreadable(f"its tokenizer lacks {names[0]} or {names[1]}")
        return row_end, end

    @cached_property
    def _image_text(self) -> str:
        """The image token as the tokenizer and the chat template write it; `<image>` mostly."""
        text: str = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return text

    @cached_property
    def guards(self) -> Guards:
        """Fences for this tokenizer's special tokens."""
        added = self.tokenizer.added_tokens_decoder.values()
        return Guards([t.content for t in added if t.special])

    def encode(self, segment: str, *, first: bool) -> list[int]:
        """Token ids of a segment, one id for each `<image>`; `first` puts the one BOS in front."""
        if self._image_text != IMAGE:
            segment = segment.replace(IMAGE, self._image_text)
        return self._segment_tokenizer.ids(segment, first=first)

    @cached_property
    def _segment_tokenizer(self) -> SegmentTokenizer:
        return SegmentTokenizer(self.tokenizer)

    def decode(self, ids: Any) -> str:
        """The answer's text, special tokens left out, blanks at both ends kept."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def renderer(self, template: str) -> Render:
        """The conversation format for `--template`: auto, llava-1.5, checkpoint, or a Jinja file; a
        worker is given that file's text."""
        text = self._template(template)
        return llava_15 if text is None else from_chat_template(self._asking(text))

    def frame(self, template: str, system: str | None) -> Frame:
        """What the conversation format writes around an answer.

        Raises:
            UsageError: the template drops answers.
        """
        text = self._template(template)
        if text is None:
            return LLAVA_15_FRAME
        finished = partial(self._apply, text, add_generation_prompt=False)
        return chat_template_frame(from_chat_template(self._asking(text)), finished, system)

    def _template(self, template: str) -> str | None:
        """The chat template to use, in Jinja; None for LLaVA-1.5's documented format."""
        if template == "llava-1.5":
            return None
        if template not in ("auto", "checkpoint"):
            return template if is_template_text(template) else read_template(template)
        own = self._chat_template()
        if own is None and template == "checkpoint":
            raise UsageError(f"--template checkpoint: {self.name} brings no chat template")
        if own is None or template == "checkpoint":
            return own
        render = from_chat_template(self._asking(own))
        # LLaVA-1.5's hub template leaves out the </s> between turns.
        return None if _is_llava_15(render, self.tokenizer.bos_token or "") else own

    def _chat_template(self) -> str | None:
        """The processor's template, else the tokenizer's."""
        own: str | dict[str, str] | None = self._processor_template()
        own = own or self.tokenizer.chat_template
        if isinstance(own, dict) and "default" not in own:
            raise UsageError(
                f"--template: {self.name} brings several and none by default ({', '.join(own)}); "
                "give llava-1.5 or a Jinja file"
            )
        return own["default"] if isinstance(own, dict) else own

    def _processor_template(self) -> str | dict[str, str] | None:
        """As transformers' ProcessorMixin finds it, which would load torch."""
        said = (self.read_json("processor_config.json") or {}).get("chat_template")
        if said is None:
            said = (self.read_json("chat_template.json") or {}).get("chat_template")
        if isinstance(said, str | dict):
            return said
        file = Path(self.folder, "chat_template.jinja")
        named = {f.stem: f for f in Path(self.folder, "additional_chat_templates").glob("*.jinja")}
        files = named | ({"default": file} if file.exists() else {})
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()} or None

    def _asking(self, template: str) -> Apply:
        return partial(self._apply, template, add_generation_prompt=True)

    def _apply(
        self, template: str, messages: list[dict[str, Any]], *, add_generation_prompt: bool
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return text.replace(self._image_text, IMAGE)


def _is_llava_15(render: Render, bos: str) -> bool:
    """Whether a template gives LLaVA-1.5's text for one turn (whatever it puts between turns)."""
    try:
        (text,) = render([f"{IMAGE}\nq"], None)
    except UsageError:
        return False
    return text.removeprefix(bos).strip() == llava_15([f"{IMAGE}\nq"], None)[0]


def is_template_text(template: str) -> bool:
    """Whether it is a template itself, not where one lies: one without a tag could say no question."""
    return "{{" in template or "{%" in template


def read_template(path: str) -> str:
    """The text of a Jinja file.

    Raises:
        UsageError: it is not there, or no text.
    """
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
