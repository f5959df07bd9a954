"""Chat templates by the names that other programs have for them, written as Jinja."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

__all__ = ["AXOLOTL", "LLAMA_FACTORY", "ChatTemplate"]


@attrs.frozen(kw_only=True)
class ChatTemplate:
    """How the turns of a conversation are written; ``{content}``, ``{bos}`` and ``{eos}`` stand for what they say.

    Attributes:
        user: a turn of the user.
        header: what opens an answer.
        answer: the rest of it, with its end.
        system: the system message.
        tool: a tool's result; that of the user where empty, and an error where None.
        between: the text between an answer and the next turn.
        prefix: the text before all turns.
        default_system: the system message of a conversation without one.
        in_user: whether the system message stands at the beginning of the first turn of the user.
        end: the text behind all turns.
        thoughts: the tags of reasoning, in front of answers that have none; empty where there are none.
        trim: whether white space around messages is removed.
        eos: the token that ends answers, where it replaces the tokenizer's.
    """

    user: str = "{content}"
    header: str = ""
    answer: str = "{content}{eos}"
    system: str = "{content}"
    tool: str | None = ""
    between: str = ""
    prefix: str = ""
    default_system: str = ""
    in_user: bool = False
    end: str = ""
    thoughts: tuple[str, str] | None = None
    trim: bool = False
    eos: str = ""

    def jinja(self, *, marked: bool = True, default_system: str | None = None, thinking: bool | None = True) -> str:
        """Write the template as Jinja.

        Args:
            marked: whether answers are marked as what is trained, with all of their end.
            default_system: another default for the system message.
            thinking: of templates with reasoning: empty tags are part of the answer; False keeps them out of it, and
                removes the reasoning; None keeps them out of it.
        """
        system = self.default_system if default_system is None else default_system
        first = "{% set told = " + _quoted(system) + " %}{% set turns = messages %}"
        first += "{% if messages and messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}"
        first += "{% set turns = messages[1:] %}{% endif %}"
        content = "message['content'] | trim" if self.trim else "message['content']"
        asked = _said(self.user, "said")
        if self.in_user:
            written = f"{_joined(self.system, 'told')} + said"
            asked = "{% if loop.first and told %}{% set said = " + written + " %}{% endif %}" + asked
            head = _said(self.prefix)
        else:
            head = _said(self.prefix) + "{% if told %}" + _said(self.system, "told") + "{% endif %}"
        opened, closed = ("{% generation %}", "{% endgeneration %}") if marked else ("", "")
        answer = _said(self.header) + self._thought(opened, closed, thinking) + _said(self.answer, "said") + closed
        cases = "{% set said = " + content + " %}{% if message['role'] == 'user' %}" + asked
        cases += "{% elif message['role'] == 'assistant' %}" + answer
        if self.between:
            cases += "{% if not loop.last %}" + _said(self.between) + "{% endif %}"
        if self.tool is not None:
            cases += "{% elif message['role'] == 'tool' %}" + _said(self.tool or self.user, "said")
        cases += "{% else %}{{ raise_exception('no turn of this role in the chat template: ' + message['role']) }}"
        end = (
            "{% if not add_generation_prompt %}" + opened + _said(self.end) + closed + "{% endif %}" if self.end else ""
        )
        prompt = "{% if add_generation_prompt %}" + _said(self.header) + "{% endif %}" if self.header else ""
        return first + head + "{% for message in turns %}" + cases + "{% endif %}{% endfor %}" + end + prompt

    def _thought(self, opened: str, closed: str, thinking: bool | None) -> str:
        """What stands between an answer's header and the answer."""
        if self.thoughts is None:
            return opened
        begin, end = (tag.strip() for tag in self.thoughts)
        empty = "{% if " + f"{_quoted(begin)} not in said and {_quoted(end)} not in said" + " %}"
        empty += _said("".join(self.thoughts)) + "{% endif %}"
        if thinking:
            return opened + empty
        cut = ""
        if thinking is False:
            cut = "{% if " + _quoted(end) + " in said %}{% set said = said.split(" + _quoted(end) + ")[-1].lstrip("
            cut += _quoted("\n") + ") %}{% endif %}"
        return cut + empty + opened


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _joined(text: str, content: str = "") -> str:
    """A text with places as an expression of Jinja."""
    places = {"{content}": content, "{bos}": "(bos_token or '')", "{eos}": "(eos_token or '')"}
    parts = [text]
    for place in places:
        parts = [piece for part in parts for piece in _cut(part, place)]
    return " + ".join(places.get(part) or _quoted(part) for part in parts if part) or "''"


def _cut(text: str, place: str) -> list[str]:
    pieces = text.split(place)
    return [pieces[0], *(piece for rest in pieces[1:] for piece in (place, rest))]


def _said(text: str, content: str = "") -> str:
    return "{{ " + _joined(text, content) + " }}" if text else ""


