"""The plugin as the engine meets it."""

from __future__ import annotations

import subprocess
import sys

import hooktrain_sft
import pytest
from hooktrain_sft import hookspecs
from hooktrain_sft.plugin import SFTPlugin

from hooktrain import World


def test_trainer_types_name_what_is_registered() -> None:
    plugin = SFTPlugin()
    configs, types = plugin.register_configs(), plugin.register_trainer_types()
    assert set(types) == {"sft", "causal"}
    for trainer_type in types.values():
        assert trainer_type.parts["data"][0] in configs["data"]
        assert trainer_type.parts["loss"][0] in configs["loss"]


def test_parts_of_other_plugins_give_none() -> None:
    plugin = SFTPlugin()
    assert plugin.make_data(object(), None, World(), None, None) is None
    assert plugin.make_loss(object()) is None
    assert plugin.render_example({}, None, object()) is None


@pytest.mark.usefixtures("real_starts")
def test_listing_plugins_needs_no_torch() -> None:
    code = "import sys, hooktrain_sft.plugin; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hook_docs_are_complete() -> None:
    for name in hookspecs.__all__:
        text = getattr(hookspecs, name).__doc__
        assert all(f"{word}:" in text for word in ("Called", "Ranks", "Device", "Args", "Returns", "Default")), name


def test_the_root_exports_public_names_only() -> None:
    assert all(hasattr(hooktrain_sft, name) for name in hooktrain_sft.__all__)
    assert set(hooktrain_sft.__all__) <= set(dir(hooktrain_sft))
    with pytest.raises(AttributeError, match="SelectiveLos"):
        hooktrain_sft.SelectiveLos  # noqa: B018
