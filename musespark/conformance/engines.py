"""Who can answer a suite: our reference network, our native runner, transformers, or a folder of answers.

Everything but logits is answered by our chat room, whichever of our engines runs: it is what stands before both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from musespark.chat.tokenizer import Tokenizer
from musespark.conformance import conversations, picture_cases
from musespark.conformance.suite import Answer, Case, Suite, read_answer
from musespark.errors import ConfigError, DataError


class Unsupported(Exception):
    """This engine does not do what the case asks; the message says what."""


class Engine(Protocol):
    name: str

    def answer(self, suite: Suite, case: Case) -> Answer:
        """What the engine makes of a case, in the fields of the case's expected file. Raises Unsupported."""
        ...


def answer_from_chat(suite: Suite, case: Case) -> Answer:
    """Prompts, parsed answers, patches and grids."""
    given = suite.given(case)
    match case.kind:
        case "render":
            return conversations.render(case.family, given, _tokenizer(suite, case), suite.pictures())
        case "parse":
            return conversations.parse(case.family, given, _tokenizer(suite, case))
        case "patches":
            return picture_cases.patches_of(case.family, given["picture"])
        case "grids":
            return picture_cases.grids_of(case.family, given["sizes"])
    raise AssertionError(case.kind)


def _tokenizer(suite: Suite, case: Case) -> Tokenizer:
    return Tokenizer.from_file(suite.tokenizer(case.family))


class ReferenceEngine:
    """The torch network of this repository."""

    name = "reference"

    def __init__(self, change: Callable[[Any], Any] = lambda network: network) -> None:
        """`change` is applied to each network that is loaded: how a test puts a mistake into it."""
        self._change = change
        self._networks: dict[Path, Any] = {}

    def answer(self, suite: Suite, case: Case) -> Answer:
        if case.kind != "logits":
            return answer_from_chat(suite, case)
        import torch

        from musespark.conformance.logit_cases import logits
        from musespark.conformance.prompts import Prompt, images_of
        from musespark.model.network import load_network

        folder, given = suite.checkpoint(case), suite.given(case)
        if folder not in self._networks:
            self._networks[folder] = self._change(load_network(folder))
        prompt = Prompt(given["token_ids"].tolist(), images_of(given))
        with torch.no_grad():
            return {"logits": logits(self._networks[folder], prompt, given["positions"].tolist())}


class NativeEngine:
    """The C++ core, in float32, fed as a server feeds it: the prompt in pieces, the last tokens one by one."""

    name = "native"

    def answer(self, suite: Suite, case: Case) -> Answer:
        if case.kind != "logits":
            return answer_from_chat(suite, case)
        from musespark.conformance.native_runs import run_in_pieces
        from musespark.model.checkpoint import open_checkpoint

        try:
            return {"logits": run_in_pieces(open_checkpoint(suite.checkpoint(case)), suite.given(case))}
        except ConfigError as error:
            raise Unsupported(error.message) from None


class TransformersEngine:
    """The published reference implementation, loaded as anyone loads it."""

    name = "transformers"

    def __init__(self) -> None:
        from importlib.util import find_spec

        if find_spec("transformers") is None:
            raise DataError("transformers is not installed here: pip install transformers")
        self._models: dict[Path, Any] = {}

    def answer(self, suite: Suite, case: Case) -> Answer:
        if case.kind != "logits":
            raise Unsupported(
                "transformers brings chat templates with checkpoints, and image processors with torchvision"
            )
        from musespark.conformance.transformers_runs import load_model, run

        folder = suite.checkpoint(case)
        if folder not in self._models:
            try:
                self._models[folder] = load_model(folder, case.family)
            except Exception as error:  # whatever its classes and their validators raise at a file that they refuse
                reason = str(error).strip().splitlines()
                raise Unsupported(f"transformers refuses {folder.name}: {' '.join(reason)[:200]}") from None
        return {"logits": run(self._models[folder], case.family, suite.given(case))}


class AnswersEngine:
    """Files that another engine wrote: `CASE.safetensors` and `CASE.json`, with the fields of the expected files."""

    def __init__(self, folder: Path, suite: Suite) -> None:
        """Raises DataError for a folder that is not there, or a file that answers no case."""
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; it must hold the files of answers")
        self.name = str(folder)
        self._folder = folder
        known = {case.file_name for case in suite.cases}
        strange = sorted(
            path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name not in known
        )
        if strange:
            raise DataError(
                f"{folder / strange[0]} answers no case of this suite; files are named CASE.safetensors or CASE.json"
            )
        if not any((folder / name).is_file() for name in known):
            raise DataError(f"{folder} holds no answers; files are named CASE.safetensors or CASE.json")

    def answer(self, suite: Suite, case: Case) -> Answer:
        path = self._folder / case.file_name
        if not path.exists():
            raise Unsupported(f"there is no {case.file_name}")
        return read_answer(path)


ENGINES: Mapping[str, Callable[[], Engine]] = {
    "reference": ReferenceEngine,
    "native": NativeEngine,
    "transformers": TransformersEngine,
}
