"""The page in Gradio: a tab for images, and one for a detector if there is one."""

from collections import Counter
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image, ImageDraw
from torchvision.transforms.v2.functional import pil_to_tensor

from ..data import IMAGE_SUFFIXES, convert_image, read_image
from ..errors import InputError
from ..inspection import Position, View, draw, most_attended, overlay, pixels_of, position_at
from ..inspection.figures import render
from ..inspection.run import predicted_class
from .classifier import ImageClassifier
from .uploads import read_upload

if TYPE_CHECKING:
    from ..detection import DetectorLoaded

CSS = """
.gradio-container { max-width: 1120px !important; }
#heading h1 { font-size: 1.4rem; font-weight: 650; margin: 0; }
#heading p { margin: 0.2rem 0 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.message { margin: 0; padding: 0.5rem 0.75rem; border-left: 3px solid #2a6f97; overflow-wrap: anywhere; }
.note { font-size: 0.8rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.thumbnails .caption-label { font-size: 0.66rem; padding: 0 0.2rem; max-width: 100%; right: 0; bottom: 0; }
.thumbnails .grid-wrap { min-height: 0; max-height: none; padding: 0.25rem; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#gates .grid-container { grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)) !important; gap: 0.4rem; }
#attention img { cursor: crosshair; }
"""
SIDE, GATE_SIDE = 512, 192  # px, longer sides of the drawings
DETECTOR_SIDE = 1000  # px, to which larger images are reduced: the masks of a hundred objects then take 400 MB
MIN_SCORE = 0.05
STATE_SECONDS = 3600  # that a session's last image is remembered
FILE_SECONDS = (60, 900)  # how often drawings that may go are looked for, and after how long they may
SCALE = "Blue: less than uniform, orange: more; in full colour at a quarter and at 4 times."

# One call at a time, because all sessions share the networks.
ALONE: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}


def theme() -> gr.themes.Base:
    """Gradio's default theme with fonts of the system, because none is downloaded."""
    return gr.themes.Default(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    ).set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")


def build_page(
    classifier: ImageClassifier, detector: "tuple[DetectorLoaded, str] | None" = None, *, max_pixels: int
) -> gr.Blocks:
    """The page, with a tab for a detector and its name, if there is one; uploads have at most `max_pixels`."""
    description = f"{classifier.name}: {classifier.architecture}, {len(classifier.loaded.class_names)} classes"
    if classifier.loaded.threshold is not None:
        description += f", {classifier.loaded.threshold}"
    with gr.Blocks(title="patnet", analytics_enabled=False, delete_cache=FILE_SECONDS) as page:
        gr.HTML(
            f"<h1>patnet</h1><p>{escape(description)}, trained on images of {classifier.sides[0]} px. Uploads stay on "
            "this machine and are removed.</p>",
            elem_id="heading",
        )
        with gr.Tabs():
            with gr.Tab("Image", id="image"):
                ImageTab(classifier, max_pixels).build()
            if detector is not None:
                with gr.Tab("Detector", id="detector"):
                    _detector_tab(*detector, max_pixels)
    return page


def _message(text: str) -> str:
    return f'<p class="message" role="status">{escape(text)}</p>'


def _refused(error: InputError) -> Any:
    """Shows why an image is refused, and leaves all outputs as they are."""
    gr.Warning(escape(str(error)), duration=None)
    return gr.skip()


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _drop_zone(elem_id: str) -> gr.File:
    return gr.File(label="An image", show_label=False, file_types=sorted(IMAGE_SUFFIXES), height=180, elem_id=elem_id)


def _thumbnails(images: list[tuple[Any, str]], elem_id: str, visible: bool = True) -> gr.Gallery:
    plain: dict[str, Any] = {"show_label": False, "allow_preview": False, "interactive": False, "buttons": []}
    return gr.Gallery(
        images, height="auto", format="png", visible=visible, elem_id=elem_id, elem_classes="thumbnails", **plain
    )


def _drawing(elem_id: str, *buttons: str) -> gr.Image:
    return gr.Image(
        show_label=False, interactive=False, format="png", buttons=[*buttons], visible=False, elem_id=elem_id
    )


def _drawn_size(view: View, side: int = SIDE) -> tuple[int, int]:
    """Height and width in px of the enlarged image, whose longer side is `side`."""
    height, width = view.image.shape[:2]
    return round(side * height / max(height, width)) or 1, round(side * width / max(height, width)) or 1


