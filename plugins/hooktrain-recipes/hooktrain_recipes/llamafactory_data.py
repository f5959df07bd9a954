"""The data of LLaMA-Factory's recipes: ``dataset_info.json``, templates, masks and packing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.llamafactory_preferences import set_source, tags_of
from hooktrain_recipes.preferences import set_uncut
from hooktrain_recipes.reasons import ACCOUNT_SOURCE, CONTRADICTION, IMAGES, OWN_CODE, PREFERENCES, method
from hooktrain_recipes.templates import LLAMA_FACTORY, LLAMA_FACTORY_HUB
from hooktrain_recipes.training_arguments import set_held_out, set_text_column
from hooktrain_recipes.values import flag, flag_of, listed, number, whole

__all__ = ["find_file", "set_data"]

_DEMOS: Mapping[str, Mapping[str, Any]] = {
    "identity": {},
    "alpaca_en_demo": {},
    "alpaca_zh_demo": {},
    "glaive_toolcall_en_demo": {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}},
    "glaive_toolcall_zh_demo": {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}},
    "c4_demo": {"file_name": "c4_demo.jsonl", "columns": {"prompt": "text"}},
    "wiki_demo": {"file_name": "wiki_demo.txt", "columns": {"prompt": "text"}},
    "dpo_en_demo": {"ranking": True, "formatting": "sharegpt"},
    "dpo_zh_demo": {"ranking": True, "formatting": "sharegpt"},
    "rlhf_v": {
        "hf_hub_url": "llamafactory/RLHF-V",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"images": "images"},
    },
    "kto_en_demo": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "mllm_demo": {"columns": {"images": "images"}},
    "mllm_audio_demo": {"columns": {"audios": "audios"}},
    "mllm_video_demo": {"columns": {"videos": "videos"}},
    "mllm_video_audio_demo": {"columns": {"videos": "videos"}},
    "alpaca_en": {"hf_hub_url": "llamafactory/alpaca_en"},
    "alpaca_zh": {"hf_hub_url": "llamafactory/alpaca_zh"},
    "llava_1k_en": {"hf_hub_url": "BUAADreamer/llava-en-zh-2k", "subset": "en", "columns": {"images": "images"}},
    "llava_1k_zh": {"hf_hub_url": "BUAADreamer/llava-en-zh-2k", "subset": "zh", "columns": {"images": "images"}},
}
"""The sets of the program's examples, for recipes that come without the folder ``data``."""

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_COMMON = {"system": "system", "tools": "tools"}
_MEDIA = ("images", "videos", "audios")
_FOR_IMAGES = (*("dots_ocr", "ernie_vl", "granite3_vision", "minicpm_o", "moss_vl", "paligemma", "yi_vl", "youtu_vl"),)
"""Templates of models for pictures that have no counterpart for text alone."""


def find_file(name: str, folder: Path) -> Path | None:
    """Return a file that a recipe names, beside it or in one of the folders above."""
    for place in (Path(), folder, *folder.absolute().parents):
        try:
            if (place / name).is_file():
                return place / name
        except (OSError, ValueError):  # a name that is too long, or has a null character
            return None
    return None


def set_data(found: Collector, folder: Path) -> bool:
    """Set the trainer type and ``data``; returns whether the data has images or sound."""
    plain = found.get("stage") == "pt"
    found.default("type", "causal" if plain else "sft", "the default stage of LLaMA-Factory")
    if found.get("stage") in ("pt", "sft"):
        found.recipe["type"] = "causal" if plain else "sft"
        found.translated("stage", "type")
    elif found.get("stage") in ("dpo", "kto", "rm"):
        set_uncut(found, "LLaMA-Factory")
    info = _info(found, folder)
    media = _sets(found, "dataset", "data.sources", info, plain)
    media = _sets(found, "eval_dataset", "data.eval_sources", info, plain) or media
    _length(found, plain)
    if media and found.get("template") not in LLAMA_FACTORY and "template" in found:
        found.ignored("template", "the template of a model that reads pictures, which the data is refused for")
    elif not plain:
        _template(found)
    for key in ("template", "default_system", "enable_thinking"):
        if plain and key in found:
            found.ignored(key, "texts have no chat template")
    _masks(found, plain)
    set_held_out(found, "val_size", "eval_dataset")
    return media


