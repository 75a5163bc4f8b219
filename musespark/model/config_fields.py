"""Reading one field of a `config.json`: its type, its range, and an error that names it.

A missing field and a null mean the default. Limits are far above any published model; they keep lists short enough to
build and the products of sizes inside 64 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from musespark.errors import ConfigError
from musespark.model.json_file import show

LARGEST_SIZE = 1 << 22
LIMITS = {
    "num_hidden_layers": 1024,
    "depths": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "num_local_experts": 4096,
    "patch_size": 256,
    "patch_sizes": 1 << 16,
    "merge_size": 16,
    "pos_emb_height": 1024,
    "pos_emb_width": 1024,
    "max_position_embeddings": 1 << 30,
    "sliding_window": 1 << 30,
    "attention_chunk_size": 1 << 30,
    "original_max_position_embeddings": 1 << 30,
    "floor_scale": 1 << 30,
    "image_size": 1 << 14,
}
MOST_STAGES = 16
MOST_EOS_IDS = 64
LARGEST_NUMBER = 1e12  # so that a product of two stays finite in float32
MAY_BE_ZERO = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "image_token_index", "depths")


def object_of(data: Mapping[str, Any], name: str, where: str, *, optional: bool = False) -> Mapping[str, Any]:
    """The object named `name`, {} if it may be absent and is. Refuses `auto_map`: code in checkpoints is never run."""
    value = {} if optional and data.get(name) is None else data.get(name)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {name} is {show(value)}; it must be an object")
    for holder, place in ((data, where), (value, name)):
        if "auto_map" in holder:
            raise ConfigError(f"{place}: auto_map is refused, code in checkpoints is never run; remove the field")
    return value


def only(data: Mapping[str, Any], where: str, **expected: Any) -> None:
    """Refuse any other value than the one that this architecture has."""
    for name, value in expected.items():
        found = data.get(name)
        if found is not None and (found != value or isinstance(found, bool) != isinstance(value, bool)):
            raise ConfigError(f"{where}: {name} is {show(found)}; only {value!r} is supported")


def numbers_of(kind: type, data: Mapping[str, Any], where: str, names: Collection[str] | None = None) -> dict[str, Any]:
    """The int and float fields of the dataclass `kind`, or those of them in `names`, that the file gives."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):
        if names is not None and field.name not in names:
            continue
        given = data.get(field.name)
        if field.name == "eos_token_id" and isinstance(given, list) and given:
            data = {**data, field.name: given[0]}  # see other_eos_token_ids
        if given is not None and hints[field.name] in (int, int | None):
            values[field.name] = integer(data, field.name, where)
        elif given is not None and hints[field.name] is float:
            values[field.name] = number(data, field.name, where)
    return values


def other_eos_token_ids(data: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The ids after the first, where `eos_token_id` is a list."""
    value = data.get("eos_token_id")
    if not isinstance(value, list):
        return ()
    if len(value) > MOST_EOS_IDS:
        raise ConfigError(f"{where}: eos_token_id has {len(value):,} entries; at most {MOST_EOS_IDS} are taken")
    return tuple(integer({"eos_token_id": token}, "eos_token_id", where) for token in value[1:])


def rope_parameters(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rotary settings from any age of file: `rope_parameters`, or `rope_scaling`, and `rope_theta` in or beside it.

    {} if the file has none. Raises ConfigError for two that contradict each other.
    """
    given = [name for name in ("rope_parameters", "rope_scaling") if data.get(name) is not None]
    objects = [dict(object_of(data, name, where)) for name in given]
    if len(objects) == 2 and objects[0] != objects[1]:
        raise ConfigError(f"{where}: rope_parameters and rope_scaling contradict each other; keep one of them")
    rope = objects[0] if objects else {}
    beside = data.get("rope_theta")
    if beside is not None and rope.setdefault("rope_theta", beside) != beside:
        raise ConfigError(
            f"{where}: rope_theta is {show(beside)} and rope_parameters.rope_theta is {show(rope['rope_theta'])}; "
            "keep one of them"
        )
    if rope.get("rope_type") is None and rope.get("type") is not None:
        rope["rope_type"] = rope["type"]
    return rope


def switch(data: Mapping[str, Any], name: str, where: str, default: bool) -> bool:
    """A boolean, or an integer that stands for one."""
    value = default if data.get(name) is None else data[name]
    if type(value) not in (bool, int):
        raise ConfigError(f"{where}: {name} is {show(value)}; it must be true or false")
    return bool(value)


def integer(data: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = default if data.get(name) is None else data[name]
    low, high = 0 if name in MAY_BE_ZERO else 1, LIMITS.get(name, LARGEST_SIZE)
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{where}: {name} is {show(value)}; it must be an integer from {low} to {high:,}")
    return value


def integers(data: Mapping[str, Any], name: str, where: str, default: tuple[int, ...]) -> tuple[int, ...]:
    values = default if data.get(name) is None else data[name]
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= MOST_STAGES:
        raise ConfigError(f"{where}: {name} is {show(values)}; it must be a list of 1 to {MOST_STAGES} integers")
    return tuple(integer({name: value}, name, where) for value in values)


def number(data: Mapping[str, Any], name: str, where: str, default: float | None = None) -> float:
    """A positive finite number."""
    value: Any = default if data.get(name) is None else data[name]
    if not _is_number(value) or value == 0:
        raise ConfigError(f"{where}: {name} is {show(value)}; it must be a positive number up to {LARGEST_NUMBER:g}")
    return float(value)


def choices(
    data: Mapping[str, Any], name: str, where: str, default: tuple[str, ...], allowed: tuple[str, ...]
) -> tuple[Any, ...]:
    """A list with one of `allowed` for each entry of `default`."""
    value = default if data.get(name) is None else data[name]
    if not isinstance(value, list | tuple) or len(value) != len(default) or any(v not in allowed for v in value):
        raise ConfigError(f"{where}: {name} must be a list of {len(default)} values out of {', '.join(allowed)}")
    return tuple(value)


def flags(data: Mapping[str, Any], name: str, where: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
    """A list of numbers, one for each entry of `default`, of which only matters whether they are 0."""
    value = default if data.get(name) is None else data[name]
    if value is default:
        return default
    if not isinstance(value, list | tuple) or len(value) != len(default) or not all(map(_is_number, value)):
        raise ConfigError(
            f"{where}: {name} must be a list of {len(default)} numbers, 0 for a layer without rotary embedding"
        )
    return tuple(v != 0 for v in value)


def _is_number(value: Any) -> bool:
    """Whether `value` is a number from 0 to LARGEST_NUMBER. A boolean is none, and NaN fails every comparison."""
    return type(value) in (int, float) and 0 <= value <= LARGEST_NUMBER
