"""Answers with their images, in the forms that trainers read.

    export_llava(pairs, "train.json", images="images")    # LLaVA's conversations JSON
    export_webdataset(pairs, "tars")                      # .jpg beside .txt and .json
    export_hugging_face(pairs, "dataset", title="Mine")   # Parquet with an Image feature, and a card

`pairs` come from `Pairs.open(folder, images)`, where the folder holds answers, or instructions (of
which only the kept ones are exported), and `images` gives a unit's images again, since the answers
hold none (`images_of` reads them from the run's input). Memory holds one unit's answers and one
image at a time.
"""

from llava_batch.instruct.exports.hugging_face import export_hugging_face
from llava_batch.instruct.exports.llava_json import export_llava
from llava_batch.instruct.exports.pairs import Pair, Pairs, images_of
from llava_batch.instruct.exports.webdataset import export_webdataset

__all__ = [
    "Pair",
    "Pairs",
    "export_hugging_face",
    "export_llava",
    "export_webdataset",
    "images_of",
]
