"""Bits per byte of a model on text files (JSONL with a `text` field), in all and by the `source` field.

    python recipes/nano/evaluate.py --model nano runs/nano/data/held_en.jsonl runs/nano/data/held_zh.jsonl

`luthier.evaluate.likelihood` says what is counted.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from luthier.data.render import Renderer
from luthier.engine.mesh import open_mesh
from luthier.evaluate.likelihood import Likelihood, likelihood
from luthier.model.config import ModelConfig
from luthier.model.load import load_model, load_tokenizer
from luthier.run.result import find


def read(path: Path) -> dict[str, list[str]]:
    """Texts by source."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row.get("source", "")].append(row["text"])
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", required=True, help="model folder, or a run directory for its best checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    config = find(ModelConfig(path=options.model)).model
    tokenizer = load_tokenizer(config)
    numbers: dict[str, dict[str, float]] = {}
    with open_mesh(options.device) as mesh:
        model = load_model(config, mesh.device, tokenizer=tokenizer, trained=False)
        renderer = Renderer(tokenizer)
        for path in options.files:
            by_source = {name: likelihood(model, renderer, texts) for name, texts in read(path).items()}
            whole = sum(by_source.values(), Likelihood(0.0, 0, 0))
            for name, part in {"": whole, **by_source}.items() if len(by_source) > 1 else {"": whole}.items():
                bits = part.bits / part.size
                print(
                    f"{path.name:18} {name:42} {bits:.4f} bits per byte"
                    f"  {part.size:9,} bytes  {part.size / part.tokens:.2f} bytes per token",
                    flush=True,
                )
                key = f"{path.name}:{name}" if name else path.name
                numbers[key] = {"bits_per_byte": bits, "bytes": part.size, "tokens": part.tokens}
    if options.json:
        options.json.write_text(json.dumps(numbers, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
