"""The grammar of a Llama 4 turn: an answer, or calls as JSON objects, bare or between the marks for calls.

An answer is told from a call by its beginning, so free text may not begin with a bracket where calls are constrained.
"""

from __future__ import annotations

from musespark.chat.constraint import Constraint, GrammarWriter, json_value, literal, one_of
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import InvalidRequest


def turn_grammar(constraint: Constraint, tokenizer: Tokenizer) -> str:
    """Raises InvalidRequest for a schema of the answer beside calls: both are JSON, and can't be told apart."""
    if constraint.calls and constraint.content is not None:
        raise InvalidRequest(
            "this model's calls are JSON, and so would be its answer; send tools or response_format, not both",
            param="response_format",
        )
    writer = GrammarWriter(tokenizer)
    options = []
    if constraint.calls:
        options.append(_calls(writer, constraint))
    if not constraint.must_call:
        if constraint.content is not None:
            options.append(writer.rule("answer", json_value(constraint.content)))
        elif constraint.calls:
            options.append(writer.rule("answer", r"/\s*([^\s\[{](?s:.*))?/"))
        else:
            options.append(writer.rule("answer", "/(?s:.*)/"))
    writer.rule("start", one_of(*options))
    return writer.text()


def _calls(writer: GrammarWriter, constraint: Constraint) -> str:
    names = []
    for i, rule in enumerate(constraint.calls):
        schema = {"type": "object"} if rule.schema is None else rule.schema
        value = writer.rule(f"arguments_{i}", json_value(schema))
        names.append(writer.rule(f"call_{i}", literal(f'{{"name": "{rule.name}", "parameters": '), value, literal("}")))
    one = writer.rule("call", one_of(*names))
    calls = writer.rule("calls", f"{one}{{1,{constraint.max_calls}}}")
    return f"{calls} | {writer.control('<|python_start|>')} {calls} {writer.control('<|python_end|>')}"
