from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.base.config import to_yaml
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.cli import conversation
from luthier.cli.infer import InferConfig, infer
from luthier.generate.continuous import Continuous
from luthier.model import lowbit, methods
from luthier.model.config import Lora, ModelConfig, Quant
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.run.config import RunConfig

GREEDY = {"max_new_tokens": 6}


def options(model: Path | None = None, **settings: Any) -> InferConfig:
    named = {"path": str(model)} if model else {}
    return InferConfig.model_validate({"model": named, "sampling": GREEDY, **settings})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "你叫什么名字？"}, {"role": "assistant", "content": "小琴"}]},
        {"query": "What is your name?"},
        {"instruction": "Count.", "input": "1 2 3", "output": "4"},
        {"text": "plain text asks nothing"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Numbers?"}]},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A run directory with one adapter that answers differently from its base."""
    return trained_run(ModelConfig(path=str(tiny_model_dir("qwen2")), template_args={"mood": "bright"}), tmp_path)


def trained_run(base: ModelConfig, tmp_path: Path) -> Path:
    from luthier.engine.checkpoint import Checkpoints, State, Tensors

    model = load_model(base, torch.device("cpu"), tokenizer=load_tokenizer(base), trained=True)
    method = Lora(rank=4)
    methods.apply(model, method)
    for name, weight in model.trained().items():
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    model.tokenizer.chat_template = str(model.tokenizer.chat_template).replace("assistant", "luthier")
    config = RunConfig.model_validate(
        {"model": base.model_dump(), "method": method.model_dump(), "data": {"system": "You build violins."}}
    )

    def artefact(folder: Path, _: Any) -> None:
        methods.save(model, folder)
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")

    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    Checkpoints(folder / "checkpoints", None).save(State(step=3), Tensors({}, {}, {}), artefact, best=False)
    return folder


def test_answers_a_file_and_goes_on_where_it_stopped(
    tiny_model_dir: Callable[..., Path], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "answers" / "out.jsonl"
    asked = options(tiny_model_dir("qwen2"), val_dataset=str(questions), result_path=str(result), batch_size=2)
    infer(asked, Console())
    whole = {row["index"]: row for row in lines(result)}
    assert sorted(whole) == [0, 1, 2, 3, 4]
    assert whole[0]["label"] == "小琴" and whole[1]["label"] is None and whole[2]["label"] == "4"
    assert whole[2]["messages"] == [{"role": "user", "content": "Count.\n1 2 3"}]
    assert "plain text" in whole[3]["error"] and "questions.jsonl:4" in whole[3]["error"]
    assert [m["role"] for m in whole[4]["messages"]] == ["system", "user"]
    kept = [json.dumps(whole[index], ensure_ascii=False) for index in (0, 3)]
    result.write_text("\n".join([*kept, '{"index": 1, "respo']), encoding="utf-8")
    generated: list[int] = []
    submit = Continuous.submit

    def counted(self: Continuous, request: Any, sink: Any) -> Any:
        generated.append(1)
        return submit(self, request, sink)

    monkeypatch.setattr(Continuous, "submit", counted)
    infer(asked, Console())
    assert sum(generated) == 3
    assert {row["index"]: row for row in RunRows(result)} == whole


def RunRows(result: Path) -> list[dict[str, Any]]:
    from luthier.base.rundir import RunDir

    return [dict(row) for row in RunDir(result.parent).read_rows(result.name)]


def test_answers_to_other_questions_are_not_mixed(
    tiny_model_dir: Callable[..., Path], questions: Path, tmp_path: Path
) -> None:
    result = tmp_path / "out.jsonl"
    asked = options(tiny_model_dir("qwen2"), val_dataset=str(questions), result_path=str(result))
    infer(asked, Console())
    questions.write_text('{"query": "Something else?"}\n')
    with pytest.raises(ConfigError, match="another question") as caught:
        infer(asked, Console())
    assert caught.value.code == "other_results"


def test_ctrl_c_keeps_what_is_answered(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    file, result = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"query": f"Number {n}?"}) + "\n" for n in range(5000)))
    words = ["infer", "--model", str(tiny_model_dir("qwen2")), "--val_dataset", str(file), "--result_path", str(result)]
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from luthier.cli.app import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words, "--max_new_tokens", "40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        while not (result.exists() and result.stat().st_size) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=60)[0]
    assert child.returncode == 130, said
    assert "the same command goes on from there" in said and "interrupted" in said
    assert 0 < len(lines(result)) < 5000


