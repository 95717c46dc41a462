"""What stands around every page: its name, the ways to the others, language and brightness."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fastapi import Request
from nicegui import ui

from luthier.base.errors import LuthierError
from luthier.studio.pages.parts import icon_button, title
from luthier.studio.words import Words, language_of, words_in

_WAYS = (("runs", "/", "o_timeline"), ("train", "/train", "o_model_training"), ("data", "/data", "o_table_chart"),
         ("chat", "/chat", "o_chat"), ("reports", "/reports", "o_assessment"))  # fmt: skip
_REMEMBER = "document.cookie = '{name}={value}; path=/; max-age=31536000; SameSite=Strict'"
_STYLE = Path(__file__).parent.parent / "look.css"


@contextmanager
def framed(request: Request, here: str) -> Generator[Words]:
    """A page between its frame, in the language of its reader.  An error of ours becomes what the page says."""
    language = language_of(request.cookies.get("luthier_language"), request.headers.get("accept-language", ""))
    t = words_in(language)
    ui.add_css(_STYLE.read_text(encoding="utf-8"))
    ui.add_head_html(f"<script>document.documentElement.lang = '{'zh-CN' if language == 'zh' else 'en'}'</script>")
    dark = ui.dark_mode({"dark": True, "light": False}.get(request.cookies.get("luthier_brightness", "")))
    with ui.header().props("height-hint=52"), ui.element("div").classes("bar"):
        with ui.link(target="/").classes("brand"):
            ui.icon("o_music_note", size="1.4em")
            ui.label("Luthier").classes("brand-name")
        with ui.element("nav").classes("ways"):
            for name, target, icon in _WAYS:
                with ui.link(target=target).classes("way" + " here" * (name == here)):
                    ui.icon(icon, size="1.2em")
                    ui.label(t(name))
        other = "en" if language == "zh" else "zh"
        ui.button(t("other_language"), on_click=lambda: _remember("luthier_language", other)).props(
            "flat dense no-wrap color=inherit"
        )
        icon_button("o_contrast", t("brightness"), lambda: _turn(dark)).props("color=inherit")
    try:
        yield t
    except LuthierError as error:
        with ui.element("div").classes("box"):
            title(t("not_found"))
            ui.label(str(error)).classes("break")


def _remember(name: str, value: str) -> None:
    ui.run_javascript(_REMEMBER.format(name=name, value=value) + "; location.reload()")


def _turn(dark: ui.dark_mode) -> None:
    """Dark after light and after the system's choice, light after dark."""
    dark.value = not dark.value
    ui.run_javascript(_REMEMBER.format(name="luthier_brightness", value="dark" if dark.value else "light"))
