"""The objective of a run when nobody named one: told by its rows and its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoders import save_encoder

from luthier.base.errors import DataError, ModelError
from luthier.data.config import DataConfig
from luthier.model.config import ModelConfig
from luthier.objectives.config import Embed, Mlm, Pretrain, Seq2Seq, SeqCls, Sft, SpanCorruption, TokenCls
from luthier.run.pick import pick

TEXT = {"text": "the violin maker planes the top"}
CHAT = {"query": "who are you?", "response": "a violin"}
CLASSED = {"text": "where is my card?", "category": "card_arrival"}
LABELLED = {"text": "a good violin", "label": "pos"}
TAGGED = {"tokens": ["violin", "maker"], "tags": ["B-job", "I-job"]}
PAIR = {"sentence1": "a violin", "sentence2": "a fiddle", "score": 0.9}

ENCODER = {"model_type": "bert", "architectures": ["BertModel"]}
FILLER = {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
BART = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}
TALKER = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
OLD_TALKER = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}


@pytest.mark.parametrize(
    ("model", "row", "expected"),
    [
        (TALKER, TEXT, Sft),
        (TALKER, CHAT, Sft),
        (TALKER, CLASSED, Sft),  # a category of a chat or a document is often metadata
        (TALKER, LABELLED, SeqCls),
        (OLD_TALKER, TEXT, Sft),
        (ENCODER, TEXT, Mlm),
        (ENCODER, CLASSED, SeqCls),
        (ENCODER, TAGGED, TokenCls),
        (ENCODER, PAIR, Embed),
        (ENCODER, CHAT, Sft),  # refused, with what an encoder can be trained for
        (FILLER, TEXT, Mlm),
        (T5, CHAT, Seq2Seq),
        (T5, TEXT, SpanCorruption),
        (BART, CHAT, Seq2Seq),
        (BART, TEXT, Sft),
        (BART, LABELLED, SeqCls),
    ],
)
def test_rows_and_model_say_what_is_learned(
    model: dict[str, Any], row: dict[str, Any], expected: type[Any], tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(model))
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 3)
    assert type(pick(DataConfig(datasets=(str(rows),)), ModelConfig(path=str(tmp_path)))) is expected


@pytest.mark.parametrize(("model", "row", "told"), [(TALKER, CLASSED, 1), (TALKER, TEXT, 0), (ENCODER, CLASSED, 0)])
def test_texts_with_a_class_that_is_not_learned_are_told_of(
    model: dict[str, Any], row: dict[str, Any], told: int, tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(model))
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 3)
    notes: list[str] = []
    pick(DataConfig(datasets=(str(rows),)), ModelConfig(path=str(tmp_path)), notes)
    assert len(notes) == told and all("--task_type seq_cls" in note for note in notes)


def test_a_hub_id_is_not_looked_up_for_it(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(TEXT) + "\n")
    assert pick(DataConfig(datasets=(str(rows),)), ModelConfig(path="somebody/model")) == Sft()


@pytest.mark.parametrize("config", [Sft(), Pretrain()])
def test_an_encoder_that_is_to_talk_is_refused_with_what_it_can(config: Sft | Pretrain, tmp_path: Path):
    from luthier.model.load import load_tokenizer
    from luthier.objectives.registry import build
    from luthier.objectives.setting import Setting

    model = ModelConfig(path=str(save_encoder(tmp_path, "bert")))
    setting = Setting(load_tokenizer(model), model, DataConfig(overlong="truncate"), 64)
    with pytest.raises(ModelError, match=r"not a causal language model.*--task_type mlm, seq_cls"):
        build(config, setting)


def test_a_text_alone_trains_an_encoder_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from luthier.cli.app import main

    (tmp_path / "rows.jsonl").write_text(json.dumps(TEXT) + "\n")
    folder = save_encoder(tmp_path, "bert")
    assert main(["sft", "--model", str(folder), "--dataset", str(tmp_path / "rows.jsonl"), "--dry_run"]) == 0
    told = capsys.readouterr()
    assert "type: mlm" in told.out and "the rows are for mlm" in told.err


def test_a_missing_file_is_told_before_an_encoder_is_blamed_for_not_talking(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(ENCODER))
    data, encoder = DataConfig(datasets=(str(tmp_path / "rows.jsonl"),)), ModelConfig(path=str(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        pick(data, encoder)
    assert pick(data, ModelConfig(path="somebody/model")) == Sft(), "settings may be for another machine"
    assert pick(DataConfig(datasets=("somebody/rows",)), encoder) == Sft()
