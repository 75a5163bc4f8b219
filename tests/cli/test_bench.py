"""`musespark bench` on the model in the box. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from musespark.model.checkpoint import BUNDLED, open_checkpoint
from musespark.model.size import describe

RUN = [sys.executable, "-c", "from musespark.cli import main; main()", "bench", "--runs", "1", "--decode", "4"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_a_report_as_json_agrees_with_itself() -> None:
    done = bench("--json", "--prompt", "70", "--streams", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "muse-spark-nano"
    assert (report["precision"], report["threads"], report["streams"]) == ("int8", 1, 2)
    assert report["prefill_tokens_per_s"] > 0
    assert report["streams_tokens_per_s"] > 0
    assert report["share_of_reads"] == pytest.approx(report["decode_bytes_per_s"] / report["read_bytes_per_s"])
    bytes_of_a_token = report["decode_bytes_per_s"] / report["decode_tokens_per_s"]
    # A byte for each parameter that a token meets, scales, norms in float32, and 70 tokens of context.
    parameters = describe(open_checkpoint(BUNDLED).config).parameters.active_with_lm_head
    assert parameters < bytes_of_a_token < 1.2 * parameters
    assert report["machine"]["cores"] >= 1


def test_the_table_names_the_model_and_what_was_measured() -> None:
    done = bench("--prompt", "64", "--streams", "1")
    assert done.returncode == 0, done.stderr
    assert "muse-spark-nano in int8" in done.stdout
    assert "prefill of 64 tokens" in done.stdout
    assert "memory reads" in done.stdout
    assert "streams together" not in done.stdout


def test_a_prompt_that_the_model_has_no_room_for_is_refused_in_words() -> None:
    done = bench("--prompt", "9000")
    assert done.returncode == 2
    assert "a prompt of 9,000 tokens" in done.stderr
    assert "Traceback" not in done.stderr
