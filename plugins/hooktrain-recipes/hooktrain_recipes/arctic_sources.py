"""ArcticTraining's ``data.sources`` and ``data.eval_sources``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.human import human, positive_whole
from hooktrain_recipes.reasons import ACCOUNT_SOURCE, DISTILLATION, OWN_CODE
from hooktrain_recipes.tables import Row
from hooktrain_recipes.training_arguments import set_text_column
from hooktrain_recipes.values import text, whole

__all__ = ["SOURCE_ROWS", "translate_sources"]

_TYPES = ("huggingface", "huggingface_instruct", "huggingface_causal")
_KNOWN = (
    "nvidia/AceMath-Instruct-Training-Data", "HuggingFaceH4/ultrachat_200k", "Open-Orca/OpenOrca",
    "THUDM/LongAlign-10k", "Yukang/LongAlpaca-12k", "Open-Orca/SlimOrca", "meta-math/MetaMathQA",
    "ise-uiuc/Magicoder-OSS-Instruct-75K", "lmsys/lmsys-chat-1m",
)  # fmt: skip
"""Data sets whose columns ArcticTraining knows; hooktrain recognises them as well."""
_COPIED = {
    "name_or_path": text,
    "split": text,
    "sample_ratio": human,
    "sample_count": positive_whole,
    "sample_seed": whole,
    "split_mapping": None,
    "role_mapping": None,
    "content_key": text,
}

SOURCE_ROWS: tuple[Row, ...] = (
    Row(key="data.sources[]", ours="`data.sources[].name_or_path`", about="`name:split[10:20]` means the same"),
    Row(key="data.sources[].type", about="`huggingface`, `huggingface_instruct` and `huggingface_causal` are one type"
        " here; `snowflake` needs an account; others are code of its own", kind="ignored"),
    *(Row(key=f"data.sources[].{name}", ours=f"`data.sources[].{name}`") for name in _COPIED),
    Row(key="data.sources[].column", ours="`data.text_column`", about="one for all sources"),
    Row(key="data.sources[].kwargs", ours="`subset`, `data_files`, `streaming`", about="arguments of load_dataset"),
    Row(key="data.sources[].process", about="rows with `input_ids` are recognised by their columns", kind="ignored"),
    Row(key="data.eval_sources[]", ours="`data.eval_sources[]`", about="the same keys; their split is `eval`"),
)  # fmt: skip


def translate_sources(found: Collector, kind: str) -> None:
    """Account for the sources of a recipe of type ``sft`` or ``causal``."""
    for section, split in (("data.sources", "train"), ("data.eval_sources", "eval")):
        given = found.get(section)
        if not isinstance(given, list):
            continue
        if not given:
            found.ignored(section, "empty")
        plain = not any(isinstance(each, (Mapping, list)) for each in given)
        for at, each in enumerate(given):
            key, to = (section if plain else f"{section}[{at}]"), f"{section}[{_count(found, section)}]"
            if isinstance(each, Mapping):
                _mapping(found, key, to, each, split, kind)
            elif isinstance(each, str) and each:
                _name(found, key, to, each, split, kind)
            else:
                found.unsupported(key, f"given {each!r:.60}, expected a name or a mapping", "give a name")


def _count(found: Collector, section: str) -> int:
    name = section.removeprefix("data.")
    return len(found.recipe.get("data", {}).get(name, []))


def _name(found: Collector, key: str, to: str, name: str, split: str, kind: str) -> None:
    """A source by its name alone."""
    plain = name.partition(":")[0]
    if _refused(found, key, plain):
        return
    if name in _TYPES:
        OWN_CODE.refuse(found, key, f"a source by the name of its type, {name}")
        return
    found.set(f"{to}.name_or_path", name)
    found.translated(key, f"{to}.name_or_path")
    if split != "train" and ":" not in name:
        found.default(f"{to}.split", split, "the default of ArcticTraining for eval_sources")
    if kind == "sft":
        _roles(found, to, plain)


def _refused(found: Collector, key: str, name: str) -> bool:
    """Whether a registered source is refused, by its type or, where that is all, its name."""
    if name == "ProjectGutenbergSFT":
        DISTILLATION.refuse(found, key, "prompts without answers (ProjectGutenbergSFT)")
    elif name == "snowflake":
        ACCOUNT_SOURCE.refuse(found, key, "Snowflake")
    else:
        return False
    return True


def _roles(found: Collector, to: str, name: str) -> None:
    if name not in _KNOWN:
        roles = {"user": "user", "assistant": "assistant"}
        found.default(f"{to}.role_mapping", roles, "the columns that ArcticTraining reads by default")


def _mapping(found: Collector, key: str, to: str, given: Mapping[str, Any], split: str, kind: str) -> None:
    type_, name = given.get("type") or "", given.get("name_or_path")
    if _refused(found, key, str(type_)):
        return
    if type_ and type_ not in _TYPES and type_ != name:
        OWN_CODE.refuse(found, key, f"a source of type {type_!r}")
        return
    if not isinstance(name, str) or not name:
        found.unsupported(key, "a source without name_or_path", "give the name or path of the rows")
        return
    for field in given:
        path = f"{key}.{field}"
        if field == "type":
            found.ignored(path, "names and paths of Hugging Face are the default")
        elif field in _COPIED:
            _copied(found, path, f"{to}.{field}", field, name)
        elif field == "column":
            _column(found, path, to, kind)
        elif field == "process":
            found.ignored(path, "examples with input_ids are recognised by their columns")
        elif field == "kwargs":
            _arguments(found, path, to)
    if split != "train" and "split" not in given and ":" not in name:
        found.default(f"{to}.split", split, "the default of ArcticTraining for eval_sources")
    if kind == "sft" and type_ in ("", "huggingface_instruct") and "role_mapping" not in given:
        _roles(found, to, name.partition(":")[0])


def _copied(found: Collector, path: str, to: str, field: str, name: str) -> None:
    value = found.values[path]
    if field == "split" and ":" in name:
        found.ignored(path, "name_or_path has a split of its own, which precedes there too")
    elif field == "split" and value == "":
        found.ignored(path, "empty is the default")
    elif field == "role_mapping" and isinstance(value, Mapping) and _answers_first(list(value)):
        found.unsupported(
            path,
            "answers before their questions: ArcticTraining writes the turns in the order of these roles",
            "write user before assistant",
        )
    elif field in ("split_mapping", "role_mapping"):
        found.copy(path, to, _names)
    else:
        found.copy(path, to, _COPIED[field])


def _answers_first(roles: list[str]) -> bool:
    return {"user", "assistant"} <= set(roles) and roles.index("assistant") < roles.index("user")


def _names(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise ValueError(f"given {value!r:.60}, expected names by name")
    return dict(value)


def _column(found: Collector, path: str, to: str, kind: str) -> None:
    value = found.values[path]
    if kind != "causal":
        found.ignored(path, "columns of text are for type: causal")
    else:
        set_text_column(found, path, to, text(value))


def _arguments(found: Collector, key: str, to: str) -> None:
    """Arguments of ``datasets.load_dataset``."""
    given = found.values[key]
    if not isinstance(given, Mapping) or not given:
        found.ignored(key, "none") if not given else found.unsupported(key, "expected a mapping", "write {name: value}")
        return
    for name, value in given.items():
        path = f"{key}.{name}"
        if value is None or name in ("verification_mode", "num_proc", "cache_dir", "keep_in_memory", "download_mode"):
            found.ignored(path, "how data is fetched and kept does not change it")
        elif name == "name":
            found.copy(path, f"{to}.subset", text)
        elif name == "data_files" and isinstance(value, (str, list)):
            found.copy(path, f"{to}.data_files", lambda files: [files] if isinstance(files, str) else files)
        elif name == "streaming" and isinstance(value, bool):
            found.copy(path, f"{to}.streaming")
        elif name == "trust_remote_code" and value is False:
            found.ignored(path, "code of a data set is never run")
        elif name == "trust_remote_code":
            OWN_CODE.refuse(found, path, "a data set's loading script")
        else:
            found.unsupported(path, f"the argument {name} of load_dataset", "save the rows to a file and give its path")
