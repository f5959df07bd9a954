"""Results of the check of models, kept for runs with the same code, config, versions and device."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hooktrain import default_cache_dir
from hooktrain_sft.compat import attention_implementation, config_values

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["read_result", "result_file", "write_result"]

_OTHER_SECTIONS = ("checkpoint", "console", "data", "name", "optimizer", "run_dir", "samples", "scheduler", "tokenizer")
"""Parts of a recipe that do not change what a model computes from ids."""
_LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "liger-kernel")


def result_file(trainer: Trainer, model: Any, facts: object) -> Path | None:
    """Return the file for the result of a check; None where its key would not be complete.

    That is the case with a model or a plugin passed from Python, and with ``data.use_data_cache: false``.

    Args:
        trainer: with all parts built.
        model: its innermost model.
        facts: of the check itself, as plain values.
    """
    data, recipe = trainer.recipe.data, trainer.recipe.as_dict()
    plugins = trainer.host.manifest()
    source = inspect.getsourcefile(type(model))
    if not data.use_data_cache or source is None or recipe["model"].get("type") == "python":
        return None
    if not all(record["version"] for record in plugins):
        return None
    device = trainer.device
    key = {
        "facts": facts,
        "class": type(model).__name__,
        "code": hashlib.blake2b(Path(source).read_bytes(), digest_size=16).hexdigest(),
        "config": config_values(model),
        "attention": attention_implementation(model),
        "recipe": {name: value for name, value in recipe.items() if name not in _OTHER_SECTIONS},
        "plugins": plugins,
        "own code": _own_code(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": trainer.world.world_size,
    }
    text = json.dumps(key, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    folder = data.cache_dir or default_cache_dir()
    return None if folder is None else folder.expanduser() / "checks" / f"{digest}.json"


def read_result(path: Path | None) -> dict[str, Any] | None:
    """Return a kept result; None where there is none that can be read."""
    try:
        found = None if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("padded"), str) else None


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Keep a result; a folder that cannot be written keeps none, and the next run checks again."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump(result, file)
        os.replace(file.name, path)
    except OSError:
        return


def _own_code() -> list[tuple[str, int, int]]:
    """Return size and time of each file of hooktrain and its plugins: a checkout has one version for long."""
    packages = [module for name, module in sys.modules.items() if re.fullmatch(r"hooktrain(_[a-z]+)?", name)]
    folders = [Path(file).parent for module in packages if (file := vars(module).get("__file__"))]
    files = sorted(path for folder in folders for path in folder.rglob("*.py") if path.is_file())
    return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
