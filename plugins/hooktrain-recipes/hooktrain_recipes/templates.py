"""Chat templates by the names that other programs have for them, written as Jinja."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

__all__ = ["AXOLOTL", "AXOLOTL_HUB", "LLAMA_FACTORY", "LLAMA_FACTORY_HUB", "ChatTemplate"]


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
_LLAMA4 = ChatTemplate(
    user="<|header_start|>user<|header_end|>\n\n{content}<|eot|>",
    header="<|header_start|>assistant<|header_end|>\n\n",
    answer="{content}<|eot|>",
    system="<|header_start|>system<|header_end|>\n\n{content}<|eot|>",
    tool="<|header_start|>ipython<|header_end|>\n\n{content}<|eot|>",
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
    "llama4": attrs.evolve(_LLAMA4, trim=True),
    "metharme": ChatTemplate(
        user="<|user|>{content}",
        header="<|model|>",
        answer="{content}",
        system="<|system|>{content}",
        default_system="Enter RP mode. You shall reply to the user while staying in character. Your responses must be"
        " detailed, creative, immersive, and drive the scenario forward.",
        prefix="{bos}",
        end="{eos}",
        trim=True,
    ),
    "qwen_25": _chatml(
        default_system=_QWEN, tool="<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n"
    ),
}
"""Axolotl's names under ``chat_template``, without tools."""
AXOLOTL_HUB: Mapping[str, str] = {
    **dict.fromkeys(("command_a", "command_a_rag", "command_a_tool_use"), "CohereLabs/c4ai-command-a-03-2025"),
    "deepseek_v3": "deepseek-ai/DeepSeek-V3",
    "exaone": "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct",
    "exaone4": "LGAI-EXAONE/EXAONE-4.0-1.2B",
    "gemma3n": "google/gemma-3n-E4B-it",
    **dict.fromkeys(("gemma4", "gemma4_unified"), "google/gemma-4-E2B-it"),
    "jamba": "ai21labs/AI21-Jamba-1.5-Large",
    "llama3_2_vision": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "mistral_v2v3": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral_v3_tekken": "mistralai/Mistral-Nemo-Instruct-2407",
    "mistral_v7_tekken": "mistralai/Mistral-Small-24B-Instruct-2501",
    "nemotron_h": "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
    "phi_4": "microsoft/Phi-4-reasoning",
    "pixtral": "mistral-community/pixtral-12b",
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen3": "Qwen/Qwen3-8B",
    "qwen3_5": "Qwen/Qwen3.5-9B",
}
"""Names of which the template is taken from a tokenizer of the hub."""

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
_CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions."
)

