"""Strict construction of config classes: frozen attrs classes filled by cattrs from plain mappings.

All complaints of a recipe are collected; none stops the search for the next.
"""

from __future__ import annotations

import collections.abc
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union, cast, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, IterableValidationError

from hooktrain.errors import Complaint, did_you_mean
from hooktrain.renamed import new_name

__all__ = [
    "AUTO",
    "NUMBER",
    "BatchSize",
    "Bytes",
    "CheckpointConfig",
    "Seconds",
    "above",
    "at_least",
    "between",
    "field",
    "local_path",
    "one_of",
    "part",
    "structure",
    "unstructure",
    "working_folder",
]

T = TypeVar("T")
Seconds = NewType("Seconds", float)
"""A time in seconds, which a recipe may write as ``90s``, ``30m``, ``2h`` or ``1d``."""
Bytes = NewType("Bytes", int)
"""A size in bytes, which a recipe may write as ``512MiB`` or ``12GiB``, or in powers of 1000 as ``12GB``."""
BatchSize = NewType("BatchSize", int)
"""A number of sequences, for which a recipe may write ``auto``."""
AUTO = BatchSize(0)
"""What ``auto`` is read as."""
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""Numbers as text; YAML 1.1 reads 1e-4, which has no point, so."""
_UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}
_TIMES = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kKMGT]i?)?B?\s*")
_MISSING: Any = object()
_ENTRY = "this entry"
"""What errors call a config inside another one, before its path is known."""
_ABSENT = "missing, and there is no default; add it"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")
"""The beginning of a URL, also once ``pathlib`` has made ``s3:/bucket`` of ``s3://bucket``."""
_LONGEST_NAME = 255
"""Bytes of a file's name, as most file systems have them."""


def field(
    *,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    validator: Any = None,
    aliases: Sequence[str] = (),
    inherit: str | None = None,
    affects_training: bool | None = None,
    **unknown: Any,
) -> Any:
    """A field of a config class: ``attrs.field`` with additions.

    Args:
        default: value when the recipe is silent; without one the key is required.
        factory: makes the default.
        validator: an attrs validator; it must touch no file, network or device.
        aliases: other keys that the recipe may use for this field.
        inherit: path in the recipe, such as ``model.name_or_path``, whose value is taken when this key is not given. Of
            several keys that inherit from one part, the later ones do so only where the first has that part's value.
        affects_training: False where a run may resume from a checkpoint with another value, as the training stays the
            same. When omitted, it is what the part says that the config belongs to, and True for the recipe.
    """
    _refuse("field", unknown)
    metadata = {"aliases": tuple(aliases), "inherit": inherit, "affects_training": affects_training}
    if factory is not None:
        return attrs.field(factory=factory, validator=validator, metadata=metadata)
    return attrs.field(default=default, validator=validator, metadata=metadata)


def part(
    kind: str, *, many: bool = False, default: Any = _MISSING, affects_training: bool | None = None, **unknown: Any
) -> Any:
    """A field that holds a named part of ``kind``, or a tuple of them: its ``type`` selects the config class.

    When omitted, a single part is the trainer type's default for the kind, and a tuple is empty. ``affects_training``
    is that of :func:`field`.
    """
    _refuse("part", unknown)
    metadata = {"aliases": (), "inherit": None, "kind": kind, "many": many, "affects_training": affects_training}
    if default is _MISSING:
        default = () if many else attrs.NOTHING
    return attrs.field(default=default, metadata=metadata)


def _refuse(function: str, unknown: Mapping[str, Any]) -> None:
    for name, value in unknown.items():
        given = f"{function}({name}={value})"
        raise TypeError(f"{function}() got an unexpected keyword argument '{name}'{new_name('argument', given)}")


def at_least(least: float) -> Callable[[Any, Any, Any], None]:
    """A validator: the value, if there is one, is a number not below ``least``."""

    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and value < least:
            raise ValueError(f"given {value}, expected at least {least}")

    return _described(validate, {"minimum": least})


def between(least: float, most: float) -> Callable[[Any, Any, Any], None]:
    """A validator: the value, if there is one, lies between ``least`` and ``most``, both included."""

    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and not least <= value <= most:
            raise ValueError(f"given {value}, expected a number from {least} to {most}")

    return _described(validate, {"minimum": least, "maximum": most})


def above(least: float) -> Callable[[Any, Any, Any], None]:
    """A validator: the value, if there is one, is a number above ``least``."""

    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and value <= least:
            raise ValueError(f"given {value}, expected more than {least}")

    return _described(validate, {"exclusiveMinimum": least})


