"""Chat templates in the form of published families', on small tokenizers of their kind, and what they make of texts.

The templates are written for these tests: they render what the published ones do for turns of system, user and
assistant, and leave out tools. Expected tokens are written by hand: `Ġ` is a space and `Ċ` a newline of byte-level
tokenizers, `▁` a space and `<0x0A>` a newline of SentencePiece's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

ASKED = [{"role": "user", "content": "Hi there"}]
AGAIN = [*ASKED, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "And now"}]
ANSWER = "Two words"
WORDS = (
    "Hi there Yes And now Two words one think Be kind user model assistant system You are a helpful Today Date "
    "INST SYS Instruction Response Reasoning Mode Cutting Knowledge December no 26 2023 2024 Jul July / ["
)
SIGNS = ["▁", *map(chr, range(33, 127)), *(f"<0x{i:02X}>" for i in range(256))]


class Family(NamedTuple):
    """A template, its tokenizer, and what is expected of them."""

    template: str
    asked: str
    """Tokens of ASKED, waiting for the answer."""
    again: str
    """Of AGAIN."""
    said: str
    """Of ANSWER to ASKED."""
    stops: str
    """Tokens that end a response."""
    bos: str | None = None
    eos: str | None = None
    specials: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Tokens that are not special, such as `<think>`."""
    kind: Literal["bytes", "sentencepiece", "metaspace"] = "bytes"
    """The second puts a space before every piece between control tokens, the third before the first alone."""
    adds_bos: bool = False
    ends: tuple[str, ...] = ()
    """What generation_config.json names, where the model has one."""
    system: bool = True
    """Whether the template has a system's turn."""
    reading: dict[str, Any] = {}
    """Settings of block `text` that the family is read with."""


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
    "m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA_3 = (  # the system's words open the first user's turn
    "{{ bos_token }}{% set first = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}{% endif %}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') + "
    "m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% set ns = namespace(first='') %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
    "{% set ns.first = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}"
    "{% endif %}{% for m in turns %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + "
    "((ns.first if loop.first else '') + m.content).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA_31 = (  # a system's turn with the date, always
    "{{ bos_token }}{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{% set own = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
    "{% set own = messages[0].content | trim %}{% set turns = messages[1:] %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + "
    "date_string + '\\n\\n' + own + '<|eot_id|>' }}"
    "{% for m in turns %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + "
    "'<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (  # the system's words go into the last user's turn, and are gone once that is answered
    "{% set own = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
    "{% set own = messages[0].content %}{% set turns = messages[1:] %}{% endif %}{{ bos_token }}{% for m in turns %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (own + '\\n\\n' if own and loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
MIXTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
TULU_2 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\\n' + m.content + eos_token + '\\n' }}"
    "{% else %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
TULU_3 = (  # no newline behind the last answer
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\\n' + m.content + eos_token + "
    "('' if loop.last else '\\n') }}{% else %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
QWEN_25 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}"
    "{% endif %}"
)
QWEN_3 = (  # the thinking of the last answer, empty where it has none; earlier answers lose theirs
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set said = m.content %}{% set thought = '' %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.last %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}"
    "{% else %}{{ said }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
