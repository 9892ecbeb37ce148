"""Which column of a table is the image, and which its key: as the flags say, or by type and name.

An image column holds bytes, or text that says where the image lies (a path or a URI). Bytes win where
no flag names the column: a table with both a `jpg` and the `url` it came from holds its images.
"""

import pyarrow as pa

from llava_batch.errors import UsageError

_IMAGE_NAMES = ("image", "images", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
_TEXT_NAMES = (
    "image", "image_path", "image_uri", "image_url", "path", "uri", "url", "file_name",
)  # fmt: skip
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
        if not (_holds_images(types[wanted]) or names_images(types[wanted])):
            raise UsageError(
                f"--image-column {wanted}: {shown} has neither bytes nor text in it; there are {columns}"
            )
        return wanted
    candidates: list[str] = [name for name, kind in types.items() if _holds_images(kind)]
    for name in _IMAGE_NAMES:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        texts = {name for name, kind in types.items() if names_images(kind)}
        found = next((name for name in _TEXT_NAMES if name in texts), None)
        if found is not None:
            return found
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


def names_images(kind: pa.DataType) -> bool:
    """Text, Hugging Face's struct of a path without bytes in any row, or a list of either."""
    kind = _of_one(kind)
    if pa.types.is_struct(kind):
        data, path = _field(kind, "bytes"), _field(kind, "path")
        return data is not None and pa.types.is_null(data) and path is not None and _is_text(path)
    return _is_text(kind)


def _holds_images(kind: pa.DataType) -> bool:
    """Bytes, Hugging Face's struct of bytes and path, or a list of either."""
    kind = _of_one(kind)
    if pa.types.is_struct(kind):
        data = _field(kind, "bytes")
        return data is not None and _is_bytes(data)
    return _is_bytes(kind)


def _of_one(kind: pa.DataType) -> pa.DataType:
    """The type of one image, where a row may have a list of them."""
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind


def _field(struct: pa.DataType, name: str) -> pa.DataType | None:
    index = struct.get_field_index(name)
    return struct.field(index).type if index >= 0 else None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
