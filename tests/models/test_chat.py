"""Messages as turns of a conversation."""

from __future__ import annotations

import pytest

from topk_np.models.tokenizers import chat_prompt

# as in the GGUF file of SmolLM2-Instruct
SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


def test_a_message_is_written_as_the_template_of_smollm2_says() -> None:
    assert chat_prompt("What is\nthat?", SMOLLM2) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is\nthat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_a_system_message_there_is_none() -> None:
    template = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'}}"
    assert chat_prompt("Hi", template) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", ["", "[INST] {{ message }} [/INST]"])
def test_other_formats_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"must be one with <\|im_start\|>, got '(\[INST|')"):
        chat_prompt("Hi", template)
