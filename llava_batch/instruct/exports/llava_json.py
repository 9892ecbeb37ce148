"""LLaVA's instruction data: a JSON list of `{"id", "image", "conversations"}`.

`image` is a path below the folder that the trainer is given as its image folder; the images are
written there as `<unit>/<key>.<extension>`.
"""

import json

from llava_batch.instruct.exports.pairs import Pair, Pairs
from llava_batch.storage import locate, whole_file, write_whole


def export_llava(pairs: Pairs, output: str, *, images: str) -> int:
    """Write the JSON file `output` and the images into the folder `images`; returns the number of
    conversations. Both may be URIs."""
    count = 0
    at = locate(output)
    with whole_file(at.fs, at.path) as stream:
        for _, unit_pairs in pairs.units():
            for pair in unit_pairs:
                name = _image_name(pair)
                for said in pair.said:
                    entry = {"id": said.id, "image": name, "conversations": said.conversations}
                    text = json.dumps(entry, ensure_ascii=False)
                    stream.write(("[\n" if count == 0 else ",\n").encode() + text.encode())
                    count += 1
                folder = locate(images)
                write_whole(folder.fs, f"{folder.path}/{name}", pair.image)
        stream.write(b"\n]\n" if count else b"[]\n")
    return count


def _image_name(pair: Pair) -> str:
    """`<unit>/<key>.<extension>`, the key's own extension not twice; no way out of the folder."""
    stem, dot, extension = pair.key.rpartition(".")
    same = {extension.lower(), pair.extension} in ({"jpg", "jpeg"}, {pair.extension})
    key = stem if dot and stem and same else pair.key
    parts = [p for p in f"{pair.unit}/{key}".split("/") if p not in ("", ".", "..")]
    return f"{'/'.join(parts)}{pair.mark.replace('%', '-')}.{pair.extension}"
