"""The grammar of a Muse turn: reasoning, then an answer to the user or a message to each tool that is called."""

from __future__ import annotations

from musespark.chat.atem_arguments import Arguments, any_arguments
from musespark.chat.constraint import CallRule, Constraint, GrammarWriter, json_value, literal, one_of
from musespark.chat.dialect import Dialect
from musespark.chat.tokenizer import Tokenizer

MAX_THOUGHTS = 8  # pieces of reasoning; a model that knows no tools would go on for ever


def turn_grammar(constraint: Constraint, tokenizer: Tokenizer, dialect: Dialect) -> str:
    """Raises InvalidSchema for a tool's schema that can't be written as parameters."""
    writer = GrammarWriter(tokenizer)
    message = writer.control("<|message|>")
    again = writer.rule("again", writer.control("<|eom|>"), writer.control("<|start|>"), literal("assistant"))
    free = writer.rule("FREE", "/(?s:.+)/") + "?"
    to_self = literal(" to=self") + ("?" if dialect.thinks_without_recipient else "")
    thought = writer.rule("thought", to_self, message, free, again)
    options = []
    if not constraint.must_call:
        to_user = literal(" to=user") + ("" if dialect.thinks_without_recipient else "?")
        content = free if constraint.content is None else writer.rule("content", json_value(constraint.content))
        options.append(writer.rule("answer", to_user, message, content))
    if constraint.calls:
        call = writer.rule("call", one_of(*(_call(writer, i, rule) for i, rule in enumerate(constraint.calls))))
        remarks = ""
        if dialect.comments_on_calls and not constraint.must_call and constraint.content is None:
            remarks = writer.rule("remark", literal(" to=commentary"), message, free, again) + "*"
        more = f"({again} {call}){{0,{constraint.max_calls - 1}}}" if constraint.max_calls > 1 else ""
        options.append(writer.rule("calls", remarks, call, more))
    writer.rule("start", f"{thought}{{0,{MAX_THOUGHTS}}}", one_of(*options))
    return writer.text()


def _call(writer: GrammarWriter, i: int, rule: CallRule) -> str:
    opening = f'<atem:function_calls>\n<atem:invoke name="{rule.name}">\n'
    if rule.schema is None:
        parameters = [any_arguments(writer, f"p{i}")]
    else:
        parameters = Arguments(writer, f"p{i}", rule.name, rule.schema, rule.field).rules()
    return writer.rule(
        f"call_{i}",
        literal(f" to={rule.name}"),
        writer.control("<|message|>"),
        literal(opening),
        *parameters,
        literal("</atem:invoke>\n</atem:function_calls>"),
    )
