"""Schemathesis against our own OpenAPI document: whatever it makes up, no 5xx, and every error has the one form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.api.world import MODEL, World

SECONDS = 8
# Not checked: that all data which fits the schema is accepted. A schema can't say that a context is full, that an image
# is damaged, or that two fields need each other.
CHECKS = ",".join(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
        "allow_header_conformance",
        "ignored_auth",
    ]
)


def test_nothing_that_schemathesis_makes_up_breaks_the_server(world: World, tmp_path: Path) -> None:
    document = world.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    schemas["ChatCompletionRequest"]["properties"]["model"] = {
        "const": MODEL
    }  # or every request ends at the model's name
    schemas["ChatCompletionRequest"]["properties"]["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 20}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(file), "--url", world.url]
    command += ["--header", f"Authorization: Bearer {world.key}", "--checks", CHECKS, "--max-time", str(SECONDS)]
    command += ["--phases", "coverage,fuzzing", "--seed", "1", "--warnings", "off", "--request-timeout", "30"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_document_describes_every_route_and_every_field(world: World) -> None:
    document = world.client.get("/openapi.json").json()
    paths = {"/v1/chat/completions", "/v1/models", "/v1/models/{model_id}", "/healthz", "/readyz", "/metrics"}
    assert set(document["paths"]) == paths
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "model", "temperature", "reasoning_effort", "stream_options"} <= set(fields)
    assert "422" not in json.dumps(document)
    assert [path for path in paths if document["paths"][path].get("get", {}).get("security") == []] == sorted(
        ["/healthz", "/readyz"], key=list(paths).index
    )
