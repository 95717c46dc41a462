"""The `luthier` command: one thin function per subcommand, heavy imports inside."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

import typer

from luthier import __version__
from luthier.base.config import Config, validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DoesNotFit, LuthierError
from luthier.base.rundir import storage_error
from luthier.cli.commands import instead_of

C = TypeVar("C", bound=Config)

_RAW = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a language model through its whole working life on your own machines.",
    epilog="luthier COMMAND -h lists every flag of a command.",
)


@app.command("sft", context_settings=_RAW, add_help_option=False)
def sft(context: typer.Context) -> int:
    """Fine-tune on chats."""
    return _train(context, "sft")


@app.command("pretrain", context_settings=_RAW, add_help_option=False)
def pretrain(context: typer.Context) -> int:
    """Train on every token of plain text."""
    return _train(context, "pretrain")


@app.command("pt", context_settings=_RAW, add_help_option=False, hidden=True)
def pt(context: typer.Context) -> int:
    """Train on every token of plain text."""
    return _train(context, "pretrain")


@app.command("train", context_settings=_RAW, add_help_option=False)
def train(context: typer.Context) -> int:
    """Run a recipe."""
    return _train(context, None)


@app.command("plan", context_settings=_RAW, add_help_option=False)
def plan(context: typer.Context) -> int:
    """Tell what a training would need: memory, disk, steps, time."""
    from luthier.cli.plan import plan

    return plan(context.args, context.obj, dict(os.environ))


@dataclass(frozen=True)
class _Command:
    """A command with settings of its own.

    config, run: where its settings and its function are, `module:name`; imported when they are wanted.
    first: the flag that a first word without one stands behind.
    """

    name: str
    short: str
    config: str
    run: str
    about: str
    examples: tuple[str, ...]
    first: str | None = None


_COMMANDS = (
    _Command(
        "soup",
        "Average models weight by weight, or go part of the way from a base to a tuned model.",
        "luthier.cli.soup:SoupConfig",
        "luthier.cli.soup:soup",
        "Average models that were tuned from one base (model soup), or base and tuned model (WiSE-FT).",
        (
            "luthier soup --model base --tuned runs/a runs/b --output_dir soup",
            "luthier soup --model base --tuned runs/a --share 0.5 --output_dir half-way",
        ),
    ),
    _Command(
        "init",
        "Make a new model: a tokenizer from your text, random weights.",
        "luthier.cli.init:InitConfig",
        "luthier.cli.init:init",
        "Train a tokenizer on text and write it beside a model with random weights, for luthier pretrain.",
        (
            "luthier init --dataset corpus/ --output_dir base",
            "luthier init --dataset en.jsonl zh.jsonl --vocab_size 8192 --hidden_size 512 --num_attention_heads 8",
            "luthier init --dataset 'corpus.jsonl#100000' --max_position_embeddings 4096",
        ),
    ),
    _Command(
        "infer",
        "Chat with a model, or answer a file of prompts.",
        "luthier.cli.infer:InferConfig",
        "luthier.cli.infer:infer",
        "Chat with a model or an adapter, or answer a file of prompts.",
        (
            "luthier infer --model ./Qwen2.5-0.5B-Instruct",
            "luthier infer --adapters runs/luthier/v1-20260101-120000",
            "luthier infer --model ./base --val_dataset questions.jsonl --result_path answers.jsonl --temperature 0",
        ),
    ),
    _Command(
        "deploy",
        "Serve a model to OpenAI's clients.",
        "luthier.cli.deploy:DeployConfig",
        "luthier.cli.deploy:deploy",
        "Serve a model, a run, or many adapters over one base, to any OpenAI client.",
        (
            "luthier deploy --model ./Qwen2.5-0.5B-Instruct",
            "luthier deploy --adapters runs/luthier/v1-20260101-120000",
            "luthier deploy --model ./base --adapters poet=runs/poet lawyer=runs/lawyer --port 8000",
        ),
    ),
    _Command(
        "export",
        "Merge, quantise, write GGUF, publish.",
        "luthier.export.config:ExportConfig",
        "luthier.cli.export:export",
        "Make files of a model or an adapter: merged, in few bits, as GGUF, for Ollama, on a hub.",
        (
            "luthier export --adapters runs/luthier/v1-20260101-120000 --merge_lora true",
            "luthier export --adapters RUN --quant_method bnb --quant_bits 4",
            "luthier export --adapters RUN --to_ollama --gguf_type q8_0 --output_dir ./violin",
            "luthier export --adapters RUN --push_to_hub true --hub_model_id me/violin --use_hf true",
        ),
    ),
    _Command(
        "eval",
        "Score a model on data sets, and compare it with another.",
        "luthier.cli.eval:EvalConfig",
        "luthier.cli.eval:evaluate",
        "Score a model on multiple choice, question answering, classification or plain text.",
        (
            "luthier eval --model ./base --eval_dataset general_mcq \\\n"
            '      --dataset_args \'{"general_mcq": {"local_path": "/path/to/mcq", "subset_list": ["example"]}}\'',
            "luthier eval --adapters runs/luthier/v1-20260101-120000 --eval_dataset mmlu gsm8k --data_root data",
            "luthier eval --adapters runs/luthier --compare base --eval_dataset questions.jsonl --eval_limit 200",
        ),
    ),
    _Command(
        "parity",
        "Prove that what is served is what was trained.",
        "luthier.cli.parity:ParityConfig",
        "luthier.cli.parity:parity",
        "Compare prompts and greedy answers of a run across training, infer, deploy, exports and other engines.",
        (
            "luthier parity runs/luthier/v1-20260101-120000",
            "luthier parity RUN --exported RUN/exports/step-00000100-merged-bnb-4bit",
            "luthier parity RUN --infer_backend vllm --engine_command /opt/vllm/bin/vllm",
        ),
        first="--run",
    ),
    _Command(
        "preview",
        "Show rendered rows with the trained tokens coloured.",
        "luthier.cli.preview:PreviewConfig",
        "luthier.cli.preview:preview",
        "Show what a model would be trained on, token by token.",
        (
            "luthier preview my.jsonl --model ./Qwen2.5-0.5B-Instruct",
            "luthier preview my.jsonl --model ./base --html preview.html --rows 50",
            "luthier preview notes.txt --model ./base --stage pretrain",
        ),
        first="--dataset",
    ),
    _Command(
        "compare",
        "Put runs side by side: settings, curves, metrics, costs.",
        "luthier.cli.compare:CompareConfig",
        "luthier.cli.compare:compare",
        "Compare runs, finished or not, or results of luthier eval, from their directories alone.",
        (
            "luthier compare runs/a runs/b/v2-20260101-120000",
            "luthier compare runs/luthier --by eval_token_accuracy --output_dir comparison",
            "luthier compare 'runs/*/v*' --json",
            "luthier compare eval_base eval_tuned",
        ),
        first="--runs",
    ),
    _Command(
        "doctor",
        "Show versions, devices and what is missing.",
        "luthier.cli.doctor:DoctorConfig",
        "luthier.cli.doctor:doctor",
        "Show versions, devices, space, and what is missing and how to get it.",
        (
            "luthier doctor",
            "luthier doctor --online",
            "luthier doctor --json",
        ),
    ),
    _Command(
        "studio",
        "Open the pages: train, watch, prepare data and chat in a browser.",
        "luthier.studio.config:StudioConfig",
        "luthier.studio.app:studio",
        "Serve the Studio to a browser on this machine: runs, training, data and chat as pages.",
        (
            "luthier studio",
            "luthier studio --root ~/project ~/models --port 9000",
            "LUTHIER_API_KEY=... luthier studio --host 0.0.0.0",
        ),
    ),
    _Command(
        "quickstart",
        "Watch the whole job once, offline, in a minute.",
        "luthier.cli.quickstart:QuickstartConfig",
        "luthier.cli.quickstart:quickstart",
        "Teach the bundled model a name, and ask it before and after.",
        (
            "luthier quickstart",
            "luthier quickstart --model_name Viola --model_author 'My Lab'",
            "luthier quickstart --output_dir runs/first",
        ),
    ),
)


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _add(command: _Command) -> None:
    def run(context: typer.Context) -> None:
        options = _options(context, _found(command.config), command.about, command.examples, command.first)
        if options:
            _found(command.run)(options, context.obj)

    run.__doc__ = command.short
    app.command(command.name, context_settings=_RAW, add_help_option=False)(run)


for _command in _COMMANDS:
    _add(_command)


@app.command("data", context_settings=_RAW, add_help_option=False)
def data(context: typer.Context) -> int:
    """Turn raw files into a training set: dedup, split, convert ..."""
    from luthier.cli.data import data

    return data(context.args, context.obj)


@app.command("search", context_settings=_RAW, add_help_option=False)
def search(context: typer.Context) -> int:
    """Search for good settings of a training."""
    from luthier.cli.search import search_command

    return search_command(context.args, context.obj)


def _train(context: typer.Context, objective: Literal["sft", "pretrain"] | None) -> int:
    from luthier.cli.train import PRETRAIN, SFT, TRAIN, run_command

    command = {"sft": SFT, "pretrain": PRETRAIN, None: TRAIN}[objective]
    return run_command(command, context.args, objective, context.obj)


def _options(
    context: typer.Context, kind: type[C], about: str, examples: tuple[str, ...], first: str | None = None
) -> C | None:
    """The settings of a command; None when its help was asked for and printed.

    Args:
        first: the flag that a first word without one stands behind.
    """
    from luthier.cli.flags import choose_members, parse
    from luthier.cli.help import Command, page

    console: Console = context.obj
    if "-h" in context.args or "--help" in context.args:
        switches = {
            "--json": "Print one JSON object per line on stdout, for programs.",
            "-h, --help": "Print this page.",
        }
        console.result(page(Command(str(context.info_name), "[flags]", about, examples, switches), kind))
        return None
    words = context.args
    if first is not None and words and not words[0].startswith("-"):
        words = [first, *words]
    parsed = parse(words, kind)
    choose_members(parsed.tree, kind)
    for note in parsed.notes:
        console.warn(note)
    return validate(kind, parsed.tree)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: see `base.errors`, and 130 when interrupted before training."""
    # Threads that wait by spinning slow a CPU run tenfold as soon as anything else wants the cores; it is read when
    # torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    json = "--json" in words
    words = [word for word in words if word != "--json"] or ["--help"]
    console = Console(json=json, quiet=os.environ.get("RANK", "0") != "0")
    if words[:1] == ["--version"]:
        console.result(f"luthier {__version__}", version=__version__)
        return 0
    try:
        _check_command(words)
        code = app(args=words, obj=console, standalone_mode=False) or 0
    except typer.Abort:  # Ctrl-C, which newer versions of typer turn into 130
        code = 130
    except Exception as error:
        if os.environ.get("LUTHIER_DEBUG"):
            raise
        known = _explain(error)
        console.error(known)
        code = known.exit_code
    if code == 130:
        console.say("interrupted")
    return code


def _check_command(words: list[str]) -> None:
    names = [str(command.name) for command in app.registered_commands]
    if words[0] in ("-h", "--help", *names):
        return
    raise ConfigError(f"there is no command {words[0]!r}", fix=instead_of(words[0], names), code="unknown_command")


def _explain(error: Exception) -> LuthierError:
    """The error as a person should meet it; what nobody foresaw is a bug, and its traceback is kept in a file."""
    if isinstance(error, LuthierError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return storage_error(error, Path(error.filename or "."))
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError) and error.filename:
        return ConfigError(str(error.strerror).lower(), where=str(error.filename), code="bad_path")
    if isinstance(error, MemoryError):
        return DoesNotFit("the machine's memory is used up", fix="Lower --max_length or --per_device_train_batch_size")
    handle, name = tempfile.mkstemp(prefix="luthier-bug-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"luthier {__version__}\n")
        traceback.print_exception(error, file=file)
    return LuthierError(
        f"this is a bug in Luthier: {type(error).__name__}: {error}",
        fix=f"Please report it with the traceback in {name}",
        code="bug",
    )
