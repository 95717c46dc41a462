"""The commands that are one function over settings of their own, and what their help says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """One of them.

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


LISTED = (
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
    Listed(
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