def _info(found: Collector, folder: Path) -> Mapping[str, Any] | None:
    """What ``dataset_info.json`` says, or None where the names are those of a hub."""
    place = found.get("dataset_dir", "data")
    if not isinstance(place, str):
        found.unsupported("dataset_dir", "expected a folder", "write its path")
        return {}
    if place == "ONLINE":
        found.ignored("dataset_dir", "sets that are no files are looked for on the hub")
        return None
    if place.startswith("REMOTE:"):
        found.translated("dataset_dir", "data.sources[0].name_or_path")
        return _DEMOS
    file = find_file(f"{place}/dataset_info.json", folder)
    if file is None:
        return _DEMOS
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        found.unsupported("dataset", f"{place}/dataset_info.json cannot be read: {problem}", "correct the file")
        return {}
    if "dataset_dir" in found:
        found.translated("dataset_dir", "data.sources[0].name_or_path")
    return held if isinstance(held, dict) else {}


def _sets(found: Collector, key: str, to: str, info: Mapping[str, Any] | None, plain: bool) -> bool:
    if key not in found:
        if key == "dataset":
            found.unsupported("stage" if "stage" in found else "model_name_or_path", "no dataset", "name the data")
        return False
    if found.get(key) is None:
        found.ignored(key, "null is the default")
        return False
    try:
        names = listed(found.get(key))
    except ValueError as problem:
        found.unsupported(key, str(problem), "write names with commas")
        return False
    media = False
    for at, name in enumerate(names):
        entry = {"hf_hub_url": name} if info is None else info.get(name)
        if not isinstance(entry, Mapping):
            close = did_you_mean(name, list(info or ()))
            if close:
                found.unsupported(key, f"no set '{name}' in dataset_info.json{close}", "correct it")
            found.notes[f"{to}[{at}].name_or_path"] = (
                f"no set '{name}' in dataset_info.json: expected in this file, as rows of alpaca"
            )
            entry = {}
        media = _set(found, key, f"{to}[{at}]", name, entry, plain) or media
    if len(set(names)) < len(names):
        found.unsupported(key, "a set is named twice", "remove one")
    _sizes(found, key, to, len(names))
    return media


def _set(found: Collector, key: str, to: str, name: str, entry: Mapping[str, Any], plain: bool) -> bool:
    """Set one source; returns whether it has images or sound."""
    columns = entry.get("columns") if isinstance(entry.get("columns"), Mapping) else None
    place = str(found.get("dataset_dir", "data"))
    if "hf_hub_url" in entry:
        found.set(f"{to}.name_or_path", str(entry["hf_hub_url"]))
    elif place.startswith("REMOTE:"):
        found.set(f"{to}.name_or_path", place.removeprefix("REMOTE:"))
        found.set(f"{to}.data_files", [str(entry.get("file_name", f"{name}.json"))])
    else:
        found.set(f"{to}.name_or_path", f"{place.rstrip('/')}/{entry.get('file_name', f'{name}.json')}")
    found.translated(key, to)
    if "ms_hub_url" in entry and "hf_hub_url" not in entry:
        found.unsupported(key, f"the set '{name}' is on ModelScope", "download it and give the path of the files")
    if "script_url" in entry:
        OWN_CODE.refuse(found, key, str(entry["script_url"]))
    if "cloud_file_name" in entry:
        ACCOUNT_SOURCE.refuse(found, key)
    tagged, ranked = bool((columns or {}).get("kto_tag")), bool(entry.get("ranking"))
    pairs = {"dpo": ranked or not entry, "rm": ranked or not entry, "kto": tagged}.get(found.get("stage", "sft"), False)
    if not pairs and (ranked or tagged or (columns or {}).get("chosen")):
        PREFERENCES.refuse(found, key)
    elif not pairs and found.get("stage") in ("dpo", "kto", "rm"):
        CONTRADICTION.refuse(found, key, f"stage: the set '{name}' has no pairs (ranking: true)")
    for ours, theirs in (("subset", "subset"), ("split", "split")):
        if entry.get(theirs) is not None:
            found.set(f"{to}.{ours}", str(entry[theirs]))
    if entry.get("folder"):
        found.set(f"{to}.data_files", [f"{entry['folder']}/*"])
    if isinstance(entry.get("num_samples"), int):
        found.set(f"{to}.sample_count", entry["num_samples"])
    media = any((columns or {}).get(name) for name in _MEDIA)
    if media:
        IMAGES.refuse(found, key)
    (set_source if pairs else partial(_form, plain=plain))(found, key, to, entry, columns)
    return media


