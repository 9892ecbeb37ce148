"""Which column of a table is the image, and which its key: as the flags say, or by type and name."""

import pyarrow as pa

from llava_batch.errors import UsageError

_IMAGE_NAMES = ("image", "images", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
_KEY_NAMES = ("key", "__key__")


def find_image_column(schema: pa.Schema, wanted: str | None, shown: str) -> str:
    """The name of the image column: `wanted`, or the one that its type and name give away.

    Raises:
        UsageError: none, or several and none of a usual name; the message lists the columns.
    """
    columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
    types: dict[str, pa.DataType] = {f.name: f.type for f in schema}
    if wanted is not None:
        if wanted not in types:
            raise UsageError(
                f"--image-column {wanted}: {shown} has no such column; there are {columns}"
            )
        if not _holds_images(types[wanted]):
            raise UsageError(
                f"--image-column {wanted}: {shown} has no bytes in it; there are {columns}"
            )
        return wanted
    candidates: list[str] = [name for name, kind in types.items() if _holds_images(kind)]
    for name in _IMAGE_NAMES:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    problem = "several columns could hold the image" if candidates else "no column holds images"
    raise UsageError(f"{shown}: {problem}; name one with --image-column; there are {columns}")


def find_key_column(schema: pa.Schema, wanted: str | None, shown: str) -> str | None:
    """The name of the key column, or None where rows go by their number."""
    if wanted is not None:
        if wanted not in schema.names:
            raise UsageError(
                f"--key-column {wanted}: {shown} has no such column; "
                f"there are {', '.join(schema.names)}"
            )
        return wanted
    return next((name for name in _KEY_NAMES if name in schema.names), None)


def _holds_images(kind: pa.DataType) -> bool:
    """Bytes, Hugging Face's struct of bytes and path, or a list of either."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
