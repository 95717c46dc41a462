"""The Studio in a real browser: train a tiny model from a form, watch it, talk to it, in both languages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from conftest import Served
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no browser")]


@pytest.fixture
def page(studio: Served) -> Generator[Page]:
    """A page of a fresh browser that fails the test when it asks anything of any other place, or breaks."""
    playwright = pytest.importorskip("playwright.sync_api")
    foreign: list[str] = []
    broken: list[str] = []
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(locale="en-US", viewport={"width": 1280, "height": 900})
        page.set_default_timeout(20_000)
        own = (studio.url, studio.url.replace("http", "ws"), "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda said: broken.append(said.text) if said.type == "error" else None)
        yield page
        browser.close()
    assert foreign == [], "nothing is loaded from elsewhere"
    assert broken == []


def write_rows(file: Path) -> None:
    rows = [{"query": f"What is {n}?", "response": f"It is the number {n}."} for n in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_train_watch_and_talk(studio: Served, page: Page) -> None:
    write_rows(studio.root / "rows.jsonl")
    page.goto(studio.url)
    page.get_by_text("No runs below these folders yet.").wait_for()

    page.get_by_text("Start the first one").click()
    page.get_by_label("model", exact=True).fill("nano")
    page.get_by_label("dataset", exact=True).fill("rows.jsonl")
    page.get_by_label("max_steps", exact=True).fill("none")
    page.get_by_text("must be a whole number").wait_for()
    page.get_by_label("max_steps", exact=True).fill("6")
    page.get_by_label("max_length", exact=True).fill("64")
    page.get_by_text("All settings").click()
    page.get_by_label("Search names and explanations").fill("logging steps")
    page.get_by_label("save_steps", exact=True).wait_for(state="detached")
    page.get_by_label("logging_steps", exact=True).fill("1")
    said = "luthier train --model nano --dataset rows.jsonl --max_length 64 --max_steps 6 --logging_steps 1"
    page.get_by_text(said, exact=True).wait_for()

    page.get_by_role("button", name="Look at the data").click()
    paper = page.frame_locator("iframe.paper")
    paper.get_by_text("What the model is trained on").first.wait_for(timeout=90_000)
    assert paper.locator(".trained").count() > 0

    page.get_by_role("button", name="Plan memory and time").click()
    paper.get_by_text("What the model is trained on").first.wait_for(state="detached")
    paper.get_by_text("memory").first.wait_for(timeout=90_000)

    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Open the run").click(timeout=120_000)
    page.locator(".phase.finished").wait_for(timeout=180_000)
    page.get_by_text("6 / 6").wait_for()
    page.locator("canvas").first.wait_for()
    page.get_by_role("tab", name="Use it").click()
    page.get_by_text("luthier infer --adapters runs/luthier/v1-", exact=False).first.wait_for()

    page.get_by_role("button", name="Chat with it").click()
    page.get_by_placeholder("Say something").fill("What is 7?")
    page.get_by_placeholder("Say something").press("Enter")
    page.wait_for_function("document.querySelector('.answer')?.innerText.length > 0", timeout=120_000)
    page.get_by_role("button", name="Send").wait_for()

    page.get_by_text("中文").click()
    page.get_by_text("并排另一个模型").wait_for()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.goto(studio.url)
    page.get_by_text("已完成").first.wait_for()


def test_a_training_outlives_its_page_and_stops_in_order(studio: Served, page: Page) -> None:
    write_rows(studio.root / "rows.jsonl")
    page.goto(f"{studio.url}/train")
    for name, value in {
        "model": "nano",
        "dataset": "rows.jsonl",
        "max_steps": "5000",
        "output_dir": "runs/long",
    }.items():
        page.get_by_label(name, exact=True).fill(value)
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Open the run").click(timeout=120_000)
    page.locator(".phase.training").wait_for(timeout=120_000)
    run = page.url
    page.goto("about:blank")
    page.goto(run)
    page.get_by_role("button", name="Stop and save").click()
    page.locator(".phase.stopped").wait_for(timeout=120_000)
    page.get_by_role("button", name="Go on").wait_for()


def test_data_is_looked_at(studio: Served, page: Page) -> None:
    write_rows(studio.root / "more.jsonl")
    page.goto(f"{studio.url}/data")
    page.get_by_role("button", name="Browse").first.click()
    page.get_by_text("more.jsonl", exact=True).click()
    page.get_by_text("luthier data inspect more.jsonl --report report.json").wait_for()
    page.get_by_role("button", name="Start").click()
    page.frame_locator("iframe.paper").get_by_text("inspect").first.wait_for(timeout=120_000)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(studio: Served, page: Page, width: int) -> None:
    long = studio.root / "runs" / ("a-very-long-name-" * 8) / "v1-20260101-120000"
    long.mkdir(parents=True, exist_ok=True)
    (long / "config.yaml").write_text("seed: 1\n")
    page.set_viewport_size({"width": width, "height": 800})
    for address in ("/", f"/run?path={quote(str(long))}", "/train", "/data", "/chat", "/reports", "/run?path=../.."):
        page.goto(studio.url + address)
        page.locator(".nicegui-content").wait_for()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, address


def test_long_lines_of_a_report_scroll_by_themselves(studio: Served, page: Page) -> None:
    (studio.root / "eval").mkdir(exist_ok=True)
    table = "| " + " | ".join(f"column-{n}" for n in range(30)) + " |\n" + "| --- " * 30 + "|\n"
    text = f"# Report\n\n{'Many words that wrap. ' * 30}\n\n    luthier infer --model {'long/' * 60}\n\n{table}"
    (studio.root / "eval" / "report.md").write_text(text)
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{studio.url}/reports?path=eval/report.md")
    page.locator(".nicegui-markdown p").first.wait_for()
    for piece in (".nicegui-markdown", ".nicegui-markdown p", ".nicegui-markdown pre", ".nicegui-markdown table"):
        box = page.locator(piece).first.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390, piece


def test_a_check_claims_no_more_than_it_knows(studio: Served, page: Page) -> None:
    page.goto(f"{studio.url}/train")
    page.get_by_label("model", exact=True).fill("no-such-model")
    page.get_by_label("dataset", exact=True).fill("no-such-rows.jsonl")
    page.get_by_role("button", name="Check").click()
    page.get_by_text("These settings fit together").wait_for(timeout=120_000)
    assert page.get_by_text("can start").count() == 0
