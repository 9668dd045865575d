"""Plain values of a config: merged, hashed, searched for code."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from steerkit.registry import may_import, refuse_code


def digest(values: Any) -> str:
    """16 hex digits of JSON values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def merged(plain: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``plain`` with ``over`` put into it: mappings are merged, null takes an entry out, anything else replaces."""
    result = dict(plain)
    for key, value in over.items():
        if value is None and isinstance(result.get(key), Mapping):
            del result[key]
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def refuse_untyped_code(record: Mapping[str, Any]) -> None:
    """A config file may not choose code to run (``file.py:Name``): the command line must name it, or trust the file.

    The commands of a study carry the config's values, so what ``cli`` checks of a command line is checked here.

    Raises:
        PluginError: naming it.
    """
    places = copy.deepcopy(dict(record))
    for part in ("name", "claims"):  # texts
        places.pop(part)
    for arm in places["arms"].values():
        arm.pop("label")
    for value in _texts(places):
        head, colon, tail = value.strip().rpartition(":")
        is_name = bool(colon and head) and tail.split(".")[0].isidentifier()
        if is_name and not any(c in value for c in " {<\n") and not may_import(value.strip()):
            raise refuse_code(value.strip(), "The study's config")


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping | list):
        for part in node.values() if isinstance(node, Mapping) else node:
            yield from _texts(part)
