"""The modules that the server of forked processes has imported, see ``hooktrain.testing.fork_server``."""

from __future__ import annotations

import importlib.util
import pkgutil

from hooktrain.testing.plugin_checks.kit import HEAVY

__all__ = ["DEEPSPEED", "PRELOAD"]


def _modules(package: str) -> list[str]:
    """A package and its modules."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or []
    return [package, *(f"{package}.{module.name}" for module in pkgutil.iter_modules(folders))]


PRELOAD = (
    *HEAVY,
    *(
        "hooktrain.cli.main",
        "hooktrain.training.build",
        "hooktrain.cli.launcher",
        "hooktrain.testing",
        "rich._emoji_codes",
    ),
    *(
        "torch.profiler",
        "torch.profiler._memory_profiler",
        "torch.distributed.run",
        "torch.distributed.fsdp",
        "torch.nn.parallel",
    ),
    *("transformers.modeling_gguf_pytorch_utils", "transformers.convert_slow_tokenizer", "transformers.integrations"),
    *(module for name in ("hooktrain_torch", "hooktrain_hf", "hooktrain_sft") for module in _modules(name)),
)

DEEPSPEED = (
    *_modules("hooktrain_deepspeed"),
    # imported by deepspeed.initialize() and by ZeRO's optimizers
    *("deepspeed.module_inject.auto_ep_layer", "deepspeed.runtime.zero.muon.muon_optimizer"),
    *("deepspeed.runtime.zero.stage3", "deepspeed.utils.pin_memory", "torch._inductor.compile_fx"),
)
"""Further modules for runs with DeepSpeed."""
