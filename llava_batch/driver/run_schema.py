"""The published schema of `_run.json`: `schemas/run.json`, its `settings` filled in from `Job`.

What a setting means is said once, in the job's own help text; everything else in the file.
"""

import copy
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from llava_batch.job import Job, job_fields
from llava_batch.tables import RUN, load_contract

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def run_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that every `_run.json` fits."""
    schema = copy.deepcopy(load_contract(RUN))
    hints = get_type_hints(Job)
    properties = {
        f.name: _type_of(hints[f.name]) | {"description": f.metadata["help"]} for f in job_fields()
    }
    schema["properties"]["settings"] |= {"required": [*properties], "properties": properties}
    return schema


def keys(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted path, its schema) of every key, a mapping's own names written as `*`."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}{name}", inner
        yield from keys(inner, f"{path}{name}.")
        yield from keys(inner.get("additionalProperties", {}), f"{path}{name}.*.")


def _type_of(hint: Any) -> dict[str, Any]:
    """A field's type as JSON has it: `str | None` -> `["string", "null"]`."""
    if hint == tuple[str, ...]:
        return {"type": "array", "items": {"type": "string"}}
    names = [_NAMES[kind] for kind in get_args(hint) or (hint,)]
    return {"type": names[0] if len(names) == 1 else names}
