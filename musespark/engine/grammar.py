"""What an answer may be: a compiled grammar, and for each choice a matcher that says which tokens may come next.

A grammar is text in the notation of llguidance (a Lark dialect in which `<[5]>` is token 5 and `%json {…}` a schema);
the chat formats write it. llguidance does the parsing. Its limits count work instead of time, so what is refused does
not depend on how busy the machine is: compiling takes under a second at the most, a step tens of milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import llguidance
import numpy as np
import numpy.typing as npt

from musespark.chat.tokenizer import Tokenizer
from musespark.errors import InvalidSchema

Allowed = npt.NDArray[np.bool_]

MAX_LEXER_STATES = 50_000  # of one matcher; about 1 kB each
MAX_MESSAGE = 300  # characters of llguidance's own explanation


class Vocabulary:
    """The tokenizer's tokens as llguidance reads them; made once per model, shared by all grammars.

    end_ids: the tokens that end an answer, allowed where the grammar is satisfied. `max_lexer_states` bounds the memory
    of a matcher. `close` ends the thread in which masks are computed.
    """

    def __init__(
        self, tokenizer: Tokenizer, end_ids: Iterable[int], *, max_lexer_states: int = MAX_LEXER_STATES
    ) -> None:
        ends = sorted(end_ids)
        table = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_TokenTable(tokenizer, ends[0])), n_vocab=tokenizer.vocab_size, eos_token=ends
        )
        self.tokens = table
        self.end_ids = ends
        self.size = tokenizer.vocab_size
        self.limits = llguidance.LLParserLimits(
            initial_lexer_fuel=1_000_000,  # about 100 ms
            step_lexer_fuel=200_000,
            step_max_items=50_000,
            max_items_in_row=2_000,
            max_lexer_states=max_lexer_states,
            max_grammar_size=200_000,
            verbose_errors=False,
        )
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def close(self) -> None:
        self.thread.shutdown(wait=False)


class _TokenTable:
    """What `TokenizerWrapper` asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        ids = range(tokenizer.vocab_size)
        self.tokens = [(tokenizer.special_name(i) or "").encode() or tokenizer.token_bytes(i) for i in ids]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


@dataclass(frozen=True, slots=True)
class ReasoningLimit:
    """After `num_tokens`, `token` comes as soon as it may, unless the answer could end there: reasoning must leave room
    for what is asked for.
    """

    token: int
    num_tokens: int


class Grammar:
    """A compiled grammar. Immutable; each choice takes a `matcher` of its own."""

    def __init__(
        self, vocabulary: Vocabulary, text: str, *, field: str | None = None, limit: ReasoningLimit | None = None
    ) -> None:
        """`field` is what errors name. Raises InvalidSchema for a grammar that is wrong, too large, or impossible."""
        self._vocabulary = vocabulary
        self._field = field
        self._limit = limit
        self._compiled = llguidance.LLMatcher(vocabulary.tokens, text, log_level=0, limits=vocabulary.limits)
        self._raise_problem()
        if not any(self._compiled.compute_bitmask()):
            raise InvalidSchema("no text satisfies the schema", param=field)
        self._raise_problem()

    def matcher(self) -> Matcher:
        return Matcher(self._vocabulary, self._compiled.deep_copy(), self._field, self._limit)

    def _raise_problem(self) -> None:
        if self._compiled.is_error():
            problem = _shortened(self._compiled.get_error())
            if problem.startswith("NoExtension"):
                problem = "no text satisfies it"
            raise InvalidSchema(f"the schema can't be used: {problem}", param=self._field)


class Matcher:
    """Where one choice is in its grammar. One thread at a time calls it."""

    def __init__(
        self, vocabulary: Vocabulary, state: llguidance.LLMatcher, field: str | None, limit: ReasoningLimit | None
    ) -> None:
        self._vocabulary = vocabulary
        self._state = state
        self._field = field
        self._limit = limit
        self._num_tokens = 0
        self._coming: Future[bytes] | None = None

    def begin(self) -> None:
        """Start to compute what is allowed next, beside the network's own work."""
        if self._coming is None:
            self._coming = self._vocabulary.thread.submit(self._state.compute_bitmask)

    def allowed(self) -> Allowed:
        """Which tokens may come next (V of the tokenizer,); none that the model has beyond it.

        Raises InvalidSchema if finding out takes more work than there is for a step.
        """
        self.begin()
        assert self._coming is not None
        bits = self._coming.result()
        if self._state.is_error():
            problem = _shortened(self._state.get_error())
            raise InvalidSchema(f"the schema became too complex in this answer: {problem}", param=self._field)
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=self._vocabulary.size, bitorder="little").view(
            bool
        )
        if self._must_end_reasoning(allowed):
            assert self._limit is not None
            allowed[:] = False
            allowed[self._limit.token] = True
        return allowed

    def _must_end_reasoning(self, allowed: Allowed) -> bool:
        limit = self._limit
        if limit is None or self._num_tokens < limit.num_tokens or not allowed[limit.token]:
            return False
        return not allowed[self._vocabulary.end_ids].any()  # behind a call that token would ask for another

    def consume(self, token: int) -> None:
        """A token was generated. One that was not allowed shows in the next `allowed`."""
        self._coming = None
        self._num_tokens += 1
        self._state.consume_token(token)


def _shortened(message: str) -> str:
    """llguidance's explanation in one line, without the grammar, which is ours and not the client's."""
    text = message.split("\n   1 |")[0].split("<non-verbose/>")[0].rpartition("failed to compile JSON schema: ")[2]
    return " ".join(text.split())[:MAX_MESSAGE]