QWEN_3_THINKING = QWEN_3.split("{% if add_generation_prompt %}")[0] + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
SMOLLM_3 = (  # a system's turn with date and mode; without thinking an empty block opens every answer
    "{% set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}"
    "{% set turns = messages %}{% set own = 'You are a helpful assistant' %}{% if messages[0].role == 'system' %}"
    "{% set own = messages[0].content %}{% set turns = messages[1:] %}{% endif %}"
    "{{ '<|im_start|>system\\nToday Date: ' + strftime_now('%d %B %Y') + '\\nReasoning Mode: ' + mode + '\\n\\n' + "
    "own + '<|im_end|>\\n' }}{% set block = '<think>\\n\\n</think>\\n' if mode == '/no_think' else '' %}"
    "{% for m in turns %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{{ block + m.content.lstrip('\\n') }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + block }}{% endif %}"
)
PHI_3 = (  # EOS behind a finished conversation
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
DEEPSEEK = (  # opens a thinking block, and leaves the thinking out of what was answered
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}{% else %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
ALPACA = (  # no control token at all
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '### Response:\\n' + m.content + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
THINK = ("<think>", "</think>")
_NONE = "<think> Ċ Ċ </think> Ċ Ċ"
_HELPFUL = "<|im_start|> system Ċ You Ġare Ġa Ġhelpful Ġassistant <|im_end|> Ċ"


def _chatml(before: str = "") -> dict[str, str]:
    """What ChatML makes of the texts."""
    asked = f"{before} <|im_start|> user Ċ Hi Ġthere <|im_end|> Ċ <|im_start|> assistant Ċ"
    again = f"{asked} Yes <|im_end|> Ċ <|im_start|> user Ċ And Ġnow <|im_end|> Ċ <|im_start|> assistant Ċ"
    return {"asked": asked, "again": again, "said": "Two Ġwords <|im_end|>"}


_GEMMA = {
    "asked": "<bos> <start_of_turn> user Ċ Hi Ġthere <end_of_turn> Ċ <start_of_turn> model Ċ",
    "again": "<bos> <start_of_turn> user Ċ Hi Ġthere <end_of_turn> Ċ <start_of_turn> model Ċ Yes <end_of_turn> Ċ "
    "<start_of_turn> user Ċ And Ġnow <end_of_turn> Ċ <start_of_turn> model Ċ",
    "said": "Two Ġwords <end_of_turn>",
    "stops": "<eos> <end_of_turn>",
}
_GEMMA_TOKENIZER: dict[str, Any] = {
    "bos": "<bos>",
    "eos": "<eos>",
    "specials": ("<start_of_turn>", "<end_of_turn>"),
    "adds_bos": True,
    "ends": ("<eos>", "<end_of_turn>"),
}
_SENTENCEPIECE: dict[str, Any] = {"bos": "<s>", "eos": "</s>", "kind": "sentencepiece", "adds_bos": True}
FAMILIES: dict[str, Family] = {
    "gemma-2": Family(GEMMA, **_GEMMA, **_GEMMA_TOKENIZER, system=False),
    "gemma-3": Family(GEMMA_3, **_GEMMA, **_GEMMA_TOKENIZER),
    "llama-2": Family(
        LLAMA_2,
        "<s> ▁[ INST ] ▁Hi ▁there ▁[ / INST ]",
        "<s> ▁[ INST ] ▁Hi ▁there ▁[ / INST ] ▁Yes ▁ </s> <s> ▁[ INST ] ▁And ▁now ▁[ / INST ]",
        "▁Two ▁words ▁ </s>",
        "</s>",
        **_SENTENCEPIECE,
    ),
    "llama-3": Family(
        LLAMA_3,
        "<|begin_of_text|> <|start_header_id|> user <|end_header_id|> Ċ Ċ Hi Ġthere <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> Ċ Ċ",
        "<|begin_of_text|> <|start_header_id|> user <|end_header_id|> Ċ Ċ Hi Ġthere <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> Ċ Ċ Yes <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> Ċ Ċ And Ġnow <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> Ċ Ċ",
        "Two Ġwords <|eot_id|>",
        "<|end_of_text|> <|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        specials=HEADERS,
        adds_bos=True,
    ),
    "llama-3.1": Family(
        LLAMA_31,
        "<|begin_of_text|> <|start_header_id|> system <|end_header_id|> Ċ Ċ Cutting ĠKnowledge ĠDate : "
        "ĠDecember Ġ2023 Ċ Today ĠDate : Ġ26 ĠJul Ġ2024 Ċ Ċ <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> Ċ Ċ Hi Ġthere <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> Ċ Ċ",
        "<|begin_of_text|> <|start_header_id|> system <|end_header_id|> Ċ Ċ Cutting ĠKnowledge ĠDate : "
        "ĠDecember Ġ2023 Ċ Today ĠDate : Ġ26 ĠJul Ġ2024 Ċ Ċ <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> Ċ Ċ Hi Ġthere <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> Ċ Ċ Yes <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> Ċ Ċ And Ġnow <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> Ċ Ċ",
        "Two Ġwords <|eot_id|>",
        "<|end_of_text|> <|eot_id|> <|eom_id|>",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        specials=(*HEADERS[:2], "<|end_of_text|>", "<|eom_id|>"),
        adds_bos=True,
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "mistral": Family(
        MISTRAL,
        "<s> [INST] ▁Hi ▁there [/INST]",
        "<s> [INST] ▁Hi ▁there [/INST] ▁Yes </s> [INST] ▁And ▁now [/INST]",
        "▁Two ▁words </s>",
        "</s>",
        specials=("[INST]", "[/INST]"),
        **_SENTENCEPIECE | {"kind": "metaspace"},
    ),
    "mixtral": Family(
        MIXTRAL,
        "<s> ▁ ▁[ INST ] ▁Hi ▁there ▁[ / INST ]",
        "<s> ▁ ▁[ INST ] ▁Hi ▁there ▁[ / INST ] ▁Yes </s> ▁ ▁[ INST ] ▁And ▁now ▁[ / INST ]",
        "▁Two ▁words </s>",
        "</s>",
        system=False,
        **_SENTENCEPIECE,
    ),
    "zephyr": Family(
        ZEPHYR,
        "<s> ▁ < | user | > <0x0A> Hi ▁there </s> ▁ <0x0A> < | assistant | > <0x0A>",
        "<s> ▁ < | user | > <0x0A> Hi ▁there </s> ▁ <0x0A> < | assistant | > <0x0A> Yes </s> "
        "▁ <0x0A> < | user | > <0x0A> And ▁now </s> ▁ <0x0A> < | assistant | > <0x0A>",
        "Two ▁words </s>",
        "</s>",
        **_SENTENCEPIECE,
    ),
    "tulu-2": Family(
        TULU_2,
        "<s> ▁ < | user | > <0x0A> Hi ▁there <0x0A> < | assistant | > <0x0A>",
        "<s> ▁ < | user | > <0x0A> Hi ▁there <0x0A> < | assistant | > <0x0A> Yes </s> "
        "▁ <0x0A> < | user | > <0x0A> And ▁now <0x0A> < | assistant | > <0x0A>",
        "Two ▁words </s>",
        "</s>",
        **_SENTENCEPIECE,
    ),
    "tulu-3": Family(
        TULU_3,
        "<|begin_of_text|> < | user | > Ċ Hi Ġthere Ċ < | assistant | > Ċ",
        "<|begin_of_text|> < | user | > Ċ Hi Ġthere Ċ < | assistant | > Ċ Yes <|end_of_text|> Ċ "
        "< | user | > Ċ And Ġnow Ċ < | assistant | > Ċ",
        "Two Ġwords <|end_of_text|>",
        "<|end_of_text|>",
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        adds_bos=True,
    ),
    "olmo-2": Family(  # one token is both BOS and EOS
        "{{ bos_token }}" + TULU_3,
        "<|endoftext|> < | user | > Ċ Hi Ġthere Ċ < | assistant | > Ċ",
        "<|endoftext|> < | user | > Ċ Hi Ġthere Ċ < | assistant | > Ċ Yes <|endoftext|> Ċ "
        "< | user | > Ċ And Ġnow Ċ < | assistant | > Ċ",
        "Two Ġwords <|endoftext|>",
        "<|endoftext|>",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
    "qwen-2.5": Family(
        QWEN_25 + CHATML,
        **_chatml(_HELPFUL),
        stops="<|im_end|> <|endoftext|>",
        eos="<|im_end|>",
        specials=("<|im_start|>", "<|endoftext|>"),
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen-3": Family(
        QWEN_3,
        **{**_chatml(), "said": f"{_NONE} Two Ġwords <|im_end|>"},
        stops="<|im_end|> <|endoftext|>",
        eos="<|im_end|>",
        specials=("<|im_start|>", "<|endoftext|>"),
        added=THINK,
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen-3-without-thinking": Family(
        QWEN_3,
        **{name: f"{text} {_NONE}" if name != "said" else text for name, text in _chatml().items()},
        stops="<|im_end|>",
        eos="<|im_end|>",
        specials=("<|im_start|>",),
        added=THINK,
        reading={"template_options": {"enable_thinking": False}},
    ),
    "qwen-3-2507": Family(
        CHATML, **_chatml(), stops="<|im_end|>", eos="<|im_end|>", specials=("<|im_start|>",), added=THINK
    ),
    "qwen-3-2507-thinking": Family(  # `<think>` and a newline are the prompt's; an answer without thinking closes it
        QWEN_3_THINKING,
        **{
            name: f"{text} <think> Ċ" if name != "said" else f"Ċ </think> Ċ Ċ {text}"
            for name, text in _chatml().items()
        },
        stops="<|im_end|>",
        eos="<|im_end|>",
        specials=("<|im_start|>",),
        added=THINK,
    ),
    "smollm-2": Family(  # BOS opens every turn
        QWEN_25 + CHATML, **_chatml(_HELPFUL), stops="<|im_end|>", bos="<|im_start|>", eos="<|im_end|>"
    ),
    "smollm-3": Family(
        SMOLLM_3,
        **_chatml(
            "<|im_start|> system Ċ Today ĠDate : Ġ26 ĠJuly Ġ2024 Ċ Reasoning ĠMode : Ġ/ think Ċ Ċ "
            "You Ġare Ġa Ġhelpful Ġassistant <|im_end|> Ċ"
        ),
        stops="<|im_end|>",
        eos="<|im_end|>",
        specials=("<|im_start|>",),
        added=THINK,
    ),
    "smollm-3-without-thinking": Family(
        SMOLLM_3,
        "<|im_start|> system Ċ Today ĠDate : Ġ26 ĠJuly Ġ2024 Ċ Reasoning ĠMode : Ġ/ no _ think Ċ Ċ "
        "You Ġare Ġa Ġhelpful Ġassistant <|im_end|> Ċ <|im_start|> user Ċ Hi Ġthere <|im_end|> Ċ "
        "<|im_start|> assistant Ċ <think> Ċ Ċ </think> Ċ",
        "<|im_start|> system Ċ Today ĠDate : Ġ26 ĠJuly Ġ2024 Ċ Reasoning ĠMode : Ġ/ no _ think Ċ Ċ "
        "You Ġare Ġa Ġhelpful Ġassistant <|im_end|> Ċ <|im_start|> user Ċ Hi Ġthere <|im_end|> Ċ "
        "<|im_start|> assistant Ċ <think> Ċ Ċ </think> Ċ Yes <|im_end|> Ċ "
        "<|im_start|> user Ċ And Ġnow <|im_end|> Ċ <|im_start|> assistant Ċ <think> Ċ Ċ </think> Ċ",
        "Two Ġwords <|im_end|>",
        "<|im_end|>",
        eos="<|im_end|>",
        specials=("<|im_start|>",),
        added=THINK,
        reading={"template_options": {"enable_thinking": False}},
    ),
    "phi-3": Family(
        PHI_3,
        "<|user|> ▁ <0x0A> Hi ▁there <|end|> ▁ <0x0A> <|assistant|> ▁ <0x0A>",
        "<|user|> ▁ <0x0A> Hi ▁there <|end|> ▁ <0x0A> <|assistant|> ▁ <0x0A> Yes <|end|> ▁ <0x0A> "
        "<|user|> ▁ <0x0A> And ▁now <|end|> ▁ <0x0A> <|assistant|> ▁ <0x0A>",
        "Two ▁words <|end|>",
        "<|endoftext|> <|end|>",
        bos="<s>",
        eos="<|endoftext|>",
        specials=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        kind="sentencepiece",
        ends=("<|endoftext|>", "<|end|>"),
    ),
    "phi-4": Family(
        PHI_4,
        "<|im_start|> user <|im_sep|> Hi Ġthere <|im_end|> <|im_start|> assistant <|im_sep|>",
        "<|im_start|> user <|im_sep|> Hi Ġthere <|im_end|> <|im_start|> assistant <|im_sep|> Yes <|im_end|> "
        "<|im_start|> user <|im_sep|> And Ġnow <|im_end|> <|im_start|> assistant <|im_sep|>",
        "Two Ġwords <|im_end|>",
        "<|endoftext|> <|im_end|>",
        bos="<|endoftext|>",
        eos="<|im_end|>",
        specials=("<|im_start|>", "<|im_sep|>"),
        ends=("<|endoftext|>", "<|im_end|>"),
    ),
    "deepseek-r1-distill": Family(
        DEEPSEEK,
        "<｜begin▁of▁sentence｜> <｜User｜> Hi Ġthere <｜Assistant｜>",
        "<｜begin▁of▁sentence｜> <｜User｜> Hi Ġthere <｜Assistant｜> Yes <｜end▁of▁sentence｜> <｜User｜> And Ġnow "
        "<｜Assistant｜>",
        "Two Ġwords <｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        specials=("<｜User｜>", "<｜Assistant｜>"),
        added=THINK,
        adds_bos=True,
    ),
    "alpaca": Family(
        ALPACA,
        "<s> # # # ĠInstruction : Ċ Hi Ġthere Ċ Ċ # # # ĠResponse : Ċ",
        "<s> # # # ĠInstruction : Ċ Hi Ġthere Ċ Ċ # # # ĠResponse : Ċ Yes Ċ Ċ "
        "# # # ĠInstruction : Ċ And Ġnow Ċ Ċ # # # ĠResponse : Ċ",
        "Two Ġwords </s>",
        "</s>",
        bos="<s>",
        eos="</s>",
        adds_bos=True,
    ),
}


@cache
def tokenizer_of(family: str) -> Any:
    """A family's tokenizer, as transformers has it: no directory, no generation_config.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    spec = FAMILIES[family]
    controls = list(dict.fromkeys(filter(None, ("<unk>", spec.bos, spec.eos, *spec.specials))))
    space, alphabet = ("Ġ", sorted(pre_tokenizers.ByteLevel.alphabet())) if spec.kind == "bytes" else ("▁", SIGNS)
    words = [f"{front}{word}" for word in WORDS.split() for front in ("", space)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*controls, *alphabet, *words]))}
    whole = {"ignore_merges": True, "merges": []}  # a word of the vocabulary is one token
    if spec.kind == "bytes":
        backend = Tokenizer(models.BPE(vocab=vocabulary, **whole))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend = Tokenizer(models.BPE(vocab=vocabulary, byte_fallback=True, unk_token="<unk>", **whole))
        split = pre_tokenizers.Split(Regex("▁?[A-Za-z]+|▁?\\["), "isolated")
        if spec.kind == "sentencepiece":  # a space before every piece between control tokens
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            backend.pre_tokenizer = split
        else:
            first = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([first, split])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in controls])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in spec.added])
    if spec.bos and spec.adds_bos:
        ids = [(spec.bos, backend.token_to_id(spec.bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{spec.bos} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=spec.bos, eos_token=spec.eos, unk_token="<unk>", chat_template=spec.template
    )


def saved(directory: Path, family: str) -> Path:
    """A checkpoint of the family: a tiny Llama of random weights."""
    import json

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, spec = tokenizer_of(family), FAMILIES[family]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if spec.ends:
        ends = {"eos_token_id": tokenizer.convert_tokens_to_ids(list(spec.ends))}
        (directory / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    return directory
