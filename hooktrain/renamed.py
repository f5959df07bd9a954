"""Old and new names of the interface: one table for the errors and for ``hooktrain guide changelog``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec

__all__ = ["RENAMED", "OldModules", "new_name", "no_attribute", "old_import", "old_names_of"]

_MOVED = {
    ("hooktrain", "hooktrain"): "differences=compare estimates=types parts=protocols report=inspection state=types",
    ("hooktrain", "hooktrain.builtins"): "console jsonl ledger=hook_timer profiling=profiler signals waits=device_sync",
    ("hooktrain", "hooktrain.cli"): "demo guide launch=launcher options preview=data scaffold=new_plugin",
    ("hooktrain", "hooktrain.inspection"): "sketch=estimate",
    ("hooktrain", "hooktrain.plugin"): (
        "arrangement=ordering discovery dispatch=hook_caller info lock=lockfile "
        "needs=dependencies plugins=manager records rules=validation tolerance=error_policy"
    ),
    ("hooktrain", "hooktrain.recipe"): "reading=yaml_reader",
    ("hooktrain", "hooktrain.training"): (
        "build drift=resume_check faults=diagnostics given=python_parts given_rows=python_rows "
        "in_hand=python_arguments loader=dataloader loop=default_loop meter=metrics "
        "occupied=run_lock requests=control saving=checkpointing session=lifecycle trainer"
    ),
    ("hooktrain.bench", "hooktrain.bench"): (
        "calls=in_process compare=regressions measuring=driver processes=subprocesses "
        "ratios=bootstrap running=runner suites=model turns=interleave"
    ),
    ("hooktrain.bench", "hooktrain.cli"): "command=bench",
    ("hooktrain.report", "hooktrain.cli"): "commands=inspect",
    (
        "hooktrain.report",
        "hooktrain.inspection",
    ): "difference=plan_diff hooks origins=value_origins plan plan_text plugins text=terminal",
    ("hooktrain.report", "hooktrain.recipe"): "schema=json_schema",
    ("hooktrain.testing", "hooktrain.testing"): (
        "checks=plugin_checks language=tiny_llama processes=subprocess_runs runs=in_process "
        "tiny=tiny_plugin zygote=fork_server"
    ),
    ("hooktrain.testing.checks", "hooktrain.testing.plugin_checks"): (
        "chat=chat_recipe cost=check_cost declining=check_declines device=check_device "
        "importing=check_import kit observing=check_observes resume=check_resume "
        "rules=check_hooks runs=child_run subject=plugin_reference teardown=check_teardown"
    ),
    ("hooktrain_sft", "hooktrain_sft"): "probe=model_check shown=formatting",
    ("hooktrain_sft", "hooktrain_sft.chat"): (
        "answers=answer_spans header=generation_prompt messages render spans=trained_spans "
        "template token_rows=pretokenized tool_rendering=message_forms toolcalls=tool_calls "
        "trace=template_trace"
    ),
    ("hooktrain_sft", "hooktrain_sft.data"): (
        "cache=row_cache collate convert=converters dataset=packed_dataset documents "
        "encode=tokenize estimate findings=statistics fingerprint formats mixing packing prepare "
        "role_mapping rows=source_reader show=preview_rows store=arrow_store stream "
        "surfaces=token_bytes"
    ),
    ("hooktrain_sft", "hooktrain_sft.loss"): (
        "headed=lm_head innermost=model_inspection linear_loss=chunked_linear loss_config=config "
        "neftune positions=supervised_positions router=router_loss token_loss "
        "transform=logit_transform"
    ),
}
"""Modules by the package they were in and the one they are in: ``old=new``, or the name they kept."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "api": {"1.0": "2.0"},
    "import": {
        "hooktrain.Fragment": "hooktrain.Shard",
        "hooktrain.SegmentError": "hooktrain.LoopHookError",
        "hooktrain.ShownRow": "hooktrain.ExamplePreview",
        "hooktrain.blank": "hooktrain.padding_batch",
        "hooktrain.bench.Judge": "hooktrain.bench.TargetLike",
        "hooktrain.bench.Side": "hooktrain.bench.Variant",
        "hooktrain.testing.SegmentRecorder": "hooktrain.testing.LoopHookRecorder",
        "hooktrain_sft.document_keys": "hooktrain.document_keys",
    },
    "hook": {
        "estimate_rows": "estimate_examples",
        "idle_hooks": "unused_hooks",
        "pack_rows": "pack_sequences",
        "register_commands": "the entry-point group hooktrain.commands, or PluginInfo(commands=...)",
        "render_row": "render_example",
        "show_rows": "preview_examples",
        "sketch_model": "make_meta_model",
    },
    "parameter": {
        "compute_loss(weight)": "compute_loss(denominator)",
        "estimate_activations(rows)": "estimate_activations(sequences)",
        "render_example(row)": "render_example(example)",
    },
    "argument": {
        "field(neutral=True)": "field(affects_training=False)",
        "part(neutral=True)": "part(affects_training=False)",
    },
    "attribute": {
        "BatchCounts.weight": "BatchCounts.denominator",
        "Case.sides": "Case.variants",
        "Comparison.side": "Comparison.variant",
        "DataEstimate.rows": "DataEstimate.sequences",
        "LossSum.weight": "LossSum.denominator",
        "PluginHost.offers": "PluginHost.parts",
        "PluginRecord.offers": "PluginRecord.registers",
        "Target.judge": "Target.evaluate",
        "Target.side": "Target.variant",
        "Trainer.open_window": "Trainer.begin_step",
        "Trainer.window_weight": "Trainer.denominator",
        "TrainerState.rows": "TrainerState.sequences",
    },
    "method": {"CheckpointEngine.claims": "CheckpointEngine.can_load", "TargetLike.judge": "TargetLike.evaluate"},
    "plugin attribute": {
        "in_manifest": "hooktrain_plugin = PluginInfo(in_manifest=...)",
        "only_observes": "hooktrain_plugin = PluginInfo(only_observes=...)",
        "plugin_name": "hooktrain_plugin = PluginInfo(name=...)",
    },
    "recipe key": {"allow_drift": "allow_changes", "plugins.segments": "plugins.loop_hooks"},
    "type": {"given": "python"},
    "command": {"merge": "export --merge"},
    "JSON key": {
        "changes[].side": "changes[].variant",
        "hooks[].role: answers": "runs",
        "hooks[].role: hears": "is called",
        "hooks[].role: not reached": "not called",
        "plan.data.rows": "plan.data.sequences",
        "plugins[].offers": "plugins[].registers",
        "profile.hooks[].waits": "profile.hooks[].device_syncs",
        "results[].comparisons[].side": "results[].comparisons[].variant",
        "results[].comparisons[].verdict: absent": "not installed",
        "results[].comparisons[].verdict: failed": "error",
        "results[].comparisons[].verdict: missed": "failed",
        "results[].comparisons[].verdict: reached": "passed",
        "results[].runs[].absent": "results[].runs[].not_installed",
        "results[].runs[].failed": "results[].runs[].error",
        "results[].runs[].host_reads": "results[].runs[].device_syncs",
        "results[].settings.turns": "results[].settings.runs_per_variant",
        "results[].sides": "results[].variants",
        "results[].sides[].absent": "results[].variants[].not_installed",
        "results[].sides[].failed": "results[].variants[].error",
        "train.rows_answer_cut": "train.rows_cut",
    },
    "module": {
        f"{before}.{word.partition('=')[0]}": f"{now}.{word.rpartition('=')[2]}"
        for (before, now), words in _MOVED.items()
        for word in words.split()
    },
}
"""For each kind of name, the old ones and what they are now."""


