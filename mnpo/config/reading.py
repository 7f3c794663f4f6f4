"""Reading a configuration: YAML, `extends`, `add`, a command line's changes, and the JSON schema.

Nothing here imports torch: a configuration is read and refused in well under a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mnpo.config.blocks import ConfigError, validated
from mnpo.config.configuration import Config


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, which plain YAML lets the last one win silently."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor
            continue
        key = loader.construct_object(key_node)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key_node.start_mark)
        if key in seen:
            raise ConfigError(
                f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: key {key!r} given twice"
            )
        seen.add(key)
    return loader.construct_mapping(node)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
# YAML 1.1 reads 5e-7 as a string; every reader of a learning rate expects a number.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError naming file and line."""
    try:
        with open(path, encoding="utf-8") as stream:
            loader = _UniqueKeys(stream)
            content = loader.get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a configuration that exists") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of blocks, found {type(content).__name__}")
    return content


def _extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in `path`, on top of what it `extends`: a block's keys are replaced one by one, but `runs` and the
    like (WHOLE) are replaced whole, so that an overlay's runs are its own; `add` says which come beside the base's."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself")
    content = read_yaml(path)
    base_name = content.pop("extends", None)
    if base_name is None:
        return content
    if not isinstance(base_name, str):
        raise ConfigError(f"{path}: extends: expected the name of one file (got {json.dumps(base_name, default=str)})")
    base = _extended(path.parent / base_name, (*seen, path.resolve()))
    added = content.pop("add", {})
    return _with_added(overlay(base, content), added, path)


WHOLE = ("runs", "oracles", "models", "datasets", "judges")


def _with_added(base: dict[str, Any], added: Any, path: Path) -> dict[str, Any]:
    """`base` with further runs, oracles, models, datasets and judges beside its own."""
    if not isinstance(added, Mapping):
        raise ConfigError(f"{path}: add: expected blocks such as runs (got {json.dumps(added, default=str)})")
    for block, entries in added.items():
        if block not in WHOLE or not isinstance(entries, Mapping):
            raise ConfigError(f"{path}: add.{block}: not entries of one of {', '.join(WHOLE)}")
        if twice := set(entries) & set(base.get(block, {})):
            raise ConfigError(
                f"{path}: add.{block}.{min(twice)}: the configuration it extends has one; change its name"
            )
        base = base | {block: {**base.get(block, {}), **entries}}
    return base


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top: see `extends` in docs/configuration.md."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay(merged[key], value) if both and key not in WHOLE else value
    return merged


def load(path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration in `path`, with `extends` resolved and `changes` (a command line's) on top.

    Raises:
        ConfigError: one message per mistake, each with the path of the key, the value and the nearest valid name.
    """
    path = Path(path)
    content = overlay(_extended(path), changes or {})
    return validated(Config, content, str(path))


def schema() -> str:
    """The JSON schema of a configuration, for editors; configs/schema.json is this text."""
    content = Config.model_json_schema()
    content["properties"]["extends"] = {
        "type": "string",
        "description": "Another configuration that this one replaces keys of.",
    }
    content["properties"]["add"] = {
        "type": "object",
        "description": "Entries beside those of the configuration that this one extends.",
        "properties": {block: content["properties"][block] for block in WHOLE},
        "additionalProperties": False,
    }
    content["required"] = ["name"]
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
