import json
import os
import subprocess
import sys

import pytest
import yaml

from luthier.base.config import validate
from luthier.cli import app as cli
from luthier.run.config import RunConfig
from luthier.run.resolve import resolve

GIVEN = ["--model", "m", "--dataset", "d.jsonl"]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LUTHIER_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def run(capsys, *argv):
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "words", [["--help"], ["sft", "--help"], ["sft", *GIVEN, "--dry_run"], ["infer", "-h"], ["doctor", "-h"]]
)
def test_nothing_heavy_is_imported_for_help(words):
    code = f"""
import sys
from luthier.cli.app import main
assert main({words!r}) == 0
heavy = {{"torch", "transformers", "peft", "datasets", "numpy", "pyarrow", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_brings_nothing_heavy():
    code = "import sys; sys.argv = ['luthier', '--help']; import luthier.__main__"
    watch = f"import atexit, sys; atexit.register(lambda: print('HELD', *sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-c", watch], check=True, capture_output=True, text=True)
    held = {name.partition(".")[0] for name in done.stderr.rpartition("HELD ")[2].split()}
    assert "luthier" in held
    assert not held & {"torch", "transformers", "peft", "datasets", "pyarrow", "numpy", "daft", "matplotlib", "fastapi"}


def test_help_lists_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("pretrain", "sft", "train", "init", "infer", "preview", "doctor", "quickstart"):
        assert f" {name} " in out


def test_no_words_ask_for_help(capsys):
    code, _, err = run(capsys)
    assert code == 0 and "error" not in err


def test_help_of_sft_shows_every_setting(capsys):
    code, out, _ = run(capsys, "sft", "-h")
    assert code == 0
    from luthier.base.leaves import leaves

    missing = [path for path in leaves(RunConfig) if f"--{path}" not in out]
    assert missing == []
    assert "--lora_rank N" in out
    assert "--per_device_train_batch_size" in out
    assert out.count("\n  luthier sft") >= 2  # examples


def test_version(capsys):
    from luthier import __version__

    assert run(capsys, "--version") == (0, f"luthier {__version__}\n", "")


def test_dry_run_prints_a_recipe_that_gives_the_same_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"query": "Who?", "response": "I."}\n')
    flags = [*GIVEN, "--lora_rank", "4", "--columns", '{"a": "b"}']
    code, out, _ = run(capsys, "sft", *flags, "--dry-run")
    assert code == 0
    config = validate(RunConfig, yaml.safe_load(out))
    assert config.method.rank == 4
    assert resolve(config) == config
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(out)
    for words in (["train", str(recipe)], ["sft", "--config", str(recipe)]):
        assert run(capsys, *words, "--dry_run") == (0, out, "")
    code, changed, _ = run(capsys, "train", str(recipe), "--optim.learning_rate", "2e-5", "--dry_run")
    assert yaml.safe_load(changed)["optim"]["learning_rate"] == 2e-5


def test_pretrain_and_pt_are_one_command(capsys):
    _, long, _ = run(capsys, "pretrain", *GIVEN, "--dry_run")
    _, short, _ = run(capsys, "pt", *GIVEN, "--dry_run")
    assert long == short
    assert yaml.safe_load(long)["objective"]["type"] == "pretrain"


def test_a_recipe_of_another_objective_is_refused(capsys, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("objective: {type: pretrain}")
    code, _, err = run(capsys, "sft", "--config", str(recipe), *GIVEN, "--dry_run")
    assert code == 2
    assert "pretrain" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model_name_or_path: m\ndataset: d.jsonl\nlora_rank: 8\n",
            "model_name_or_path as model.path, dataset as data.datasets, lora_rank as method.rank",
        ),
        ("model: m\ndata: {datasets: d.jsonl}\n", "model as model.path"),
        ("model: {path: m}\noutput_dir: ''\n", "output_dir: expected text that is not empty"),
        ("model: {path: m}\nsave: 100\n", "save: expected settings of its own (a mapping), got 100"),
    ],
)
def test_a_flat_recipe_is_told_where_its_names_belong(text, said, capsys, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    for command in (["train"], ["search", "--space.lr", "1e-5", "1e-4"]):
        code, _, err = run(capsys, command[0], str(recipe), *command[1:], "--dry_run")
        assert code == 2 and said in err


def test_schema_describes_a_recipe(capsys):
    code, out, _ = run(capsys, "train", "--schema")
    schema = json.loads(out)
    assert code == 0
    assert {"model", "method", "data", "optim"} <= set(schema["properties"])
    assert "Rank of the adapters." in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sftt"], "Did you mean 'sft'"),
        (["--verson"], "no command '--verson'"),
        (["rlhf", "--rlhf_type", "dpo"], "Preference training and RL are not there yet"),
        (["chat"], "Did you mean 'luthier infer'?"),
        (["merge-lora"], "Did you mean 'luthier export'?"),
        (["dedup", "a.jsonl"], "Did you mean 'luthier data dedup'?"),
        (["sft", *GIVEN, "--rlhf_type", "dpo"], "--rlhf_type: preference training is not there yet"),
        (["sft", *GIVEN, "--task_type", "dpo"], "Preference training is not there yet"),
        (
            ["sft", *GIVEN, "-lr", "3"],
            "--dataset: expected a value, got '-lr'. Flags begin with two dashes: did you mean --lr?",
        ),
        (["sft", *GIVEN, "--dry_run", "more.jsonl"], "--dry_run: expected no value, got 'more.jsonl'"),
        (["sft", *GIVEN, "--learning_rate", "inf"], "--learning_rate: expected a number that is a finite number"),
        (
            ["sft", *GIVEN, "--seed", "-1"],
            "--seed: expected a whole number that is greater than or equal to 0, got '-1'",
        ),
        (["sft", *GIVEN, "--bf16", "--fp16"], "--fp16: given twice. --bf16 sets the same to something else"),
        (["sft", *GIVEN, "--lr", "1", "--learning_rate", "1"], "--learning_rate: given twice. --lr says the same"),
        (["sft", *GIVEN, "--lorarank", "3"], "--lora_rank"),
        (["sft", "--dataset", "d"], "no model was named"),
        (["sft", "--model", "m"], "no training data was named"),
        (["train"], "neither a recipe nor a model and data were named"),
        (["train", "/nowhere.yaml"], "/nowhere.yaml"),
        (["sft", "--config"], "expected a file"),
        (["sft", *GIVEN, "--train_type", "full", "--lora_rank", "3"], "method.rank: not a setting of 'full'"),
        (["sft", *GIVEN, "--replay_ratio", "0.3"], "Name sets with --replay_dataset"),
        (["sft", *GIVEN, "--ewc", "10"], "name it with --general_dataset"),
        (["doctor", "--onlin"], "--online"),
        (["sft", *GIVEN, "--report_to", "none", "tensorboard"], "report_to has none and tensorboard"),
        (["sft", *GIVEN, "--output_dir", ""], "--output_dir: expected text that is not empty, got ''"),
        (["sft", "--model", "m", "--dataset", ""], "--dataset: expected texts that are not empty, got ''"),
        (["sft", *GIVEN, "--adapters", ""], "--adapters: expected texts that are not empty, got ''"),
        (["sft", *GIVEN, "--resume_from_checkpoint", ""], "--resume_from_checkpoint: expected text that is not empty"),
        (["quickstart", "--output_dir", ""], "--output_dir: expected text that is not empty"),
        (["export", "--model", "nano", "--output_dir", ""], "--output_dir: expected text that is not empty"),
        (["eval", "--model", "nano", "--output_dir", ""], "--output_dir: expected text that is not empty"),
        (["data", "clean", "a.jsonl", "--output", ""], "--output: expected text that is not empty"),
        (["deploy", "--model", "nano", "--api_key", ""], "--api_key: expected text that is not empty"),
    ],
)
def test_bad_usage_is_one_message_and_exit_2(capsys, words, said):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_errors_for_programs(capsys):
    for words in (["--json", "sft"], ["sft", "--json"]):
        code, out, err = run(capsys, *words)
        assert (code, err) == (2, "")
        assert json.loads(out)["where"] == "--model"


def test_a_bug_is_admitted_and_its_traceback_kept(capsys, monkeypatch, tmp_path):
    def broken(config, console):
        return {}["missing"]

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("luthier.run.train.train", broken)
    code, _, err = run(capsys, "sft", *GIVEN)
    assert code == 1
    assert "this is a bug in Luthier: KeyError: 'missing'" in err
    (report,) = tmp_path.glob("luthier-bug-*.txt")
    assert str(report) in err
    assert "broken" in report.read_text()
    monkeypatch.setenv("LUTHIER_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["sft", *GIVEN])


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x.bin"), 1, "disk_full"),
        (MemoryError(), 4, "out_of_memory"),
    ],
)
def test_what_can_happen_to_any_command(capsys, monkeypatch, raised, code, said):
    def fail(config, console):
        raise raised

    monkeypatch.setattr("luthier.run.train.train", fail)
    found, _, err = run(capsys, "sft", *GIVEN)
    assert found == code
    assert said in err


def test_training_prints_the_run_directory_alone(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("luthier.run.train.train", lambda config, console: tmp_path)
    assert run(capsys, "sft", *GIVEN) == (0, f"{tmp_path}\n", "")


def test_several_processes_are_started_by_torchrun(capsys, monkeypatch):
    started = []
    monkeypatch.setattr("luthier.cli.train.supervise", lambda words, environ: started.append(words) or 75)
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    code, out, err = run(capsys, "sft", *GIVEN)
    assert (code, out) == (75, "")
    words = started[0]
    assert words[1:6] == ["-m", "luthier.cli.torchrun", "--nproc_per_node", "2", "--standalone"]
    assert words[6:] == ["-m", "luthier", "sft", *GIVEN]
    assert " ".join(words) in err


def test_module_runs_as_the_command():
    env = {**os.environ, "RANK": "1"}
    quiet = subprocess.run([sys.executable, "-m", "luthier", "--version"], env=env, capture_output=True, check=True)
    assert quiet.stdout == b""  # processes other than the first keep silent
