"""`luthier export`: files that others open, and what to do with them next."""

from __future__ import annotations

import shlex

from luthier.base.console import Console
from luthier.export.config import ExportConfig


def export(options: ExportConfig, console: Console) -> None:
    """Make what was asked for and say how it is used.  Raises what `run.export.export` raises."""
    # A page of help must not wait for torch.
    from luthier.run.export import export

    folder = shlex.quote(str(export(options, console)))
    if options.to_ollama:
        console.say(f"Next: cd {folder} && ollama create NAME -f Modelfile")
    elif not options.to_gguf and (options.merge_lora or options.quant_method):
        console.say(f"Next: luthier infer --model {folder}")
