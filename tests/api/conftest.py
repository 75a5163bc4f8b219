from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.world import World, running_world


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world") / "state") as world:
        yield world


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """The server that all tests share; each must leave it idle, with every page free."""
    yield shared_world
    shared_world.wait_until_idle()