def new_name(kind: str, old: str) -> str:
    """Return what to append to an error about a name that is not there: what it is now, or nothing.

    Args:
        kind: a key of :data:`RENAMED`.
        old: the name.
    """
    found = RENAMED[kind].get(old)
    return f" (in hooktrain 0.2 it is {found})" if found else ""


def old_import(module: str, name: str) -> ImportError | AttributeError:
    """Return the error for a name that a package does not export, with its new name.

    Args:
        module: the package.
        name: what was asked of it.
    """
    text = f"module '{module}' has no attribute '{name}'"
    renamed = new_name("import", f"{module}.{name}")
    # an AttributeError would become one of Python's own sentences, without the new name
    return ImportError(text + renamed, name=module) if renamed else AttributeError(text)


def no_attribute(owner: str, name: str) -> AttributeError:
    """Return the error for an attribute that an object does not have, with its new name.

    Args:
        owner: the object's class, as the table spells it.
        name: the attribute.
    """
    return AttributeError(f"'{owner}' object has no attribute '{name}'{new_name('attribute', f'{owner}.{name}')}")


def old_names_of(plugin: object, hooks: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the old names that a plugin uses, each with its new one: hooks, their parameters and its attributes.

    Args:
        plugin: the plugin object.
        hooks: the parameters that it names, by the hooks that it implements.
    """
    names = [("hook", name) for name in hooks]
    names += [("parameter", f"{name}({parameter})") for name, parameters in hooks.items() for parameter in parameters]
    names += [("plugin attribute", name) for name in RENAMED["plugin attribute"] if name in dir(plugin)]
    return [f"{kind} {old} is now {RENAMED[kind][old]}" for kind, old in names if old in RENAMED[kind]]


class OldModules:
    """A finder, asked after all others, that names the new place of a module that was moved."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return None, or raise where the module, or those of the package, have other names now."""
        if name in RENAMED["module"]:
            inner = [f"{old} is {new}" for old, new in RENAMED["module"].items() if old.startswith(f"{name}.")]
            text = "; ".join([f"No module named '{name}'{new_name('module', name)}", *inner])
            raise ModuleNotFoundError(text, name=name)
        return None
