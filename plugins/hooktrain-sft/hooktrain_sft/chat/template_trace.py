"""Chat templates that record, while they render, which text comes from which message.

A template iterates over the conversation in a loop of its own. Each loop gets a statement at the beginning of its body,
which records the current message and the length of the text so far. The text stays unchanged and is not searched.
``{% generation %}`` is recorded in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from jinja2 import Template, meta, nodes
from jinja2.runtime import Context

from hooktrain_sft.compat import GENERATION_BLOCK, chat_template_environment

__all__ = ["CompiledTemplate", "Span", "Trace"]

Span = tuple[int, int]
"""Start and end of a piece of text, in characters, the end excluded."""

_AT = "_hooktrain_at"
_GENERATED = "_hooktrain_generated"
_BUFFERED = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Block)
"""Nodes whose content is written to a text of its own first, so that its place is not known yet."""


@attrs.frozen
class Trace:
    """A rendered conversation.

    Attributes:
        text: all of it.
        regions: spans of messages by their number, of those that the template renders in one pass of a loop.
        generated: spans of the text inside ``{% generation %}``.
    """

    text: str
    regions: Mapping[int, Span]
    generated: Sequence[Span]


class CompiledTemplate:
    """A chat template, compiled unchanged and with recording statements; safe to use from several threads.

    Attributes:
        marks_generation: whether it has ``{% generation %}``, in places that can be recorded.
        reads: the variables and fields that it reads, and its strings, which may name some.
        variables: names that it takes from the variables that it is given.
        globals: variables that every template has; to be passed to a rendering with the others.
    """

    def __init__(self, source: str) -> None:
        environment = chat_template_environment(source)
        self._plain = environment.from_string(source)
        tree = environment.parse(source)
        self.reads = frozenset(
            [node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"]
            + [node.attr for node in tree.find_all(nodes.Getattr)]
            + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        )
        self.variables = frozenset(meta.find_undeclared_variables(tree)) - set(self._plain.globals)
        instrumentation = _Instrumentation()
        tree.body = instrumentation.add_to(tree.body)
        tree.set_environment(environment)
        self.marks_generation = instrumentation.generation and not instrumentation.hidden_generation
        code = environment.compile(tree)
        self._recording = environment.template_class.from_code(environment, code, environment.make_globals(None))
        self.globals = dict(self._plain.globals)

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text."""
        return "".join(self._plain.root_render_func(_context(self._plain, dict(variables))))

    def trace(self, variables: Mapping[str, Any]) -> Trace:
        """Return the text with the spans of the messages in it."""
        messages = variables["messages"]
        number_of = {id(message): number for number, message in enumerate(messages)}
        if len(number_of) < len(messages):  # an object that is in the example twice
            return self.trace({**variables, "messages": [dict(message) for message in messages]})
        pieces: list[str] = []
        recorder = _Recorder(number_of, pieces)
        generated: list[tuple[int, str]] = []

        def generate(caller: Callable[[], str]) -> str:
            text = caller()
            generated.append((len(pieces), text))
            return text

        context = _context(self._recording, {**variables, _AT: recorder, _GENERATED: generate})
        for piece in self._recording.root_render_func(context):
            pieces.append(piece)  # one by one, as the recorder reads the length
        text = "".join(pieces)
        spans = []
        if generated:
            starts = [0, *itertools.accumulate(map(len, pieces))]
            spans = [(starts[count], starts[count] + len(part)) for count, part in generated]
        return Trace(text, _regions(pieces, recorder.records), spans)


def _context(template: Template, variables: dict[str, Any]) -> Context:
    # template.new_context spends most of a rendering on copying a chain of globals
    environment = template.environment
    return environment.context_class(environment, variables, template.name, template.blocks)


class _Recorder:
    """Records of the loops: ``recorder[loop, message]`` at the beginning of a pass, ``recorder[loop, None]`` after it.

    It is indexed and not called, because the sandbox's check of a call takes longer than the call.
    """

    def __init__(self, number_of: Mapping[int, int], pieces: Sequence[str]) -> None:
        self._number_of, self._pieces = number_of, pieces
        self.records: list[tuple[int, int | None, int]] = []

    def __getitem__(self, at: tuple[int, Any]) -> None:
        loop, value = at
        number = self._number_of.get(id(value))
        if number is not None or value is None:
            self.records.append((loop, number, len(self._pieces)))


def _regions(pieces: Sequence[str], records: Sequence[tuple[int, int | None, int]]) -> dict[int, Span]:
    """Return the span of each message from the records (loop, message or None after the loop, pieces so far)."""
    regions: dict[int, Span] = {}
    twice = set()
    open_in: dict[int, tuple[int | None, int, int]] = {}
    place = done = 0
    for loop, number, count in records:
        if done < count:
            place += sum(map(len, pieces[done:count]))
            done = count
        message, start, first = open_in.get(loop, (None, 0, 0))
        # loops that only read the messages write nothing, or line breaks
        if message is not None and start < place and not "".join(pieces[first:count]).isspace():
            if message in regions:
                twice.add(message)
            regions[message] = (start, place)
        open_in[loop] = (number, place, count)
    for message in twice:
        del regions[message]
    return regions


class _Instrumentation:
    """Adds the recording statements to a template."""

    def __init__(self) -> None:
        self.generation = self.hidden_generation = False
        self._loops = itertools.count()

    def add_to(self, statements: list[nodes.Node]) -> list[nodes.Node]:
        return list(itertools.chain.from_iterable(self._add(node) for node in statements))

    def _add(self, node: nodes.Node) -> Iterator[nodes.Node]:
        if isinstance(node, nodes.For) and not node.recursive:
            loop = next(self._loops)
            node.body, node.else_ = self.add_to(node.body), self.add_to(node.else_)
            if isinstance(node.target, nodes.Name):
                node.body.insert(0, _record(loop, nodes.Name(node.target.name, "load"), node.lineno))
            yield node
            yield _record(loop, nodes.Const(None), node.lineno)
            return
        if isinstance(node, nodes.If):
            node.body, node.else_ = self.add_to(node.body), self.add_to(node.else_)
            for other in node.elif_:
                list(self._add(other))
        elif isinstance(node, nodes.With):
            node.body = self.add_to(node.body)
        elif isinstance(node, nodes.CallBlock) and _is_generation(node):
            self.generation = True
            node.call = nodes.Call(nodes.Name(_GENERATED, "load"), [], [], None, None)
            node.call.set_lineno(node.lineno)
        elif isinstance(node, (*_BUFFERED, nodes.For)):
            self.hidden_generation |= any(_is_generation(inner) for inner in node.find_all(nodes.CallBlock))
        yield node


def _record(loop: int, value: nodes.Expr, line: int) -> nodes.Node:
    at = nodes.Tuple([nodes.Const(loop), value], "load")
    return nodes.ExprStmt(nodes.Getitem(nodes.Name(_AT, "load"), at, "load")).set_lineno(line)


def _is_generation(node: nodes.Node) -> bool:
    """Return whether this is the block that transformers' extension makes of ``{% generation %}``."""
    called = node.call.node if isinstance(node, nodes.CallBlock) and isinstance(node.call, nodes.Call) else None
    return isinstance(called, nodes.ExtensionAttribute) and called.name == GENERATION_BLOCK
