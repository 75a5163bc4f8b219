from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from musespark.accounts.accounts import Accounts


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def accounts(state_dir: Path) -> Iterator[Accounts]:
    with Accounts.open(state_dir) as opened:
        yield opened
