"""Parts that the distribution registers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hooktrain_hf.plugin import HFPlugin
from hooktrain_hf.samples import SamplesPlugin

from hooktrain import World, structure


@pytest.mark.usefixtures("real_starts")
def test_importing_the_plugins_loads_no_heavy_library() -> None:
    code = (
        "import sys, hooktrain_hf.plugin, hooktrain_hf.samples;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'gguf', 'safetensors') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_config_is_frozen_documented_and_structured() -> None:
    registered = {**HFPlugin().register_configs(), **SamplesPlugin().register_configs()}
    assert {kind: list(names) for kind, names in registered.items()} == {
        "tokenizer": ["huggingface"],
        "model": ["huggingface"],
        "source": ["huggingface"],
        "checkpoint": ["huggingface"],
        "settings": ["samples"],
    }
    for names in registered.values():
        for cls in names.values():
            complaints: list[Any] = []
            needed = {"name_or_path": "x"} if "name_or_path" in attrs.fields_dict(cls) else {}
            made: Any = structure(cls, needed, "here", complaints)
            assert not complaints and cls.__doc__
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(made, attrs.fields(cls)[0].name, 1)


def test_factories_return_none_for_other_configs(tmp_path: Path) -> None:
    plugin, world = HFPlugin(), World()
    assert plugin.make_tokenizer(object()) is None
    assert plugin.make_model(object(), None, world, None) is None
    assert plugin.load_source(object(), world) is None
    assert plugin.make_checkpoint_engine(object(), tmp_path, world) is None
