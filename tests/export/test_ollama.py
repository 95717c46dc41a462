"""A Modelfile's template, run as Ollama runs it, writes the prompts that the chat template writes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from data.templates import STYLES, tokenizer

from luthier.base.errors import ModelError
from luthier.base.records import Message
from luthier.data.render import Renderer
from luthier.export.ollama import adds_bos, find_pieces, go_template, modelfile
from luthier.model.config import ModelConfig
from luthier.model.load import load_tokenizer

EXPRESSIBLE = [name for name in STYLES if name not in ("llama2", "llama2-spaced", "plain")]
TALK = [
    Message("user", "What is carved last?"),
    Message("assistant", "The scroll.\n\nThen it is varnished."),
    Message("user", "为什么？ {{ .Content }} <|im_end|>"),
    Message("assistant", "因为漆要干。"),
    Message("user", "Thanks"),
]


def of(name: str) -> Renderer:
    return Renderer(tokenizer(name), template_args=STYLES[name].args)


def go(template: str, messages: Sequence[Message]) -> str:
    """The subset of Go's text/template that is written, on what Ollama hands to it."""
    parts = iter(re.split(r"(\{\{.*?\}\})", template))
    tree = list(_parse(parts))
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    return _run(tree, system, messages, None)


def _parse(parts: Iterator[str]) -> Iterator[tuple]:
    """text | ("if", [(condition, body), ...]) | ("range", body) | ("content",) | ("quoted", text)"""
    for part in parts:
        if not part.startswith("{{"):
            yield ("text", part)
            continue
        action = part[2:-2].strip()
        if action == "end" or action.startswith("else"):
            yield ("stop", action)
            return
        if action.startswith(("if ", "range ")):
            word, _, condition = action.partition(" ")
            branches = []
            while True:
                body = list(_parse(parts))
                branches.append((condition, body[:-1]))
                _, stop = body[-1]
                if stop == "end":
                    break
                condition = stop.removeprefix("else if ")
            yield (word, branches)
        elif action == ".Content":
            yield ("content",)
        else:
            assert re.fullmatch(r'"[^"\\]*"', action), action
            yield ("text", action[1:-1])


def _run(tree: Sequence[tuple], system: str, messages: Sequence[Message], message: Message | None) -> str:
    text = ""
    for kind, *rest in tree:
        if kind == "text":
            text += rest[0]
        elif kind == "content":
            assert message is not None
            text += message.content
        elif kind == "range":
            assert rest[0][0][0] == ".Messages"
            text += "".join(_run(rest[0][0][1], system, messages, each) for each in messages)
        else:
            for condition, body in rest[0]:
                role = re.fullmatch(r'eq \.Role "(\w+)"', condition)
                if (
                    (message is not None and message.role == role[1])
                    if role
                    else (condition == "not .System" and not system)
                ):
                    text += _run(body, system, messages, message)
                    break
    return text


def conversations(name: str) -> Iterator[list[Message]]:
    for turns in (1, 3, 5):
        yield TALK[:turns]
        if STYLES[name].system:
            yield [Message("system", "Be kind. 友善。"), *TALK[:turns]]


def expected(renderer: Renderer, messages: Sequence[Message]) -> str:
    ids = renderer.prompt(messages)
    if adds_bos(renderer):  # Ollama puts it in front of every prompt when the GGUF file says so
        ids = ids[1:]
    return str(renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_prompts_are_those_of_the_chat_template(name: str) -> None:
    renderer = of(name)
    template = go_template(find_pieces(renderer))
    for messages in conversations(name):
        assert go(template, messages) == expected(renderer, messages)


def test_the_interpreter_is_right_about_go(tmp_path: Path) -> None:
    """Go itself, where it is installed, gives what this file's few lines give."""
    compiler = shutil.which("go")
    if compiler is None:
        pytest.skip("no Go here")
    import json

    cases = []
    for name in EXPRESSIBLE:
        template = go_template(find_pieces(of(name)))
        for messages in conversations(name):
            system = "\n\n".join(message.content for message in messages if message.role == "system")
            rows = [{"Role": message.role, "Content": message.content} for message in messages]
            cases.append({"Template": template, "System": system, "Messages": rows, "Want": go(template, messages)})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "main.go").write_text(GO)
    environment = {
        "HOME": str(tmp_path),
        "GOCACHE": str(tmp_path / "cache"),
        "PATH": "/usr/bin:/bin",
        "GOFLAGS": "-mod=mod",
    }
    done = subprocess.run(
        [compiler, "run", "main.go"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{len(cases)} equal"


GO = r"""
package main

import ("encoding/json"; "fmt"; "os"; "strings"; "text/template")

type Message struct { Role, Content string }
type Case struct { Template, System, Want string; Messages []Message }

func main() {
    data, _ := os.ReadFile("cases.json")
    var cases []Case
    if err := json.Unmarshal(data, &cases); err != nil { panic(err) }
    for number, c := range cases {
        var out strings.Builder
        parsed := template.Must(template.New("t").Option("missingkey=zero").Parse(c.Template))
        values := map[string]any{"System": c.System, "Messages": c.Messages}
        if err := parsed.Execute(&out, values); err != nil { panic(err) }
        if out.String() != c.Want { fmt.Printf("case %d:\n%q\n%q\n", number, out.String(), c.Want); os.Exit(1) }
    }
    fmt.Printf("%d equal\n", len(cases))
}
"""


@pytest.mark.parametrize("name", ["llama2", "llama2-spaced", "plain"])
def test_templates_that_pieces_cannot_make_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be written as a Modelfile") as caught:
        find_pieces(of(name))
    assert caught.value.code == "template_not_expressible"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}", "role"),
        (
            "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.index }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "",
        ),
    ],
)
def test_templates_that_do_more_are_refused(template: str, why: str) -> None:
    with pytest.raises(ModelError, match=f"cannot be written as a Modelfile: .*{why}"):
        find_pieces(Renderer(tokenizer("chatml"), template=template))


def test_modelfile_of_the_bundled_model(nano_dir: Path) -> None:
    renderer = Renderer(load_tokenizer(ModelConfig(path=str(nano_dir))))
    text = modelfile(renderer, "nano-f16.gguf", 'Say "hello".')
    assert text.startswith("FROM ./nano-f16.gguf\n")
    assert '\nSYSTEM """Say "hello"."""\n' in text
    assert '\nPARAMETER stop "<|im_end|>"\n' in text
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    assert go(template, TALK) == expected(renderer, TALK)


def test_system_message_that_a_modelfile_cannot_hold(nano_dir: Path) -> None:
    renderer = Renderer(load_tokenizer(ModelConfig(path=str(nano_dir))))
    with pytest.raises(ModelError, match='holds """'):
        modelfile(renderer, "m.gguf", 'a """ b')
    with pytest.raises(ModelError, match="knows no system message"):
        modelfile(of("gemma"), "m.gguf", "Be kind.")
