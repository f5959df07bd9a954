"""One entry of the list of sets in Axolotl's recipes: its files, type, columns and masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.axolotl_preferences import PAIRED, pairs_of, reward_pairs
from hooktrain_recipes.axolotl_prompts import INSTRUCTIONS
from hooktrain_recipes.prompts import places_of
from hooktrain_recipes.reasons import ACCOUNT_SOURCE, OWN_CODE, PREFERENCES, ROLLOUTS, Reason
from hooktrain_recipes.values import flag_of, listed, text

__all__ = ["SetOfRows"]

_PREFERRED: tuple[str, ...] = (
    "bradley_terry",
    "ebft",
    "chatml.",
    "llama3.",
    "zephyr.",
    "stepwise",
    "rwd",
    "chat_template.argilla",
)
_PREFERRED += ("user_defined.", "passthrough", "chat_template.default_dpo", "chatml_", "prompt_pairs")
_FORMAT = Reason("a data format that is not here", "convert the rows, or write a plugin with register_formats")
_ROLES = {
    "system": {"system", "sys"},
    "user": {"user", "human", "prompter", "usr"},
    "assistant": {"assistant", "gpt", "chatgpt", "ai", "model", "bot", "chatbot"},
    "tool": {"tool", "observation", "function_response", "tool_response", "ipython"},
}
_REASONING = ("reasoning_content", "thinking", "reasoning")
_BUILDERS = ("json", "csv", "parquet", "arrow", "text")


class SetOfRows:
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
            self._files(f"{path}.data_files")
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
            if flag_of(found.get("streaming")):
                found.translated("streaming", f"{self.to}.streaming")
            else:
                found.notes[f"{self.to}.streaming"] = "Axolotl streams `pretraining_dataset`"
        self._plain_keys()
        return self._type(streamed)

    def _files(self, key: str) -> None:
        """Set the files of a set: one by its path, several below their folder."""
        found, to = self.found, self.to
        try:
            files = listed(found.get(key))
            folder = os.path.commonpath([os.path.dirname(file) for file in files]) or "."
        except ValueError:
            found.unsupported(key, f"given {found.get(key)!r:.60}, expected paths below one folder", "correct them")
            return
        if len(files) == 1:
            found.copy(key, f"{to}.name_or_path", lambda _: files[0])
        else:
            found.set(f"{to}.name_or_path", folder)
            found.set(f"{to}.data_files", [os.path.relpath(file, folder) for file in files])
            found.translated(key, f"{to}.name_or_path", f"{to}.data_files")

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
        found.copy(f"{path}.revision", f"{self.to}.revision", text)
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
        if found.get("rl") in PAIRED:
            return self._pairs(kind, pairs_of)
        if flag_of(found.get("reward_model")):
            return self._pairs(kind, reward_pairs)
        if isinstance(kind, Mapping):
            return self._own_prompt(kind)
        if kind is None and (found.get("rl") or found.get("process_reward_model") or found.get("reward_model")):
            PREFERENCES.refuse(found, key if key in found else self.path)
            self._accept_rest(("step_separator", "max_completion_length", "train_on_last_step_only"))
            return ""
        if kind is None:  # rows of ids
            self._ignore("type", "rows that are tokenized are recognised by their columns")
            return "ids"
        if not isinstance(kind, str):
            found.unsupported(key, f"given {kind!r:.40}, expected the name of a type", "write one, as chat_template")
            return ""
        if kind.startswith(_PREFERRED):
            (ROLLOUTS if kind.startswith(("ebft", "rwd")) else PREFERENCES).refuse(found, key)
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

    def _pairs(self, kind: Any, translate: Callable[..., bool]) -> str:
        """Pairs of answers, or single ones."""
        if not translate(self.found, self.path, self.to, kind):
            what = f"a format of pairs that is not here: {kind!r:.60}"
            PREFERENCES.refuse(self.found, f"{self.path}.type", what)
        self._accept_rest(("field_chosen", "field_rejected", "field_messages", "message_property_mappings", "roles"))
        self._accept_rest(("message_field_role", "message_field_content"))
        return "pairs"

    def _accept_rest(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            self._ignore(key, "belongs to another type of preferences")

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
        legacy = found.get(key).startswith("sharegpt")
        fields = self._fields(legacy)
        roles = self._roles()
        without_system = flag_of(found.get(f"{path}.drop_system_message"))
        pair = (fields.get("role", "role"), fields.get("content", "content"))
        column = found.get(f"{path}.field_messages", "conversations" if legacy else "messages")
        plain = pair in (("from", "value"), ("role", "content")) and len(fields) == 2 * (pair[0] == "from")
        if plain and not roles and not without_system:
            form, ours = ("sharegpt", "conversations") if pair[0] == "from" else ("messages", "messages")
        else:
            form, ours = self._conversation(fields, roles, without_system), "messages"
        found.set(f"{to}.format", form)
        said = f"prompts.conversations.{form}" if found.has(f"prompts.conversations.{form}") else f"{to}.format"
        for name in ("message_property_mappings", "message_field_role", "message_field_content"):
            if f"{path}.{name}" in found:
                found.translated(f"{path}.{name}", said)
        for name in [*roles.values()] if isinstance(found.get(f"{path}.roles"), Mapping) else []:
            found.translated(f"{path}.roles.{name}", f"{said}.roles")
        found.translated(key, f"{to}.format")
        if column != ours:
            found.set(f"{to}.columns.{ours}", text(column))
            if f"{path}.field_messages" in found:
                found.translated(f"{path}.field_messages", f"{to}.columns.{ours}")
        else:
            self._ignore("field_messages", "the column that the format reads")
        if found.get(f"{path}.field_tools") not in (None, "tools"):
            found.copy(f"{path}.field_tools", f"{to}.columns.tools", text)
        else:
            self._ignore("field_tools", "`tools` is the default")
        if without_system:
            found.translated(f"{path}.drop_system_message", f"prompts.conversations.{form}.without_system")
        else:
            self._ignore("drop_system_message", "false is the default")
        self._trained()
        return "chat"

    def _fields(self, legacy: bool) -> dict[str, str]:
        """The fields of a message that have another name than ours, by our names."""
        found, path = self.found, self.path
        mappings = found.get(f"{path}.message_property_mappings", {})
        named = dict(mappings) if isinstance(mappings, Mapping) else {}
        for ours, key in (("role", "message_field_role"), ("content", "message_field_content")):
            if ours not in named and found.get(f"{path}.{key}") is not None:
                named[ours] = found.get(f"{path}.{key}")
        if legacy and not named:
            named = {"role": "from", "content": "value"}
        for ours, key, known, why in (
            ("train", "message_field_training", ("train", "training", "weight"), "is recognised"),
            ("reasoning_content", "field_thinking", _REASONING, "is recognised"),
            ("reasoning_content", "template_thinking_key", None, "the template gets reasoning by each of its names"),
        ):
            given = found.get(f"{path}.{key}")
            if given is None or known is None or given in known:
                self._ignore(key, why if given is not None else "null is the default")
            else:
                named[ours] = given
                found.translated(f"{path}.{key}", f"{self.to}.format")
        return {str(ours): text(theirs) for ours, theirs in named.items() if theirs not in (None, ours)}

    def _roles(self) -> dict[str, str]:
        """Names of roles that are not known, with ours."""
        found, key = self.found, f"{self.path}.roles"
        given = found.get(key)
        made: dict[str, str] = {}
        if given is None:
            self._ignore("roles", "null is the default")
        elif not isinstance(given, Mapping):
            found.unsupported(key, f"given {given!r:.60}, expected names by role", "write {assistant: [gpt, model]}")
        for ours, theirs in given.items() if isinstance(given, Mapping) else ():
            names = [theirs] if isinstance(theirs, str) else theirs if isinstance(theirs, list) else []
            other = {str(name): str(ours) for name in names if str(name).lower() not in _ROLES.get(str(ours), ())}
            if not other:
                found.ignored(f"{key}.{ours}", "these names of roles are known")
            made |= other
        return made

    def _conversation(self, fields: Mapping[str, str], roles: Mapping[str, str], without_system: bool) -> str:
        """Write a format of messages into the recipe; returns its name."""
        parts = {"fields": dict(fields), "roles": dict(roles), "without_system": without_system}
        made = {name: value for name, value in parts.items() if value}
        known = self.found.recipe.setdefault("prompts", {}).setdefault("conversations", {})
        name = "conversation"
        while known.get(name, made) != made:
            name += "_"
        known[name] = made
        self.found.notes[f"prompts.conversations.{name}"] = "how the messages of a set are written"
        return name

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


def _length(found: Collector, to: str) -> int:
    target: Any = found.recipe
    for step in to.split("."):
        target = target.get(step, {}) if isinstance(target, Mapping) else {}
    return len(target)
