"""Rules for the suite itself, found in the syntax trees of its files and of the programs that they hold as text."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["RULES", "Violation", "violations"]

LONGEST_POLL = 0.2
"""Seconds that a loop which waits for an event may sleep between two looks."""
FOREVER = 30
"""Seconds of a sleep from which on a program that is held as text only waits for being ended."""
RULES = {
    "import": "imports a name from a test file; move it to a module of helpers, or to hooktrain.testing",
    "sleep": "sleeps to let something happen; wait for the event, or count calls",
    "clock": "compares times; count calls, or give the code a clock that the test moves",
    "port": "has a fixed port; bind port 0, or meet over a file",
}

_CLOCKS = {"monotonic", "perf_counter", "process_time", "time", "thread_time"}
_CLOCKS |= {f"{name}_ns" for name in _CLOCKS}
_ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_TEST_FILE = re.compile(r"^(tests\.)?(\w+\.)*test_\w+$")
_PORTS = re.compile(r"master[-_]port[= ]['\"]?[1-9]", re.IGNORECASE)


class Violation(NamedTuple):
    """A place that breaks a rule.

    Attributes:
        rule: a key of ``RULES``.
        where: the name at the top of the module, and those within it; empty for a statement.
        line: its line.
    """

    rule: str
    where: str
    line: int


def violations(source: str) -> list[Violation]:
    """All of a file, what runs in the thorough tier only left out."""
    tree = ast.parse(source)
    visitor = _Visitor(tree, is_text=False)
    visitor.visit(tree)
    return visitor.found


class _Visitor(ast.NodeVisitor):
    def __init__(self, tree: ast.Module, *, is_text: bool, where: tuple[str, ...] = (), line: int = 0) -> None:
        self.found: list[Violation] = []
        self._is_text, self._where, self._line = is_text, where, line
        self._numbers = dict(_constants(tree))
        self._times: list[set[str]] = [set()]
        self._polls = False
        self._is_thorough = any(
            isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
            and _marks_thorough(node.value)
            for node in tree.body
        )

    def _tell(self, rule: str, node: ast.AST) -> None:
        line = self._line or getattr(node, "lineno", 0)
        self.found.append(Violation(rule, ".".join(self._where), line))

    # -------------------------------------------------------------------------------------------------- scopes

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._scope(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._scope(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._scope(node)

    def _scope(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        before = self._where, self._is_thorough, self._polls
        self._where = (*self._where, node.name)
        self._is_thorough |= any(_marks_thorough(decorator) for decorator in node.decorator_list)
        self._polls = False
        self._times.append(set(self._times[-1]))
        self.generic_visit(node)
        self._times.pop()
        self._where, self._is_thorough, self._polls = before

    def visit_While(self, node: ast.While) -> None:
        before, self._polls = self._polls, True
        self.generic_visit(node)
        self._polls = before

    # ------------------------------------------------------------------------------------------------- imports

    def visit_Import(self, node: ast.Import) -> None:
        if any(_TEST_FILE.match(alias.name) and "." in alias.name for alias in node.names):
            self._tell("import", node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        names = [f"{module}.{alias.name}" for alias in node.names]
        is_ours = module.split(".")[0] == "tests" or node.level > 0
        if is_ours and (_TEST_FILE.match(module) or any(_TEST_FILE.match(name) for name in names)):
            self._tell("import", node)

    # -------------------------------------------------------------------------------------------------- sleeps

    def visit_Call(self, node: ast.Call) -> None:
        if not self._is_thorough:
            if _is_time(node, {"sleep"}) and node.args and not self._may_sleep(node.args[0]):
                self._tell("sleep", node)
            if _binds_a_port(node):
                self._tell("port", node)
        self.generic_visit(node)

    def _may_sleep(self, given: ast.expr) -> bool:
        seconds = self._numbers.get(given.id) if isinstance(given, ast.Name) else _number(given)
        if seconds is not None and self._is_text and seconds >= FOREVER:
            return True
        return self._polls and seconds is not None and seconds < LONGEST_POLL

    # -------------------------------------------------------------------------------------------------- clocks

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._tells_time(node.value):
            for target in node.targets:
                self._times[-1] |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}
        before, name = self._where, node.targets[0]
        if not before and isinstance(name, ast.Name):  # a program as text is told by its name
            self._where = (name.id,)
        self.generic_visit(node)
        self._where = before

    def visit_Assert(self, node: ast.Assert) -> None:
        if not self._is_thorough and not self._polls:  # there it is the end of the waiting
            compared = [each for each in ast.walk(node.test) if isinstance(each, ast.Compare)]
            ordered = [each for each in compared if any(isinstance(sign, _ORDERS) for sign in each.ops)]
            if any(self._tells_time(part) for each in ordered for part in (each.left, *each.comparators)):
                self._tell("clock", node)
        self.generic_visit(node)

    def _tells_time(self, node: ast.AST) -> bool:
        for each in ast.walk(node):
            if isinstance(each, ast.Call) and _is_time(each, _CLOCKS):
                return True
            if isinstance(each, ast.Name) and each.id in self._times[-1]:
                return True
            if isinstance(each, ast.Attribute) and each.attr == "seconds":  # of hooktrain.testing.Run
                return True
        return False

    # --------------------------------------------------------------------------------------- ports, programs as text

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "MASTER_PORT" and _is_fixed(value):
                self._tell("port", node)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str) or self._is_thorough:
            return
        if _PORTS.search(node.value):
            self._tell("port", node)
        program = None if self._is_text else _program(node.value)
        if program is not None:
            visitor = _Visitor(program, is_text=True, where=self._where, line=node.lineno)
            visitor.visit(program)
            self.found += visitor.found


def _program(text: str) -> ast.Module | None:
    """The syntax tree of a text that is a program."""
    if "import " not in text and "sleep(" not in text:
        return None
    try:
        return ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError):
        return None


def _marks_thorough(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and _is_parametrize(node):
        return False  # marks of single parameters
    return any(isinstance(each, ast.Attribute) and each.attr == "thorough" for each in ast.walk(node))


def _is_parametrize(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr == "parametrize"


def _is_time(node: ast.Call, names: set[str]) -> bool:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr in names and isinstance(function.value, ast.Name) and function.value.id == "time"
    return isinstance(function, ast.Name) and function.id in names - {"time"}


def _constants(tree: ast.Module) -> Iterator[tuple[str, float]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and (number := _number(node.value)) is not None:
            yield from ((target.id, number) for target in node.targets if isinstance(target, ast.Name))


def _number(node: ast.AST) -> float | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    return None


def _is_fixed(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and str(node.value) not in ("", "0", "None")


def _binds_a_port(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in ("bind", "connect") and node.args and isinstance(node.args[0], ast.Tuple):
        return len(node.args[0].elts) > 1 and _is_fixed(node.args[0].elts[1])
    if name == "setenv" and len(node.args) > 1:
        return (
            isinstance(node.args[0], ast.Constant) and node.args[0].value == "MASTER_PORT" and _is_fixed(node.args[1])
        )
    return any(word.arg in ("port", "master_port") and _is_fixed(word.value) for word in node.keywords)
