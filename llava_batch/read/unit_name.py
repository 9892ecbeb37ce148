"""A unit's name from a path: no part of it begins as what readers of tables skip does."""

_HIDING = {"_": "%5F", ".": "%2E"}


def unit_name(path: str) -> str:
    """`path` with the first character of such parts percent-escaped."""
    parts = path.split("/")
    return "/".join(_HIDING.get(part[:1], part[:1]) + part[1:] for part in parts)
