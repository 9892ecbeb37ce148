"""Target: the text of `--publish` → the table of the lake that it names; no library is loaded for it."""

from importlib.util import find_spec

from llava_batch.errors import UsageError
from llava_batch.write.publish.change import LakeTable
from llava_batch.write.publish.delta import DeltaLake
from llava_batch.write.publish.iceberg import Iceberg

_LIBRARIES = {"delta": "deltalake", "iceberg": "pyiceberg"}


def lake_table(text: str) -> LakeTable:
    """The table that `text` names.

    Raises:
        UsageError: it is of neither form, or the library that would write it is not installed.
    """
    kind, _, rest = text.partition(":")
    if kind not in _LIBRARIES or not rest:
        raise UsageError(f"--publish {kind if rest else text}: give delta:URI, or "
                         "iceberg:CATALOG.NAMESPACE.TABLE")  # fmt: skip
    if find_spec(_LIBRARIES[kind]) is None:
        raise UsageError(f"--publish {kind}: {_LIBRARIES[kind]} is not installed; "
                         "pip install 'llava-batch[lake]'")  # fmt: skip
    return DeltaLake(rest) if kind == "delta" else Iceberg(rest)
