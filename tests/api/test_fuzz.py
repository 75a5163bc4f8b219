"""Schemathesis against our own OpenAPI document: whatever it makes up, no 5xx, and every error has the one form."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from musespark.api.access import PUBLIC, RULES
from tests.api.world import MODEL, World, running_world

SECONDS = 5
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
    document["paths"] = {path: item for path, item in document["paths"].items() if "/admin/" not in path}
    fuzz(document, world, world.key, tmp_path)


def test_nothing_that_schemathesis_makes_up_breaks_the_administration(tmp_path: Path) -> None:
    """A server of its own, for what an operator makes here stays."""
    with running_world(tmp_path / "state") as world:
        document = world.client.get("/openapi.json").json()
        document["paths"] = {path: item for path, item in document["paths"].items() if "/admin/" in path}
        fuzz(document, world, world.accounts.create_key("root", access="operator").secret, tmp_path)


def fuzz(document: dict[str, Any], world: World, key: str, tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(file), "--url", world.url]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", CHECKS, "--max-time", str(SECONDS)]
    command += ["--phases", "coverage,fuzzing", "--seed", "1", "--warnings", "off", "--request-timeout", "30"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_document_describes_every_route_and_every_field(world: World) -> None:
    document = world.client.get("/openapi.json").json()
    described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert described == {(rule.method, rule.path) for rule in RULES} - {("GET", "/openapi.json")}
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "model", "temperature", "reasoning_effort", "stream_options"} <= set(fields)
    assert "422" not in json.dumps(document)
    public = {
        path for path, operations in document["paths"].items() for o in operations.values() if o.get("security") == []
    }
    assert public == PUBLIC
    named = set(document["components"]["schemas"])
    assert set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))) <= named