def _form(
    found: Collector, key: str, to: str, entry: Mapping[str, Any], columns: Mapping[str, Any] | None, plain: bool
) -> None:
    """Set the format and columns of a source."""
    form = entry.get("formatting", "alpaca")
    given = {str(name): str(column) for name, column in (columns or {}).items() if column is not None}
    renamed = {ours: given[name] for name, ours in _COMMON.items() if name in given and given[name] != ours}
    if plain:
        column = given.get("prompt", "instruction" if columns is None else "text")
        set_text_column(found, key, to, column)
        return
    if form == "alpaca":
        found.set(f"{to}.format", "alpaca")
        renamed |= {ours: given[name] for name, ours in _ALPACA.items() if name in given and given[name] != ours}
    elif form in ("sharegpt", "openai"):
        tags = tags_of(form, entry)
        pair = (tags["role_tag"], tags["content_tag"])
        messages = given.get("messages", "conversations")
        known = tags["user_tag"] in ("human", "user") and tags["assistant_tag"] in ("gpt", "assistant")
        if known and pair in (("from", "value"), ("role", "content")):
            ours = "conversations" if pair[0] == "from" else "messages"
            found.set(f"{to}.format", "sharegpt" if pair[0] == "from" else "messages")
            if messages != ours:
                renamed[ours] = messages
        else:
            roles = {
                "system": "system_tag",
                "user": "user_tag",
                "assistant": "assistant_tag",
                "tool": "observation_tag",
            }
            mapping = {ours: f"{messages}.{tags['role_tag']}.{tags[tag]}" for ours, tag in roles.items()}
            found.set(f"{to}.role_mapping", mapping)
            found.set(f"{to}.content_key", tags["content_tag"])
    else:
        found.unsupported(key, f"a data format that is not here: {form!r:.40}", "convert the rows")
    if renamed:
        found.set(f"{to}.columns", renamed)


def _sizes(found: Collector, key: str, to: str, count: int) -> None:
    """Account for what limits and mixes the sets, once for the training sets."""
    most = found.get("max_samples")
    if most is not None and not flag_of(found.get("streaming")):
        try:
            limit = whole(most)
        except ValueError as problem:
            found.unsupported("max_samples", str(problem), "correct the number")
            return
        for at in range(count):
            source = found.recipe["data"][to.removeprefix("data.")][at]
            if "sample_count" in source:
                source["sample_count"] = min(limit, source["sample_count"])
            else:
                source["split"] = f"{source.get('split', 'train')}[:{limit}]"
            found.translated("max_samples", f"{to}[{at}].{'sample_count' if 'sample_count' in source else 'split'}")
    elif most is not None:
        found.unsupported("max_samples", "limits", "use train_iters: a stream is not cut")
    if key != "dataset":
        return
    if found.get("streaming"):
        for at in range(count):
            found.copy("streaming", f"{to}[{at}].streaming", flag)
            found.translated("streaming", f"{to}[{at}].streaming")
    elif "streaming" in found:
        found.ignored("streaming", "false is the default")
    if str(found.get("mix_strategy", "concat")).startswith("interleave"):
        given = found.get("interleave_probs")
        try:
            shares = [1.0] * count if given is None else [number(each) for each in listed(str(given))]
        except ValueError as problem:
            found.unsupported("interleave_probs", str(problem), "write numbers with commas")
            return
        if len(shares) != count:
            CONTRADICTION.refuse(found, "interleave_probs", "as many shares as sets")
        else:
            for at, each in enumerate(shares):
                found.set(f"{to}[{at}].weight", each)
                found.translated("interleave_probs", f"{to}[{at}].weight") if given is not None else None
                found.translated("mix_strategy", f"{to}[{at}].weight")
    elif found.get("mix_strategy", "concat") != "concat":
        given = f"given {found.get('mix_strategy')!r:.40}"
        found.unsupported("mix_strategy", f"{given}, expected concat or interleave_under", "correct it")


