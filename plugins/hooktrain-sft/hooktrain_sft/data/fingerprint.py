"""What prepared rows depend on, as one text: everything that matters, and nothing that does not."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib
import inspect
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

from hooktrain import World, unstructure
from hooktrain_sft.config import TokenDataConfig

__all__ = ["row_fingerprint", "tokenizer_fingerprint"]

_LATER = {  # settings of what happens to rows after they were tokenized, or of how
    *("sources", "eval_sources", "train_eval_split", "max_length", "pack_samples", "overflow", "on_empty", "seed"),
    *("shuffle", "group_by_length", "workers", "num_proc", "use_data_cache", "cache_dir", "stream_buffer"),
}
_LATER_OF_SOURCE = {"name", "weight", "streaming", "built_as"}
_HOOKS = ("load_source", "render_example", "register_formats")
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "datasets")


class _Unknown(Exception):
    """Something that the rows depend on cannot be told apart from another state of it."""


def row_fingerprint(
    source: Any, config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any
) -> tuple[str | None, str]:
    """A text for the tokenized rows of a source, and if there can be none, why.

    Returns:
        The fingerprint, or None with the reason.
    """
    holds = hooks.fingerprint_source(config=source, world=world)
    if holds is None:
        return None, f"no plugin says what a {type(source).__name__} holds (hook fingerprint_source)"
    try:
        parts = {
            "source": _without(source, _LATER_OF_SOURCE),
            "holds": holds,
            "settings": [type(config).__name__, _without(config, _LATER)],
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "code": [_code(found.plugin) for name in _HOOKS for found in _implementations(hooks, name)],
            "libraries": [_version(name) for name in _LIBRARIES],
        }
    except _Unknown as problem:
        return None, str(problem)
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest(), ""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A text that is equal for tokenizers that give the same ids for the same rows, chat template included."""
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    parts = [
        f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        template,
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        # a template that writes the date gives other text tomorrow
        str(datetime.date.today()) if "strftime_now" in template else "",
        tokenizer.backend_tokenizer.to_str() if getattr(tokenizer, "is_fast", False) else repr(tokenizer),
    ]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _without(config: Any, names: set[str]) -> Any:
    plain = unstructure(config)
    if isinstance(plain, dict):
        return {key: value for key, value in plain.items() if key not in names}
    return plain if isinstance(plain, str) else repr(plain)


def _implementations(hooks: Any, name: str) -> list[Any]:
    caller = getattr(hooks, name, None)
    return [] if caller is None else list(caller.get_hookimpls())


def _code(plugin: Any) -> list[str]:
    """What a plugin does, as far as that can be read: the source of its package, and its state.

    Raises:
        _Unknown: where it cannot.
    """
    owner = plugin if inspect.ismodule(plugin) or inspect.isclass(plugin) else type(plugin)
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    plain = ""
    if owner is not plugin and _takes_arguments(owner):  # else what it holds follows from its code
        try:
            state = attrs.asdict(plugin) if attrs.has(owner) else getattr(plugin, "__dict__", {})
            plain = json.dumps(state, sort_keys=True)
        except (TypeError, ValueError):
            raise _Unknown(
                f"the plugin {module} takes part in rendering and has a state that is no plain value"
            ) from None
    return [module, getattr(owner, "__qualname__", ""), plain, _source_digest(module)]


def _takes_arguments(owner: type) -> bool:
    return len(inspect.signature(owner).parameters) > 0


@functools.lru_cache(maxsize=64)
def _source_digest(module: str) -> str:
    """Digest of the Python files of a top-level package, or of one module that is no package.

    Raises:
        _Unknown: when there are none.
    """
    try:
        file = inspect.getsourcefile(importlib.import_module(module.split(".", maxsplit=1)[0]))
        folder = Path(file).parent if file and Path(file).name == "__init__.py" else None
        if folder is None:
            file = inspect.getsourcefile(importlib.import_module(module))
        files = sorted(folder.rglob("*.py")) if folder else [Path(str(file))]
        made = hashlib.blake2b(digest_size=16)
        for path in files:
            made.update(path.name.encode() + path.read_bytes())
    except (TypeError, ImportError, OSError):
        raise _Unknown(f"the plugin {module} takes part in rendering and its source cannot be read") from None
    return made.hexdigest()


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name
