"""The `luthier` command: one thin function per subcommand, heavy imports inside."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import typer

from luthier import __version__
from luthier.base.config import Config, nearest, validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DoesNotFit, LuthierError
from luthier.base.rundir import storage_error

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


@app.command("soup", context_settings=_RAW, add_help_option=False)
def soup(context: typer.Context) -> None:
    """Average models weight by weight, or go part of the way from a base to a tuned model."""
    from luthier.cli.soup import SoupConfig, soup

    options = _options(
        context,
        SoupConfig,
        "Average models that were tuned from one base (model soup), or base and tuned model (WiSE-FT).",
        (
            "luthier soup --model base --tuned runs/a runs/b --output_dir soup",
            "luthier soup --model base --tuned runs/a --share 0.5 --output_dir half-way",
        ),
    )
    if options:
        soup(options, context.obj)


@app.command("init", context_settings=_RAW, add_help_option=False)
def init(context: typer.Context) -> None:
    """Make a new model: a tokenizer from your text, random weights."""
    from luthier.cli.init import InitConfig, init

    options = _options(
        context,
        InitConfig,
        "Train a tokenizer on text and write it beside a model with random weights, for luthier pretrain.",
        (
            "luthier init --dataset corpus/ --output_dir base",
            "luthier init --dataset en.jsonl zh.jsonl --vocab_size 8192 --hidden_size 512 --num_attention_heads 8",
            "luthier init --dataset 'corpus.jsonl#100000' --max_position_embeddings 4096",
        ),
    )
    if options:
        init(options, context.obj)


@app.command("infer", context_settings=_RAW, add_help_option=False)
def infer(context: typer.Context) -> None:
    """Chat with a model, or answer a file of prompts."""
    from luthier.cli.infer import InferConfig, infer

    options = _options(
        context,
        InferConfig,
        "Chat with a model or an adapter, or answer a file of prompts.",
        (
            "luthier infer --model ./Qwen2.5-0.5B-Instruct",
            "luthier infer --adapters runs/luthier/v1-20260101-120000",
            "luthier infer --model ./base --val_dataset questions.jsonl --result_path answers.jsonl --temperature 0",
        ),
    )
    if options:
        infer(options, context.obj)


@app.command("deploy", context_settings=_RAW, add_help_option=False)
def deploy(context: typer.Context) -> None:
    """Serve a model to OpenAI's clients."""
    from luthier.cli.deploy import DeployConfig, deploy

    options = _options(
        context,
        DeployConfig,
        "Serve a model, a run, or many adapters over one base, to any OpenAI client.",
        (
            "luthier deploy --model ./Qwen2.5-0.5B-Instruct",
            "luthier deploy --adapters runs/luthier/v1-20260101-120000",
            "luthier deploy --model ./base --adapters poet=runs/poet lawyer=runs/lawyer --port 8000",
        ),
    )
    if options:
        deploy(options, context.obj)


@app.command("export", context_settings=_RAW, add_help_option=False)
def export(context: typer.Context) -> None:
    """Merge, quantise, write GGUF, publish."""
    from luthier.cli.export import export
    from luthier.export.config import ExportConfig

    options = _options(
        context,
        ExportConfig,
        "Make files of a model or an adapter: merged, in few bits, as GGUF, for Ollama, on a hub.",
        (
            "luthier export --adapters runs/luthier/v1-20260101-120000 --merge_lora true",
            "luthier export --adapters RUN --quant_method bnb --quant_bits 4",
            "luthier export --adapters RUN --to_ollama --gguf_type q8_0 --output_dir ./violin",
            "luthier export --adapters RUN --push_to_hub true --hub_model_id me/violin --use_hf true",
        ),
    )
    if options:
        export(options, context.obj)


@app.command("eval", context_settings=_RAW, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Score a model on data sets, and compare it with another."""
    from luthier.cli.eval import EvalConfig, evaluate

    options = _options(
        context,
        EvalConfig,
        "Score a model on multiple choice, question answering, classification or plain text.",
        (
            "luthier eval --model ./base --eval_dataset general_mcq \\\n"
            '      --dataset_args \'{"general_mcq": {"local_path": "/path/to/mcq", "subset_list": ["example"]}}\'',
            "luthier eval --adapters runs/luthier/v1-20260101-120000 --eval_dataset mmlu gsm8k --data_root data",
            "luthier eval --adapters runs/luthier --compare base --eval_dataset questions.jsonl --eval_limit 200",
        ),
    )
    if options:
        evaluate(options, context.obj)


@app.command("parity", context_settings=_RAW, add_help_option=False)
def parity(context: typer.Context) -> None:
    """Prove that what is served is what was trained."""
    from luthier.cli.parity import ParityConfig, parity

    options = _options(
        context,
        ParityConfig,
        "Compare prompts and greedy answers of a run across training, infer, deploy, exports and other engines.",
        (
            "luthier parity runs/luthier/v1-20260101-120000",
            "luthier parity RUN --exported RUN/exports/step-00000100-merged-bnb-4bit",
            "luthier parity RUN --infer_backend vllm --engine_command /opt/vllm/bin/vllm",
        ),
        first="--run",
    )
    if options:
        parity(options, context.obj)


@app.command("preview", context_settings=_RAW, add_help_option=False)
def preview(context: typer.Context) -> None:
    """Show rendered rows with the trained tokens coloured."""
    from luthier.cli.preview import PreviewConfig, preview

    options = _options(
        context,
        PreviewConfig,
        "Show what a model would be trained on, token by token.",
        (
            "luthier preview my.jsonl --model ./Qwen2.5-0.5B-Instruct",
            "luthier preview my.jsonl --model ./base --html preview.html --rows 50",
            "luthier preview notes.txt --model ./base --stage pretrain",
        ),
        first="--dataset",
    )
    if options:
        preview(options, context.obj)


@app.command("data", context_settings=_RAW, add_help_option=False)
def data(context: typer.Context) -> int:
    """Turn raw files into a training set: dedup, split, convert ..."""
    from luthier.cli.data import data

    return data(context.args, context.obj)


@app.command("doctor", context_settings=_RAW, add_help_option=False)
def doctor(context: typer.Context) -> None:
    """Show versions, devices and what is missing."""
    from luthier.cli.doctor import DoctorConfig, doctor

    options = _options(
        context,
        DoctorConfig,
        "Show versions, devices, space, and what is missing and how to get it.",
        (
            "luthier doctor",
            "luthier doctor --online",
            "luthier doctor --json",
        ),
    )
    if options:
        doctor(options, context.obj)


@app.command("quickstart", context_settings=_RAW, add_help_option=False)
def quickstart(context: typer.Context) -> None:
    """Watch the whole job once, offline, in a minute."""
    from luthier.cli.quickstart import QuickstartConfig, quickstart

    options = _options(
        context,
        QuickstartConfig,
        "Teach the bundled model a name, and ask it before and after.",
        (
            "luthier quickstart",
            "luthier quickstart --model_name Viola --model_author 'My Lab'",
            "luthier quickstart --output_dir runs/first",
        ),
    )
    if options:
        quickstart(options, context.obj)


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
    words = [word for word in words if word != "--json"]
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
    if not words or words[0] in ("-h", "--help", *names):
        return
    hint = nearest(words[0].removeprefix("--"), names)
    raise ConfigError(
        f"there is no command {words[0]!r}",
        fix=f"Did you mean {hint!r}?" if hint else "luthier -h lists the commands",
        code="unknown_command",
    )


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