def test_a_file_of_no_questions_is_an_error(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    file, result = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"query": "x"\n{"nothing": 1}\n')
    with pytest.raises(DataError, match=r"no row could be answered; the first one: .*malformed JSON"):
        infer(options(tiny_model_dir("qwen2"), val_dataset=str(file), result_path=str(result)), Console())
    assert len(lines(result)) == 2


def test_a_number_behind_the_file_draws_rows(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    file, result = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"query": f"Number {n}?"}) + "\n" for n in range(9)))
    asked = options(tiny_model_dir("qwen2"), val_dataset=f"{file}#4", result_path=str(result))
    infer(asked, Console())
    found = {row["index"]: row["messages"][0]["content"] for row in lines(result)}
    assert sorted(found) == [0, 1, 2, 3] and len(set(found.values())) == 4
    infer(asked, Console())  # the same are drawn again
    assert len(lines(result)) == 4


def test_a_question_that_is_too_long_costs_only_itself(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    file, result = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"query": text}) + "\n" for text in ("Short?", "number " * 300, "Name?")))
    infer(options(tiny_model_dir("qwen2"), val_dataset=str(file), result_path=str(result)), Console())
    found = {row["index"]: row for row in lines(result)}
    assert "response" in found[0] and "response" in found[2] and "no room for an answer" in found[1]["error"]


def test_a_run_directory_alone_is_enough(
    run: Path, tiny_model_dir: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"query": "Who are you?"}\n')
    found: dict[str, dict[str, Any]] = {}
    named: dict[str, dict[str, Any]] = {
        "run": {"adapters": [str(run)]},
        "checkpoint": {"adapters": [str(run / "checkpoints" / "step-00000003")]},
        "both": {"path": str(tiny_model_dir("qwen2")), "adapters": [str(run)]},
        "base": {"path": str(tiny_model_dir("qwen2"))},
    }
    for name, model in named.items():
        result = tmp_path / f"{name}.jsonl"
        infer(
            options(val_dataset=str(file), result_path=str(result)).model_copy(update={"model": ModelConfig(**model)}),
            Console(),
        )
        found[name] = lines(result)[0]
    assert found["run"] == found["checkpoint"] == found["both"]
    assert found["run"]["messages"][0] == {"role": "system", "content": "You build violins."}
    assert found["run"]["response"] != found["base"]["response"]
    assert found["base"]["messages"][0]["role"] == "user"


