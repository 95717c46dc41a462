"""Make the model folder that is shipped: bfloat16 weights, tokenizer, licence, and a card with what was measured.

    python recipes/nano/finish.py --pretrain runs/nano/pretrain --chat runs/nano/chat --output nano \\
        --before before.json --between between.json --after after.json

The three files are what evaluate.py wrote with --json: for the untrained model, after pretraining, after the chats.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.base.config import read_yaml
from luthier.model.config import ModelConfig
from luthier.run.result import find

HERE = Path(__file__).parent
MOST_BYTES = 16 * 10**6
LICENCE = """nano: weights and tokenizer

Licensed under Creative Commons Attribution-ShareAlike 4.0 International.
Legal code: https://creativecommons.org/licenses/by-sa/4.0/legalcode

README.md names the sources of the training text with their licences, and what was changed.
"""


def write_model(source: Path, output: Path) -> Any:
    """The weights in bfloat16 and everything transformers needs beside them; gives the model's settings."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)
    return model.config


def table(stages: dict[str, dict[str, dict[str, float]]]) -> str:
    """Bits per byte by file and stage."""
    files = [name for name in next(iter(stages.values())) if ":" not in name]
    lines = [f"| text | bytes | {' | '.join(stages)} |", f"|---|---|{'---|' * len(stages)}"]
    for name in files:
        values = " | ".join(f"{stage[name]['bits_per_byte']:.3f}" for stage in stages.values())
        size = int(next(iter(stages.values()))[name]["bytes"])
        lines.append(f"| {name.removesuffix('.jsonl')} | {size:,} | {values} |")
    return "\n".join(lines)


def count(weights: Path) -> int:
    """Parameters in a weight file."""
    return sum(weight.numel() for weight in load_file(weights).values())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training(checkpoint: Path, chat: Path) -> dict[str, Any]:
    """What the card says of the two runs."""
    run = checkpoint.parents[1]
    config, chats = read_yaml(run / "config.yaml"), read_yaml(chat.parents[1] / "config.yaml")
    last = [row for row in rows(run / "metrics.jsonl") if "tokens" in row][-1]
    told = rows(run / "events.jsonl")
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return {
        "tokens": last["tokens"],
        "epochs": last["epoch"],
        "steps": last["step"],
        "best_step": state["step"],
        "minutes": (told[-1]["created_at"] - told[0]["created_at"]) / 60,
        "optimizer": {"muon": "Muon", "adamw": "AdamW"}[config["optim"]["name"]],
        "rate": config["optim"]["learning_rate"],
        "device": json.loads((run / "env.json").read_text(encoding="utf-8"))["device"],
        "chat_epochs": chats["train"]["epochs"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/nano/data"), help="what data.py wrote")
    for name in ("pretrain", "chat"):
        parser.add_argument(f"--{name}", default=f"runs/nano/{name}", help="run directory")
    for name in ("before", "between", "after"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="numbers from evaluate.py")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    pretrained = Path(find(ModelConfig(path=options.pretrain)).model.path)
    chat = Path(find(ModelConfig(path=options.chat)).model.path)

    shutil.rmtree(options.output, ignore_errors=True)
    config = write_model(chat, options.output)
    stages = {"untrained": options.before, "after pretraining": options.between, "as shipped": options.after}
    sources = json.loads((options.data / "sources.json").read_text(encoding="utf-8"))
    card = (HERE / "card.md").read_text(encoding="utf-8")
    card = card.format(
        parameters=count(options.output / "model.safetensors"),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        table=table({name: json.loads(path.read_text(encoding="utf-8")) for name, path in stages.items()}),
        sources="\n".join(
            f"| {s['name']} | {s['licence']} | {s['use']} | {s['rows']:,} | {s['size']:,} |" for s in sources
        ),
        size=sum(source["size"] for source in sources if source["use"] == "pretraining") / 1e6,
        held="every validation row of the text, and one conversation in forty",
        **training(pretrained, chat),
    )
    (options.output / "README.md").write_text(card, encoding="utf-8")
    (options.output / "LICENSE").write_text(LICENCE, encoding="utf-8")
    size = sum(path.stat().st_size for path in options.output.iterdir())
    print(f"{options.output}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{size:,} bytes are more than {MOST_BYTES:,}")


if __name__ == "__main__":
    main()