def _chatml(**changes: object) -> ChatTemplate:
    return attrs.evolve(_CHATML, **changes)  # type: ignore[arg-type]


_CHATML = ChatTemplate(
    user="<|im_start|>user\n{content}<|im_end|>\n",
    header="<|im_start|>assistant\n",
    answer="{content}<|im_end|>\n",
    system="<|im_start|>system\n{content}<|im_end|>\n",
    tool="<|im_start|>tool\n{content}<|im_end|>\n",
)
_LLAMA3 = ChatTemplate(
    user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
    header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    answer="{content}<|eot_id|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
    tool="<|start_header_id|>ipython<|end_header_id|>\n\n{content}<|eot_id|>",
    prefix="{bos}",
)
_GEMMA = ChatTemplate(
    user="<start_of_turn>user\n{content}<end_of_turn>\n",
    header="<start_of_turn>model\n",
    answer="{content}<end_of_turn>\n",
    system="{content}\n\n",
    tool="<start_of_turn>tool\n{content}<end_of_turn>\n",
    prefix="{bos}",
    in_user=True,
)
_PHI = ChatTemplate(
    user="<|user|>\n{content}<|end|>\n",
    header="<|assistant|>\n",
    answer="{content}<|end|>\n",
    system="<|system|>\n{content}<|end|>\n",
)
_COMMAND = ChatTemplate(
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
    header="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    answer="{content}<|END_OF_TURN_TOKEN|>",
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
    prefix="{bos}",
)
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

AXOLOTL: Mapping[str, ChatTemplate] = {
    "alpaca": ChatTemplate(
        user="### Instruction:\n{content}\n\n",
        header="### Response:\n",
        system="{content}\n\n",
        prefix="{bos}",
        between="\n\n",
    ),
    "aya": attrs.evolve(_COMMAND, trim=True),
    "chatml": _CHATML,
    "cohere": attrs.evolve(_COMMAND, trim=True),
    "deepseek_v2": ChatTemplate(
        user="<\uff5cUser\uff5c>{content}", header="<\uff5cAssistant\uff5c>", system="{content}\n\n", prefix="{bos}"
    ),
    "falcon_h1": _chatml(prefix="{bos}"),
    "gemma": attrs.evolve(_GEMMA, trim=True),
    "gemma3": attrs.evolve(_GEMMA, trim=True),
    "llama3": attrs.evolve(_LLAMA3, trim=True),
    "mistral_v1": ChatTemplate(
        user=" [INST] {content} [/INST]",
        header=" ",
        system="{content}\n\n",
        prefix="{bos}",
        in_user=True,
    ),
    "phi_3": attrs.evolve(_PHI, prefix="{bos}"),
    "phi_35": _PHI,
    "qwen_25": _chatml(
        default_system=_QWEN, tool="<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n"
    ),
}
"""Axolotl's names under ``chat_template``, without tools."""

_IM_END = {"eos": "<|im_end|>"}
_QWEN_CHAT = _chatml(tool="<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n", **_IM_END)
_QWEN_THOUGHT = attrs.evolve(_QWEN_CHAT, thoughts=("<think>\n", "\n</think>\n\n"))
_GLM = ChatTemplate(
    user="<|user|>\n{content}",
    header="<|assistant|>",
    answer="\n{content}",
    system="<|system|>\n{content}",
    tool="<|observation|>\n{content}",
    prefix="[gMASK]<sop>",
    end="{eos}",
)
_GRANITE = ChatTemplate(
    user="<|start_of_role|>user<|end_of_role|>{content}<|end_of_text|>\n",
    header="<|start_of_role|>assistant<|end_of_role|>",
    answer="{content}<|end_of_text|>\n",
    system="<|start_of_role|>system<|end_of_role|>{content}<|end_of_text|>\n",
)
_LLAMA2 = ChatTemplate(user="{bos}[INST] {content} [/INST]", system="<<SYS>>\n{content}\n<</SYS>>\n\n", in_user=True)
_INST = ChatTemplate(user="[INST]{content}[/INST]", system="{content}\n\n", tool=None, prefix="{bos}", in_user=True)
_SEEK = ChatTemplate(user="<\uff5cUser\uff5c>{content}", header="<\uff5cAssistant\uff5c>", prefix="{bos}")
_LLAMA4 = ChatTemplate(
    user="<|header_start|>user<|header_end|>\n\n{content}<|eot|>",
    header="<|header_start|>assistant<|header_end|>\n\n",
    answer="{content}<|eot|>",
    system="<|header_start|>system<|header_end|>\n\n{content}<|eot|>",
    tool="<|header_start|>ipython<|header_end|>\n\n{content}<|eot|>",
    prefix="{bos}",
)
_CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions."
)

