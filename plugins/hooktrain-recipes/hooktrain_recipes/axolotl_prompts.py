"""Axolotl's types of instructions: the texts of their prompts, and the columns that they read."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["INSTRUCTIONS"]

_SYSTEM = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
_WITH_INPUT = ", paired with an input that provides further context"
_PAIRED = _SYSTEM.format(_WITH_INPUT)
_ALONE = _SYSTEM.format("")
_CHAT_SYSTEM = (
    "Below is an instruction from a USER that describes a task{}. The ASSISTANT writes a response that {} completes the"
    " request.\n\n"
)
_ASKED = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_ASKED_ALONE = "### Instruction:\n{instruction}\n\n### Response:\n"
_USER = "USER: {instruction}\n{input}\nASSISTANT:"
_USER_ALONE = "USER: {instruction}\nASSISTANT:"
_IM = "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n"
_IM_ALONE = "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"

_Parts = Mapping[str, str]
_STYLES: Mapping[str, _Parts] = {
    "instruct": {"prompt": f"{_PAIRED}\n\n{_ASKED}", "without_input": f"{_ALONE}\n\n{_ASKED_ALONE}"},
    "chat": {"prompt": f"SYSTEM: {_PAIRED}\n{_USER}", "without_input": f"SYSTEM: {_ALONE}\n{_USER_ALONE}"},
    "chatml": {
        "prompt": f"<|im_start|>system\n{_PAIRED}<|im_end|>\n{_IM}",
        "without_input": f"<|im_start|>system\n{_ALONE}<|im_end|>\n{_IM_ALONE}",
    },
    "phi": {
        "prompt": f"<|system|>\n{_PAIRED}<|end|>\n<|user|>\n{{instruction}}<|end|>{{input}}<|assistant|>",
        "without_input": f"<|system|>\n{_ALONE}<|end|>\n<|user|>\n{{instruction}}<|end|>\n<|assistant|>\n",
    },
}
_STYLED: Mapping[str, _Parts] = {
    "alpaca": {},
    "gpteacher": {"output": "response"},
    "jeopardy": {"instruction": "question", "input": "category", "output": "answer"},
    "oasst": {"instruction": "INSTRUCTION", "output": "RESPONSE"},
}
_CHAT = {
    "prompt": f"SYSTEM: {_CHAT_SYSTEM.format(_WITH_INPUT, 'concisely and appropriately')}\n{_USER}",
    "without_input": f"SYSTEM: {_CHAT_SYSTEM.format('', 'appropriately and concisely')}\n{_USER_ALONE}",
}
_QUESTION = {"prompt": _CHAT["without_input"]}
_WITH_SYSTEM = {"prompt": _USER, "without_input": _USER_ALONE, "system": "SYSTEM: {system}\n"}

INSTRUCTIONS: dict[str, tuple[_Parts, Mapping[str, str]]] = {
    **{
        name if style == "instruct" else f"{name}:{style}": (
            {**parts, "answer": "what is {output}"} if name == "jeopardy" else parts, columns,
        )
        for name, columns in _STYLED.items()
        for style, parts in _STYLES.items()
    },
    "alpaca_chat.load": (_STYLES["chat"], {}),
    "alpaca_chat.load_concise": (_CHAT, {}),
    "alpaca_chat.load_qa": (_QUESTION, {"instruction": "question", "output": "answer"}),
    "alpaca_chat.load_camel_ai": (_QUESTION, {"instruction": "message_1", "output": "message_2"}),
    "alpaca_chat.load_no_prompt": ({"prompt": _USER, "without_input": _USER_ALONE}, {}),
    "alpaca_w_system.load": (_WITH_SYSTEM, {}),
    "alpaca_w_system.load_chat": (_WITH_SYSTEM, {}),
    "alpaca_w_system.load_instruct": (
        {"prompt": _ASKED, "without_input": _ASKED_ALONE, "system": "### System:\n{system}\n\n"}, {},
    ),
    "alpaca_w_system.load_open_orca": (
        {"prompt": "### Human:\n{instruction}\n### Assistant:\n", "system": "### System:\n{system}\n"},
        {"instruction": "question", "output": "response", "system": "system_prompt"},
    ),
    "alpaca_w_system.load_open_orca_chatml": (
        {"prompt": _IM_ALONE, "system": "<|im_start|>system\n{system}<|im_end|>\n"},
        {"instruction": "question", "output": "response", "system": "system_prompt"},
    ),
    "summarizetldr": (
        {"prompt": "USER: Summarize the following article as a TL;DR.\n{instruction}\nASSISTANT:"},
        {"instruction": "article", "output": "summary"},
    ),
}  # fmt: skip
"""For each of Axolotl's types of instructions, the texts of its prompts and the columns that it reads."""
INSTRUCTIONS["alpaca_chat"], INSTRUCTIONS["alpaca_w_system"] = INSTRUCTIONS["alpaca:chat"], (_WITH_SYSTEM, {})