def test_talking(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prompts: list[str] = []
    pieces = Continuous.pieces

    def recorded(self: Continuous, request: Any) -> Any:
        prompts.append(str(self.model.tokenizer.decode(request.prompt)))
        return pieces(self, request)

    monkeypatch.setattr(Continuous, "pieces", recorded)
    typed = iter(["One.", "Two.", "clear", "multi-line", "Three", "and four.#", "single-line", "reset-system", "Sing.", "Five.", "", "quit"])  # noqa: E501  # fmt: skip
    monkeypatch.setattr(conversation, "typed", lambda _: next(typed))
    infer(options().model_copy(update={"model": ModelConfig(adapters=(str(run),))}), Console())
    assert "You build violins." in prompts[0] and prompts[0].endswith("<|im_start|>luthier\n")
    assert "One." in prompts[1] and "Two." in prompts[1]
    assert "One." not in prompts[2] and "Three\nand four." in prompts[2] and "You build violins." in prompts[2]
    assert "Sing." in prompts[3] and "violins" not in prompts[3] and len(prompts) == 4
    assert next(typed, None) is None


def test_several_adapters_answer_by_name(
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ModelConfig(path=str(tiny_model_dir("qwen2")))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    runs = {name: trained_run(base, tmp_path / name) for name in ("one", "two")}
    named = tuple(f"{name}={folder}" for name, folder in runs.items())
    file, result = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    asked = [{"query": "Who?"}, {"query": "Who?", "adapter": "one"}, {"query": "Who?", "adapter": "two"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    model = ModelConfig(adapters=named)  # the base is the one that they were trained on
    infer(options(val_dataset=str(file), result_path=str(result)).model_copy(update={"model": model}), Console())
    found = {row["index"]: row for row in lines(result)}
    assert found[0]["messages"][0]["role"] == "user"
    assert found[1]["messages"] == found[2]["messages"] and found[1]["messages"][0]["content"] == "You build violins."
    assert found[1]["response"] == found[2]["response"] != found[0]["response"]  # made of the same numbers
    with pytest.raises(ConfigError, match=r"'three'"):
        infer(options(adapter="three").model_copy(update={"model": model}), Console())
    typed = iter(["Who?", "use two", "use three", "clear", "Who?", "quit"])
    monkeypatch.setattr(conversation, "typed", lambda _: next(typed))
    infer(options().model_copy(update={"model": model}), Console())
    said = capsys.readouterr().out
    assert "no adapter is called 'three'" in said and found[1]["response"] in said and found[0]["response"] in said


def test_answers_have_the_form_that_is_asked_for(
    tiny_model_dir: Callable[..., Path], questions: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": false}'
    )
    folder = tiny_model_dir("qwen2")
    for number, (form, known) in enumerate(
        (({"json_schema": str(schema)}, ('{"n": 1}', '{"n": 22}')), ({"regex": "(yes|no)!"}, ("yes!", "no!")))
    ):
        result = tmp_path / f"{number}.jsonl"
        asked = options(folder, val_dataset=str(questions), result_path=str(result), sampling={"max_new_tokens": 30})
        infer(asked.model_copy(update=form), Console())
        assert {row["response"] in known for row in lines(result) if "response" in row} == {True}
    for form in (
        {"json_schema": "{"},
        {"json_schema": "nowhere.json"},
        {"regex": "("},
        {"json_schema": '{"type": "wood"}'},
        {"regex": "a", "json_schema": "{}"},
    ):
        with pytest.raises(ConfigError, match=r"^--(json_schema|regex)"):
            infer(options(folder, **form), Console())


def test_what_cannot_work_is_said(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="no model was named"):
        infer(options(), Console())
    with pytest.raises(ConfigError, match="belong together"):
        infer(options(tiny_model_dir(), val_dataset="x.jsonl"), Console())
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        infer(options().model_copy(update={"model": ModelConfig(adapters=(str(tmp_path / "run"),))}), Console())


def test_a_base_in_few_bits_is_held_as_in_training_unless_asked_otherwise(
    tiny_model_dir: Callable[..., Path],
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("bitsandbytes")
    run = trained_run(ModelConfig(path=str(tiny_model_dir("qwen2")), quant=Quant(bits=4)), tmp_path)
    held: list[set[torch.dtype]] = []
    attach = methods.attach

    def seen(model: Model, adapters: Any) -> None:
        held.append({tensor.dtype for name, tensor in lowbit.tensors(model.base) if name.endswith(".codes")})
        attach(model, adapters)

    monkeypatch.setattr(methods, "attach", seen)
    for number, quant in enumerate(({"method": None}, {"method": "none"}, {"method": "bnb", "bits": 8})):
        model = ModelConfig.model_validate({"adapters": [str(run)], "quant": quant})
        files = {"val_dataset": str(questions), "result_path": str(tmp_path / f"{number}.jsonl")}
        infer(options(**files).model_copy(update={"model": model}), Console())
        assert ("held in 4 bits, as in training" in capsys.readouterr().err) is (number == 0)
        assert len([row for row in lines(tmp_path / f"{number}.jsonl") if "response" in row]) == 4
    assert held == [{torch.uint8}, set(), {torch.int8}]


def test_answers_of_another_model_or_other_settings_are_not_mixed(
    run: Path, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    file, result = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"query": "Who are you?"}\n{"nothing": 5}\n{"query": "Why?"}\n')
    asked = options(tiny_model_dir("qwen2"), val_dataset=str(file), result_path=str(result), system="Be brief.")
    infer(asked, Console())
    assert ["error" in row for row in lines(result)] == [False, True, False], "in the order of the rows"
    kept = result.read_bytes()
    for changed, told in (
        ({"model": asked.model.model_copy(update={"adapters": [str(run)]})}, "model was"),
        ({"sampling": asked.sampling.model_copy(update={"temperature": 0.7})}, "temperature was"),
        ({"regex": "yes|no"}, "form was unset, now yes|no"),
    ):
        with pytest.raises(ConfigError, match="made otherwise") as caught:
            infer(asked.model_copy(update=changed), Console())
        assert told in str(caught.value)
        assert result.read_bytes() == kept
    file.write_text('{"query": "Who are you?"}\n{"query": "How?"}\n{"query": "Why?"}\n')
    infer(asked, Console())
    assert [row["index"] for row in lines(result) if "response" in row] == [0, 1, 2]


def test_answers_are_not_written_into_the_questions(tiny_model_dir: Callable[..., Path], questions: Path) -> None:
    before = questions.read_bytes()
    with pytest.raises(ConfigError, match="would write into the input"):
        infer(options(tiny_model_dir("qwen2"), val_dataset=str(questions), result_path=str(questions)), Console())
    assert questions.read_bytes() == before


def test_answers_to_other_data_are_not_taken_for_these(tiny_model_dir: Callable[..., Path], questions: Path) -> None:
    model, result, other = tiny_model_dir("qwen2"), questions.with_name("out.jsonl"), questions.with_name("other.jsonl")
    infer(options(model, val_dataset=str(questions), result_path=str(result)), Console())
    other.write_text(json.dumps({"query": "Who?"}) + "\n")
    with pytest.raises(ConfigError, match=r"made otherwise: data was .*questions\.jsonl, now .*other\.jsonl"):
        infer(options(model, val_dataset=str(other), result_path=str(result)), Console())
