import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from luthier.base.config import Config, merge, validate
from luthier.base.errors import ConfigError
from luthier.base.leaves import leaves
from luthier.cli.deploy import DeployConfig
from luthier.cli.eval import EvalConfig
from luthier.cli.flags import choose_members, parse
from luthier.cli.infer import InferConfig
from luthier.export.config import ExportConfig
from luthier.model.config import Freeze, Lora, Quant
from luthier.run.config import RunConfig
from luthier.run.familiar import FAMILIAR
from luthier.run.resolve import resolve
from luthier.run.search.space import SearchRun
from luthier.run.translate import Ignored, Means, Refused
from luthier.run.values import WORDS

SWIFT = """
  --model Qwen/Qwen2.5-7B-Instruct --train_type lora
  --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' 'AI-ModelScope/alpaca-gpt4-data-en#500' 'swift/self-cognition#500'
  --torch_dtype bfloat16 --num_train_epochs 1 --per_device_train_batch_size 1 --per_device_eval_batch_size 1
  --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 --target_modules all-linear --gradient_accumulation_steps 16
  --eval_steps 50 --save_steps 50 --save_total_limit 5 --logging_steps 5 --max_length 2048 --output_dir output
  --system 'You are a helpful assistant.' --warmup_ratio 0.05 --dataloader_num_workers 4
  --model_author swift --model_name swift-robot
"""


def read(line, kind=RunConfig):
    parsed = parse(shlex.split(line), kind)
    choose_members(parsed.tree, kind)
    return validate(kind, parsed.tree), parsed.notes


def refused(line, kind=RunConfig):
    with pytest.raises(ConfigError) as caught:
        parse(shlex.split(line), kind)
    assert caught.value.exit_code == 2
    return caught.value


