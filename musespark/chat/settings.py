"""How a checkpoint wants to be talked to: the file `chat_settings.json` beside the weights, and its efforts."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from musespark.errors import CheckpointError, InvalidRequest

EFFORTS = ("low", "medium", "high", "xhigh")


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What the system message says when a conversation brings none, and the effort when a request names none."""

    default_system: str = "You are a helpful AI assistant."
    default_reasoning_effort: str = "high"
    knowledge_cutoff: str | None = None
    include_date: bool = False

    @classmethod
    def from_file(cls, folder: Path, default: ChatSettings | None = None) -> ChatSettings:
        """The settings of the checkpoint in `folder`; `default`, or that of this class, if it has no such file.

        What the file does not say is as in the default. Raises CheckpointError for a bad file.
        """
        default = default or cls()
        path = Path(folder) / "chat_settings.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return default
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
        names = [field.name for field in fields(cls)]
        if not isinstance(data, dict) or not set(data) <= set(names):
            raise CheckpointError(f"{path} must hold a JSON object with some of {', '.join(names)}")
        settings = replace(default, **data)
        settings._check(path)
        return settings

    def _check(self, path: Path) -> None:
        cutoff = self.knowledge_cutoff
        if not isinstance(self.default_system, str) or not (cutoff is None or isinstance(cutoff, str)):
            raise CheckpointError(f"{path}: default_system and knowledge_cutoff must be strings")
        if self.default_reasoning_effort not in EFFORTS:
            raise CheckpointError(f"{path}: default_reasoning_effort must be one of {', '.join(EFFORTS)}")
        if not isinstance(self.include_date, bool):
            raise CheckpointError(f"{path}: include_date must be true or false")


def refuse_effort(asked: str | None, model: str) -> None:
    """For a family that does not reason: raises InvalidRequest for any effort but "none"."""
    if asked not in (None, "none"):
        raise InvalidRequest(f"reasoning_effort is {asked!r}; {model} does not reason", param="reasoning_effort")


def choose_effort(asked: str | None, settings: ChatSettings) -> str:
    """The effort to write into the prompt. Raises InvalidRequest for one that does not exist."""
    if asked is None:
        return settings.default_reasoning_effort
    if asked == "minimal":
        return "low"
    if asked not in EFFORTS:
        allowed = ", ".join(("minimal", *EFFORTS))
        raise InvalidRequest(
            f"reasoning_effort is {asked!r}; this model always reasons, with one of {allowed}", param="reasoning_effort"
        )
    return asked
