"""Small tokenizers in the shape of SentencePiece's, made on the spot."""

import json

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AddedToken, PreTrainedTokenizerFast

SPECIALS = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "USER: What is in the picture? ASSISTANT: A red circle and a blue square.",
    "USER: Describe the image. ASSISTANT: There are three shapes, one of them is green.",
    "Is there a cat? Yes. No. How many? two three four 1 2 3",
]


def sentencepiece_like(prefix: str, *, image_is_special: bool) -> PreTrainedTokenizerFast:
    """A tokenizer in the shape of Llama's: BPE with byte fallback over blanks written as U+2581.

    prefix: `legacy` (a normalizer puts the blank in front of every run between added tokens),
    `always` (the pre-tokenizer does), `first` (only at the start of the text) or `never`.
    """
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, BpeTrainer(vocab_size=220, special_tokens=SPECIALS))
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"]
    for byte in (f"<0x{b:02X}>" for b in range(256)):
        vocab[byte] = len(vocab)
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(
        BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if prefix == "legacy":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.add_tokens([AddedToken("<image>", special=image_is_special, normalized=False)])
    return made