def test_the_command_people_already_type():
    config, notes = read(SWIFT)
    assert notes == []
    assert config.model.path == "Qwen/Qwen2.5-7B-Instruct"
    assert config.model.dtype == "bfloat16"
    assert config.method == Lora(rank=8, alpha=32, target="all-linear")
    assert len(config.data.datasets) == 3
    assert (config.train.epochs, config.train.micro_batch, config.train.accumulation) == (1, 1, 16)
    assert (config.optim.learning_rate, config.optim.warmup_ratio) == (1e-4, 0.05)
    assert (config.eval.every, config.eval.micro_batch) == (50, 1)
    assert (config.save.every, config.save.total_limit, config.log.every) == (50, 5, 5)
    assert config.data.system == "You are a helpful assistant."
    assert (config.data.self_author, config.data.self_name) == (("swift",), ("swift-robot",))
    assert (config.data.max_length, config.data.loader_workers, config.output_dir) == (2048, 4, "output")


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("--sft_type full", "method.type", "full"),
        ("--tuner_type lora", "method.type", "lora"),
        ("--finetuning_type full", "method.type", "full"),
        ("--model_id_or_path m", "model.path", "m"),
        ("--model_name_or_path=m", "model.path", "m"),
        ("--dtype bf16", "model.dtype", "bfloat16"),
        ("--bf16", "model.dtype", "bfloat16"),
        ("--fp16 true", "model.dtype", "float16"),
        ("--batch_size 3", "train.micro_batch", 3),
        ("--eval_batch_size 3", "eval.micro_batch", 3),
        ("--lora_target_modules ALL", "method.target", "all-linear"),
        ("--lora_target all", "method.target", "all-linear"),
        ("--lora_target q_proj,v_proj", "method.target", ("q_proj", "v_proj")),
        ("--target_modules q_proj v_proj", "method.target", ("q_proj", "v_proj")),
        ("--target_regex 'layers.[0-9]{1,2}.q_proj'", "method.target", "layers.[0-9]{1,2}.q_proj"),
        ("--use_dora true", "method.dora", True),
        ("--no_use_rslora", "method.rslora", False),
        ("--init_weights pissa_niter_16", "method.init", "pissa"),
        ("--modules_to_save embed_tokens,lm_head", "method.modules_to_save", ("embed_tokens", "lm_head")),
        ("--cutoff_len 512", "data.max_length", 512),
        ("--val_size 0.1", "data.split_ratio", 0.1),
        ("--dataset_test_ratio 0.1", "data.split_ratio", 0.1),
        ("--dataset a.jsonl,b.jsonl", "data.datasets", ("a.jsonl", "b.jsonl")),
        ("--dataset a b --interleave_prob 0.7,0.3", "data.interleave", (0.7, 0.3)),
        ("--strict true", "data.bad_rows", "strict"),
        ("--truncation_strategy delete", "data.overlong", "drop"),
        ("--truncation_strategy split", "data.overlong", "split"),
        ("--ckpt_dir a", "model.adapters", ("a",)),
        ("--attn_impl flash_attn", "model.attention", "packed"),
        ("--template chat.jinja", "model.template", "chat.jinja"),
        ("--template chatml", "model.template", "chatml"),
        ("--enable_thinking false", "model.template_args", {"enable_thinking": False}),
        ("--loss_scale last_round", "objective.train_on", "last"),
        ("--train_on_prompt", "objective.train_on", "all"),
        ("--optim adamw_torch_fused", "optim.name", "adamw"),
        ("--lr_scheduler_type cosine_with_min_lr", "optim.schedule", "cosine"),
        ("""--lr_scheduler_kwargs '{"min_lr_rate": 0.1}'""", "optim.min_ratio", 0.1),
        ("--adam_beta2 0.99", "optim.beta2", 0.99),
        ("--max_steps -1", "train.max_steps", None),
        ("--disable_gradient_checkpointing", "train.gradient_checkpointing", False),
        ("--save_strategy no", "save.every", None),
        ("--metric_for_best_model eval_loss", "eval.metric", "loss"),
        ("--early_stopping_patience 3", "eval.patience", 3),
        ("--resume_from_checkpoint runs/a", "save.resume", "runs/a"),
        ("--report_to wandb,tensorboard", "log.report_to", ("wandb", "tensorboard")),
        ("--freeze_parameters_ratio 0.75", "method.ratio", 0.25),
        ("--freeze_trainable_layers -2", "method.first_layers", 2),
        ("--trainable_parameters model.norm lm_head", "method.pattern", r"(model\.norm|lm_head)"),
        ("--data.columns.question query", "data.columns", {"question": "query"}),
        ("""--columns '{"q": "query"}'""", "data.columns", {"q": "query"}),
        ("--learning-rate=2e-5", "optim.learning_rate", 2e-5),
        ("--system=--strange", "data.system", "--strange"),
        ("--system null", "data.system", None),
        ("--no-shuffle", "data.shuffle", False),
        ("--data.no_shuffle", "data.shuffle", False),
        ("--streaming", "data.streaming", True),
        ("--seed 7", "seed", 7),
    ],
)
def test_each_name_sets_its_setting(line, path, value):
    found = read(line)[0].model_dump()
    for part in path.split("."):
        found = found[part]
    assert found == value


def test_one_hub_switch_sets_both_hubs():
    config, _ = read("--use_hf false")
    assert (config.model.hub, config.data.hub) == ("ms", "ms")


def test_freezing_needs_no_type_and_is_found_behind_full():
    assert read("--last_layers 2")[0].method == Freeze(last_layers=2)
    config, notes = read("--train_type full --freeze_parameters_ratio 0.9")
    assert config.method == Freeze(ratio=0.1)
    assert "freeze" in notes[0]


