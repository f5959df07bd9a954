"""The data of Axolotl's recipes: sets, their types, chat templates and masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.axolotl_sets import SetOfRows
from hooktrain_recipes.kinds import ERRORS
from hooktrain_recipes.templates import AXOLOTL, AXOLOTL_HUB
from hooktrain_recipes.training_arguments import set_held_out
from hooktrain_recipes.values import flag, flag_of, listed, text

__all__ = ["SOURCE_KEYS", "held_out", "set_data"]

SOURCE_KEYS = {
    "path": "`data.sources[].name_or_path`",
    "name": "`data.sources[].subset`",
    "split": "`data.sources[].split`",
    "revision": "`data.sources[].revision`",
    "data_files": "`data.sources[].data_files`",
    "type": "`data.sources[].format`, `prompts.formats`, `type`",
    "field": "`data.sources[].columns.text`",
    "field_messages": "`data.sources[].columns`",
    "field_tools": "`data.sources[].columns.tools`",
    "message_property_mappings": "`data.sources[].format`, `prompts.conversations`",
    "drop_system_message": "`prompts.conversations`",
    "roles": "`prompts.conversations`",
    "chat_template": "`tokenizer.chat_template`",
}
"""Keys of a set and their counterparts, for the guide."""


def held_out(found: Collector) -> bool:
    """Whether the original has data to evaluate on."""
    return bool(found.get("test_datasets")) or found.get("val_set_size") not in (None, 0, False, "0")


def set_data(found: Collector) -> None:
    """Set the trainer type and ``data``, and account for the keys of sets, templates and masks."""
    kinds: set[str] = set()
    for key, to in (
        ("datasets", "data.sources"),
        ("pretraining_dataset", "data.sources"),
        ("test_datasets", "data.eval_sources"),
    ):
        sets = found.get(key)
        if sets is None:
            if key in found:
                found.ignored(key, "null is the default")
            continue
        if isinstance(sets, (Mapping, str)):
            found.unsupported(key, "expected a list of sets", "write each set as an entry of a list")
            continue
        for at, entry in enumerate(sets if isinstance(sets, list) else []):
            path = f"{key}[{at}]"
            if not isinstance(entry, Mapping):
                found.unsupported(
                    path, "expected a mapping with the path and type of a set", "write {path: ..., type: ...}"
                )
                continue
            made = SetOfRows(found, path, to)
            try:
                kinds.add(made.translate(streamed=key == "pretraining_dataset"))
            except ERRORS:
                found.unsupported(path, f"given {dict(entry)!r:.60}, which Axolotl does not take", "correct the values")
        if not isinstance(sets, list) or not sets:
            found.unsupported(key, "expected a list of sets", "name the data to train on")
    kinds.discard("")
    causal = kinds == {"text"} and len(_columns(found)) == 1
    if "pairs" not in kinds:
        found.default("type", "causal" if causal else "sft", "Axolotl has no such key: the types of the sets say it")
    _texts(found, causal)
    _templates(found, bool({"chat", "pairs"} & kinds))
    _masks(found, kinds)
    set_held_out(found, "val_set_size", "test_datasets")


def _count(found: Collector, key: str) -> int:
    """How many entries a list of the original has."""
    value = found.get(key)
    return len(value) if isinstance(value, list) else 0


def _columns(found: Collector) -> set[str]:
    """The columns of text that the sources have."""
    sources = [each for kind in ("sources", "eval_sources") for each in found.recipe.get("data", {}).get(kind, [])]
    return {str(source.get("columns", {}).get("text", "text")) for source in sources}


def _texts(found: Collector, causal: bool) -> None:
    """Move the column and drop the format, which plain text has for all of its sets."""
    if not causal:
        return
    (column,) = _columns(found)
    for kind in ("sources", "eval_sources"):
        for source in found.recipe["data"].get(kind, []):
            source.pop("format", None)
            source.pop("columns", None)
    if column != "text":
        found.set("data.text_column", column)
        for base in ("datasets", "pretraining_dataset", "test_datasets"):
            for at in range(_count(found, base)):
                for name in ("field", "text_column"):
                    if found.get(f"{base}[{at}].{name}") not in (None, "text"):
                        found.translated(f"{base}[{at}].{name}", "data.text_column")


def _templates(found: Collector, used: bool) -> None:
    """Set the chat template; those of sets must be one."""
    places = ["", *(f"{key}[{at}]." for key in ("datasets", "test_datasets") for at in range(_count(found, key)))]
    first: tuple[Any, Any] | None = None
    for place in places:
        name, jinja = found.get(f"{place}chat_template"), found.get(f"{place}chat_template_jinja")
        keys = [key for key in (f"{place}chat_template", f"{place}chat_template_jinja") if key in found]
        if name is None and jinja is None:
            for key in keys:
                found.ignored(key, "null is the default")
        elif place and name == "jinja" and jinja is None:
            found.ignored(keys[0], "chat_template_jinja of the recipe")
        elif not used:
            for key in keys:
                found.ignored(key, "no set is written with a chat template")
        elif first is not None and first != (name, jinja):
            found.unsupported(keys[0], "sets with other chat templates", "train with one chat template")
        else:
            first = (name, jinja)
            _template(found, place, name, jinja)


_FAMILIES = {
    "command_a": "command-?a",
    "deepseek_v3": "deepseek-?v3",
    "exaone4": "exaone-?4",
    "gemma3n": "gemma-?3n",
    "gemma4": "gemma-?4",
    "gemma4_unified": "gemma-?4",
    "jamba": "jamba",
    "llama3_2_vision": "llama-?3.2.*vision",
    "llama4": "llama-?4",
    "llava": "llava",
    "nemotron_h": "nemotron-?h|nemotron",
    "phi_4": "phi-?4",
    "pixtral": "pixtral",
    "qwen2_vl": "qwen-?2(.5)?-?vl",
    "qwen3": "qwen-?3",
    "qwen3_5": "qwen-?3.5",
}
"""Templates of Axolotl that are a family's own, and what the names of its models say."""