def one_of(*choices: str) -> Callable[[Any, Any, Any], None]:
    """A validator: the value is one of ``choices``."""

    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if value not in choices:
            raise ValueError(
                f"given '{value}', expected one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
            )

    return _described(validate, {"enum": list(choices)})


def _described(validate: Callable[[Any, Any, Any], None], schema: Mapping[str, Any]) -> Callable[[Any, Any, Any], None]:
    """A validator that says in JSON Schema what it demands, for `hooktrain schema`."""
    validate.schema = schema  # type: ignore[attr-defined]
    return validate


@attrs.frozen(kw_only=True)
class CheckpointConfig:
    """When a checkpoint engine saves, and where; config classes of the kind ``checkpoint`` have these fields too."""

    output_dir: Path | None = field(default=None)
    """Folder for the checkpoints; ``checkpoints`` in the run directory when omitted."""
    enabled: bool = field(default=True)
    """Whether this engine saves at all."""
    overwrite: bool = field(default=False)
    """Whether to begin in an ``output_dir`` with results of another run: exports are replaced, and ``full`` checkpoints
    kept."""
    auto_resume: bool = field(default=False)
    """Whether a run resumes from the newest checkpoint in ``output_dir``, when there is one."""
    save_every_n_steps: int = field(default=0, validator=at_least(0))
    """Save every so many optimizer steps; 0 never."""
    save_every_n_epochs: int | float = field(default=0, validator=at_least(0))
    """Save at the end of every so many epochs, or of a fraction such as ``0.5``; 0 never."""
    save_end_of_training: bool = field(default=False)
    """Whether to save when the run ends."""
    save_best: str = field(default="")
    """Save after each evaluation that gives the best value so far of this metric, such as ``eval/held_out/loss``; an
    export is then in ``best`` in its ``output_dir``."""
    save_best_mode: str = field(default="min", validator=one_of("min", "max"))
    """Whether the lowest or the highest value is the best."""


# ----------------------------------------------------------------------------------------- values, strictly


def _describe(value: Any) -> str:
    """Return a value as a recipe shows it, with its YAML type."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    kind = "nothing" if value is None else "a mapping" if isinstance(value, Mapping) else names.get(type(value), "")
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind or type(value).__name__})"


def _read(value: Any, units: Mapping[str, float]) -> Any:
    """Return the number that a text is, with one of the units or without; other values as they are."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    unit = text[-1:] if text[-1:] in units else ""
    if not NUMBER.fullmatch(text.removesuffix(unit).rstrip()):
        return value
    number = float(text.removesuffix(unit))
    return number / 100 if unit == "%" else number * units.get(unit, 1.0)


def _number(value: Any, _: Any, units: Mapping[str, float] = {**_UNITS, "%": 0.01}, expected: str = "") -> float:
    found = _read(value, units)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise ValueError(f"given {_describe(value)}, expected {expected or 'a number'}")
    if not math.isfinite(found):
        raise ValueError(f"given {value}, expected a finite number")
    return float(found)


def _seconds(value: Any, _: Any) -> float:
    return _number(value, None, _TIMES, "seconds, or a time such as 90s, 30m, 2h or 1d")


def _bytes(value: Any, _: Any) -> int:
    if isinstance(value, str) and (found := _SIZE.fullmatch(value)):
        unit = found[2] or ""
        power = " KMGT".index(unit[:1].upper() or " ")
        return int(float(found[1]) * (1024 if unit.endswith("i") else 1000) ** power)
    try:
        return _whole(value, None)
    except ValueError:
        raise ValueError(f"given {_describe(value)}, expected bytes, or a size such as 512MiB or 12GiB") from None


def _batch_size(value: Any, _: Any) -> int:
    if value == "auto":
        return AUTO
    try:
        found = _whole(value, None)
    except ValueError:
        raise ValueError(f"given {_describe(value)}, expected a whole number, or auto") from None
    if found < 1:
        raise ValueError(f"given {found}, expected at least 1, or auto")
    return found


def _whole(value: Any, _: Any) -> int:
    found = _read(value, _UNITS)
    if isinstance(value, str) and isinstance(found, float) and found.is_integer():  # 1k, 2.5M
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        raise ValueError(f"given {_describe(value)}, expected a whole number")
    return found


def _flag(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"given {_describe(value)}, expected true or false")
    return value


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"given {_describe(value)}, expected text; put it in quotes if that is what you mean")
    return value


def _path(value: Any, _: Any) -> Path:
    return local_path(_text(value, None))


