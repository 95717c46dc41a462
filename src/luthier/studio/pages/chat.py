"""The page to talk with models, one or two side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from nicegui import ui

from luthier.base.errors import LuthierError, RunError
from luthier.base.records import Json
from luthier.model.nano import NAME
from luthier.studio.house import House
from luthier.studio.pages.parts import box, icon_button, title, tried
from luthier.studio.talks import Sampling, Talk
from luthier.studio.words import Words

_REPAINT = 0.05
"""Seconds between repaints of an answer that is being written."""


async def show(house: House, named: str, t: Words) -> None:
    """Draw the page.

    Args:
        named: the model that is chosen at first; may be empty.
    """
    title(t("chat"))
    models = await asyncio.to_thread(choices, house)
    seats: list[Seat] = []
    with ui.expansion(t("sampling"), icon="o_tune").classes("wide folded"):
        system = ui.textarea(t("system"), placeholder=t("system_about")).props("outlined dense autogrow stack-label")
        system.classes("wide")
        with ui.element("div").classes("fields"):
            temperature = _slider("temperature", 0.7, 0.0, 2.0)
            top_p = _slider("top_p", 1.0, 0.05, 1.0)
            longest = ui.number("max_tokens", value=512, min=1, max=32768, precision=0).props("outlined dense")

    def sampling() -> Sampling:
        return Sampling(temperature(), top_p(), int(longest.value or 512))

    def sit(chosen: str = "") -> None:
        with pair:
            seats.append(Seat(house, models, chosen, t))
        beside.visible = len(seats) < 2

    pair = ui.element("div").classes("pair")
    beside = ui.button(t("beside"), icon="o_vertical_split", on_click=lambda: sit()).props("flat dense")
    sit(named)
    with ui.element("div").classes("line wide asking"):
        said = ui.textarea(placeholder=t("say")).props("outlined dense autogrow").classes("grow")
        send = icon_button("o_send", t("send"))
        stop = icon_button("o_stop", t("stop_answer"))
        forget = icon_button("o_delete_sweep", t("forget"))
    stop.visible = False

    async def ask() -> None:
        text = (said.value or "").strip()
        ready = [seat for seat in seats if seat.chosen]
        if not text or not ready:
            ui.notify(t("choose_model") if text else t("say"))
            return
        said.value, send.visible, stop.visible = "", False, True
        try:
            await asyncio.gather(*(seat.ask(text, (system.value or "").strip(), sampling()) for seat in ready))
        finally:
            send.visible, stop.visible = True, False

    send.on_click(ask)
    said.on("keydown.enter.exact.prevent", ask)
    stop.on_click(lambda: [seat.stop() for seat in seats])
    forget.on_click(lambda: [seat.forget() for seat in seats])
    ui.context.client.on_disconnect(lambda: [seat.stop() for seat in seats])


def choices(house: House) -> dict[str, str]:
    """What can be talked to: runs with a checkpoint, folders of models, the model that comes along."""
    runs = [house.roots.name(state.path) for state in house.states() if state.checkpoint is not None]
    models = [house.roots.name(path) for path in house.models()]
    return {name: name for name in dict.fromkeys([NAME, *runs, *models])}


class Seat:
    """One model and the talk with it."""

    def __init__(self, house: House, models: dict[str, str], chosen: str, t: Words):
        self._house, self._t = house, t
        self._turns: list[Json] = []
        self._answering: asyncio.Task[None] | None = None
        options = models if not chosen or chosen in models else {**models, chosen: chosen}
        with box().classes("seat"):
            with ui.element("div").classes("line wide"):
                self._model = ui.select(options, label=t("model"), value=chosen or None, new_value_mode="add-unique")
                self._model.props("outlined dense options-dense").classes("grow")
                icon_button("o_eject", t("unload"), tried(self._close))
            self._talk = ui.column().classes("wide talk")
        self._model.on_value_change(self.forget)

    @property
    def chosen(self) -> str:
        """The model's name, empty while none is chosen."""
        return str(self._model.value or "")

    async def ask(self, text: str, system: str, sampling: Sampling) -> None:
        """Let the model answer; whoever stops it keeps what has come."""
        self._answering = asyncio.create_task(self._ask(text, system, sampling))
        try:
            await self._answering
        except (asyncio.CancelledError, LuthierError):
            return  # what happened stands beneath the answer

    def stop(self) -> None:
        """Stop an answer that is being written."""
        if self._answering is not None:
            self._answering.cancel()

    def forget(self) -> None:
        """Begin anew."""
        self._turns.clear()
        self._talk.clear()

    async def _ask(self, text: str, system: str, sampling: Sampling) -> None:
        with self._talk:
            ui.label(text).classes("said")
            answer = ui.label().classes("answer")
            beneath = ui.label(self._t("loading")).classes("quiet small")
        talk = await self._opened(beneath)
        head: list[Json] = [{"role": "system", "content": system}] if system else []
        pieces: list[str] = []
        try:
            await _written(talk, [*head, *self._turns, {"role": "user", "content": text}], sampling, pieces, answer)
            beneath.text = ""
        except asyncio.CancelledError:
            beneath.text = self._t("answer_stopped")
            raise
        except RunError as error:
            beneath.text = str(error)
        finally:
            answer.text = "".join(pieces)
            if pieces:
                self._turns.append({"role": "user", "content": text})
                self._turns.append({"role": "assistant", "content": answer.text})

    async def _opened(self, beneath: ui.label) -> Talk:
        roots, named = self._house.roots, self.chosen
        try:
            roots.refuse_outside([named])
            local = (roots.first / named).exists()
            talk = await self._house.talks.open(named, roots.find(named) if local else None)
        except LuthierError as error:
            beneath.text = str(error)
            raise
        beneath.text = self._t("thinking")
        return talk

    async def _close(self) -> None:
        await self._house.talks.close(self.chosen)
        ui.notify(self._t("unloaded"))


async def _written(talk: Talk, messages: list[Json], sampling: Sampling, pieces: list[str], label: ui.label) -> None:
    """Put an answer into a label as it comes, a repaint at a time."""
    painted = 0.0
    async with aclosing(talk.answer(messages, sampling)) as stream:
        async for piece in stream:
            pieces.append(piece)
            if time.monotonic() - painted > _REPAINT:
                label.text, painted = "".join(pieces), time.monotonic()


def _slider(name: str, value: float, least: float, most: float) -> Callable[[], float]:
    with ui.element("div"):
        shown = ui.label().classes("small")
        slider = ui.slider(min=least, max=most, step=0.05, value=value)
        shown.bind_text_from(slider, "value", backward=lambda now: f"{name}: {now:g}")
    return lambda: float(slider.value or 0.0)
