"""Several tokens from one forward pass: a drafter guesses how a stream goes on, the network checks all guesses at once.

The output is the same as without: each token is sampled from its own row of logits with the choice's own state and
random numbers, and a guess only decides whether the next row is of use. For a draft without probabilities of its own
that is rejection sampling to the letter (the guess is taken with its probability, else a token from the rest), and
it leaves even the random numbers as they were, so a seed gives the same text.

It is done for one stream alone: rows cost little beside the weights that are read for the first anyway, but not beside
those that other streams would have used. Whether it pays is measured, and it pauses where it doesn't.

A drafter that reads more than tokens (heads on the hidden state, Muse Glimmer's DFlash) can be made with what it reads
from: all that is asked of it is `propose`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from musespark.engine.kv_cache import KVCache
from musespark.engine.scheduler import Chunk

NGRAM_SIZES = (3, 2)  # the longer first: what followed three tokens is right more often than what followed two
MOST_NGRAMS = 1 << 16  # of each size; about 100 bytes each
FIRST_LENGTH = 4
SMOOTHING = 0.2
FALLING, RISING = 0.5, 0.1
FIRST_PAUSE, LONGEST_PAUSE = 16, 512  # steps without drafts where they don't pay
FIRST_GAIN, NEXT_GAIN = 1.3, 1.1  # what is believed at first and after a pause: one slow step is no reason to stop
PLAIN_EVERY = 64  # steps: then one without a draft, so that what it costs is known for the depth that is reached


class Drafter(Protocol):
    """Guesses how one choice goes on."""

    def propose(self, new: Sequence[int], most: int) -> Sequence[int]:
        """Up to `most` tokens, or none. `new` are those since the last call; at the first, prompt and all."""
        ...


class NgramDrafter:
    """What followed the last few tokens when they stood somewhere before, in the prompt or in the answer."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._next: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in NGRAM_SIZES}

    def propose(self, new: Sequence[int], most: int) -> Sequence[int]:
        tokens = self._tokens
        for token in new[-MOST_NGRAMS:]:
            for size, following in self._next.items():
                if len(tokens) >= size:
                    if len(following) >= MOST_NGRAMS:
                        following.clear()
                    following[tuple(tokens[-size:])] = len(tokens)
            tokens.append(token)
        for size, following in self._next.items():
            place = following.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if place is not None:
                draft: list[int] = []
                for i in range(place, place + most):  # beyond the end it repeats itself
                    draft.append(tokens[i] if i < len(tokens) else draft[i - len(tokens)])
                return draft
        return ()


@dataclass(slots=True, eq=False)
class Drafting:
    """A drafter and how well it does for one choice."""

    drafter: Drafter
    num_read: int = 0  # tokens that the drafter knows
    length: int = FIRST_LENGTH
    gain: float = FIRST_GAIN  # tokens per second with drafts over without, of late
    pause: int = FIRST_PAUSE
    num_paused: int = 0  # steps still to go without
    num_steps: int = 0

    def learn(self, num_drafted: int, num_accepted: int, gain: float) -> None:
        """After a step with a draft."""
        self.length = 2 * self.length if num_accepted == num_drafted else num_accepted + 1
        self.gain += SMOOTHING * (gain - self.gain)
        if self.gain < 1.0:
            self.num_paused, self.pause = self.pause, min(2 * self.pause, LONGEST_PAUSE)
            self.gain, self.length = NEXT_GAIN, FIRST_LENGTH
        elif self.gain > 1.2:  # so well that an earlier pause is no reason for a longer one
            self.pause = FIRST_PAUSE


@dataclass(slots=True)
class Speculation:
    """Adds drafts to the chunks of a step: `most` guesses at once, 0 is off, and none that can't be sampled."""

    most: int
    vocab_size: int
    unsayable: Collection[int]
    make_drafter: Callable[[], Drafter] = NgramDrafter
    num_drafted: int = 0
    num_accepted: int = 0
    _plain_s: float | None = field(default=None, init=False)  # a step of one row

    def with_drafts(self, chunks: list[Chunk], cache: KVCache) -> list[Chunk]:
        """The same chunks; one that decodes alone gets a draft, with pages for it, if that is likely to pay."""
        if not self.most or len(chunks) != 1 or not chunks[0].samples or chunks[0].end - chunks[0].start != 1:
            return chunks
        chunk = chunks[0]
        sequence = chunk.sequence
        if sequence.drafting is None:
            sequence.drafting = Drafting(self.make_drafter())
        drafting = sequence.drafting
        drafting.num_steps += 1
        if drafting.num_paused > 0:
            drafting.num_paused -= 1
            return chunks
        if self._plain_s is None or drafting.num_steps % PLAIN_EVERY == 0:
            return chunks
        # One token comes in any case; what is beyond must be wanted, paid for, and have room that nobody gives up.
        most = int(
            min(
                drafting.length,
                self.most,
                sequence.request.sampling.max_tokens - sequence.num_generated - 1,
                sequence.state.tokens_left - 1,
                cache.room(sequence.table, chunk.end),
            )
        )
        if most < 1:
            return chunks
        draft = self._sayable(drafting.drafter.propose(sequence.tokens(drafting.num_read, chunk.end), most)[:most])
        drafting.num_read = chunk.end
        if not draft:
            return chunks
        cache.extend(sequence.table, chunk.end + len(draft))
        return [replace(chunk, draft=draft)]

    def measured(self, chunks: list[Chunk], num_accepted: int, seconds: float) -> None:
        """A step took `seconds`; of its draft, if it had one, so many guesses were right."""
        if len(chunks) != 1 or chunks[0].end - chunks[0].start != 1:
            return
        chunk = chunks[0]
        if not chunk.draft:
            before = seconds if self._plain_s is None else self._plain_s
            # Faster down than up: a step that somebody else slowed down must not make guesses look good.
            self._plain_s = before + (FALLING if seconds < before else RISING) * (seconds - before)
            return
        self.num_drafted += len(chunk.draft)
        self.num_accepted += num_accepted
        assert self._plain_s is not None, "there is no draft before this is known"
        assert chunk.sequence.drafting is not None, "it made the draft"
        gain = (1 + num_accepted) * self._plain_s / max(seconds, 1e-9)
        chunk.sequence.drafting.learn(len(chunk.draft), num_accepted, gain)

    def _sayable(self, draft: Sequence[int]) -> tuple[int, ...]:
        """Up to the first token that can't come: a prompt has image rows, and a drafter may have another vocabulary."""
        for index, token in enumerate(draft):
            if not 0 <= token < self.vocab_size or token in self.unsayable:
                return tuple(draft[:index])
        return tuple(draft)
