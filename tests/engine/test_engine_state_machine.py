"""Any order of submit, step and cancel, with so few pages that all are preempted: output and books stay right."""

from __future__ import annotations

from functools import cache

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from musespark.engine.allowance import Allowance
from musespark.engine.engine import Engine
from musespark.errors import ContextTooLong, Overloaded
from tests.engine.driver import Driver, Seen, no_pages_in_use, picture, prompt_of, request
from tests.fakes import HashRunner, chunked_config, hash_continuation, toy_config

IMAGE = 10
CONFIGS = {"window": toy_config(sliding_window=70), "chunk": chunked_config(70)}
MOST_TOKENS = 80


@cache
def expected(local: str, head: int, length: int, image: str) -> list[int]:
    tokens, images, spans = prompt_for(head, length, image)
    return hash_continuation(tokens, MOST_TOKENS, config=CONFIGS[local], images=images, image_spans=spans)


def prompt_for(head: int, length: int, image: str):
    """Prompts with common beginnings; an image of 30 rows in the middle if it has a name."""
    tokens = prompt_of(64 * head, 1) + prompt_of(length, length)
    if not image:
        return tokens, (), ()
    at = len(tokens) // 2
    return tokens[:at] + [IMAGE] * 30 + tokens[at:], (picture(30, image),), ((at, at + 30),)


class EngineMachine(RuleBasedStateMachine):
    live: Bundle[tuple[str, Seen]] = Bundle("live")

    @initialize(
        local=st.sampled_from(sorted(CONFIGS)),
        num_full_pages=st.integers(3, 12),
        num_sliding_pages=st.integers(3, 12),
        max_batch_tokens=st.sampled_from([4, 30, 64, 200]),
        max_running=st.integers(1, 4),
        max_waiting=st.integers(1, 6),
        image_cache_bytes=st.sampled_from([0, 10_000, 1_000_000]),
    )
    def start(
        self, local: str, num_full_pages: int, num_sliding_pages: int, image_cache_bytes: int, **options: int
    ) -> None:
        self.local = local
        self.runner = HashRunner(
            num_full_pages=num_full_pages, num_sliding_pages=num_sliding_pages, config=CONFIGS[local]
        )
        self.driver = Driver(Engine(self.runner, image_cache_bytes=image_cache_bytes, **options))
        self.wanted: dict[str, tuple[Seen, list[int], int, int]] = {}
        self.allowances: dict[str, Allowance] = {}

    @rule(
        target=live,
        head=st.integers(0, 4),
        length=st.integers(1, 150),
        image=st.sampled_from(["", "", "cat", "dog"]),
        max_tokens=st.integers(1, MOST_TOKENS),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        salt=st.sampled_from([b"a", b"b"]),
        priority=st.integers(0, 1),
        tenant=st.sampled_from(["one", "two"]),
        granted=st.sampled_from([None, None, 0, 1, 30]),
        final=st.booleans(),
    )
    def submit(
        self,
        head: int,
        length: int,
        image: str,
        max_tokens: int,
        n: int,
        granted: int | None,
        final: bool,
        **fields: object,
    ) -> tuple[str, Seen]:
        tokens, images, image_spans = prompt_for(head, length, image)
        fields["allowance"] = None if granted is None else Allowance(granted, final)
        new = request(tokens, max_tokens, n=n, images=images, image_spans=image_spans, **fields)
        fits = len(tokens) + max_tokens <= self.driver.engine.context_length
        try:
            seen = self.driver.submit(new)
        except Overloaded:
            assert self.driver.engine.has_work
            return new.id, Seen()
        except ContextTooLong:
            assert not fits
            return new.id, Seen()
        assert fits
        self.wanted[new.id] = (seen, expected(self.local, head, length, image), max_tokens, n)
        if new.allowance is not None:
            self.allowances[new.id] = new.allowance
        return new.id, seen

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.driver.engine.has_work:
                self.driver.step()

    @rule(one=live, more=st.integers(0, 40), final=st.booleans())
    def grant(self, one: tuple[str, Seen], more: int, final: bool) -> None:
        allowance = self.allowances.get(one[0])
        if allowance is not None and not allowance.final:
            allowance.grant(allowance.granted + more, final=final)

    @rule(one=consumes(live))
    def cancel(self, one: tuple[str, Seen]) -> None:
        request_id, seen = one
        self.driver.cancel(request_id)
        if request_id in self.wanted:
            assert seen.ended

    @invariant()
    def tokens_are_right_so_far(self) -> None:
        for seen, tokens, max_tokens, n in getattr(self, "wanted", {}).values():
            for index in range(n):
                assert seen.ids(index) == tokens[: len(seen.ids(index))]
                assert len(seen.ids(index)) <= max_tokens
            for index, reason in seen.reasons.items():
                assert reason in ("cancelled", "budget") or len(seen.ids(index)) == max_tokens

    @invariant()
    def nobody_has_more_than_is_paid_for(self) -> None:
        for request_id, allowance in getattr(self, "allowances", {}).items():
            seen = self.wanted[request_id][0]
            num_tokens = sum(len(tokens) for tokens in seen.tokens.values())
            assert num_tokens <= allowance.granted
            if "budget" in seen.reasons.values():
                assert num_tokens == allowance.granted

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        for allowance in self.allowances.values():
            if not allowance.final:
                allowance.grant(allowance.granted + 1000)
        self.driver.run()
        self.tokens_are_right_so_far()
        self.nobody_has_more_than_is_paid_for()
        assert all(len(seen.reasons) == n for seen, _, _, n in self.wanted.values())
        assert no_pages_in_use(self.driver.engine)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