def attend(view: View | None, block: str | None, head: int, query: Position | None) -> tuple[Any, str, Any]:
    """The image coloured by the attention of a block, a description, and the query position.

    A head of -1 is the mean over all. The query position is the most attended one if it is None or outside of the map.
    """
    if view is None:
        return None, "", None
    height, width = _drawn_size(view)
    attention = view.inspection.attention.get(block or "")
    if attention is None:
        image = Image.fromarray(view.image).resize((width, height), Image.Resampling.BICUBIC)
        return gr.Image(image, visible=True), "".join(map(_note, view.inspection.missing)), None
    grid = attention.shape[1:3]
    if query is None or query.row >= grid[0] or query.column >= grid[1]:
        query = most_attended(attention)
    weights = attention[:, query.row, query.column]
    weights = weights[head] if 0 <= head < len(weights) else weights.mean(0)
    drawn = Image.fromarray(overlay(view.image, weights, (height, width)))
    scale, pen = height / view.image.shape[0], ImageDraw.Draw(drawn)
    left, top, right, bottom = (round(scale * edge) for edge in pixels_of(query, grid, view.image.shape[:2]))
    pen.rectangle((left, top, right - 1, bottom - 1), outline="white", width=5)
    pen.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="black", width=2)
    most = Position(*divmod(int(weights.argmax()), grid[1]))
    place = "itself" if most == query else f"row {most.row}, column {most.column}"
    text = (
        f"Row {query.row}, column {query.column} of {grid[0]}x{grid[1]} attends most to {place} "
        f"({100 * weights.max():.3g} %); its smallest weight is {100 * weights.min():.3g} %, a uniform one would be "
        f"{100 / weights.size:.3g} %. {SCALE}"
    )
    return gr.Image(drawn, visible=True), _note(text), query


def attend_clicked(view: View | None, block: str | None, head: int, event: gr.SelectData) -> tuple[Any, str, Any]:
    """The same from the position at the pixel of the drawing that was clicked."""
    if view is None or block not in view.inspection.attention:
        return attend(view, block, head, None)
    scale = view.image.shape[0] / _drawn_size(view)[0]
    x, y = (scale * k for k in event.index)
    grid = view.inspection.attention[block].shape[1:3]
    return attend(view, block, head, position_at(x, y, grid, view.image.shape[:2]))


def draw_all(view: View | None, block: str | None, query: Position | None) -> Any:
    """The sheet of `patnet inspect`, with the attention from the query position."""
    if view is None:
        return None
    inside = block == next(reversed(view.inspection.attention), None)  # the query position is one of its map
    return gr.Image(draw("sheet", replace(view, position=query if inside else None)), visible=True)


