"""The data of Axolotl's recipes: sets, their types, chat templates and masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.axolotl_prompts import INSTRUCTIONS
from hooktrain_recipes.kinds import ERRORS
from hooktrain_recipes.reasons import ACCOUNT_SOURCE, CONTRADICTION, OWN_CODE, PREFERENCES, Reason
from hooktrain_recipes.templates import AXOLOTL
from hooktrain_recipes.values import flag, flag_of, listed, numeric, split_of, text, whole

__all__ = ["SOURCE_KEYS", "held_out", "set_data"]

_PREFERRED = ("bradley_terry", "ebft", "chatml.", "llama3.", "zephyr.", "stepwise", "rwd", "chat_template.argilla")
_PREFERRED += ("user_defined.", "passthrough", "chat_template.default_dpo", "chatml_", "prompt_pairs")
_FORMAT = Reason("a data format that is not here", "convert the rows, or write a plugin with register_formats")
_TEMPLATE = Reason("a chat template that is not here", "write it to a file and give tokenizer.chat_template its path")
_ROLES = {
    "system": {"system", "sys"},
    "user": {"user", "human", "prompter", "usr"},
    "assistant": {"assistant", "gpt", "chatgpt", "ai", "model", "bot", "chatbot"},
    "tool": {"tool", "observation", "function_response", "tool_response", "ipython"},
}
_BUILDERS = ("json", "csv", "parquet", "arrow", "text")
SOURCE_KEYS = {
    "path": "`data.sources[].name_or_path`",
    "name": "`data.sources[].subset`",
    "split": "`data.sources[].split`",
    "data_files": "`data.sources[].data_files`",
    "type": "`data.sources[].format`, `prompts.formats`, `type`",
    "field": "`data.sources[].columns.text`",
    "field_messages": "`data.sources[].columns`",
    "field_tools": "`data.sources[].columns.tools`",
    "message_property_mappings": "`data.sources[].format`, `data.sources[].content_key`",
    "roles": "`data.sources[].role_mapping`",
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
            made = _Set(found, path, to)
            try:
                kinds.add(made.translate(streamed=key == "pretraining_dataset"))
            except ERRORS:
                found.unsupported(path, f"given {dict(entry)!r:.60}, which Axolotl does not take", "correct the values")
        if not isinstance(sets, list) or not sets:
            found.unsupported(key, "expected a list of sets", "name the data to train on")
    kinds.discard("")
    causal = kinds == {"text"} and len(_columns(found)) == 1
    found.default("type", "causal" if causal else "sft", "Axolotl has no such key: the types of the sets say it")
    _texts(found, causal)
    _templates(found, "chat" in kinds)
    _masks(found, kinds)
    _share_of_evaluation(found)


class _Set:
    """Translates one entry of a list of sets."""

    def __init__(self, found: Collector, path: str, to: str) -> None:
        self.found, self.path = found, path
        self.to = f"{to}[{_length(found, to)}]"

    def translate(self, streamed: bool) -> str:
        """Account for the entry; returns what kind it is: text, chat or instructions."""
        found, path = self.found, self.path
        given = found.get(f"{path}.path")
        if isinstance(given, str) and given.startswith(
            ("s3://", "gs://", "gcs://", "az://", "abfs://", "adl://", "oci://")
        ):
            ACCOUNT_SOURCE.refuse(found, f"{path}.path")
        elif isinstance(given, str) and given.startswith(("http://", "https://")):
            found.unsupported(f"{path}.path", "data at an address", "download the file and give its path")
        elif given is None:
            found.unsupported(path, "a set without a path", "add the file, folder or hub name")
            return ""
        elif given in _BUILDERS and found.get(f"{path}.data_files"):
            found.copy(f"{path}.data_files", f"{self.to}.name_or_path", _one_file)
            found.ignored(f"{path}.path", "the files say it")
        else:
            found.copy(f"{path}.path", f"{self.to}.name_or_path", text)
            found.copy(f"{path}.data_files", f"{self.to}.data_files", listed)
        if not found.has(self.to):
            found.set(f"{self.to}.name_or_path", str(given))
        found.copy(f"{path}.split", f"{self.to}.split", text)
        found.copy(f"{path}.name", f"{self.to}.subset", text)
        if streamed or flag_of(found.get("streaming")):
            found.set(f"{self.to}.streaming", True)
            if streamed and not found.get("streaming"):
                found.notes[f"{self.to}.streaming"] = "Axolotl streams `pretraining_dataset`"
        self._plain_keys()
        return self._type(streamed)

    def _plain_keys(self) -> None:
        found, path = self.found, self.path
        for key, reason in (
            ("ds_type", "the files' names tell"),
            ("preprocess_shards", "sets are prepared in parts on their own"),
            ("input_format", "not used for these types"),
            ("split_thinking", "reasoning within <think> tags is recognised"),
        ):
            if f"{path}.{key}" in found:
                found.ignored(f"{path}.{key}", reason)
        for key, why, remedy in (
            ("shards", "a part of a set", "choose rows with split: train[10:20]"),
            ("shards_idx", "a part of a set", "choose rows with split: train[10:20]"),
            ("skip", "a part of a set", "choose rows with split: train[10:]"),
            (
                "message_field_training_detail",
                "parts of a message that are not trained",
                "write train: false on messages",
            ),
            ("logprobs_field", "distillation", "train on the teacher's answers as data"),
            ("temperature", "distillation", "train on the teacher's answers as data"),
            ("input_transform", OWN_CODE.reason, OWN_CODE.remedy),
        ):
            self._unless_off(key, why, remedy)
        if found.get(f"{path}.revision") in (None, "main"):
            self._ignore("revision", "the newest is the default")
        else:
            found.unsupported(f"{path}.revision", "a revision of a set", "download it and give the folder's path")
        if flag_of(found.get(f"{path}.trust_remote_code")):
            OWN_CODE.refuse(found, f"{path}.trust_remote_code")
        else:
            self._ignore("trust_remote_code", "code of data sets never runs")

    def _unless_off(self, key: str, why: str, remedy: str) -> None:
        if self.found.get(f"{self.path}.{key}") in (None, False, "", [], 0):
            self._ignore(key, "not used")
        else:
            self.found.unsupported(f"{self.path}.{key}", why, remedy)

    def _ignore(self, key: str, reason: str) -> None:
        if f"{self.path}.{key}" in self.found:
            self.found.ignored(f"{self.path}.{key}", reason)

    def _type(self, streamed: bool) -> str:
        found, key = self.found, f"{self.path}.type"
        kind = found.get(key, "pretrain" if streamed else None)
        if isinstance(kind, Mapping):
            return self._own_prompt(kind)
        if kind is None and (found.get("rl") or found.get("process_reward_model") or found.get("reward_model")):
            PREFERENCES.refuse(found, key if key in found else self.path)
            self._accept_rest(("step_separator", "max_completion_length", "train_on_last_step_only"))
            return ""
        if not isinstance(kind, str):
            found.unsupported(
                key if key in found else self.path, "a set without a type", "add its type, such as chat_template"
            )
            return ""
        if kind.startswith(_PREFERRED):
            PREFERENCES.refuse(found, key)
            self._accept_rest(
                ("field_chosen", "field_rejected", "field_messages", "message_property_mappings", "roles")
            )
            self._accept_rest(("step_separator", "max_completion_length", "train_on_last_step_only"))
            return ""
        if kind in ("completion", "pretrain"):
            return self._text(key)
        if kind.split(".")[0] in ("chat_template", "sharegpt", "messages"):
            return self._chat(key)
        kind = f"{kind}.load" if kind in ("alpaca_chat", "alpaca_w_system") else kind
        style = found.get(f"{self.path}.conversation")
        if isinstance(style, str) and kind == "alpaca_chat.load" and f"alpaca:{style}" in INSTRUCTIONS:
            found.translated(f"{self.path}.conversation", f"{self.to}.format")
            kind = f"alpaca:{style}"
        if kind in INSTRUCTIONS:
            parts, columns = INSTRUCTIONS[kind]
            self._prompt(key, kind.replace(":", "_").replace(".load", "").replace(".", "_") + "_prompt", parts, columns)
            return "instructions"
        if "." in kind or ":" in kind:
            OWN_CODE.refuse(found, key, kind)
        else:
            close = did_you_mean(kind, ["chat_template", "completion", *INSTRUCTIONS])
            found.unsupported(key, f"{_FORMAT.reason}: {kind}{close}", _FORMAT.remedy)
        return ""

    def _accept_rest(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            self._ignore(key, "belongs to preferences")

    def _text(self, key: str) -> str:
        found = self.found
        if key in found:
            found.translated(key, "type", f"{self.to}.format")
        found.set(f"{self.to}.format", "text")
        for name in ("field", "text_column"):
            column = found.get(f"{self.path}.{name}")
            if column not in (None, "text"):
                found.copy(f"{self.path}.{name}", f"{self.to}.columns.text", text)
            else:
                self._ignore(name, "`text` is the default")
        return "text"

    def _prompt(self, key: str, name: str, parts: Mapping[str, str], columns: Mapping[str, str]) -> None:
        found = self.found
        known = found.recipe.get("prompts", {}).get("formats", {})
        while name in known and known[name] != dict(parts):
            name += "_"
        found.set(f"{self.to}.format", name)
        found.recipe.setdefault("prompts", {}).setdefault("formats", {})[name] = dict(parts)
        found.translated(key, f"{self.to}.format", f"prompts.formats.{name}")
        if columns:
            found.set(f"{self.to}.columns", dict(columns))
            found.translated(key, f"{self.to}.columns")

    def _own_prompt(self, kind: Mapping[str, Any]) -> str:
        from hooktrain_recipes.prompts import places_of  # its imports are light, and only such sets need it

        found, key = self.found, f"{self.path}.type"
        names = {
            "format": "prompt",
            "no_input_format": "without_input",
            "system_format": "system",
            "system_prompt": "default_system",
        }
        columns = {
            "field_instruction": "instruction",
            "field_input": "input",
            "field_output": "output",
            "field_system": "system",
        }
        parts = {"prompt": "{instruction} {input} ", "without_input": "{instruction} "}
        renamed: dict[str, str] = {}
        for part, value in kind.items():
            if value is None or (part in names and value == ""):
                found.ignored(f"{key}.{part}", "empty is the default")
            elif not isinstance(value, str) or part not in {**names, **columns}:
                found.unsupported(
                    f"{key}.{part}", f"given {value!r:.60}, which Axolotl does not take here", "correct or remove it"
                )
            elif part in columns:
                if value != columns[part]:
                    renamed[columns[part]] = value
                found.translated(f"{key}.{part}", f"{self.to}.columns.{columns[part]}")
            else:
                try:
                    places_of(value, None if part == "system_prompt" else ("instruction", "input", "system"), part)
                except ValueError as problem:
                    found.unsupported(f"{key}.{part}", str(problem), "write only these places")
                    continue
                parts[names[part]] = value
                found.translated(f"{key}.{part}", f"prompts.formats.instructions.{names[part]}")
        if not kind:
            found.unsupported(key, "a set without a type", "add its type, such as chat_template")
            return ""
        if "{instruction}" not in parts["prompt"] + parts["without_input"]:
            found.unsupported(f"{key}.format", "a prompt without {instruction}", "write its place in the text")
        self._prompt(key, "instructions", parts, renamed)
        return "instructions"

    def _chat(self, key: str) -> str:
        found, path, to = self.found, self.path, self.to
        found.translated(key, f"{to}.format")
        mappings = found.get(f"{path}.message_property_mappings", {})
        mappings = mappings if isinstance(mappings, Mapping) else {}
        role = mappings.get("role", found.get(f"{path}.message_field_role", "role"))
        content = mappings.get("content", found.get(f"{path}.message_field_content", "content"))
        if found.get(key).startswith("sharegpt") and not mappings and f"{path}.message_field_role" not in found:
            role, content = "from", "value"
        pair = (role, content)
        form = "sharegpt" if pair == ("from", "value") else "messages"
        for name in ("message_property_mappings", "message_field_role", "message_field_content"):
            if f"{path}.{name}" in found:
                found.translated(f"{path}.{name}", f"{to}.format")
        for inner, value in mappings.items():
            if inner not in ("role", "content") and value not in (inner, None):
                found.unsupported(
                    f"{path}.message_property_mappings.{inner}",
                    "another name of a message's field",
                    "rename it in the rows",
                )
        if pair not in (("from", "value"), ("role", "content")):
            found.unsupported(
                f"{path}.message_property_mappings",
                "other names of a message's fields",
                "rename them in the rows to role and content",
            )
        found.set(f"{to}.format", form)
        column = {"sharegpt": "conversations", "messages": "messages"}[form]
        messages = found.get(
            f"{path}.field_messages", "conversations" if found.get(key).startswith("sharegpt") else "messages"
        )
        if isinstance(messages, str) and messages != column:
            found.set(f"{to}.columns.{column}", messages)
        if f"{path}.field_messages" in found:
            found.copy(f"{path}.field_messages", f"{to}.columns.{column}", text)
        if found.get(f"{path}.field_tools") not in (None, "tools"):
            found.copy(f"{path}.field_tools", f"{to}.columns.tools", text)
        else:
            self._ignore("field_tools", "`tools` is the default")
        self._roles()
        known = (None, "reasoning_content", "thinking", "reasoning")
        for name in ("field_thinking", "template_thinking_key"):
            if found.get(f"{path}.{name}") in known:
                self._ignore(name, "reasoning is recognised, and given to the template by each of its names")
            else:
                found.unsupported(f"{path}.{name}", "another name of the reasoning", "rename it to reasoning_content")
        if found.get(f"{path}.message_field_training") in (None, "train", "training", "weight"):
            self._ignore("message_field_training", "messages with train, training or weight are recognised")
        else:
            found.unsupported(
                f"{path}.message_field_training", "another name of a message's field", "rename it to train"
            )
        if flag_of(found.get(f"{path}.drop_system_message")):
            found.set(f"{to}.format", "without_system")
            found.translated(f"{path}.drop_system_message", f"{to}.format")
            found.set(f"{to}.columns", {"messages": messages})
        else:
            self._ignore("drop_system_message", "false is the default")
        self._trained()
        return "chat"

    def _roles(self) -> None:
        found, key = self.found, f"{self.path}.roles"
        roles = found.get(key)
        if roles is None:
            self._ignore("roles", "null is the default")
            return
        for ours, theirs in roles.items() if isinstance(roles, Mapping) else ((None, roles),):
            names = {theirs} if isinstance(theirs, str) else set(map(str, theirs)) if isinstance(theirs, list) else {""}
            where = f"{key}.{ours}" if isinstance(roles, Mapping) else key
            if {name.lower() for name in names} <= _ROLES.get(str(ours), set()):
                found.ignored(where, "these names of roles are known")
            else:
                found.unsupported(
                    where, "other names of roles", f"write them as role_mapping: {{user: {self.path}.NAME, ...}}"
                )

    def _trained(self) -> None:
        """Account for what of a conversation is trained."""
        found, path = self.found, self.path
        trained = found.get(f"{path}.roles_to_train")
        if trained is None or set(trained if isinstance(trained, list) else [trained]) <= {"assistant", "gpt"}:
            if trained == [] and not found.get(f"{path}.message_field_training"):
                found.unsupported(f"{path}.roles_to_train", "no role is trained", "write [assistant]")
            if f"{path}.roles_to_train" in found and trained is None:
                found.set("data.train_on", "last_assistant")
                found.translated(f"{path}.roles_to_train", "data.train_on")
            else:
                self._ignore("roles_to_train", "the assistant's turns are trained")
        else:
            found.unsupported(
                f"{path}.roles_to_train",
                "turns of other roles are trained",
                "write data.mask_inputs: false to train all of the text",
            )
        for name in ("train_on_eos", "train_on_eot"):
            if found.get(f"{path}.{name}") in (None, "turn"):
                self._ignore(name, "the end of each trained turn is trained")
            else:
                found.unsupported(
                    f"{path}.{name}",
                    "other ends of turns are trained",
                    "remove it: the end of each trained turn is trained",
                )


def _count(found: Collector, key: str) -> int:
    """How many entries a list of the original has."""
    value = found.get(key)
    return len(value) if isinstance(value, list) else 0


def _length(found: Collector, to: str) -> int:
    target: Any = found.recipe
    for step in to.split("."):
        target = target.get(step, {}) if isinstance(target, Mapping) else {}
    return len(target)


def _one_file(value: Any) -> str:
    files = listed(value)
    if len(files) != 1:
        raise ValueError(f"given {len(files)} files, expected one")
    return files[0]


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
        found.set("tokenizer.chat_template", AXOLOTL[name].jinja(marked=False))
        found.translated(key, "tokenizer.chat_template")
    elif re.search(_FAMILIES.get(str(name), r"(?!)"), str(found.get("base_model")).lower()):
        found.ignored(key, "it is the template that models of this family bring along")
    else:
        _TEMPLATE.refuse(found, key, str(name))


def _masks(found: Collector, kinds: set[str]) -> None:
    if "train_on_inputs" in found:
        if not flag_of(found.get("train_on_inputs")) or kinds <= {"text"}:
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
    if "eot_tokens" in found:
        found.ignored("eot_tokens", "the end of a turn is found in the rendered text, and trained")


def _share_of_evaluation(found: Collector) -> None:
    key = "val_set_size"
    value = found.get(key)
    if not held_out(found) or value in (None, 0, False, "0"):
        if key in found:
            found.ignored(key, "nothing is held out")
    elif found.get("test_datasets"):
        CONTRADICTION.refuse(found, key, "test_datasets")
    elif numeric(value) >= 1:
        found.copy(key, "data.val_size", whole)
    else:
        found.copy(key, "data.train_eval_split", split_of)
