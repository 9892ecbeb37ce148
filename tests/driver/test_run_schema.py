"""`_run.json` is what its published schema says, key for key."""

import copy
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from llava_batch import Job, run
from llava_batch.demo.shards import write_shards
from llava_batch.driver.run_schema import keys, run_schema
from llava_batch.driver.summary import Summary
from llava_batch.errors import UsageError
from llava_batch.tables import contract_names, load_schema, schema_names

ROOT = Path(__file__).parents[2]


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with no key allowed that it does not name."""
    schema = copy.deepcopy(schema)
    for inner in (schema, *(inner for _, inner in keys(schema))):
        for part in (inner, inner.get("additionalProperties", {})):
            if "properties" in part:
                part["additionalProperties"] = False
    return schema


def paths(said: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The dotted paths of the keys that a file has, as `keys` writes them."""
    for name, value in said.items():
        mapping = name not in schema.get("properties", {})
        inner = schema["additionalProperties"] if mapping else schema["properties"][name]
        here = f"{path}{'*' if mapping else name}"
        if not mapping:
            yield here
        if isinstance(value, dict):
            yield from paths(value, inner, f"{here}.")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> dict[str, Any]:
    """A run's file, with all that a run can have: a questions file, one of its questions unjoined."""
    place = tmp_path_factory.mktemp("run")
    shards = write_shards(place, count=2, seed=5)
    asked = ({"question_id": n, "image": f"00000{n}", "text": "How many?"} for n in (0, 1, 7))
    (place / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out = place / "out"
    run(Job(input=(str(shards[0]),), output=str(out), questions=str(place / "asked.jsonl"),
            slots=2, quiet=True))  # fmt: skip
    told: dict[str, Any] = json.loads((out / "_run.json").read_text(encoding="utf-8"))
    return told


def test_the_schema_is_one_and_every_key_has_a_type_and_a_sentence() -> None:
    Draft202012Validator.check_schema(run_schema())
    named = dict(keys(run_schema()))
    assert {name for name in named if "." not in name} == {f.name for f in fields(Summary)}
    assert all({"type", "description"} <= inner.keys() for inner in named.values())
    assert [n for n, inner in named.items() if inner["description"][-1] != "."] == []


def test_no_key_of_the_file_stands_twice() -> None:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), [name for name, _ in pairs]
        return dict(pairs)

    json.loads((ROOT / "schemas" / "run.json").read_text("utf-8"), object_pairs_hook=once)


def test_it_is_published_beside_the_tables_and_is_none_of_them() -> None:
    assert "run" in contract_names() and "run" not in schema_names()
    with pytest.raises(UsageError, match="no table called run; there are answers, images"):
        load_schema("run")


def test_a_run_writes_every_key_that_is_documented_and_no_other(said: dict[str, Any]) -> None:
    schema = run_schema()
    Draft202012Validator(closed(schema)).validate(said)
    assert set(paths(said, schema)) == {name for name, _ in keys(schema)}


@pytest.mark.parametrize("path", [("run",), ("settings",), ("throughput", "stages", "generate")])
def test_a_key_too_many_one_too_few_and_another_type_are_found(
    said: dict[str, Any], path: tuple[str, ...]
) -> None:
    validator = Draft202012Validator(closed(run_schema()))
    for change in ("more", "less", "other"):
        told = copy.deepcopy(said)
        part = told
        for name in path:
            part = part[name]
        first = next(iter(part))
        if change == "less":
            del part[first]
        else:
            part[first if change == "other" else "unheard_of"] = {"of": 1}
        with pytest.raises(ValidationError):
            validator.validate(told)


def test_a_run_that_was_stopped_before_its_first_answer_fits_too(said: dict[str, Any]) -> None:
    told = copy.deepcopy(said) | {"status": "stopped"}
    told["throughput"] |= {"stages": {}, "slot_occupancy": None, "bottleneck": None}
    told["run"]["questions_without_image"] = None
    Draft202012Validator(closed(run_schema())).validate(told)
