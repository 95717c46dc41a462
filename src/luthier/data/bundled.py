"""Which chat template conversations are written with: the tokenizer's own, one that comes along, or another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from luthier.base.config import nearest
from luthier.base.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHATML = r"""
{%- if tools and messages[0].role != 'system' %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
    {{- message.content }}
    {%- if tools and loop.first and message.role == 'system' %}
        {{- '\n\n# Tools\n' }}
        {%- for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\n' if message.content or not loop.first }}
        {{- '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
""".strip()
BUNDLED = {"chatml": CHATML}


def template_of(tokenizer: PreTrainedTokenizerFast, template: str | None) -> tuple[str, list[str]]:
    """The source of a template, and what should be said about it.

    Args:
        template: Jinja source, the name of a bundled template, or a file; None takes the tokenizer's own.

    Raises:
        ModelError: there is no such template.
    """
    if template is None:
        own = cast("str | dict[str, str] | None", tokenizer.chat_template)
        own = own.get("default") if isinstance(own, dict) else own
        if own:
            return own, []
        return _bundled("chatml", tokenizer), ["no chat template in the tokenizer: using ChatML"]
    if template in BUNDLED:
        return _bundled(template, tokenizer), []
    if "{{" in template or "{%" in template:
        return template, []
    path = Path(template)
    if path.is_file():
        return path.read_text(encoding="utf-8"), []
    near = nearest(template, BUNDLED)
    known = f"Did you mean {near!r}?" if near else f"Bundled ones: {', '.join(BUNDLED)}"
    raise ModelError(f"no template and no file of the name {template!r}", where="--template", fix=known)


def _bundled(name: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """A bundled template; the end-of-sequence token ends turns where the tokenizer has no <|im_end|>."""
    source = BUNDLED[name]
    known = "<|im_end|>" in tokenizer.get_added_vocab()
    return source if known else source.replace("'<|im_end|>", "eos_token + '")
