"""Forms are made of settings and write flags; what a form writes, the command line reads."""

from __future__ import annotations

import shlex

import pytest

from luthier.base.config import to_yaml, validate
from luthier.base.console import Console
from luthier.cli.flags import choose_members, parse
from luthier.cli.train import read_config
from luthier.prepare import verbs
from luthier.prepare.config import CommandConfig
from luthier.run.config import RunConfig
from luthier.studio.config import StudioConfig
from luthier.studio.form import FIRST, Field, fault, fields, line, matching, visible, words

TRAIN = fields(RunConfig)


def test_every_setting_is_a_field_with_help_and_name() -> None:
    assert set(FIRST) <= set(TRAIN)
    assert [path for path, field in TRAIN.items() if not field.help] == []
    assert TRAIN["optim.learning_rate"].flag == "learning_rate"
    assert TRAIN["method.type"].flag == "train_type" and "lora" in TRAIN["method.type"].choices
    assert TRAIN["train.micro_batch"].flag == "per_device_train_batch_size"


def test_secrets_are_no_fields() -> None:
    assert set(fields(StudioConfig)) == {"host", "port", "root", "allowed_hosts"}


def test_fields_follow_the_types_chosen() -> None:
    def paths(values: dict[str, str]) -> set[str]:
        return {field.path for field in visible(TRAIN, values)}

    assert "method.rank" in paths({}) and "method.rank" not in paths({"method.type": "full"})
    assert "method.type" in paths({"method.type": "full"})


def test_searching_reads_names_of_other_tools_and_help() -> None:
    found = [field.path for field in matching(list(TRAIN.values()), "cutoff-len")]
    assert found == ["data.max_length"]
    assert "optim.warmup_ratio" in [field.path for field in matching(list(TRAIN.values()), "warmup")]
    assert matching(list(TRAIN.values()), "warmup nothing-like-it") == []
    assert len(matching(list(TRAIN.values()), "")) == len(TRAIN)


@pytest.mark.parametrize(
    ("path", "text", "wrong"),
    [
        ("train.micro_batch", "8", None),
        ("train.micro_batch", "0", "must be at least 1"),
        ("train.micro_batch", "1.5", "must be a whole number"),
        ("optim.learning_rate", "1e-4", None),
        ("optim.learning_rate", "much", "must be a number"),
        ("optim.beta1", "1", "must be below 1"),
        ("train.epochs", "0", "must be above 0"),
        ("data.columns", '{"a": "b"}', None),
        ("data.columns", "a=b", "must be a JSON object"),
        ("data.datasets", "'a b.jsonl' c.jsonl", None),
        ("data.datasets", "'a", "a quotation mark is open"),
        ("output_dir", "anything", None),
        ("train.micro_batch", " ", None),
    ],
)
def test_faults_are_named_while_typing(path: str, text: str, wrong: str | None) -> None:
    assert fault(TRAIN[path], text) == wrong


def test_what_a_form_writes_the_command_reads() -> None:
    values = {
        "model.path": "nano",
        "data.datasets": "'my chats.jsonl#500' b.jsonl",
        "data.columns": '{"ask": "query"}',
        "method.type": "lora",
        "method.rank": "4",
        "train.epochs": "2",
        "method.dora": "",
        "optim.learning_rate": "1e-3",
        "train.micro_batch": "1",
    }
    said = words(TRAIN, values)
    assert "--per_device_train_batch_size" not in said, "the default needs no flag"
    config = read_config(None, said, None, Console(quiet=True))
    assert config.data.datasets == ("my chats.jsonl#500", "b.jsonl")
    assert (config.model.path, config.train.epochs, config.optim.learning_rate) == ("nano", 2.0, 1e-3)
    assert config.method.model_dump()["rank"] == 4
    assert config.data.columns == {"ask": "query"}
    assert "my chats.jsonl#500" in to_yaml(config)
    assert line(["sft", *said]).startswith("luthier sft --task_type" if "--task_type" in said else "luthier sft --")


def test_settings_of_another_type_are_left_out() -> None:
    said = words(TRAIN, {"method.type": "full", "method.rank": "4"})
    assert said == ["--train_type", "full"]


@pytest.mark.parametrize("name", verbs.names())
def test_every_flag_of_every_form_is_one_of_the_command(name: str) -> None:
    config = verbs.load(name).config
    known = fields(CommandConfig, config)
    kind = type("Both", (CommandConfig, config), {"__module__": config.__module__})
    for field in known.values():
        parsed = parse([f"--{field.flag}", *_word(field)], kind)
        assert parsed.tree, field.path


def test_every_flag_of_the_training_form_sets_its_own_path() -> None:
    for field in TRAIN.values():
        if field.path == "stages":
            continue
        tree = parse([f"--{field.flag}", *_word(field)], RunConfig).tree
        choose_members(tree, RunConfig)
        group, _, name = field.path.partition(".")
        assert group in tree and (not name or name.split(".")[0] in tree[group]), field.path


def _word(field: Field) -> list[str]:
    if field.path == "mask":
        return ["all"]
    if field.choices and not field.default:
        return [field.choices[0]]
    if field.kind == "json":
        return ["{}"]
    if field.kind == "number" and field.below is not None and not field.default:
        return [str(field.below / 2)]
    return shlex.split(field.default) if field.kind == "list" and field.default else [field.default or "1"]


def test_validation_of_the_studio_itself() -> None:
    assert validate(StudioConfig, {}).root == (".",)
