"""Chat templates that tell, while they render, which text comes from which message.

A template walks over the conversation in a loop of its own. Each loop gets a call at the beginning of its body, which
notes the message that it is at and how much has been written so far. The text stays as it is, and nothing is looked for
in it. ``{% generation %}`` is noted in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from jinja2 import Environment, Template, nodes
from jinja2.runtime import Context, LoopContext
from transformers.utils.chat_template_utils import _compile_jinja_template

__all__ = ["CompiledTemplate", "Span", "Trace"]

Span = tuple[int, int]
"""Start and end of a piece of text, in characters, the end excluded."""

_AT = "_hooktrain_at"
_GENERATED = "_hooktrain_generated"
_BUFFERED = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Block)
"""What is inside these is written to a text of its own first, so that its place is not known yet."""


@attrs.frozen
class Trace:
    """A rendered conversation.

    Attributes:
        text: all of it.
        regions: for messages that the template renders in one turn of a loop, by their number, the text of that turn.
        generated: what stands inside ``{% generation %}``.
    """

    text: str
    regions: Mapping[int, Span]
    generated: Sequence[Span]


class CompiledTemplate:
    """A chat template, compiled as it is and once more with notes; safe to use from several threads.

    Attributes:
        marks_generation: whether it has ``{% generation %}``, in places that can be known.
        reads: the variables and fields that it reads, and its strings, which may name some.
        globals: what every template knows; part of the variables of a rendering.
    """

    def __init__(self, source: str) -> None:
        environment = _quick(_compile_jinja_template(source).environment)
        self._plain = environment.from_string(source)
        tree = environment.parse(source)
        self.reads = frozenset(
            [node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"]
            + [node.attr for node in tree.find_all(nodes.Getattr)]
            + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        )
        notes = _Notes()
        tree.body = notes.add_to(tree.body)
        tree.set_environment(environment)
        self.marks_generation = notes.generation and not notes.hidden_generation
        code = environment.compile(tree)
        self._noting = environment.template_class.from_code(environment, code, environment.make_globals(None))
        self.globals = dict(self._plain.globals)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text."""
        return "".join(self._plain.root_render_func(_context(self._plain, dict(variables))))

    def trace(self, variables: Mapping[str, Any]) -> Trace:
        """The text, and where in it the messages are."""
        messages = variables["messages"]
        number_of = {id(message): number for number, message in enumerate(messages)}
        if len(number_of) < len(messages):  # an object that stands twice in the row
            return self.trace({**variables, "messages": [dict(message) for message in messages]})
        pieces: list[str] = []
        noted = _Noted(number_of, pieces)
        generated: list[tuple[int, str]] = []

        def generate(caller: Callable[[], str]) -> str:
            text = caller()
            generated.append((len(pieces), text))
            return text

        context = _context(self._noting, {**variables, _AT: noted, _GENERATED: generate})
        for piece in self._noting.root_render_func(context):
            pieces.append(piece)  # one by one, as `noted` reads the length
        text = "".join(pieces)
        spans = []
        if generated:
            starts = [0, *itertools.accumulate(map(len, pieces))]
            spans = [(starts[count], starts[count] + len(part)) for count, part in generated]
        return Trace(text, _regions(pieces, noted.notes), spans)


_OF_LOOPS = frozenset(["depth", "depth0", "first", "index", "index0", "last", "length", "revindex", "revindex0"])


def _quick(environment: Environment) -> Environment:
    """transformers' environment (its filters, its sandbox, its date) with a shorter way for what is surely allowed.

    The sandbox asks some thirty questions of each attribute, which is half the time of a rendering. The numbers that a
    loop knows of itself, and keys of a plain dictionary that are no attributes of it, need none of them.
    """
    made = environment.overlay()
    thorough = made.getattr

    def quick(obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        if kind is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        return thorough(obj, attribute)

    made.getattr = quick  # type: ignore[method-assign]
    return made


def _context(template: Template, variables: dict[str, Any]) -> Context:
    # template.new_context spends most of a rendering on copying a chain of globals
    environment = template.environment
    return environment.context_class(environment, variables, template.name, template.blocks)


class _Noted:
    """What the loops say while they run: ``[loop, message]`` at the beginning of a turn, ``[loop, None]`` at the end.

    It is indexed and not called, since the sandbox looks at each call for longer than the call takes.
    """

    def __init__(self, number_of: Mapping[int, int], pieces: Sequence[str]) -> None:
        self._number_of, self._pieces = number_of, pieces
        self.notes: list[tuple[int, int | None, int]] = []

    def __getitem__(self, at: tuple[int, Any]) -> None:
        loop, value = at
        number = self._number_of.get(id(value))
        if number is not None or value is None:
            self.notes.append((loop, number, len(self._pieces)))


def _regions(pieces: Sequence[str], notes: Sequence[tuple[int, int | None, int]]) -> dict[int, Span]:
    """From the notes (loop, message or None behind the loop, pieces so far) to the text of each message."""
    regions: dict[int, Span] = {}
    twice = set()
    open_in: dict[int, tuple[int | None, int, int]] = {}
    place = done = 0
    for loop, number, count in notes:
        if done < count:
            place += sum(map(len, pieces[done:count]))
            done = count
        message, start, first = open_in.get(loop, (None, 0, 0))
        # loops that only look at the messages write nothing, or line breaks
        if message is not None and start < place and not "".join(pieces[first:count]).isspace():
            if message in regions:
                twice.add(message)
            regions[message] = (start, place)
        open_in[loop] = (number, place, count)
    for message in twice:
        del regions[message]
    return regions


class _Notes:
    """Adds the calls to a template's statements."""

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
                node.body.insert(0, _note(loop, nodes.Name(node.target.name, "load"), node.lineno))
            yield node
            yield _note(loop, nodes.Const(None), node.lineno)
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


def _note(loop: int, value: nodes.Expr, line: int) -> nodes.Node:
    at = nodes.Tuple([nodes.Const(loop), value], "load")
    return nodes.ExprStmt(nodes.Getitem(nodes.Name(_AT, "load"), at, "load")).set_lineno(line)


def _is_generation(node: nodes.Node) -> bool:
    """Whether this is the block that transformers' extension makes of ``{% generation %}``."""
    called = node.call.node if isinstance(node, nodes.CallBlock) and isinstance(node.call, nodes.Call) else None
    return isinstance(called, nodes.ExtensionAttribute) and called.name == "_generation_support"