def test_a_recipe_keeps_its_method_under_flags():
    parsed = parse(["--lora_rank", "4"], RunConfig)
    tree = merge({"method": {"type": "full"}}, parsed.tree)
    choose_members(tree, RunConfig)
    with pytest.raises(ConfigError, match="not a setting of 'full'"):
        validate(RunConfig, tree)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("--lorarank 8", "unknown_flag", "--lora_rank"),
        ("--learning_rte 1", "unknown_flag", "--learning_rate"),
        ("--optim.learning_rat 1", "unknown_flag", "--optim.learning_rate"),
        ("--xyzzy", "unknown_flag", "-h"),
        ("stray --lora_rank 8", "bad_usage", "stray"),
        ("--lora_rank eight", "bad_value", "a whole number, got 'eight'"),
        ("--lora_rank 0", "bad_value", "greater than or equal to 1"),
        ("--lora_rank", "bad_value", "got nothing"),
        ("--lora_rank 8 9", "bad_value", "got '8 9'"),
        ("--learning_rate fast", "bad_value", "a number"),
        ("--packing maybe", "bad_value", "true or false"),
        ("--no_packing true", "bad_value", "no value"),
        ("--train_type lara", "bad_value", "bitfit, gradual, lisa, lora"),
        ("--train_type adapter", "bad_value", "PEFT has no bottleneck adapters"),
        ("--train_type qlora", "bad_value", "QLoRA is --train_type lora --quant_bits 4"),
        ("--task_type reward", "bad_value", "learned by seq_cls, of rows with Input and Reward"),
        ("--columns {", "bad_value", "a JSON object"),
        ("--dataset", "bad_value", "got nothing"),
        ("--bf16 perhaps", "bad_value", "true or false"),
        ("--freeze_parameters_ratio half", "bad_value", "a number"),
        ("--model_name a b c", "bad_value", "at most 2"),
        ("--lora_rank 8 --lora_rank 8", "repeated_flag", "twice"),
        ("--lora_rank 8 --method.rank 8", "repeated_flag", "--lora_rank"),
        ("--bf16 --torch_dtype float32", "repeated_flag", "--bf16"),
        ("--every 5", "ambiguous_flag", "--save.every"),
        ("--deepspeed zero2", "unsupported_flag", "NPROC_PER_NODE"),
        ("--deepspeed zero3", "unsupported_flag", "--fsdp full_shard"),
        ("--fsdp shard_grad_op", "bad_value", "none, full"),
        ("--fsdp_config fsdp.json", "unsupported_flag", "--fsdp full_shard"),
        ("--quant_method awq", "bad_value", "one of none, bnb, hqq, eetq"),
        ("--quant_bits four", "bad_value", "whole number"),
        ("--hqq_axis 0", "unsupported_flag", "along the input"),
        ("--save_strategy epoch", "unsupported_flag", "--save_steps"),
        ("--data_seed 3", "unsupported_flag", "--seed"),
        ("""--lr_scheduler_kwargs '{"min_lr": 1e-6}'""", "unsupported_flag", "min_lr_rate"),
    ],
)
def test_bad_usage_is_named(line, code, said):
    error = refused(line)
    assert error.code == code
    assert said in str(error)
    flag = line.split()[-2 if len(line.split()) > 2 and code == "repeated_flag" else 0]
    assert flag.split("=")[0] in str(error) or code == "repeated_flag"


def test_harmless_values_of_refused_flags_pass():
    config, notes = read("--neftune_noise_alpha 0 --quantization_bit 0 --lora_bias none")
    assert config == RunConfig()
    assert notes == []