def local_path(given: Path | str) -> Path:
    """Return a path on this machine, with ``~`` expanded.

    Raises:
        ValueError: it is a URL, of which ``pathlib`` would make a local folder ``s3:``; or no path can be like it.
    """
    if _URL.match(str(given)):
        raise ValueError(
            f"given '{given}', a URL, expected a path on this machine; mount that place and give the path, or copy the"
            " files there afterwards"
        )
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise ValueError(f"given '{given}', whose user is not known here; write the path without '~'") from None
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in path.parts):
        raise ValueError(f"given '{str(given)[:60]}...', expected names of at most {_LONGEST_NAME} bytes in a path")
    return path


def working_folder() -> Path:
    """Return the working directory, or a relative path where it has been deleted."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


def _optional(value: Any, target: Any) -> Any:
    """Unions: null, then the first member that takes the value."""
    members = [member for member in get_args(target) if member is not type(None)]
    if value is None and len(members) < len(get_args(target)):
        return None
    problems = []
    for member in members:
        try:
            return _converter.structure(value, member)
        except Exception as problem:
            problems.append(problem)
    if len(problems) == 1:
        raise problems[0]
    expected = " or ".join(str(problem).rpartition("expected ")[2] for problem in problems)
    raise ValueError(f"given {_describe(value)}, expected {expected}")


def _literal(value: Any, target: Any) -> Any:
    choices = get_args(target)
    if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
        listed = ", ".join(str(choice) for choice in choices)
        raise ValueError(
            f"given {_describe(value)}, expected one of {listed}{did_you_mean(str(value), map(str, choices))}"
        )
    return value


def _sequence(value: Any, target: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"given {_describe(value)}, expected a list")
    members = get_args(target)
    if get_origin(target) is tuple and members and members[-1] is not Ellipsis:
        if len(value) != len(members):
            raise ValueError(f"given {len(value)} values, expected {len(members)}")
        return tuple(_converter.structure(item, member) for item, member in zip(value, members, strict=True))
    made = _items(value, members[0]) if members else list(value)
    return tuple(made) if get_origin(target) is tuple or target is tuple else made


def _items(values: Sequence[Any], target: Any) -> list[Any]:
    made, wrong = [], {}
    for index, value in enumerate(values):
        try:
            given = _mapping(value, dict) if attrs.has(target) else value  # cattrs would take any object for one
            made.append(_converter.structure(given, target))
        except Exception as problem:
            wrong[index] = problem
    if wrong:
        raise _ItemsError(wrong)
    return made


class _ItemsError(ValueError):
    """Errors in the items of a list."""

    def __init__(self, problems: Mapping[int, Exception]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"[{index}]: {problem}" for index, problem in problems.items()))


def _mapping(value: Any, target: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"given {_describe(value)}, expected a mapping")
    members = get_args(target)
    if not members:
        return dict(value)
    return {_converter.structure(k, members[0]): _converter.structure(v, members[1]) for k, v in value.items()}


def _config(value: Any, target: Any) -> Any:
    """Config classes inside others."""
    if isinstance(value, target):
        return value
    complaints: list[Complaint] = []
    made = structure(target, _mapping(value, dict), _ENTRY, complaints)
    if complaints:
        raise _NestedError(complaints)
    return made


class _NestedError(ValueError):
    """Errors in a config inside another one."""

    def __init__(self, complaints: list[Complaint]) -> None:
        self.complaints = complaints
        super().__init__("; ".join(complaint.message for complaint in complaints))


def _is_union(target: Any) -> bool:
    return get_origin(target) in (Union, types.UnionType)


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(float, _number)
_converter.register_structure_hook(int, _whole)
_converter.register_structure_hook(bool, _flag)
_converter.register_structure_hook(str, _text)
_converter.register_structure_hook(Path, _path)
_converter.register_structure_hook_func(lambda t: cast(Any, get_origin(t)) is Literal, _literal)
_converter.register_structure_hook_func(_is_union, _optional)
_converter.register_structure_hook_func(
    lambda t: t in (list, tuple) or cast(Any, get_origin(t)) in (list, tuple, collections.abc.Sequence), _sequence
)
_converter.register_structure_hook_func(
    lambda t: t is dict or cast(Any, get_origin(t)) in (dict, collections.abc.Mapping), _mapping
)
_converter.register_structure_hook_func(lambda t: t is Any, lambda value, _: value)
_converter.register_structure_hook_func(attrs.has, _config)
_converter.register_structure_hook_func(lambda t: t is Seconds, _seconds)
_converter.register_structure_hook_func(lambda t: t is Bytes, _bytes)
_converter.register_structure_hook_func(lambda t: t is BatchSize, _batch_size)
_converter.register_unstructure_hook(Path, str)


class Built:
    """Stands for a part that has been structured already, so that cattrs hands it through."""

    def __init__(self, value: Any) -> None:
        self.value = value


def structure(
    cls: type[T],
    given: Mapping[str, Any],
    where: str,
    complaints: list[Complaint],
    whose: str = "",
    elsewhere: Callable[[str], str] = lambda key: "",
) -> T | None:
    """Make an instance of ``cls`` from a mapping of the recipe.

    Args:
        cls: a frozen attrs class.
        given: its keys and values; values wrapped in :class:`Built` are taken as they are.
        where: path of ``given`` in the recipe, for complaints.
        complaints: what is wrong is appended here.
        whose: who offers ``cls``, for complaints about unknown keys.
        elsewhere: returns what to append to one about a key that other sections have.

    Returns:
        The instance, or None when there was something to complain about.
    """
    attrs.resolve_types(cls)  # type: ignore[type-var]
    before = len(complaints)
    fields = {attribute.name: attribute for attribute in attrs.fields(cls)}  # type: ignore[arg-type]
    keys = {name: name for name in fields if fields[name].init}
    for name, attribute in fields.items():
        keys.update(dict.fromkeys(attribute.metadata.get("aliases", ()), name))
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for key, value in given.items():
        path = _join(where, str(key))
        if key not in keys:
            meant = new_name("recipe key", path) or did_you_mean(str(key), keys) or elsewhere(str(key))
            takes = expected_keys(where or "a recipe", [n for n in fields if fields[n].init], bool(meant), whose)
            complaints.append(Complaint(path, f"unknown key{meant}{takes}"))
            continue
        name = keys[key]
        if name in values:
            complaints.append(Complaint(path, f"given together with '{spelled[name]}', which means the same; keep one"))
            continue
        spelled[name] = str(key)
        if isinstance(value, Built):
            values[name] = value.value
            continue
        try:
            values[name] = _converter.structure(value, fields[name].type)
        except Exception as problem:
            complaints.extend(_complaints(problem, path))
    for name, attribute in fields.items():
        if attribute.init and attribute.default is attrs.NOTHING and name not in spelled:
            complaints.append(Complaint(_join(where, name), _ABSENT))
    for name, value in values.items():
        complaints.extend(_refusals(fields[name], value, _join(where, spelled[name])))
    if len(complaints) > before:
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError) as problem:  # a validator that looks at several fields
        complaints.append(Complaint(where, str(problem.args[0] if problem.args else problem)))
        return None


def expected_keys(where: str, keys: Iterable[str], is_known: bool, whose: str = "") -> str:
    """Return the end of an error about an unknown key: the keys, where they are few, or where to read them.

    Args:
        where: the section.
        keys: that it takes.
        is_known: whether the error names the key that was meant.
        whose: who registers the section.
    """
    names = sorted(keys)
    if len(names) <= _FEW or (len(names) <= 2 * _FEW and not is_known):
        return f"; {where} takes {', '.join(names)}{whose}"
    return (
        ""
        if is_known
        else f"; {where} takes {len(names)} keys{whose}, see `hooktrain guide configuration` or `hooktrain schema`"
    )


_FEW = 12
"""Keys that an error lists; the double where it cannot name the one that was meant."""


def _refusals(attribute: Any, value: Any, where: str) -> Iterator[Complaint]:
    """Yield the errors of the fields' validators; attrs itself would stop at the first."""
    if attribute.validator is None:
        return
    try:
        attribute.validator(None, attribute, value)
    except (ValueError, TypeError) as problem:
        yield Complaint(where, str(problem.args[0] if problem.args else problem))
    except AttributeError:
        return  # it looks at the whole instance, and is asked when there is one


