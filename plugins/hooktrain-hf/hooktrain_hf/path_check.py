"""Check of the paths that a recipe names, for ``hooktrain plan``: nothing is loaded, and the network is not used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from hooktrain import Complaint, HooktrainError, ModelError
from hooktrain_hf.frozen_model import models_of
from hooktrain_hf.local_files import splits_of
from hooktrain_hf.location import EXPECTED, resolve_location
from hooktrain_hf.model import HFModelConfig
from hooktrain_hf.source import HFSourceConfig, name_and_split
from hooktrain_hf.tokenizer import HFTokenizerConfig, read_template

if TYPE_CHECKING:
    from hooktrain import Recipe

__all__ = ["check_paths"]


def check_paths(recipe: Recipe) -> Iterator[Complaint]:
    """Yield a complaint for each path of a model, a tokenizer or a source that does not exist or cannot be used."""
    model, tokenizer = recipe.model, recipe.tokenizer
    if isinstance(model, HFModelConfig):
        yield from _complaint("model.name_or_path", lambda: _check_model(model))
    if isinstance(tokenizer, HFTokenizerConfig):
        template = tokenizer.chat_template
        if not (isinstance(model, HFModelConfig) and model.name_or_path == tokenizer.name_or_path):
            yield from _complaint(
                "tokenizer.name_or_path",
                lambda: resolve_location(
                    tokenizer.name_or_path, tokenizer.gguf_file, "tokenizer.name_or_path", tokenizer.revision
                ),
            )
        if template is not None:
            yield from _complaint("tokenizer.chat_template", lambda: read_template(template, offline=True))
    for name, frozen in attrs.asdict(models_of(recipe), recurse=False).items():
        if frozen.name_or_path is not None:
            key, path = f"models.{name}.name_or_path", frozen.name_or_path
            yield from _complaint(key, partial(resolve_location, path, None, key))
    for item in attrs.fields(type(recipe.data)) if attrs.has(type(recipe.data)) else ():
        value = attrs.asdict(recipe.data, recurse=False)[item.name]
        for number, source in enumerate(value if isinstance(value, tuple) else ()):
            if isinstance(source, HFSourceConfig):
                where = f"data.{item.name}[{number}]"
                yield from _complaint(where, partial(_check_source, source), "data.sources: ")


def _complaint(where: str, check: Callable[[], object], prefix: str | None = None) -> Iterator[Complaint]:
    try:
        check()
    except HooktrainError as problem:
        yield Complaint(where, str(problem).removeprefix(prefix or f"{where}: "))


def _check_model(config: HFModelConfig) -> None:
    location = resolve_location(config.name_or_path, config.gguf_file, "model.name_or_path", config.revision)
    described = any((Path(location.name) / file).exists() for file in ("config.json", "adapter_config.json"))
    if location.local and location.gguf_file is None and not described:
        raise ModelError(f"given '{config.name_or_path}', a folder without a config.json; {EXPECTED}; correct the path")


def _check_source(config: HFSourceConfig) -> None:
    name, _ = name_and_split(config)
    splits_of(name, Path(name).expanduser(), config.data_files, config.subset)
