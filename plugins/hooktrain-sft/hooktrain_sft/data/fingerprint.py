"""Fingerprints of tokenized examples: digests of everything that they depend on."""

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
from hooktrain_sft.compat import is_fast_tokenizer
from hooktrain_sft.config import TokenDataConfig

__all__ = ["SequenceFingerprints", "stream_fingerprint", "tokenizer_fingerprint"]

_LATER = {  # options that apply to examples after they are tokenized
    *("sources", "eval_sources", "train_eval_split", "max_length", "pack_samples", "overflow", "on_empty", "seed"),
    *("shuffle", "group_by_length", "workers", "num_proc", "use_data_cache", "cache_dir", "stream_buffer"),
    *("max_dropped", "val_size", "exact_deduplication"),
}
_BESIDE_A_STREAM = {"sources", "eval_sources", "workers", "num_proc", "use_data_cache", "cache_dir", "max_dropped"}
_LATER_OF_SOURCE = {"name", "weight", "streaming", "built_as"}
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "datasets", "pyarrow")


class _Unknown(Exception):
    """Something that the sequences depend on cannot be compared with another state of it."""


def stream_fingerprint(config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> str:
    """Return a text that differs where the examples of streaming sources, or the sequences made of them, may differ."""
    parts = [_without(config, _BESIDE_A_STREAM), tokenizer_fingerprint(tokenizer)]
    for source in config.sources:
        holds = hooks.fingerprint_source(config=source, world=world, quick=True)
        parts += [_without(source, {"name", "name_or_path"} if holds else {"name"}), holds]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


class SequenceFingerprints:
    """Fingerprints of the tokenized examples of sources, of which a recipe may have hundreds.

    Settings, tokenizer, code and libraries are the same for all of them and are looked at once, for the first.
    """

    def __init__(self, config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> None:
        self._config, self._tokenizer, self._world, self._hooks = config, tokenizer, world, hooks

    def of(self, source: Any, quick: bool = False) -> tuple[str | None, str]:
        """Return the fingerprint of a source's tokenized examples.

        Returns:
            The fingerprint, or None with the reason why there can be none; also where ``quick`` is true and it would
            take long.
        """
        holds = self._hooks.fingerprint_source(config=source, world=self._world, quick=quick)
        if holds is None:
            return None, f"no plugin fingerprints a {type(source).__name__} (hook fingerprint_source)"
        try:
            parts = {"source": _without(source, _LATER_OF_SOURCE), "holds": holds, **self._shared}
        except _Unknown as problem:
            return None, str(problem)
        return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest(), ""

    @functools.cached_property
    def _shared(self) -> dict[str, Any]:
        hooks = self._hooks
        return {
            "settings": [type(self._config).__name__, _without(self._config, _LATER)],
            "tokenizer": tokenizer_fingerprint(self._tokenizer),
            "code": [
                _code(found.plugin)
                for hook in (hooks.load_source, hooks.render_example, hooks.register_formats)
                for found in hook.get_hookimpls()
            ],
            "libraries": [_version(name) for name in _LIBRARIES],
        }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a text that is equal for tokenizers that give the same ids for the same examples, template included."""
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    parts = [
        f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        template,
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        # a template that renders the date gives another text tomorrow
        str(datetime.date.today()) if "strftime_now" in template else "",
        tokenizer.backend_tokenizer.to_str() if is_fast_tokenizer(tokenizer) else repr(tokenizer),
    ]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _without(config: Any, names: set[str]) -> Any:
    if attrs.has(type(config)):  # field by field: a recipe's sources are not looked at for each of them
        kept = (item.name for item in attrs.fields(type(config)) if item.name not in names)
        return {name: unstructure(getattr(config, name)) for name in kept}
    plain = unstructure(config)
    if isinstance(plain, dict):
        return {key: value for key, value in plain.items() if key not in names}
    return plain if isinstance(plain, str) else repr(plain)


def _code(plugin: Any) -> list[str]:
    """Describe a plugin by its package's source files and its state.

    Raises:
        _Unknown: where they cannot be read.
    """
    owner: Any = plugin if inspect.ismodule(plugin) or inspect.isclass(plugin) else type(plugin)
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    plain = ""
    if owner is not plugin and inspect.signature(owner).parameters:  # otherwise its state follows from its code
        try:
            plain = json.dumps(attrs.asdict(plugin) if attrs.has(owner) else vars(plugin), sort_keys=True)
        except (TypeError, ValueError):
            raise _Unknown(f"the plugin {module} is used for rendering and its state is not plain values") from None
    return [module, "" if inspect.ismodule(owner) else owner.__qualname__, plain, _source_digest(module)]


@functools.lru_cache(maxsize=64)
def _source_digest(module: str) -> str:
    """Return the digest of the Python files of a module's top-level package, or of the module itself.

    Raises:
        _Unknown: when they cannot be read.
    """
    try:
        file = inspect.getsourcefile(importlib.import_module(module.split(".", maxsplit=1)[0]))
        folder = Path(file).parent if file and Path(file).name == "__init__.py" else None
        if folder is None:
            file = inspect.getsourcefile(importlib.import_module(module))
        files = sorted(filter(Path.is_file, folder.rglob("*.py"))) if folder else [Path(str(file))]
        made = hashlib.blake2b(digest_size=16)
        for path in files:
            made.update((path.relative_to(folder).as_posix() if folder else path.name).encode() + path.read_bytes())
    except (TypeError, ImportError, OSError):
        raise _Unknown(f"the plugin {module} is used for rendering and its source cannot be read") from None
    return made.hexdigest()


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name
