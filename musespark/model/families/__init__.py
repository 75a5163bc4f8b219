"""The families of checkpoints that we know: how the `config.json` of each is read and written.

Each file says what its family has that the others lack. Its tensors are in `model/tensors.py` and
`model/llama4_tensors.py`, its network in `model/network/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from musespark.model.config import ModelConfig
from musespark.model.families import llama4, muse_glimmer, muse_spark


class Family(Protocol):
    def config_from_dict(self, data: Mapping[str, Any]) -> ModelConfig:
        """Check a parsed `config.json` of this family. Raises ConfigError."""

    def config_to_dict(self, config: ModelConfig) -> dict[str, Any]:
        """The content of its `config.json`."""


FAMILIES: dict[str, Family] = {"muse_spark": muse_spark, "muse_glimmer": muse_glimmer, "llama4": llama4}