@pytest.mark.parametrize(
    ("line", "quant"),
    [
        ("--quant_method bnb --quant_bits 8", Quant(method="bnb", bits=8)),
        ("--quantization_bit 4", Quant(method="bnb", bits=4)),
        ("--quantization_method hqq", Quant(method="hqq", bits=4)),
        ("--quant_method eetq", Quant(method="eetq", bits=8)),
        ("--load_in_4bit true --bnb_4bit_quant_type fp4 --double_quantization false",
         Quant(bits=4, format="fp4", double_quant=False)),
        ("--load_in_8bit --llm_int8_skip_modules o_proj,layers.3", Quant(bits=8, skip=("o_proj", "layers.3"))),
        ("--quantization_method bitsandbytes --model.quant.bits 8 --load_in_4bit false", Quant(bits=8)),
        ("--quant_method none", Quant(method="none")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [RunConfig, InferConfig])
def test_a_base_in_few_bits(line, quant, kind):
    config, notes = read(line, kind)
    assert config.model.quant == quant
    assert notes == []
    assert validate(kind, config.model_dump(mode="json")) == config


def test_bits_that_a_library_does_not_have():
    with pytest.raises(ConfigError, match=r"model\.quant: bnb holds weights in 4 or 8 bits, not in 3"):
        read("--quant_method bnb --quant_bits 3")


def test_flags_without_meaning_are_noted():
    config, notes = read("--lazy_tokenize true --template qwen --model_type qwen2_5")
    assert config == RunConfig()
    assert [note.split()[0] for note in notes] == ["--lazy_tokenize", "--template", "--model_type"]


def test_every_familiar_name_leads_to_a_setting():
    known = {
        *leaves(SearchRun),
        *leaves(InferConfig),
        *leaves(DeployConfig),
        *leaves(EvalConfig),
        *leaves(ExportConfig),
    }
    lost = {
        name: entry.path for name, entry in FAMILIAR.items() if isinstance(entry, Means) and entry.path not in known
    }
    assert lost == {}


def test_every_foreign_word_becomes_an_allowed_one():
    known = leaves(ExportConfig) | leaves(RunConfig)
    for path, words in WORDS.items():
        for meant in words.values():
            choices = known[path].choices
            assert meant in choices or meant == "null" or (not choices and path == "method.target"), (path, meant)


def test_notes_and_refusals_are_sentences_about_the_flag():
    for name, entry in FAMILIAR.items():
        if isinstance(entry, Ignored):
            assert parse([f"--{name}"], RunConfig).notes == [f"--{name} changes nothing: {entry.why}"]
        elif isinstance(entry, Refused):
            assert str(refused(f"--{name}")).startswith(f"--{name}: ")


@given(
    st.sampled_from(sorted(leaves(RunConfig))), st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5)
)
def test_any_value_is_taken_or_refused_with_the_flag_named(path, value):
    if str(value).startswith("--"):
        return
    try:
        parsed = parse([f"--{path}", str(value)], RunConfig)
    except ConfigError as error:
        assert str(error).startswith(f"--{path}: expected ")
    else:
        json.dumps(parsed.tree)


def test_a_name_of_the_command_wins_over_a_familiar_one():
    class Options(Config):
        model_name: str = "x"
        val_dataset: str | None = None
        steps: int = Field(default=1, ge=1)

    config, _ = read("--model_name y --val-dataset v.jsonl --steps 2", Options)
    assert config == Options(model_name="y", val_dataset="v.jsonl", steps=2)


def test_infer_as_people_type_it():
    line = (
        "--model M --adapters A --stream true --max_new_tokens 2048 --temperature 0 --infer_backend pt "
        "--val_dataset f.jsonl --result_path out.jsonl --system hi"
    )
    config, notes = read(line, InferConfig)
    assert notes == []
    assert (config.model.path, config.model.adapters, config.backend) == ("M", ("A",), "pt")
    assert (config.sampling.max_new_tokens, config.sampling.temperature) == (2048, 0)
    assert (config.val_dataset, config.result_path, config.system, config.stream) == (
        "f.jsonl",
        "out.jsonl",
        "hi",
        True,
    )


@pytest.mark.parametrize("word", ["full_shard", "fsdp2", "full", "'full_shard auto_wrap'"])
def test_fsdp_means_sharding(word):
    config, notes = read(f"--fsdp {word} --fsdp_transformer_layer_cls_to_wrap Qwen2DecoderLayer")
    assert config.train.shard == "full"
    assert len(notes) == 1 and "found in the model" in notes[0]
    assert read("--fsdp no_shard")[0].train.shard == "none"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--optim adafactor", "--optim adafactor"),
        ("--optim adamw_8bit", "--optim adamw_8bit"),
        ("--optim paged_adamw", "--optim paged_adamw"),
        ("--quant_bits 4", "--fsdp"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(line, said):
    config, _ = read(f"--model m --dataset d.jsonl --fsdp full_shard {line}")
    with pytest.raises(ConfigError, match=said):
        resolve(config)


def test_rounding_of_an_export_is_not_how_its_base_is_held():
    tree = parse(["--quantization_bit", "8", "--model.quant.bits", "4", "--use_hf", "false"], ExportConfig).tree
    assert tree == {"quant_bits": 8, "model": {"quant": {"bits": 4}, "hub": "ms"}}
