from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.pack import write_pack


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Toy matrices gain nothing from threads, and threads that wait for each other crawl on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