def _template(found: Collector, place: str, name: Any, jinja: Any) -> None:
    key, written = f"{place}chat_template", f"{place}chat_template_jinja"
    if jinja is not None and name in (None, "jinja"):
        found.copy(written, "tokenizer.chat_template", text)
        found.translated(key, "tokenizer.chat_template") if key in found else None
        return
    if jinja is not None:
        found.ignored(written, "chat_template names another one")
    if name == "tokenizer_default":
        found.ignored(key, "the tokenizer's own template is the default")
    elif name in AXOLOTL:
        system = found.get("default_system_message")
        system = None if system is None else text(system)
        found.set("tokenizer.chat_template", AXOLOTL[name].jinja(marked=False, default_system=system))
        found.translated(key, "tokenizer.chat_template")
        if system is not None:
            found.translated("default_system_message", "tokenizer.chat_template")
    elif re.search(_FAMILIES.get(str(name), r"(?!)"), str(found.get("base_model")).lower()):
        found.ignored(key, "it is the template that models of this family bring along")
    elif name in AXOLOTL_HUB:
        found.copy(key, "tokenizer.chat_template", lambda name: AXOLOTL_HUB[name])
    else:
        close = did_you_mean(str(name), [*AXOLOTL, *AXOLOTL_HUB])
        found.unsupported(key, f"unknown chat template '{name}'{close}", "correct it")


def _masks(found: Collector, kinds: set[str]) -> None:
    if "train_on_inputs" in found:
        if "pairs" in kinds:
            found.ignored("train_on_inputs", "the prompt of a pair is never trained")
        elif not flag_of(found.get("train_on_inputs")) or kinds <= {"text"}:
            found.ignored(
                "train_on_inputs", "all of a text is trained" if kinds <= {"text"} else "false is the default"
            )
        elif "chat" in kinds:
            found.unsupported(
                "train_on_inputs",
                "turns of other roles are trained",
                "write data.mask_inputs: false to train all of the text",
            )
        else:
            found.copy("train_on_inputs", "data.mask_inputs", lambda value: not flag(value))
    if "chat_template_kwargs" in found:
        given = found.get("chat_template_kwargs")
        if isinstance(given, Mapping) and given:
            found.copy("chat_template_kwargs", "data.chat_template_kwargs", dict)
        elif given:
            found.unsupported("chat_template_kwargs", "expected a mapping", "write {name: value}")
        else:
            found.ignored("chat_template_kwargs", "none is the default")
    if "default_system_message" in found:
        found.ignored("default_system_message", "used by the named chat templates alone")
    if found.get("eot_tokens") and "chat" in kinds:
        found.copy("eot_tokens", "data.eot_tokens", listed)
    elif "eot_tokens" in found:
        found.ignored("eot_tokens", "used with chat templates alone")
