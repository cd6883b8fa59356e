"""The page itself, in gradio: a tab for pictures, one for speed, and one for a detector where there is one."""

import functools
import logging
from collections import Counter
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..data import IMAGE_SUFFIXES, read_image
from ..errors import InputError
from ..inspection import Inspection, draw_sheet
from .answers import Classifying
from .maps import Cell, cell_at, describe_attention, draw_attention, draw_gates, enlarged, weights_of
from .speed import SUGGESTED, Speed, compare_speed, runtimes_here
from .uploads import read_upload

if TYPE_CHECKING:
    from .detecting import Detecting

__all__ = ["CSS", "build_page", "theme"]

logger = logging.getLogger("patnet")

CSS = """
.gradio-container { max-width: 1120px !important; }
#heading h1 { font-size: 1.4rem; font-weight: 650; margin: 0; }
#heading p { margin: 0.2rem 0 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.said { margin: 0; padding: 0.5rem 0.75rem; border-left: 3px solid #2a6f97; overflow-wrap: anywhere; }
.said.wrong { border-color: #c1121f; background: #c1121f14; }
.speeds { overflow-x: auto; }
.speeds table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.speeds td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #8884; }
.speeds td:first-child { text-align: left; }
.small-pictures .caption-label { font-size: 0.66rem; padding: 0 0.2rem; max-width: 100%; right: 0; bottom: 0; }
.small-pictures .grid-wrap { min-height: 0; max-height: none; padding: 0.25rem; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#gates .grid-container { grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)) !important; gap: 0.4rem; }
#attention img { cursor: crosshair; }
.small { font-size: 0.8rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
"""

STATE_SECONDS = 3600  # that a session's last picture is remembered
FILE_SECONDS = (60, 900)  # how often drawings are looked for that may go, and after how long they may

# One at a time: the networks are the same for all, and what is measured shall be alone.
ALONE: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}


