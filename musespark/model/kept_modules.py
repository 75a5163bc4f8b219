"""The modules that a quantised checkpoint says it left alone: names, or patterns that a stranger wrote.

compressed-tensors (`ignore`) has exact names and, after `re:`, regular expressions; fbgemm (`modules_to_not_convert`)
has names that include everything below them; ModelOpt (`exclude_modules`) has such names and shell patterns.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Any, Literal

from musespark.errors import CheckpointError
from musespark.model.json_file import show

MOST_NAMES = 1 << 18  # every module of the largest model, experts one by one
MOST_PATTERNS = 4096
MOST_PATTERN_CHARACTERS = 512
MOST_REPEATS = 4
MOST_CHOICES = 8

Language = Literal["exact names and expressions", "names of subtrees", "shell patterns"]


@dataclass(frozen=True, slots=True)
class KeptModules:
    """See above. where: the field that lists them. subtrees: whether a name stands for everything below it."""

    where: str
    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()
    subtrees: bool = False

    @classmethod
    def parse(cls, values: Any, where: str, language: Language) -> KeptModules:
        """The list as the file has it, None if it has none. Raises CheckpointError naming `where`."""
        if values is None:
            return cls(where)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise CheckpointError(f"{where} must be a list of module names, not {show(values)}")
        expressions: list[str] = []
        names: list[str] = []
        for value in values:
            if language == "exact names and expressions" and value.startswith("re:"):
                expressions.append(_tame(value.removeprefix("re:"), where))
            elif language == "shell patterns" and set(value) & set("*?["):
                if len(value) > MOST_PATTERN_CHARACTERS:
                    raise CheckpointError(f"{where} holds {show(value)}; at most {MOST_PATTERN_CHARACTERS} are read")
                expressions.append(fnmatch.translate(value))  # which never goes back over what a star has passed
            else:
                names.append(value)
        if len(names) > MOST_NAMES or len(expressions) > MOST_PATTERNS:
            raise CheckpointError(
                f"{where} has {len(names):,} names and {len(expressions):,} patterns; "
                f"at most {MOST_NAMES:,} and {MOST_PATTERNS:,} are read"
            )
        try:
            patterns = tuple(map(re.compile, expressions))
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{where} holds a pattern that is not valid: {error}") from None
        return cls(where, frozenset(names), patterns, language != "exact names and expressions")

    def holds(self, tensor: str) -> bool:
        """Whether the list names the module of a tensor: X of `X.weight`; of fused experts the tensor itself too."""
        module = tensor.removesuffix(".weight")
        modules = [module] if module != tensor else [module, module.rpartition(".")[0]]
        if any(pattern.match(name) for pattern in self.patterns for name in modules):
            return True
        if self.subtrees:
            parts = module.split(".")
            modules = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        return not self.names.isdisjoint(modules)


def _tame(expression: str, where: str) -> str:
    """Refuse expressions that may take forever: Python's matcher goes back once for every way to repeat or choose."""
    num_repeats, num_choices = (sum(map(expression.count, signs)) for signs in ("*+{", "?("))
    is_tame = num_repeats <= MOST_REPEATS and num_choices <= MOST_CHOICES and not re.search(r"\)[*+?{]", expression)
    if not is_tame or len(expression) > MOST_PATTERN_CHARACTERS:
        raise CheckpointError(
            f"{where} holds the expression {show(expression)}; read are those of at most {MOST_PATTERN_CHARACTERS} "
            f"characters, {MOST_REPEATS} repeats and {MOST_CHOICES} groups or options, no group of them repeated"
        )
    return expression
