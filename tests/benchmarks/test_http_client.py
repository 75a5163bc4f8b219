"""The client of the HTTP rows with the real server and the model in the box."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import servers
from http_client import complete, run_load


def test_clients_get_whole_streams_and_count_what_the_server_counts(tmp_path: Path) -> None:
    with servers.ours(None, tmp_path, threads=1, slots=2, kv_memory_mb=64) as server:
        assert server.start_s > 0
        prompts = ["one two three", "four", "five", "six", "seven"]
        load, answers = run_load(server.port, server.key, server.model, prompts, 8, 2)
        assert load.requests == len(answers) == 5
        assert [answer.completion_tokens for answer in answers] == [8] * 5
        assert all(0 < answer.first_s <= answer.last_s for answer in answers)
        assert all(answer.prompt_tokens > 1 for answer in answers)
        body = {"model": server.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        with pytest.raises(RuntimeError, match="401"):
            asyncio.run(complete(server.port, "sk-wrong", body))
