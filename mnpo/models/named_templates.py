"""Chat templates for base models, which have none: what `text.template` names (docs/templates.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from mnpo.config.blocks import nearest
from mnpo.errors import BadInput


class Named(NamedTuple):
    """A template and the control tokens that it is made of; a model that lacks them gets them."""

    source: str
    tokens: tuple[str, ...] = ()


NAMED = {
    "chatml": Named(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "zephyr": Named(  # turns end with the model's own EOS, and who speaks is text: no new tokens
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "llama-3": Named(
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "gemma": Named(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('no system turn') }}{% endif %}{% set role = 'model' if message['role'] == 'assistant' "
        "else message['role'] %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "alpaca": Named(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + "
        "'\\n\\n' }}{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
}


def named(template: str) -> Named:
    """The template that is named, that stands in a file, or that is given as it is.

    Raises:
        BadInput: it is none of these.
    """
    if template in NAMED:
        return NAMED[template]
    if "{{" in template or "{%" in template:
        return Named(template, _control_tokens(template))
    file = Path(template)
    if file.is_file():
        source = file.read_text(encoding="utf-8")
        return Named(source, _control_tokens(source))
    raise BadInput(f"text.template: {template!r} is no file and no template's name{nearest(template, NAMED)}")


def _control_tokens(source: str) -> tuple[str, ...]:
    """Those that a template names, `<|im_end|>` or `<end_of_turn>`; none where turns end with the model's own EOS."""
    found = re.findall(r"<\|\w+\|>|<(?:start|end)_of_\w+>", source)
    return () if "eos_token" in source else tuple(dict.fromkeys(found))