def _complaints(problem: Exception, path: str) -> Iterator[Complaint]:
    """Flatten cattrs' exception groups, and those of lists, into complaints."""
    if isinstance(problem, (ClassValidationError, IterableValidationError)):
        for inner in problem.exceptions:
            yield from _complaints(inner, path)
    elif isinstance(problem, _ItemsError):
        for index, inner in problem.problems.items():
            yield from _complaints(inner, f"{path}[{index}]")
    elif isinstance(problem, _NestedError):
        for each in problem.complaints:
            yield each._replace(where=path + each.where.removeprefix(_ENTRY))
    else:
        yield Complaint(path, str(problem.args[0] if problem.args else problem))


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def unstructure(config: Any, names: Mapping[type, str] | None = None) -> Any:
    """A config as plain mappings, lists, numbers and text, ready for YAML or JSON.

    Args:
        config: a config, or any value found in one.
        names: the ``type`` under which each config class was registered.
    """
    if attrs.has(type(config)):
        made = {} if names is None or type(config) not in names else {"type": names[type(config)]}
        made.update({item.name: unstructure(getattr(config, item.name), names) for item in attrs.fields(type(config))})
        return made
    if isinstance(config, Mapping):
        return {str(key): unstructure(value, names) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [unstructure(value, names) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config
