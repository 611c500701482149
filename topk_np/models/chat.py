"""A message as a turn of a conversation, in the format ChatML."""

from __future__ import annotations

import re

START, END = "<|im_start|>", "<|im_end|>"


def chat_prompt(message: str, template: str, /) -> str:
    r"""
    What a model is given so that it answers a message.

    Parameters
    ----------
    message : str
        What the user says.
    template : str
        The model's chat template, of which the system's message is taken, if it has one.

    Raises
    ------
    ValueError
        If the template is not one of ChatML.

    Examples
    --------
    >>> from topk_np.models.chat import chat_prompt
    >>> chat_prompt("Hello", "{{ '<|im_start|>' + message['role'] + ... }}")
    '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
    """
    if START not in template:
        raise ValueError(
            f"the model's chat template must be one with {START}, got {template!r:.60}"
        )
    system = re.search(f"{re.escape(START)}system\n(.*?){re.escape(END)}", template, re.DOTALL)
    turns = [("system", system[1])] if system else []
    written = [f"{START}{role}\n{text}{END}\n" for role, text in [*turns, ("user", message)]]
    return "".join(written) + f"{START}assistant\n"
