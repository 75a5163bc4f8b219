"""The rules of the schedule, without a model: each test says who gets how many tokens in a step."""

from __future__ import annotations

from musespark.engine.kv_cache import KVCache
from musespark.engine.scheduler import Scheduler
from musespark.engine.sequence import RequestState, Sequence, new_sequence
from tests.engine.driver import prompt_of, request
from tests.fakes import toy_config


class Simulation:
    """Runs a schedule with a token generator that always says 77."""

    def __init__(self, num_pages: int = 64, max_batch_tokens: int = 100, max_running: int = 8) -> None:
        config = toy_config()
        self.cache = KVCache(config.text, num_pages, num_pages)
        self.scheduler = Scheduler(self.cache, max_batch_tokens=max_batch_tokens, max_running=max_running)
        self.names: dict[Sequence, str] = {}

    def add(self, name: str, length: int, *, n: int = 1, **fields: int) -> list[Sequence]:
        state = RequestState(request(prompt_of(length, len(self.names)), n=n, **fields))
        sequences = [new_sequence(state, index, len(self.names), self.cache, 320) for index in range(n)]
        for index, sequence in enumerate(sequences):
            self.names[sequence] = name if n == 1 else f"{name}{index}"
            self.scheduler.add(sequence)
        return sequences

    def step(self) -> dict[str, int]:
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.end
            self.cache.commit(chunk.sequence.table, chunk.end)
            if chunk.samples:
                chunk.sequence.state.prompt_computed = True
        work = {self.names[chunk.sequence]: chunk.end - chunk.start for chunk in chunks}
        for chunk in chunks:
            if chunk.samples:
                chunk.sequence.tokens.append(77)
        self.cache.check_integrity(sequence.table for sequence in self.names)
        return work


def test_decode_comes_first_and_prompts_share_the_rest_in_order() -> None:
    simulation = Simulation()
    simulation.add("a", 250)
    assert simulation.step() == {"a": 100}
    simulation.add("b", 30)
    assert simulation.step() == {"a": 100}
    assert list(simulation.step().items()) == [("a", 50), ("b", 30)]
    simulation.add("c", 500)
    assert list(simulation.step().items()) == [("a", 1), ("b", 1), ("c", 98)]


def test_no_more_run_than_may() -> None:
    simulation = Simulation(max_running=2)
    for name in "abc":
        simulation.add(name, 5)
    assert simulation.step() == {"a": 5, "b": 5}
    simulation.scheduler.remove(simulation.scheduler.running[0])
    assert simulation.step() == {"b": 1, "c": 5}


def test_nobody_overtakes_one_that_waits_for_pages() -> None:
    simulation = Simulation(num_pages=6)
    simulation.add("a", 120)
    simulation.step()
    simulation.add("large", 300)  # 5 pages
    simulation.add("small", 10)
    for _ in range(5):
        assert set(simulation.step()) == {"a"}


def test_start_leaves_a_page_for_each_that_runs() -> None:
    simulation = Simulation(num_pages=6)
    simulation.add("a", 120)  # 2 pages
    simulation.step()
    simulation.step()
    simulation.add("b", 200)  # 4 pages would be there, but none to spare
    assert set(simulation.step()) == {"a"}
    simulation.add("c", 100, priority=-1)  # 2 pages, and 2 to spare
    assert set(simulation.step()) == {"a", "c"}


def test_choices_wait_for_the_first_and_let_others_pass() -> None:
    simulation = Simulation(max_batch_tokens=64)
    simulation.add("x", 150, n=3)
    simulation.add("y", 5)
    assert simulation.step() == {"x0": 64}
    assert simulation.step() == {"x0": 64}
    assert simulation.step() == {"x0": 22, "y": 5}  # x1 and x2 were not ready when this step was planned
    assert simulation.step() == {"x0": 1, "y": 1, "x1": 22, "x2": 22}  # two pages each were there


def test_last_in_order_gives_its_pages_to_the_first() -> None:
    simulation = Simulation(num_pages=4, max_batch_tokens=200)
    first, last = *simulation.add("first", 60), *simulation.add("last", 60)
    steps = 0
    while not simulation.scheduler.num_preemptions:
        simulation.step()
        steps += 1
    # Both have 2 pages until the first needs a third for position 128.
    assert len(first.tokens) == 130
    assert simulation.scheduler.running == [first]
    assert simulation.scheduler.waiting == [last]
    assert last.num_computed == 0
    assert not last.table.full


def test_last_in_order_pauses_while_nobody_is_behind_it() -> None:
    simulation = Simulation(num_pages=4, max_batch_tokens=200)
    _, second = *simulation.add("first", 60), *simulation.add("second", 120)
    while len(second.tokens) < 129:
        simulation.step()
    # The second needs a third page for position 128, and the first has just taken the last one.
    for _ in range(40):
        assert simulation.step() == {"first": 1}
    assert len(second.table.full) == 2
    assert simulation.scheduler.num_preemptions == 0


def test_work_planned_for_a_preempted_sequence_is_planned_no_more() -> None:
    # Before the prompt is complete, the decoder has taken a third page: one more than was spared for it.
    simulation = Simulation(num_pages=8, max_batch_tokens=4, max_running=2)
    (decoder,) = simulation.add("decoder", 60, priority=1)
    while decoder.num_computed < 60:
        simulation.step()
    (prompt,) = simulation.add("prompt", 380)
    work = simulation.step()
    while not simulation.scheduler.num_preemptions:
        assert work == {"decoder": 1, "prompt": 3} or (prompt.num_computed % 64 == 0 and work["prompt"] < 3)
        work = simulation.step()
    assert work == {"prompt": 4}
    assert simulation.scheduler.waiting == [decoder]


def test_priority_before_arrival() -> None:
    simulation = Simulation(max_running=1)
    simulation.add("late", 5, priority=1)
    simulation.add("soon", 5, priority=0)
    assert simulation.step() == {"soon": 5}
