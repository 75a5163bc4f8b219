from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from musespark.conformance.suite import Suite, open_suite
from musespark.conformance.write import write_suite


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> Iterator[None]:
    """The networks are so small that handing work to a second thread costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """The suite of seed 0. Nobody writes into it: a test that damages one makes a copy."""
    folder = tmp_path_factory.mktemp("conformance") / "suite"
    write_suite(folder)
    return open_suite(folder)