class ImageTab:
    """The tab for images: answers of a classifier to uploads of at most so many pixels, and to examples."""

    def __init__(self, classifier: ImageClassifier, max_pixels: int) -> None:
        self.classifier, self.max_pixels = classifier, max_pixels
        self.examples = classifier.examples()
        # What one image has, all have; and the first image need not wait for what is prepared once.
        views = [classifier.classify(Image.new("RGB", (64, 64)), side)[0] for side in classifier.sides]
        self.has = views[0].inspection

    def answer(self, image: Image.Image | None, side: int, block: str | None, head: int) -> Any:
        """Classes, attention and gates of an image."""
        if image is None:
            return gr.skip()
        view, seconds = self.classifier.classify(image, side)
        probabilities = dict(zip(view.class_names, view.inspection.probabilities.tolist(), strict=True))
        best = view.class_names[predicted_class(self.classifier.loaded, view.inspection)]
        text = f"{best}, {100 * probabilities[best]:.0f} %. The network took {1e3 * seconds:.0f} ms."
        gates = [
            (overlay(view.image, gate, _drawn_size(view, GATE_SIDE)), f"{label}: {gate.min():.2f} to {gate.max():.2f}")
            for label, gate in view.inspection.spatial_gates.items()
        ]
        sheet = gr.Image(None, visible=False)
        return _message(text), probabilities, image, view, *attend(view, block, head, None), gates, sheet

    def dropped(self, path: str, *choices: Any) -> Any:
        """The answer to an upload."""
        try:
            return self.answer(read_upload(path, max_pixels=self.max_pixels), *choices)
        except InputError as error:
            return _refused(error)

    def chosen(self, side: int, block: str | None, head: int, event: gr.SelectData) -> Any:
        """The answer to an example."""
        try:
            return self.answer(read_image(self.examples[event.index].file), side, block, head)
        except InputError as error:
            return _refused(error)

    def build(self) -> None:
        """Make the components and connect them."""
        blocks, sides = list(self.has.attention), self.classifier.sides
        heads = max(map(len, self.has.attention.values()), default=0)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                drop = _drop_zone("drop")
                if self.examples:
                    gr.HTML(_note("Or choose a held-out image of the run's data, shown with its label."))
                examples = [(example.thumbnail, example.label) for example in self.examples]
                shown = _thumbnails(examples, "examples", visible=bool(examples))
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(_message("Drop an image, and its classes appear here."), elem_id="message")
                label = gr.Label(num_top_classes=5, label="Classes", elem_id="classes")
                with gr.Row(visible=bool(blocks)):
                    last = blocks[-1] if blocks else None
                    block = gr.Dropdown(blocks, value=last, label="Attention of block", min_width=100, elem_id="block")
                    numbers = [("mean", -1), *((str(k + 1), k) for k in range(heads))]
                    head = gr.Dropdown(numbers, value=-1, label="Head", min_width=100, elem_id="head")
                side = gr.Radio(
                    [(f"{side} px", side) for side in sides],
                    value=sides[0],
                    label="Input size",
                    info="The first is that of training; larger ones give finer maps.",
                    visible=len(sides) > 1,
                    elem_id="side",
                )
                hint = "Click a position of the image to see its attention." if blocks else "What the network gets."
                gr.HTML(_note(hint))
                drawing = _drawing("attention")
                description = gr.HTML(elem_id="attended")
        with gr.Column(visible=bool(self.has.spatial_gates)):
            gr.HTML(_note(f"Spatial gates by stage and block, relative to the mean of each map. {SCALE}"))
            gates = _thumbnails([], "gates")
        draw = gr.Button("Draw everything on one sheet", elem_id="draw")
        sheet = _drawing("sheet", "download", "fullscreen")
        image, view, query = (gr.State(time_to_live=STATE_SECONDS) for _ in range(3))
        answered = [status, label, image, view, drawing, description, query, gates, sheet]
        choices = [side, block, head]
        drop.upload(self.dropped, [drop, *choices], answered, **ALONE).then(lambda: None, None, drop)
        shown.select(self.chosen, choices, answered, **ALONE)
        side.input(self.answer, [image, *choices], answered, **ALONE)
        redrawn: dict[str, Any] = {"outputs": [drawing, description, query], **ALONE, "show_progress": "hidden"}
        drawing.select(attend_clicked, [view, block, head], **redrawn, trigger_mode="multiple")
        for choice in (block, head):
            choice.input(attend, [view, block, head, query], **redrawn)
        draw.click(draw_all, [view, block, query], sheet, **ALONE)


def _detector_tab(loaded: "DetectorLoaded", name: str, max_pixels: int) -> None:
    from ..detection.drawing import DPI, draw_detections
    from ..detection.predict import detect, objects_of

    gr.HTML(_note(f"{name}: finds {', '.join(loaded.class_names[:12])}"))
    with gr.Row():
        drop = _drop_zone("detector-drop")
        score = gr.Slider(MIN_SCORE, 0.95, 0.5, step=0.05, label="Score threshold", elem_id="score")
    status = gr.HTML(elem_id="detector-message")
    drawing = _drawing("found", "fullscreen")
    state = gr.State(time_to_live=STATE_SECONDS)  # the image with all its objects and their labels

    def show(found: tuple[Image.Image, list[tuple[dict, int]]] | None, score: float) -> Any:
        if found is None:
            return gr.skip()
        image, shown = found[0], [(one, label) for one, label in found[1] if one["score"] > score]
        counts = Counter(one["label"] for one, _ in shown)
        listed = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        figure = draw_detections(image, [one for one, _ in shown], [label for _, label in shown])
        text = f"Found {listed}." if listed else f"No score above {score:g}."
        return _message(text), gr.Image(render(figure, DPI), visible=True), found

    def dropped(path: str, score: float) -> Any:
        try:
            image = convert_image(read_upload(path, max_pixels=max_pixels), loaded.mode)
        except InputError as error:
            return _refused(error)
        image.thumbnail((DETECTOR_SIDE, DETECTOR_SIDE))
        found = detect(loaded, [pil_to_tensor(image) / 255], score_thresh=MIN_SCORE)[0]
        return show((image, list(zip(objects_of(loaded, found), found["labels"].tolist(), strict=True))), score)

    drop.upload(dropped, [drop, score], [status, drawing, state], **ALONE).then(lambda: None, None, drop)
    score.change(show, [state, score], [status, drawing, state], **ALONE, trigger_mode="always_last")
