"""`generation_config.json`: which ids end an answer, and how to sample when a request doesn't say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musespark.errors import CheckpointError
from musespark.model.config import ModelConfig
from musespark.model.config_fields import LARGEST_SIZE
from musespark.model.json_file import read_json_object, show

MAX_GENERATION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """`temperature` is from 0 (greedy) to 2, `top_p` above 0 and at most 1."""

    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0

    @classmethod
    def from_file(cls, path: Path, config: ModelConfig) -> GenerationDefaults:
        """Without a file: the end ids of the config, and sampling from the model's own distribution."""
        try:
            return cls.from_dict(read_json_object(path, MAX_GENERATION_BYTES), config)
        except FileNotFoundError:
            return cls(config.text.eos_token_ids)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], config: ModelConfig) -> GenerationDefaults:
        """Check the parsed file; a field that is missing or null has its default. Raises CheckpointError naming it."""
        given = {name: value for name, value in data.items() if value is not None}
        eos = given.get("eos_token_id", list(config.text.eos_token_ids))
        eos = eos if isinstance(eos, list) else [eos]
        if not eos or not all(type(token) is int and 0 <= token <= LARGEST_SIZE for token in eos):
            raise CheckpointError(f"generation_config.json: eos_token_id is {show(eos)}; it must hold token ids")
        temperature, top_p = given.get("temperature", 1.0), given.get("top_p", 1.0)
        # NaN fails every comparison.
        if type(temperature) not in (int, float) or not 0 <= temperature <= 2:
            raise CheckpointError(f"generation_config.json: temperature is {show(temperature)}; it must be from 0 to 2")
        if type(top_p) not in (int, float) or not 0 < top_p <= 1:
            raise CheckpointError(f"generation_config.json: top_p is {show(top_p)}; it must be above 0 and at most 1")
        return cls(tuple(eos), float(temperature), float(top_p))

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads too; without do_sample it would warn that it ignores the temperature."""
        return {
            "eos_token_id": list(self.eos_token_ids),
            "do_sample": self.temperature > 0,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