_TOOL_RESPONSE = "<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n"
_HELPFUL = "You are a helpful assistant."
_GEMMA4 = ChatTemplate(
    user="<|turn>user\n{content}<turn|>\n",
    header="<|turn>model\n",
    answer="{content}<turn|>\n",
    system="<|turn>system\n<|think|>{content}<turn|>\n",
    tool="<|turn>tool\n{content}<turn|>\n",
    prefix="{bos}",
    default_system=_HELPFUL,
    thoughts=("<|channel>thought\n", "<channel|>"),
    eos="<turn|>",
)
_VICUNA = ChatTemplate(user="USER: {content} ", header="ASSISTANT:", default_system=_CURIOUS)
_THOUGHTS = ("<think>\n", "\n</think>\n\n")
_HY = "\uff5chy_place\u2581holder\u2581no\u2581"
_SEED = ChatTemplate(user="{bos}user\n{content}{eos}", header="{bos}assistant\n", system="{bos}system\n{content}{eos}")
_MOON = ChatTemplate(
    user="<|im_user|>user<|im_middle|>{content}<|im_end|>",
    header="<|im_assistant|>assistant<|im_middle|>",
    answer="{content}<|im_end|>",
    system="<|im_system|>system<|im_middle|>{content}<|im_end|>",
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
    "aeva": attrs.evolve(
        _GLM,
        thoughts=("<think>", "</think>"),
        default_system=(
            "You are an AI assistant named Aeva created by Zongzhi Lou. Your answer should be friendly, "
            "unbiased, faithful, informative and detailed."
        ),
    ),
    "bailing": ChatTemplate(
        user="<role>HUMAN</role>{content}",
        header="<role>ASSISTANT</role>",
        answer="{content}",
        system="<role>SYSTEM</role>{content}",
        tool="<role>OBSERVATION</role>{content}",
        end="{eos}",
    ),
    "bailing_v2": ChatTemplate(
        user="<role>HUMAN</role>{content}<|role_end|>",
        header="<role>ASSISTANT</role>",
        answer="{content}<|role_end|>",
        system="<role>SYSTEM</role>{content}<|role_end|>",
        tool="<role>OBSERVATION</role>\n<tool_response>\n{content}\n</tool_response><|role_end|>",
    ),
    "breeze": ChatTemplate(user="[INST] {content} [/INST] ", answer="{content}", prefix="{bos}", end="{eos}"),
    "chatglm3": attrs.evolve(_GLM, prefix="[gMASK]sop"),
    "chatml_de": _chatml(default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent.", **_IM_END),
    "deepseekcoder": ChatTemplate(
        user="### Instruction:\n{content}\n",
        header="### Response:",
        answer="\n{content}\n<|EOT|>\n",
        prefix="{bos}",
        default_system=(
            "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeek "
            "Company, and you only answer questions related to computer science. For politically sensitive "
            "questions, security and privacy issues, and other non-computer science questions, you will "
            "refuse to answer.\n"
        ),
    ),
    "ernie": ChatTemplate(
        user="<|im_start|>user\n{content}<|im_end|>\n\n",
        header="<|im_start|>assistant\n",
        answer="{content}<|im_end|>\n\n",
        system="<|im_start|>system\n{content}<|im_end|>\n\n",
        tool="<|im_start|>tool\n{content}<|im_end|>\n\n",
        default_system="<global_setting>\nthink_mode=True\n</global_setting>",
    ),
    "ernie_nothink": ChatTemplate(
        user="User: {content}\n",
        header="Assistant: ",
        answer="{content}<|end_of_sentence|>",
        system="{content}\n",
        prefix="<|begin_of_sentence|>",
    ),
    "fewshot": ChatTemplate(answer="{content}\n\n", end="{eos}"),
    **dict.fromkeys(("gemma4", "gemma4n"), _GEMMA4),
    **dict.fromkeys(("glm4_moe", "glmz1"), attrs.evolve(_GLM, thoughts=_THOUGHTS)),
    "glm4_7": attrs.evolve(_GLM, thoughts=("<think>", "</think>")),
    **dict.fromkeys(("glm4v", "glm_ocr"), _GLM),
    "glm4_5v": attrs.evolve(_GLM, thoughts=_THOUGHTS),
    "hunyuan": ChatTemplate(
        user="{content}<|extra_0|>", answer="{content}<|eos|>", system="{content}<|extra_4|>", prefix="<|startoftext|>"
    ),
    "hunyuan_small": ChatTemplate(
        user="<\uff5chy_User\uff5c>{content}<" + _HY + "8\uff5c>",
        answer="{content}<" + _HY + "2\uff5c>",
        system="{content}<" + _HY + "3\uff5c>",
        prefix="<\uff5chy_begin\u2581of\u2581sentence\uff5c>",
    ),
    "hy3": ChatTemplate(
        user="<\uff5chy_User\uff5c>{content}",
        header="<\uff5chy_Assistant\uff5c>",
        answer="{content}<\uff5chy_eos\uff5c>",
        prefix="{bos}",
        thoughts=("<think>", "</think>"),
        eos="<\uff5chy_eos\uff5c>",
    ),
    "hy_dense_1_8b": ChatTemplate(
        user="<\uff5chy_User\uff5c>{content}",
        header="<\uff5chy_Assistant\uff5c>",
        answer="{content}",
        system="{content}<" + _HY + "3\uff5c>",
        prefix="{bos}",
        end="{eos}",
    ),
    "hy_dense_7b": ChatTemplate(
        user="{content}<|extra_0|>", answer="{content}", system="{content}<|extra_4|>", prefix="{bos}", end="{eos}"
    ),
    "index": ChatTemplate(
        user="reserved_0{content}reserved_1", answer="{content}", system="<unk>{content}", end="{eos}"
    ),
    "intern2": _chatml(
        prefix="{bos}",
        default_system=(
            "You are an AI assistant whose name is InternLM (\u4e66\u751f\xb7\u6d66\u8bed).\n- In"
            "ternLM (\u4e66\u751f\xb7\u6d66\u8bed) is a "
            "conversational language model that is developed by Shanghai AI Laboratory (\u4e0a"
            "\u6d77\u4eba\u5de5\u667a\u80fd\u5b9e\u9a8c\u5ba4). It is "
            "designed to be helpful, honest, and harmless.\n- InternLM (\u4e66\u751f\xb7\u6d66"
            "\u8bed) can understand and "
            "communicate fluently in the language chosen by the user such as English and \u4e2d"
            "\u6587."
        ),
    ),
    "intern_s1": _chatml(prefix="{bos}"),
    **dict.fromkeys(("llava", "llava_next", "llava_next_video", "video_llava"), _VICUNA),
    **dict.fromkeys(("llava_next_llama3", "mllama"), attrs.evolve(_LLAMA3, eos="<|eot_id|>")),
    **dict.fromkeys(
        ("llava_next_mistral", "llava_next_video_mistral"),
        attrs.evolve(_INST, user="[INST] {content}[/INST]", answer=" {content}{eos}"),
    ),
    "llava_next_qwen": attrs.evolve(_QWEN_CHAT, default_system=_HELPFUL, eos=""),
    **dict.fromkeys(("llava_next_yi", "llava_next_video_yi"), _chatml(tool="")),
    "llama2_zh": attrs.evolve(
        _LLAMA2,
        default_system=f"{_HELPFUL} \u4f60\u662f\u4e00\u4e2a\u4e50\u4e8e\u52a9\u4eba\u7684\u52a9\u624b\u3002",
    ),
    "lfm2_vl": _chatml(default_system="You are a helpful multimodal assistant by Liquid AI.", tool=None, **_IM_END),
    "mimo": attrs.evolve(_QWEN_THOUGHT, default_system=_HELPFUL),
    "mimo_vl": attrs.evolve(_QWEN_THOUGHT, default_system="You are MiMo, an AI assistant developed by Xiaomi."),
    "mimo_v2": attrs.evolve(
        _QWEN_CHAT,
        thoughts=("<think>", "</think>"),
        default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
    ),
    "minimax1": ChatTemplate(
        user="<beginning_of_sentence>user name=user\n{content}<end_of_sentence>\n",
        header="<beginning_of_sentence>ai name=assistant\n",
        answer="{content}<end_of_sentence>\n",
        system="<beginning_of_sentence>system ai_setting=assistant\n{content}<end_of_sentence>\n",
        tool="<beginning_of_sentence>tool name=tools\n{content}<end_of_sentence>\n",
        default_system=_HELPFUL,
    ),
    **dict.fromkeys(("minicpm_v", "minicpm_v_4_6"), _chatml(default_system=_HELPFUL)),
    "moonlight": attrs.evolve(
        _MOON, default_system="You are a helpful assistant provided by Moonshot-AI.", eos="<|im_end|>"
    ),
    "openchat-3.6": ChatTemplate(
        user="<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n{content}<|eot_id|>",
        header="<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",
        prefix="{bos}",
    ),
    "paligemma_chat": attrs.evolve(_GEMMA, eos="<end_of_turn>"),
    "phi_small": attrs.evolve(_PHI, header="<|assistant|>\n", prefix="<|endoftext|>", eos="<|end|>"),
    "pixtral": _INST,
    **dict.fromkeys(("qwen2_audio", "qwen2_omni"), attrs.evolve(_QWEN_CHAT, default_system=_HELPFUL)),
    "qwen3_omni": _QWEN_THOUGHT,
    "qwen3_omni_nothink": _QWEN_CHAT,
    "sailor": ChatTemplate(
        user="<|im_start|>question\n{content}<|im_end|>\n",
        header="<|im_start|>answer\n",
        answer="{content}<|im_end|>\n",
        system="<|im_start|>system\n{content}<|im_end|>\n",
        default_system=(
            "You are an AI assistant named Sailor created by Sea AI Lab. Your answer should be friendly, "
            "unbiased, faithful, informative and detailed."
        ),
    ),
    "seed_coder": attrs.evolve(
        _SEED,
        default_system=(
            "You are an AI programming assistant, utilizing the Seed-Coder model, developed by ByteDance "
            "Seed, and you only answer questions related to computer science. For politically sensitive "
            "questions, security and privacy issues, and other non-computer science questions, you will "
            "refuse to answer.\n\n"
        ),
    ),
    "seed_oss": attrs.evolve(_SEED, thoughts=("<seed:think>", "</seed:think>")),
    "telechat2": ChatTemplate(
        user="<_user>{content}",
        header="<_bot>",
        system="<_system>{content}",
        default_system=(
            "\u4f60\u662f\u4e2d\u56fd\u7535\u4fe1\u661f\u8fb0\u8bed\u4e49\u5927\u6a21\u578b\uff0c"
            "\u82f1\u6587\u540d\u662fTeleChat\uff0c\u4f60\u662f\u7531\u4e2d\u7535\u4fe1\u4eba"
            "\u5de5\u667a\u80fd\u79d1\u6280\u6709\u9650\u516c\u53f8\u548c\u4e2d\u56fd\u7535\u4fe1"
            "\u4eba\u5de5\u667a\u80fd\u7814\u7a76\u9662\uff08TeleAI\uff09\u7814\u53d1\u7684\u4eba"
            "\u5de5\u667a\u80fd\u52a9\u624b\u3002"
        ),
    ),
    "xuanyuan": ChatTemplate(
        user="Human: {content} ",
        header="Assistant:",
        default_system=(
            "\u4ee5\u4e0b\u662f\u7528\u6237\u548c\u4eba\u5de5\u667a\u80fd\u52a9\u624b\u4e4b\u95f4"
            "\u7684\u5bf9\u8bdd\u3002\u7528\u6237\u4ee5Human\u5f00\u5934\uff0c\u4eba\u5de5\u667a"
            "\u80fd\u52a9\u624b\u4ee5Assistant\u5f00\u5934\uff0c\u4f1a\u5bf9\u4eba\u7c7b\u63d0"
            "\u51fa\u7684\u95ee\u9898\u7ed9\u51fa\u6709\u5e2e\u52a9\u3001\u9ad8\u8d28\u91cf\u3001"
            "\u8be6\u7ec6\u548c\u793c\u8c8c\u7684\u56de\u7b54\uff0c\u5e76\u4e14\u603b\u662f\u62d2"
            "\u7edd\u53c2\u4e0e\u4e0e\u4e0d\u9053\u5fb7\u3001\u4e0d\u5b89\u5168\u3001\u6709\u4e89"
            "\u8bae\u3001\u653f\u6cbb\u654f\u611f\u7b49\u76f8\u5173\u7684\u8bdd\u9898\u3001\u95ee"
            "\u9898\u548c\u6307\u793a\u3002\n"
            " "
        ),
    ),
    "youtu": ChatTemplate(
        user="<|User|>{content}",
        header="<|Assistant|>",
        answer="{content}<|end_of_text|>",
        tool="<tool_response>\n{content}\n</tool_response>",
        prefix="{bos}",
        thoughts=_THOUGHTS,
        eos="<|end_of_text|>",
    ),
    "yuan": ChatTemplate(user="{content}<sep>", answer="{content}<eod>\n"),
}
"""LLaMA-Factory's names under ``template``, without tools."""

LLAMA_FACTORY_HUB: Mapping[str, str] = {
    "dbrx": "databricks/dbrx-instruct",
    "gpt_oss": "openai/gpt-oss-20b",
    "intern_vl": "OpenGVLab/InternVL3-8B",
    "keye_vl": "Kwai-Keye/Keye-VL-8B-Preview",
    "kimi_vl": "moonshotai/Kimi-VL-A3B-Instruct",
    "minimax2": "MiniMaxAI/MiniMax-M2.1",
}
"""Names of which the template is taken from a tokenizer of the hub."""
