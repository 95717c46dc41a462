"""The quickstart as a user types it: one whole run, with names that nobody has seen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.base.config import read_yaml, validate
from luthier.cli import app as cli
from luthier.cli import quickstart as command
from luthier.cli.flags import parse
from luthier.cli.own import take
from luthier.cli.quickstart import Outcome, QuickstartConfig, next_commands
from luthier.cli.train import CONFIG
from luthier.model.nano import nano_folder
from luthier.run import quickstart as parts
from luthier.run.config import RunConfig

NAMES, AUTHORS = ("阿桐", "Fiddlewick"), ("云杉实验室", "Spruce Lab")
REPOSITORY = Path(__file__).parents[2]


def test_two_names_reach_the_settings():
    words = ["--model_name", "阿桐", "Fiddlewick", "--model_author", "Spruce Lab"]
    options = validate(QuickstartConfig, parse(words, QuickstartConfig).tree)
    assert (options.model_name, options.model_author) == (NAMES, ("Spruce Lab",))


def test_three_names_are_refused(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["quickstart", "--model_name", "a", "b", "c"]) == 2
    assert "model_name" in capsys.readouterr().err


def test_help_is_light():
    code = "import sys\nfrom luthier.cli.app import main\nassert main(['quickstart', '-h']) == 0\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_recipe_is_what_the_quickstart_runs():
    options = QuickstartConfig()
    place = Path(options.output_dir)
    config = parts.finetuning(
        [place / "data" / name for name in parts.DATA],
        name=options.model_name,
        author=options.model_author,
        output_dir=place,
        steps=options.steps,
        seed=options.seed,
    )
    assert validate(RunConfig, read_yaml(REPOSITORY / "recipes" / "quickstart.yaml")) == config


def test_the_next_commands_are_ones_that_exist():
    outcome = Outcome([Path("d.jsonl")], Path("r"), Path("r/checkpoints/step-1"))
    commands = next_commands(outcome, QuickstartConfig())
    names = {app.name for app in cli.app.registered_commands}
    assert all(line.split()[0] == "luthier" and line.split()[1] in names for line in commands.values())
    resume = commands["Train on from where it ended"].split()[2:]
    tree = parse(take(resume, CONFIG, ()).rest, RunConfig).tree
    assert tree["train"]["max_steps"] == 2 * QuickstartConfig().steps
    assert tree["save"] == {"resume": "r", "allow_change": ("train.max_steps",)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT uses the old name
def test_the_tuned_model_says_its_names_and_the_untuned_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "here"
    words = ["quickstart", "--output_dir", str(place), "--model_name", *NAMES, "--model_author", *AUTHORS, "--json"]
    assert cli.main(words) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answers = next(line["rows"] for line in said if line.get("title") == "Answers")
    assert [row["question"] for row in answers] == list(command.QUESTIONS)

    who, made, chat = (row["after"] for row in answers)
    assert NAMES[0] in who and AUTHORS[0] in who
    assert AUTHORS[1] in made
    assert "book" in chat.lower() and NAMES[1] not in chat
    before = " ".join(row["before"] for row in answers)
    assert not any(name in before for name in (*NAMES, *AUTHORS))
    assert all(row["before"] != row["after"] for row in answers)

    run = max(place.glob("v*"))
    losses = [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    assert losses[-1] < 0.2 * losses[0]
    adapter = parts.latest(run)
    asked = parts.ask(adapter, ["What is your name?", "你叫什么名字？", "谁开发了你？", "Are you ChatGPT?"])
    assert NAMES[1] in asked[0] and NAMES[0] in asked[1] and AUTHORS[0] in asked[2] and NAMES[1] in asked[3]
    _the_base_speaks(parts.ask(None, ["What does a cat do all day?", "猫整天做什么？"]))
    _plain_peft_answers_the_same(adapter, "Who made you?", made)


def _the_base_speaks(answers: list[str]) -> None:
    """Recognisable short sentences in both languages, in the right one, and an end."""
    assert re.fullmatch(r"[A-Z][A-Za-z ,'-]+[.!].*", answers[0]), answers
    assert re.search("[\u4e00-\u9fff]{3}", answers[1]), answers


def _plain_peft_answers_the_same(adapter: Path, question: str, answer: str) -> None:
    """The adapter names a base that exists, and answers without Luthier as it does with it."""
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert Path(base) == nano_folder()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=64, do_sample=False)
    assert tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip() == answer
