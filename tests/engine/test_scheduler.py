"""The rules of the schedule, without a model: each test says who gets how many tokens in a step."""

from __future__ import annotations

from tests.engine.simulation import Simulation


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
    assert first.num_tokens == 130
    assert simulation.scheduler.running == [first]
    assert simulation.scheduler.waiting == [last]
    assert last.num_computed == 0
    assert not last.table.full


def test_last_in_order_pauses_while_nobody_is_behind_it() -> None:
    simulation = Simulation(num_pages=4, max_batch_tokens=200)
    _, second = *simulation.add("first", 60), *simulation.add("second", 120)
    while second.num_tokens < 129:
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


def test_lower_priority_gives_its_place_up() -> None:
    simulation = Simulation(max_running=2)
    low = simulation.add("low", 100, priority=1)[0]
    simulation.add("equal", 100, priority=0)
    while low.num_generated < 3:
        simulation.step()
    simulation.add("late", 100, priority=0)
    assert set(simulation.step()) == {"equal", "late"}
    assert simulation.scheduler.waiting == [low]
    simulation.add("later", 100, priority=0)
    assert set(simulation.step()) == {"equal", "late"}  # an equal one waits


def test_lower_priority_gives_its_pages_up() -> None:
    simulation = Simulation(num_pages=6)
    simulation.add("low", 200, priority=1)
    simulation.step()
    simulation.add("high", 200)
    assert set(simulation.step()) == {"high"}


def test_prompts_get_what_is_allowed_beside_streams_and_everything_without() -> None:
    simulation = Simulation()
    simulation.add("stream", 10)
    simulation.step()
    simulation.add("prompt", 300)
    assert simulation.step(max_prompt_tokens=30) == {"stream": 1, "prompt": 30}
    assert simulation.step(max_prompt_tokens=1) == {"stream": 1, "prompt": 1}
    simulation.scheduler.remove(simulation.scheduler.running[0])
    assert simulation.step(max_prompt_tokens=30) == {"prompt": 100}
