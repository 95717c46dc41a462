"""`luthier eval` as a whole, on tiny models and a judge behind a local address."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from luthier.base.config import validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError, RunError, Stopped
from luthier.cli.app import main
from luthier.evaluate.config import EvalConfig
from luthier.run.evaluation import Evaluated, evaluate


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of multiple choice and one of question answering, in two languages."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "mcq").mkdir()
    (folder / "qa").mkdir()
    rows = [f"{n},What is {n} plus one?,{n},{n + 1},{n + 2},{'' if n % 2 else 'none'},B" for n in range(12)]
    chinese = [f"{n},{n} 加一等于多少？,{n},{n + 1},{n + 2},零,B" for n in range(12)]
    for name, text in (("en_val", rows[2:]), ("en_dev", rows[:2]), ("zh_val", chinese)):
        (folder / f"mcq/{name}.csv").write_text(
            "\n".join(["id,question,A,B,C,D,answer", *text]) + "\n", encoding="utf-8"
        )
    asked = [{"query": f"What is {n}?", "response": f"It is {n}."} for n in range(5)]
    asked += [{"query": f"{n} 是什么？", "response": f"是 {n}。"} for n in range(5)]
    (folder / "qa/example.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return folder


def run(model: Path, sets: Path, out: Path, **changes: Any) -> Evaluated:
    tree: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "float32"},
        "eval_dataset": ("general_mcq", "general_qa"),
        "dataset_args": {
            "general_mcq": {"local_path": str(sets / "mcq")},
            "general_qa": {"local_path": str(sets / "qa"), "max_new_tokens": 6},
        },
        "output_dir": str(out),
        **changes,
    }
    return evaluate(validate(EvalConfig, tree), Console(quiet=True))


def answers(found: Evaluated) -> dict[str, list[tuple[str, str, Any]]]:
    return {
        "/".join(name): [(one.key, one.prediction, dict(one.rates)) for one in results]
        for name, results in found.measured.results.items()
    }


def test_the_table_holds_every_metric_of_every_subset(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path
) -> None:
    found = run(tiny_model_dir("qwen2"), sets, tmp_path)
    rows = {(row.dataset, row.subset, row.metric): row for row in found.measured.scores()}
    assert rows["general_mcq", "en", "AverageAccuracy"].num == 10
    assert rows["general_mcq", "OVERALL", "AverageAccuracy"].num == 22
    metrics = {metric for dataset, _, metric in rows if dataset == "general_qa"}
    assert {"bleu-1", "bleu-4", "rouge-1-f", "rouge-2-p", "rouge-l-r", "exact_match", "f1"} <= metrics
    written = json.loads((found.folder / "report.json").read_text(encoding="utf-8"))
    assert len(written["scores"]) == len(rows)
    assert "| qwen2-0" in (found.folder / "report.md").read_text(encoding="utf-8")
    assert (found.folder / "plots/scores.png").stat().st_size > 1000
    lines = (found.folder / "items/general_mcq/en.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10 and json.loads(lines[0])["detail"]["options"] == ["A", "B", "C", "D"]
    assert json.loads(lines[1])["detail"]["options"] == ["A", "B", "C"]  # an empty last option is none


def test_batches_order_and_padding_change_nothing(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path
) -> None:
    shots = {
        "few_shot_num": 2,
        "dataset_args": {"general_mcq": {"local_path": str(sets / "mcq"), "subset_list": ["en"]}},
    }
    for shape in ("qwen2", "gemma2"):  # packed, and padded
        model = tiny_model_dir(shape, max_position_embeddings=1024)
        one = run(
            model,
            sets,
            tmp_path / f"{shape}1",
            eval_batch_size=1,
            batch_tokens=1,
            eval_dataset=("general_mcq",),
            **shots,
        )
        many = run(model, sets, tmp_path / f"{shape}2", eval_batch_size=7, eval_dataset=("general_mcq",), **shots)
        assert answers(one) == answers(many)
        args = {"general_qa": {"local_path": str(sets / "qa"), "max_new_tokens": 6}}
        one = run(
            model, sets, tmp_path / f"{shape}3", eval_batch_size=1, eval_dataset=("general_qa",), dataset_args=args
        )
        many = run(
            model, sets, tmp_path / f"{shape}4", eval_batch_size=7, eval_dataset=("general_qa",), dataset_args=args
        )
        assert answers(one) == answers(many)


@pytest.mark.parametrize("shape", ["qwen2", "gemma2"])  # packed, and padded
def test_nor_for_any_other_kind_of_question(
    shape: str, tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path
) -> None:
    words = ["the violin maker", "planes", "the top until it rings", "小提琴", "a", "numbers 1 2 3 and a longer text"]
    kinds = ("odd", "even", "neither of them")
    pairs = itertools.pairwise(words)
    rows = {
        "labels": [{"text": f"{word} {n}", "label": kinds[n % 3]} for n, word in enumerate(words)],
        "pairs": [{"sentence1": a, "sentence2": b, "score": n / 5} for n, (a, b) in enumerate(pairs)],
        "ranks": [{"query": word, "pos": [f"{word} is"], "neg": words[:n] or ["?"]} for n, word in enumerate(words)],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, keys in (("corpus", "d"), ("queries", "q")):
        lines = [{"_id": f"{keys}{n}", "title": "", "text": word} for n, word in enumerate(words)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    judged = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(6))]
    (folder / "qrels.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    args = {
        "classification": {"local_path": str(tmp_path / "labels.jsonl")},
        "perplexity": {"local_path": str(tmp_path / "labels.jsonl")},
        "similarity": {"local_path": str(tmp_path / "pairs.jsonl")},
        "reranking": {"local_path": str(tmp_path / "ranks.jsonl")},
        "retrieval": {"local_path": str(folder)},
    }
    asked: dict[str, Any] = {"eval_dataset": tuple(args), "dataset_args": args}
    model = tiny_model_dir(shape, max_position_embeddings=1024)
    one, many = (
        run(model, sets, tmp_path / str(tokens), batch_tokens=tokens, **asked).measured for tokens in (1, 8192)
    )
    for name, mine in one.results.items():
        for left, right in zip(mine, many.results[name], strict=True):
            assert (left.key, left.prediction) == (right.key, right.prediction), name
            assert dict(left.rates) == {key: pytest.approx(rate, rel=1e-6) for key, rate in right.rates.items()}
    assert [row.score for row in one.scores()] == pytest.approx([row.score for row in many.scores()], rel=1e-6)
    assert len(one.results) == 5


def test_what_is_answered_is_not_asked_again(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import luthier.run.evaluation as module

    model = tiny_model_dir("qwen2")
    whole = run(model, sets, tmp_path / "whole")
    first = run(model, sets, tmp_path / "parts", eval_limit=4)
    kept = first.folder / "items/general_mcq/zh.jsonl"
    kept.write_bytes(kept.read_bytes()[:-30])  # a crash cut the last line off
    counted: list[int] = []
    plain = module.measure

    def counting(subject: Any, task: Any, path: Path, progress: Callable[[int], None]) -> Any:
        for number, chunk in enumerate(plain(subject, task, path, progress)):
            counted.append(len(chunk) if number else 0)
            yield chunk

    monkeypatch.setattr(module, "measure", counting)
    second = run(model, sets, tmp_path / "parts")
    assert answers(second) == answers(whole)
    assert sum(counted) == 32 - 12 + 1
    counted.clear()
    assert answers(run(model, sets, tmp_path / "parts")) == answers(whole) and sum(counted) == 0


def test_the_report_on_other_sets_is_kept(tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path) -> None:
    def sets_in(report: Path) -> set[str]:
        return {row["dataset"] for row in json.loads(report.read_text(encoding="utf-8"))["scores"]}

    choice = {"general_mcq": {"local_path": str(sets / "mcq")}}
    first = run(tiny_model_dir("qwen2"), sets, tmp_path, eval_dataset=("general_mcq",), dataset_args=choice)
    asked = {"general_qa": {"local_path": str(sets / "qa"), "max_new_tokens": 2}}
    for _ in range(2):  # the same once more is not another
        folder = run(tiny_model_dir("qwen2"), sets, tmp_path, eval_dataset=("general_qa",), dataset_args=asked).folder
        assert folder == first.folder and sets_in(folder / "report.json") == {"general_qa"}
        (kept,) = (folder / "earlier").iterdir()
        assert sets_in(kept / "report.json") == {"general_mcq"}
        assert "general_mcq" in (kept / "report.md").read_text(encoding="utf-8")
        assert (kept / "plots/scores.png").exists() and (folder / "plots/scores.png").exists()


def test_a_request_to_stop_keeps_what_is_answered(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    import luthier.evaluate.measure as module

    monkeypatch.setitem(module._CHUNK, "choose", 4)  # pyright: ignore[reportPrivateUsage]
    choose = module._TALK["choose"]  # pyright: ignore[reportPrivateUsage]

    def stopping(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return choose(*arguments)

    monkeypatch.setitem(module._TALK, "choose", stopping)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Stopped, match="4 of 10 questions"):
        run(tiny_model_dir("qwen2"), sets, tmp_path)
    monkeypatch.undo()
    found = run(tiny_model_dir("qwen2"), sets, tmp_path)
    assert len(answers(found)["general_mcq/en"]) == 10


def test_two_models_are_compared_question_by_question(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path
) -> None:
    found = run(tiny_model_dir("qwen2"), sets, tmp_path, compare=str(tiny_model_dir("qwen2", seed=5)))
    change = next(one for one in found.changes if one.metric == "AverageAccuracy" and one.subset == "zh")
    assert change.num == 12
    assert change.difference == pytest.approx((change.wins - change.losses) / 12)
    assert change.low <= change.difference <= change.high
    assert (found.folder / "plots/change.png").is_file()
    same = run(tiny_model_dir("qwen2"), sets, tmp_path, compare=str(tiny_model_dir("qwen2")))
    assert all(one.difference == one.low == one.high == one.wins == one.losses == 0 for one in same.changes)


@pytest.fixture
def judge() -> Generator[tuple[str, list[str]]]:
    """A judge that says what it is told to, in turn, and its address."""
    says: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            said = says[0] if len(says) == 1 else says.pop(0)
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
            self.send_response(400 if said == "too long" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", says
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_judge_scores_and_chooses(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path, judge: tuple[str, list[str]]
) -> None:
    address, says = judge
    endpoint = {"base_url": address, "model": "judge", "concurrency": 1}
    qa = {
        "eval_dataset": ("general_qa",),
        "dataset_args": {"general_qa": {"local_path": str(sets / "qa"), "max_new_tokens": 6}},
    }
    says[:] = ["Good. Score: 8", "Score: 11", "I like it", *["Score: 4"] * 7]
    found = run(tiny_model_dir("qwen2"), sets, tmp_path / "1", judge={"by": "rubric", "endpoint": endpoint}, **qa)
    rows = {row.metric: row.score for row in found.measured.scores()}
    assert rows["judge-score"] == pytest.approx((8 + 7 * 4) / 8)
    assert rows["judge-unreadable"] == pytest.approx(2 / 10)
    # Ours first wins both ways; then a judge that always likes what stands first; then one that says nothing.
    says[:] = ["Verdict: 1", "Verdict: 2", "Verdict: 1", "Verdict: 1", "Hm.", "Verdict: 2", *["Verdict: tie"] * 14]
    found = run(tiny_model_dir("qwen2"), sets, tmp_path / "2", judge={"by": "pairwise", "endpoint": endpoint}, **qa)
    rows = {row.metric: row.score for row in found.measured.scores()}
    assert rows["judge-win"] == pytest.approx((1 + 0.5 + 7 * 0.5) / 9)
    assert rows["judge-unreadable"] == pytest.approx(1 / 10)


def test_what_a_judge_refuses_is_unreadable(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path, judge: tuple[str, list[str]]
) -> None:
    address, says = judge
    qa = {
        "eval_dataset": ("general_qa",),
        "dataset_args": {"general_qa": {"local_path": str(sets / "qa"), "max_new_tokens": 6}},
        "judge": {"by": "rubric", "endpoint": {"base_url": address, "model": "judge", "concurrency": 1}},
    }
    says[:] = ["too long"]
    with pytest.raises(RunError, match="HTTP 400"):
        run(tiny_model_dir("qwen2"), sets, tmp_path / "1", **qa)
    says[:] = ["Score: 8", "too long", "Score: 4"]
    found = run(tiny_model_dir("qwen2"), sets, tmp_path / "2", **qa)
    rows = {row.metric: row.score for row in found.measured.scores()}
    assert rows["judge-score"] == pytest.approx((8 + 8 * 4) / 9)
    assert rows["judge-unreadable"] == pytest.approx(1 / 10)


def test_labels_texts_and_documents_are_scored(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [f"the violin maker number {n}" for n in range(6)]
    rows = [{"text": text, "label": "odd" if n % 2 else "even"} for n, text in enumerate(texts)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, keys in (("corpus", "d"), ("queries", "q")):
        lines = [json.dumps({"_id": f"{keys}{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    judged = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(6))]
    (folder / "qrels.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    args = {
        "classification": {"local_path": str(tmp_path / "labels.jsonl")},
        "perplexity": {"local_path": str(tmp_path / "labels.jsonl")},
        "retrieval": {"local_path": str(folder)},
    }
    found = run(tiny_model_dir("qwen2"), tmp_path, tmp_path / "out", eval_dataset=tuple(args), dataset_args=args)
    rows_of = {(row.dataset, row.metric): row.score for row in found.measured.scores()}
    assert rows_of["retrieval", "ndcg@10"] == rows_of["retrieval", "mrr@10"] == 1.0  # each query is its document
    assert 0 <= rows_of["classification", "macro-f1"] <= 1
    assert (found.folder / "plots/confusion-classification-labels.png").is_file()
    assert 1 < rows_of["perplexity", "bits_per_byte"] < 30 and rows_of["perplexity", "perplexity"] > 1


def test_bad_input_says_what_is_wrong(tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path) -> None:
    model = tiny_model_dir("qwen2")
    with pytest.raises(ConfigError, match="Did you mean 'general_mcq'"):
        run(model, sets, tmp_path, eval_dataset=("general_mqc",), dataset_args={})
    with pytest.raises(ConfigError, match=r"no file nothing_val\.csv"):
        args = {"general_mcq": {"local_path": str(sets / "mcq"), "subset_list": ["nothing"]}}
        run(model, sets, tmp_path, eval_dataset=("general_mcq",), dataset_args=args)
    with pytest.raises(ConfigError, match="did you mean 'subset_list'"):
        args = {"general_mcq": {"local_path": str(sets / "mcq"), "subset_lists": ["en"]}}
        run(model, sets, tmp_path, eval_dataset=("general_mcq",), dataset_args=args)
    with pytest.raises(ConfigError, match="general_mcq is not judged by answers alone, which is all that vllm gives"):
        run(model, sets, tmp_path, backend="vllm")
    (tmp_path / "x_val.csv").write_text("question,A,B,answer\nq,1,2,C\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"x_val\.csv:2: the answer 'C' is not one of A, B"):
        run(model, sets, tmp_path, eval_dataset=(str(tmp_path / "x_val.csv"),), dataset_args={})


def test_the_familiar_command_prints_the_table(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = json.dumps({"general_mcq": {"local_path": str(sets / "mcq"), "subset_list": ["en"]}})
    words = ["eval", "--model", str(tiny_model_dir("qwen2")), "--eval_backend", "Native", "--infer_backend", "pt"]
    words += ["--eval_dataset", "general_mcq", "--eval_dataset_args", args, "--eval_limit", "3"]
    assert main([*words, "--output_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Model" in printed and "AverageAccuracy" in printed and "Subset" in printed
    assert main([*words, "--output_dir", str(tmp_path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    row = next(line for line in lines if line["type"] == "table")["rows"][0]
    assert (row["Dataset"], row["Metric"], row["Num"]) == ("general_mcq", "AverageAccuracy", 3)