def _length(found: Collector, plain: bool) -> None:
    found.copy("cutoff_len", "data.max_length", whole)
    found.default("data.max_length", 2048, "the default of LLaMA-Factory")
    packed = flag_of(found.get("packing")) or flag_of(found.get("neat_packing"))
    for key in ("packing", "neat_packing"):
        if found.get(key) is None or (not flag_of(found.get(key)) and packed):
            found.ignored(key, "not used") if key in found else None
        else:
            found.copy(key, "data.pack_samples", flag)
    if not plain:
        found.default(
            "data.overflow", "drop" if packed else "truncate", "LLaMA-Factory drops longer examples of packs, else cuts"
        )


def _template(found: Collector) -> None:
    key, name = "template", found.get("template")
    if name is None:
        found.ignored(key, "the tokenizer's own template") if key in found else None
        for other in ("default_system", "enable_thinking"):
            if other not in found:
                continue
            if found.get(other) in (None, True, ""):
                found.ignored(other, "the default")
            elif other == "enable_thinking":
                found.copy(other, "data.chat_template_kwargs.enable_thinking", flag)
            else:
                method("a system message within the tokenizer's own template").refuse(found, other)
        return
    known = LLAMA_FACTORY.get(name) if isinstance(name, str) else None
    system = found.get("default_system")
    if known is None and name in LLAMA_FACTORY_HUB:
        found.copy(key, "tokenizer.chat_template", lambda name: LLAMA_FACTORY_HUB[name])
    elif name in _FOR_IMAGES:
        IMAGES.refuse(found, key, "a template for them")
    elif known is None:
        close = did_you_mean(str(name), [*LLAMA_FACTORY, *LLAMA_FACTORY_HUB])
        found.unsupported(key, f"unknown template {name!r:.40}{close}", "correct it")
    else:
        thinking = (
            found.get("enable_thinking", True) if "enable_thinking" not in found else found.values["enable_thinking"]
        )
        thinking = None if thinking is None else flag_of(thinking)
        jinja = known.jinja(default_system=system if isinstance(system, str) else None, thinking=thinking)
        found.set("tokenizer.chat_template", jinja)
        found.translated(key, "tokenizer.chat_template")
        if known.eos:
            found.set("tokenizer.special_tokens.eos_token", known.eos)
            found.translated(key, "tokenizer.special_tokens.eos_token")
    if isinstance(system, str):
        found.translated("default_system", "tokenizer.chat_template")
    elif "default_system" in found:
        found.ignored("default_system", "null is the default")
    if "enable_thinking" in found:
        if known is not None and known.thoughts is not None:
            found.translated("enable_thinking", "tokenizer.chat_template")
        else:
            found.ignored("enable_thinking", "this template has no reasoning")


def _masks(found: Collector, plain: bool) -> None:
    if flag_of(found.get("train_on_prompt")) and flag_of(found.get("mask_history")):
        CONTRADICTION.refuse(found, "mask_history", "train_on_prompt")
    for key in ("train_on_prompt", "mask_history"):
        if not flag_of(found.get(key)) or plain:
            found.ignored(
                key, "false is the default" if not plain else "all of a text is trained"
            ) if key in found else None
        elif key == "train_on_prompt":
            found.copy(key, "data.mask_inputs", lambda value: not flag(value))
        else:
            found.copy(key, "data.train_on", lambda value: "last_assistant" if flag(value) else "assistant")
    if flag_of(found.get("split_special_tokens")):
        found.copy(
            "split_special_tokens", "data.special_tokens_in_text", lambda value: "plain" if flag(value) else "keep"
        )
    elif "split_special_tokens" in found:
        found.ignored("split_special_tokens", "false is the default")
    if flag_of(found.get("disable_shuffling")):
        found.copy("disable_shuffling", "data.shuffle", lambda value: not flag(value))
    elif "disable_shuffling" in found:
        found.ignored("disable_shuffling", "false is the default")