def theme() -> gr.themes.Base:
    """gradio's default in the system's own fonts, for none is fetched."""
    system = gr.themes.Default(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    return system.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def said(text: str, wrong: bool = False) -> str:
    """A sentence in the page."""
    return f'<p class="said{" wrong" if wrong else ""}" role="status">{escape(text)}</p>'


def note(text: str) -> str:
    """A remark in the page."""
    return f'<p class="small">{escape(text)}</p>'


def as_image(figure: Figure, dpi: int = 150) -> Image.Image:
    """A figure's pixels."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def in_words(*otherwise: Any) -> Callable:
    """Makes errors of a handler the sentence that it gives first, and the rest of its answers `otherwise`."""

    def decorate(handler: Callable) -> Callable:
        @functools.wraps(handler)
        def handled(*args: Any, **kwargs: Any) -> tuple:
            try:
                return handler(*args, **kwargs)
            except InputError as error:
                reason = str(error)
            except Exception as error:  # networks of every kind meet pictures of every kind
                logger.exception("patnet demo")
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                reason = f"this could not be computed ({type(error).__name__}: {first[:200]})"
            return (said(reason, wrong=True), *otherwise)

        return handled

    return decorate


def build_page(classifying: Classifying, detecting: "Detecting | None" = None, *, max_pixels: int) -> gr.Blocks:
    """The page, warmed up.

    Args:
        classifying: The network that answers.
        detecting: The detector, for a tab of its own.
        max_pixels: Of the largest picture that is taken.
    """
    with gr.Blocks(title="patnet", analytics_enabled=False, delete_cache=FILE_SECONDS) as page:
        classes = len(classifying.class_names)
        gr.HTML(
            f"<h1>patnet</h1><p>{escape(classifying.path)}: {escape(classifying.architecture)}, {classes} classes, "
            f"pictures of {classifying.sides[0]} px. Pictures stay on this machine and are not kept.</p>",
            elem_id="heading",
        )
        with gr.Tabs():
            with gr.Tab("Picture", id="picture"):
                _picture_tab(classifying, max_pixels)
            with gr.Tab("Speed", id="speed"):
                _speed_tab(classifying)
            if detecting is not None:
                with gr.Tab("Detector", id="detector"):
                    _detector_tab(detecting, max_pixels)
    return page


def _drop_zone(elem_id: str) -> gr.File:
    return gr.File(label="A picture", show_label=False, file_types=sorted(IMAGE_SUFFIXES), height=180, elem_id=elem_id)


class Looked(NamedTuple):
    """A picture as the network was given it, and what was seen inside the network."""

    seen: Image.Image
    inspection: Inspection


def _picture_tab(classifying: Classifying, max_pixels: int) -> None:
    examples = classifying.examples()
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            drop = _drop_zone("drop")
        with gr.Column(scale=3, min_width=300):
            message = gr.HTML(said("Drop a picture, and its classes appear here."), elem_id="message")
            label = gr.Label(num_top_classes=5, label="Classes", elem_id="classes")
    with gr.Row():
        with gr.Column(scale=2, min_width=300, visible=bool(examples)):
            gr.HTML(note("Or take one of these of its own data, that it was not trained on, with what they truly are:"))
            shown = _small_pictures([(example.small, example.truth) for example in examples], "examples")
        with gr.Column(scale=3, min_width=300, visible=False) as inside:
            hint = gr.HTML()
            picture = gr.Image(show_label=False, interactive=False, format="png", buttons=[], elem_id="attention")
            attended = gr.HTML(elem_id="attended")
            with gr.Row(visible=False) as choosing:
                block = gr.Dropdown(label="Attention of block", min_width=120, elem_id="block")
                head = gr.Dropdown([("mean of all", -1)], value=-1, label="Head", min_width=120, elem_id="head")
            side = gr.Radio(
                [(f"{side} px", side) for side in classifying.sides],
                value=classifying.sides[0],
                label="Size at which the network is given the picture",
                info="It was trained at the first; larger ones give finer maps.",
                visible=len(classifying.sides) > 1,
                elem_id="side",
            )
    with gr.Column(visible=False) as gated:
        gr.HTML(
            note(
                "Spatial gates of the blocks, by stage and number: bright where most passes. Each is on its own scale, "
                "whose ends stand below it."
            )
        )
        gates = _small_pictures([], "gates", columns=7)
        draw = gr.Button("Draw all of it on one sheet", elem_id="draw")
        sheet = gr.Image(
            show_label=False,
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            visible=False,
            elem_id="sheet",
        )
    missing = gr.HTML(elem_id="missing")
    prepared = gr.State(time_to_live=STATE_SECONDS)
    looked = gr.State(time_to_live=STATE_SECONDS)
    cell = gr.State(time_to_live=STATE_SECONDS)

    @in_words(None, None)
    def answer(prepared: dict | None, side: int) -> tuple:
        if prepared is None:
            raise InputError("drop a picture first")
        answered = classifying.answer(prepared[side])
        best = max(answered.probabilities, key=answered.probabilities.__getitem__)
        text = f"{best}, {100 * answered.probabilities[best]:.0f} %. The network took {1e3 * answered.seconds:.0f} ms."
        return said(text), answered.probabilities, prepared

    @in_words(None, None, None)
    def dropped(path: str, side: int) -> tuple:
        return (*answer(classifying.prepare(read_upload(path, max_pixels=max_pixels)), side), None)

    @in_words(None, None)
    def chosen(side: int, event: gr.SelectData) -> tuple:
        return answer(classifying.prepare(read_image(examples[event.index].path)), side)

    def attend(looked: Looked | None, block: str | None, head: int, cell: Cell | None) -> tuple:
        """The drawing, its sentence, and the cell, by default the one that is attended to most."""
        attention = looked.inspection.attention.get(block or "") if looked is not None else None
        if looked is None or attention is None:
            return gr.skip(), gr.skip(), cell
        grid = attention.shape[1], attention.shape[2]
        if cell is None or cell.row >= grid[0] or cell.column >= grid[1]:
            row, column = np.unravel_index(attention.mean((0, 1, 2)).argmax(), grid)
            cell = Cell(int(row), int(column))
        weights = weights_of(attention, cell, head if 0 <= head < len(attention) else None)
        return draw_attention(looked.seen, weights, cell), note(describe_attention(weights, cell)), cell

    def clicked(looked: Looked | None, block: str | None, head: int, event: gr.SelectData) -> tuple:
        attention = looked.inspection.attention.get(block or "") if looked is not None else None
        if looked is None or attention is None:
            return gr.skip(), gr.skip(), None
        x, y = event.index
        return attend(looked, block, head, cell_at(x, y, looked.seen, attention.shape[1:3]))

    hidden = gr.update(visible=False)
    nothing = (hidden, hidden, hidden, None, None, None, gr.skip(), gr.skip(), None, None, None, hidden)

    @in_words(*nothing)
    def look(prepared: dict | None, side: int, block: str | None, head: int) -> tuple:
        if prepared is None:
            return "", *nothing
        seen = classifying.seen(prepared[side])
        looked = Looked(seen, classifying.inspect(prepared[side]))
        attention, spatial = looked.inspection.attention, looked.inspection.spatial_gates
        block = block if block in attention else next(reversed(attention), None)
        drawing, sentence, cell = attend(looked, block, head, None)
        heads = len(attention[block]) if block is not None else 0
        given = "What the network was given."
        if attention:
            given = "What the network was given. Click a position to see what it attends to."
        else:
            drawing, sentence = enlarged(seen), ""
        return (
            "".join(note(sentence) for sentence in looked.inspection.missing),
            gr.Column(visible=True),
            gr.Column(visible=bool(spatial)),
            gr.Row(visible=bool(attention)),
            note(given),
            drawing,
            sentence,
            gr.Dropdown(list(attention), value=block),
            gr.Dropdown([("mean of all", -1), *((str(k + 1), k) for k in range(heads))], value=min(head, heads - 1)),
            draw_gates(seen, spatial),
            looked,
            cell,
            hidden,
        )

    def draw_all(looked: Looked | None, cell: Cell | None) -> Any:
        if looked is None:
            return gr.skip()
        last = next(reversed(looked.inspection.attention.values()), None)
        inside_last = cell is not None and last is not None and cell.row < last.shape[1] and cell.column < last.shape[2]
        figure = draw_sheet(
            looked.inspection,
            np.asarray(looked.seen),
            classifying.class_names,
            position=cell if inside_last else None,
        )
        return gr.Image(as_image(figure, 110), visible=True)

    answered = [message, label, prepared]
    inspected = [missing, inside, gated, choosing, hint, picture, attended, block, head, gates, looked, cell, sheet]
    for event in (
        drop.upload(dropped, [drop, side], [*answered, drop], **ALONE),
        shown.select(chosen, side, answered, **ALONE),
        side.input(answer, [prepared, side], answered, **ALONE),
    ):
        event.then(look, [prepared, side, block, head], inspected, **ALONE, show_progress="hidden")
    redrawn: dict[str, Any] = {"outputs": [picture, attended, cell], **ALONE, "show_progress": "hidden"}
    picture.select(clicked, [looked, block, head], **redrawn, trigger_mode="multiple")
    draw.click(draw_all, [looked, cell], sheet, **ALONE)
    for choice in (block, head):
        choice.input(attend, [looked, block, head, cell], **redrawn)


def _small_pictures(pictures: list[tuple[Image.Image, str]], elem_id: str, columns: int = 4) -> gr.Gallery:
    return gr.Gallery(
        pictures,
        show_label=False,
        columns=columns,
        height="auto",
        format="png",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id=elem_id,
        elem_classes="small-pictures",
    )


def _speed_tab(classifying: Classifying) -> None:
    own = classifying.path if classifying.in_torch else None
    models = [*([own] if own else []), *SUGGESTED]
    with gr.Row():
        first = gr.Dropdown(models, value=models[0], label="First model", allow_custom_value=True, elem_id="first")
        second = gr.Dropdown(
            models, value="fasternet_t0", label="Second model", allow_custom_value=True, elem_id="second"
        )
    with gr.Row():
        batch = gr.Number(1, label="Batch", precision=0, minimum=1, maximum=256, min_width=90, elem_id="batch")
        size = gr.Number(224, label="Size, px", precision=0, minimum=16, maximum=2048, min_width=90, elem_id="size")
        runtime = gr.Dropdown(runtimes_here(), value="eager", label="Runtime", min_width=130)
    measure = gr.Button("Measure", variant="primary", elem_id="measure")
    message = gr.HTML(
        said(
            "Any name of timm's can be typed. Both are fused, and then run in turns for three seconds, on one CPU "
            "thread."
        ),
        elem_id="speed-message",
    )
    drawing = gr.Image(
        show_label=False, interactive=False, format="png", buttons=[], height=300, visible=False, elem_id="speeds"
    )
    numbers = gr.HTML(elem_id="speed-numbers")

    @in_words(None, None)
    def compare(first: str, second: str, batch: float, size: float, runtime: str, progress=gr.Progress()) -> tuple:  # noqa: B008
        speed = compare_speed(
            first,
            second,
            batch=int(batch or 0),
            size=int(size or 0),
            runtime=runtime,
            own=own,
            say=lambda line: progress(None, desc=line),
        )
        return said(speed.sentence), gr.Image(as_image(speed.draw(), 200), visible=True), _speed_table(speed)

    measure.click(compare, [first, second, batch, size, runtime], [message, drawing, numbers], **ALONE)


def _speed_table(speed: Speed) -> str:
    """The numbers, a column for each model."""
    lines = {
        "median, ms": "median_ms",
        "95th percentile, ms": "p95_ms",
        "images/s": "images_per_s",
        "parameters, fused": "parameters",
        "GMACs, fused": "gmacs",
    }
    table = [["", *(row["model"] for row in speed.rows)]]
    for name, key in lines.items():
        table.append([name, *(f"{row[key]:,}" if key == "parameters" else f"{row[key]:.4g}" for row in speed.rows)])
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in table)
    return f'<div class="speeds"><table>{cells}</table></div>{note(speed.machine)}'


def _detector_tab(detecting: "Detecting", max_pixels: int) -> None:
    names = ", ".join(detecting.trained.class_names[:12])
    gr.HTML(note(f"{detecting.path}: finds {names}"))
    with gr.Row():
        drop = _drop_zone("detector-drop")
        score = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="Show what scores above", elem_id="score")
    message = gr.HTML(elem_id="detector-message")
    drawing = gr.Image(label="What it finds", interactive=False, format="png", buttons=["fullscreen"], elem_id="found")
    state = gr.State(time_to_live=STATE_SECONDS)

    @in_words(None, None)
    def find(picture: Image.Image | None, score: float) -> tuple:
        if picture is None:
            raise InputError("drop a picture first")
        found = detecting.find(picture, score)
        counts = Counter(one["label"] for one in found.objects)
        listed = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        return (
            said(f"Found {listed}." if listed else f"Found nothing above {score:g}."),
            as_image(found.drawing),
            picture,
        )

    @in_words(None, None, None)
    def dropped(path: str, score: float) -> tuple:
        picture = detecting.reduced(read_upload(path, max_pixels=max_pixels))
        return (*find(picture, score), None)

    drop.upload(dropped, [drop, score], [message, drawing, state, drop], **ALONE)
    score.release(find, [state, score], [message, drawing, state], **ALONE)
