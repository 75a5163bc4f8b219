"""The process that runs a checkpoint's chat template: one JSON line in, one out. Started by `template_sandbox`.

A template is a program by a stranger. Jinja's sandbox keeps it from Python's insides and from changing what it is
given; what that does not bound, time and memory, is bounded by being a process of its own: it limits its own memory,
and the parent ends it when it takes too long. The functions are those that transformers gives to templates. Imports
nothing of this package, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 60  # for one rendering; the parent is stricter, but may have been killed itself


class Refused(Exception):
    """The template called raise_exception."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks for training what the assistant said; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Without names that lead into Python's insides."""

    def __init__(*args: Any, **values: Any) -> None:
        _refuse_private(dict(*args[1:], **values))
        jinja2.utils.Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private({name: value})
        super().__setitem__(name, value)


def _refuse_private(values: dict[str, Any]) -> None:
    if any(str(name).startswith("_") for name in values):
        raise jinja2.sandbox.SecurityError("names that start with _ are not for templates")


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals.pop("lipsum")
    made.globals["namespace"] = _Namespace
    made.globals["raise_exception"] = _raise_exception
    return made


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Python's separators, keys in their order, and no HTML escapes: what the models were trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object = "") -> None:
    raise Refused(str(message))


def render(template: jinja2.Template, request: dict[str, Any]) -> dict[str, str]:
    """`request` holds `variables`, `now` (ISO 8601), `max_characters`; the answer `text`, or what went wrong."""
    now = datetime.datetime.fromisoformat(request["now"])
    parts: list[str] = []
    length = 0
    try:
        for part in template.generate(**request["variables"], strftime_now=now.strftime):
            length += len(part)
            if length > request["max_characters"]:
                return {"limit": f"it writes more than {request['max_characters']:,} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except Refused as error:
        return {"refused": str(error)[:1000]}
    except MemoryError:
        return {"limit": "it takes too much memory"}
    except Exception as error:  # whatever a stranger's program runs into
        return {"failed": f"{type(error).__name__}: {error}"[:1000]}


def main() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_time()
    try:
        template = environment().from_string(json.loads(sys.stdin.readline()))
    except Exception as error:
        _answer({"failed": f"{type(error).__name__}: {error}"[:1000]})
        return
    _answer({"ready": ""})
    for line in sys.stdin:
        _limit_time()
        _answer(render(template, json.loads(line)))


def _limit_time() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_SECONDS, resource.RLIM_INFINITY))


def _answer(answer: dict[str, str]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