LLAMA_FACTORY: Mapping[str, ChatTemplate] = {
    "alpaca": ChatTemplate(
        user="### Instruction:\n{content}\n\n",
        header="### Response:\n",
        answer="{content}{eos}\n\n",
        default_system="Below is an instruction that describes a task. Write a response that appropriately completes"
        " the request.\n\n",
    ),
    "chatml": _chatml(**_IM_END),
    "cohere": attrs.evolve(_COMMAND, answer="{content}{eos}"),
    "cpm4": _chatml(prefix="{bos}"),
    "deepseek": ChatTemplate(user="User: {content}\n\n", header="Assistant:", system="{content}\n\n", prefix="{bos}"),
    "deepseek3": _SEEK,
    "deepseekr1": attrs.evolve(_SEEK, thoughts=("<think>\n", "\n</think>\n\n")),
    "default": ChatTemplate(
        user="Human: {content}{eos}\n",
        header="Assistant:",
        answer="{content}{eos}\n",
        system="System: {content}{eos}\n",
    ),
    "empty": ChatTemplate(answer="{content}"),
    "exaone": ChatTemplate(
        user="[|user|]{content}\n",
        header="[|assistant|]",
        answer="{content}{eos}\n",
        system="[|system|]{content}[|endofturn|]\n",
    ),
    "falcon": ChatTemplate(user="User: {content}\n", header="Falcon:", answer="{content}\n", end="{eos}"),
    "falcon_h1": _chatml(prefix="{bos}"),
    **dict.fromkeys(("gemma", "gemma3", "gemma3n"), attrs.evolve(_GEMMA, eos="<end_of_turn>")),
    "gemma2": attrs.evolve(_GEMMA, end="{eos}"),
    "glm4": _GLM,
    "granite3": _GRANITE,
    "granite4": attrs.evolve(
        _GRANITE,
        default_system="You are Granite, developed by IBM. You are a helpful AI assistant.",
        tool=None,
    ),
    "lfm2": _chatml(default_system="You are a helpful AI assistant.", tool=None, **_IM_END),
    "llama2": _LLAMA2,
    "llama3": attrs.evolve(_LLAMA3, eos="<|eot_id|>"),
    "llama4": attrs.evolve(_LLAMA4, eos="<|eot|>"),
    "ministral": _INST,
    "ministral3": _INST,
    "mistral": attrs.evolve(_INST, user="[INST] {content}[/INST]", answer=" {content}{eos}"),
    "mistral_small": attrs.evolve(_INST, system="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]", in_user=False),
    "olmo": ChatTemplate(user="<|user|>\n{content}", header="<|assistant|>\n", prefix="{eos}"),
    "openchat": ChatTemplate(
        user="GPT4 Correct User: {content}{eos}", header="GPT4 Correct Assistant:", prefix="{bos}"
    ),
    "opencoder": _chatml(default_system="You are OpenCoder, created by OpenCoder Team."),
    "phi": attrs.evolve(_PHI, eos="<|end|>"),
    "phi4": ChatTemplate(
        user="<|im_start|>user<|im_sep|>{content}<|im_end|>",
        header="<|im_start|>assistant<|im_sep|>",
        answer="{content}<|im_end|>",
        system="<|im_start|>system<|im_sep|>{content}<|im_end|>",
        **_IM_END,  # type: ignore[arg-type]
    ),
    "phi4_mini": ChatTemplate(
        user="<|user|>{content}<|end|>",
        header="<|assistant|>",
        answer="{content}<|end|>",
        system="<|system|>{content}<|end|>",
        eos="<|end|>",
    ),
    "qwen": attrs.evolve(_QWEN_CHAT, default_system=_QWEN),
    "qwen2_vl": attrs.evolve(_QWEN_CHAT, default_system="You are a helpful assistant."),
    **dict.fromkeys(("qwen3", "qwen3_vl", "qwen3_5", "qwen3_6"), _QWEN_THOUGHT),
    **dict.fromkeys(("qwen3_nothink", "qwen3_vl_nothink", "qwen3_5_nothink"), _QWEN_CHAT),
    "smollm": _chatml(tool=""),
    "smollm2": _chatml(tool="", default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."),
    "solar": ChatTemplate(
        user="### User:\n{content}\n\n",
        header="### Assistant:\n",
        answer="{content}",
        system="### System:\n{content}\n\n",
        end="{eos}",
    ),
    "starchat": ChatTemplate(
        user="<|user|>\n{content}<|end|>\n",
        header="<|assistant|>",
        answer="{content}<|end|>\n",
        system="<|system|>\n{content}<|end|>\n",
    ),
    "vicuna": ChatTemplate(user="USER: {content} ", header="ASSISTANT:", default_system=_CURIOUS),
    "yi": _chatml(tool=""),
    "zephyr": ChatTemplate(
        user="<|user|>\n{content}{eos}",
        header="<|assistant|>\n",
        system="<|system|>\n{content}{eos}",
        default_system="You are Zephyr, a helpful assistant.",
    ),
}
"""LLaMA-Factory's names under ``template``, without tools."""
