"""Draws the network's blocks: python docs/scripts/drawings.py writes docs/images/network-*.svg.

Each drawing lies on a card of its own, light or dark as the reader's system is, so that it can be read on any page.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parents[1] / "images"
TIMES = "\N{MULTIPLICATION SIGN}"
WIDTH = 480  # px; a telephone shows it with letters of 12 px

STYLE = """
  text { font: 16px system-ui, sans-serif; fill: #1f2933; }
  .small { font-size: 14px; fill: #52606d; }
  .card { fill: #fbfcfd; }
  .line { fill: none; stroke: #52606d; stroke-width: 1.6; }
  .head { fill: #52606d; }
  rect { stroke-width: 1.5; }
  .conv { fill: #cdeee8; stroke: #127a6c; }
  .gate { fill: #ffe3c2; stroke: #b25e09; }
  .norm { fill: #e4e0fb; stroke: #5a4bb5; }
  .plain { fill: #e9edf1; stroke: #7b8794; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6ebf0; }
    .small { fill: #aab6c2; }
    .card { fill: #1c2128; }
    .line { stroke: #aab6c2; }
    .head { fill: #aab6c2; }
    .conv { fill: #10443d; stroke: #4cc9b4; }
    .gate { fill: #55340c; stroke: #f0a650; }
    .norm { fill: #322b63; stroke: #a99df0; }
    .plain { fill: #2d343c; stroke: #8b98a5; }
  }
"""


class Box(NamedTuple):
    """A box that was drawn: its middle and its edges."""

    x: float
    top: float
    bottom: float
    left: float
    right: float

    @property
    def y(self) -> float:
        """The height of its middle."""
        return (self.top + self.bottom) / 2


class Drawing:
    """An SVG, drawn from the top to the bottom."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []
        self.height = 0.0

    def box(self, x: float, y: float, text: str, kind: str = "plain", width: float = 190) -> Box:
        """A box around (x, y) of one or more lines."""
        lines = text.split("\n")
        height = 16 + 20 * len(lines)
        top = y - height / 2
        self.parts.append(
            f'<rect class="{kind}" x="{x - width / 2:g}" y="{top:g}" width="{width:g}" height="{height}" rx="7"/>'
        )
        for i, line in enumerate(lines):
            self.text(x, top + 24 + 20 * i, line)
        self.height = max(self.height, top + height)
        return Box(x, top, top + height, x - width / 2, x + width / 2)

    def circle(self, x: float, y: float, text: str) -> Box:
        """A sum or a product."""
        self.parts.append(f'<circle class="plain" cx="{x:g}" cy="{y:g}" r="14" stroke-width="1.5"/>')
        self.text(x, y + 6, text)
        self.height = max(self.height, y + 14)
        return Box(x, y - 14, y + 14, x - 14, x + 14)

    def text(self, x: float, y: float, text: str, *, small: bool = False, anchor: str = "middle") -> None:
        """A line of text on the base line y."""
        look = ' class="small"' if small else ""
        self.parts.append(f'<text{look} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')
        self.height = max(self.height, y + 4)

    def line(self, *points: tuple[float, float], arrow: bool = True) -> None:
        """A line through points, with a head at the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline class="line" points="{path}"/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            across, down = (x > x0) - (x < x0), (y > y0) - (y < y0)
            tip = [(x, y)]
            tip += [(x - 9 * across + 5 * side * down, y - 9 * down + 5 * side * across) for side in (-1, 1)]
            self.parts.append(f'<polygon class="head" points="{" ".join(f"{px:g},{py:g}" for px, py in tip)}"/>')

    def column(self, *boxes: Box) -> None:
        """Arrows from each box to the next one below it."""
        for above, below in pairwise(boxes):
            self.line((above.x, above.bottom), (below.x, below.top))

    def svg(self) -> str:
        """The SVG file."""
        height = round(self.height + 20)
        body = "\n".join(f"  {part}" for part in self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img">\n  <title>{escape(self.title)}</title>\n  <style>{STYLE}  </style>\n'
            f'  <rect class="card" width="{WIDTH}" height="{height}" rx="10"/>\n{body}\n</svg>\n'
        )


def _split(d: Drawing, left: float, right: float, *, right_to: float = 116) -> None:
    """The input of a partial block, split into a quarter and the rest; the right line may go on further down."""
    start = d.box(WIDTH / 2, 38, "x: C channels")
    for x, name, end in ((left, "C/4", 116), (right, "3C/4", right_to)):
        d.line((WIDTH / 2, start.bottom), (WIDTH / 2, 78), (x, 78), (x, end))
        d.text(x + 8, 104, name, small=True, anchor="start")


def _join(d: Drawing, y: float, left: Box, right: Box, text: str) -> Box:
    """The two parts of a partial block, concatenated."""
    out = d.box(WIDTH / 2, y, text, width=250)
    for part in (left, right):
        d.line((part.x, part.bottom), (part.x, out.y), (out.left if part.x < out.x else out.right, out.y))
    return out


def network_overview() -> Drawing:
    """Stem, stages and head, with the shape after each."""
    d = Drawing("PATNet: a stem, four stages and a head, with the shape of the maps after each")
    rows = [
        ("image", "plain", "3, H, W"),
        ("stem: Conv 4x4, stride 4\nBatchNorm", "conv", "C, H/4, W/4"),
        ("stage 1: PAT blocks with\nPAT_ch, 2 of them in T2", "gate", "C, H/4, W/4"),
        ("downsample: Conv 2x2, stride 2\nBatchNorm", "conv", "2C, H/8, W/8"),
        ("stage 2: PAT_ch, 2 blocks", "gate", "2C, H/8, W/8"),
        ("downsample", "conv", "4C, H/16, W/16"),
        ("stage 3: PAT_ch, 6 blocks", "gate", "4C, H/16, W/16"),
        ("downsample", "conv", "8C, H/32, W/32"),
        ("stage 4: PAT_sf, 4 blocks", "gate", "8C, H/32, W/32"),
        ("global average pool", "plain", "8C"),
        ("Conv 1x1, activation", "conv", "1280"),
        ("Linear", "conv", "classes"),
    ]
    boxes, y = [], 20.0
    for text, kind, shape in rows:
        height = 16 + 20 * len(text.split("\n"))
        boxes.append(d.box(165, y + height / 2, text, kind, width=270))
        d.text(320, y + height / 2 + 5, shape, small=True, anchor="start")
        y += height + 22
    d.column(*boxes)
    return d


def two_blocks() -> Drawing:
    """The block of stages 1 to 3, and that of stage 4."""
    d = Drawing("The block of stages 1 to 3 has one shortcut around mixer and MLP; that of stage 4 has one around each")
    for x, title, mixer, shortcuts in (
        (110, "stages 1 to 3", "PAT_ch", [(100, 272)]),
        (350, "stage 4", "PAT_sf", [(100, 200), (230, 352)]),
    ):
        d.text(x, 32, title)
        start = d.box(x, 66, "x", width=110)
        first = d.box(x, 150, mixer, "gate", width=130)
        second = d.box(x, 222 if len(shortcuts) == 1 else 292, "MLP + PAT_sp", "conv", width=130)
        sums = [d.circle(x, y, "+") for _, y in shortcuts]
        end = d.box(x, sums[-1].bottom + 40, "y", width=110)
        order = (
            [start, first, second, sums[0], end] if len(sums) == 1 else [start, first, sums[0], second, sums[1], end]
        )
        d.column(*order)
        for (top, _), total in zip(shortcuts, sums, strict=True):
            d.line((x, top), (x + 92, top), (x + 92, total.y), (total.right, total.y))
    return d


def pconv() -> Drawing:
    """A quarter convolved, the rest unchanged."""
    d = Drawing("PConv: a quarter of the channels is convolved, the others pass")
    _split(d, 90, 390)
    conv = d.box(90, 134, "Conv 3x3", "conv", width=150)
    passed = d.box(390, 134, "unchanged", width=150)
    _join(d, 200, conv, passed, "concatenated: C channels")
    return d


def pat_ch() -> Drawing:
    """The other channels, gated by their mean and std."""
    d = Drawing("PAT_ch: a quarter of the channels is convolved, the others are gated by their mean and std")
    here = d.circle(400, 350, TIMES)
    _split(d, 100, 400, right_to=here.top)
    conv = d.box(100, 134, "Conv 3x3", "conv", width=150)
    stats = d.box(270, 148, "mean\nand std", "gate", width=150)
    d.line((400, stats.y), (stats.right, stats.y))
    mix = d.box(270, 218, "dense layer", "conv", width=150)
    norm = d.box(270, 272, "BatchNorm", "norm", width=150)
    gate = d.box(270, 350, "hard-sigmoid", "gate", width=150)
    d.column(stats, mix, norm, gate)
    d.line((gate.right, gate.y), (here.left, gate.y))
    after = d.box(400, 412, "BatchNorm", "norm", width=130)
    d.column(here, after)
    _join(d, 478, conv, after, "concatenated: C channels")
    return d


def mlp() -> Drawing:
    """Two 1x1 convolutions, and the spatial attention after them."""
    d = Drawing(
        "The MLP: two 1x1 convolutions, then PAT_sp: one map gates half of the channels, the other half is mixed"
    )
    first = d.box(240, 38, "Conv 1x1: C to 2C", "conv")
    norm = d.box(240, 94, "BatchNorm, activation", "norm", width=210)
    second = d.box(240, 150, "Conv 1x1: 2C to C", "conv")
    d.column(first, norm, second)
    here = d.circle(60, 330, TIMES)
    for x, name in ((60, "C/2"), (390, "C/2")):
        d.line((240, second.bottom), (240, 190), (x, 190), (x, here.top if x == 60 else 236))
        d.text(x + 8, 212, name, small=True, anchor="start")
    conv = d.box(198, 254, "Conv 1x1: one map", "conv", width=185)
    d.line((60, conv.y), (conv.left, conv.y))
    gate = d.box(198, 330, "hard-sigmoid", "gate", width=185)
    d.column(conv, gate)
    d.line((gate.left, gate.y), (here.right, gate.y))
    after = d.box(85, 396, "BatchNorm", "norm", width=130)
    d.line((60, here.bottom), (60, after.top))
    norm2 = d.box(390, 254, "BatchNorm", "norm", width=140)
    mix = d.box(390, 330, "Conv 1x1", "conv", width=140)
    d.column(norm2, mix)
    _join(d, 466, after, mix, "concatenated: C channels")
    d.text(WIDTH / 2, 212, "PAT_sp from here", small=True)
    return d


def pat_sf() -> Drawing:
    """Self-attention on the others, with relative positions."""
    d = Drawing("PAT_sf: a quarter of the channels is convolved, self-attention over positions on the others")
    _split(d, 100, 340)
    conv = d.box(100, 134, "Conv 3x3", "conv", width=150)
    norm = d.box(340, 134, "LayerNorm", "norm")
    qkv = d.box(340, 192, "Linear: q, k, v", "conv")
    attend = d.box(340, 268, "softmax(q kᵀ / √d + b) v\nfor each head", "gate", width=230)
    proj = d.box(340, 342, "Linear", "conv")
    d.column(norm, qkv, attend, proj)
    position = d.box(100, 268, "b: relative\npositions", "plain", width=150)
    d.line((position.right, position.y), (attend.left, position.y))
    # The convolved part goes past the positions, on the left.
    out = d.box(WIDTH / 2, 408, "concatenated: C channels", width=250)
    d.line((conv.left, conv.y), (12, conv.y), (12, out.y), (out.left, out.y))
    d.line((proj.right, proj.y), (WIDTH - 14, proj.y), (WIDTH - 14, out.y), (out.right, out.y))
    return d


DRAWINGS = {
    "network-overview": network_overview,
    "network-blocks": two_blocks,
    "network-pconv": pconv,
    "network-pat_ch": pat_ch,
    "network-mlp": mlp,
    "network-pat_sf": pat_sf,
}


def main(folder: Path) -> None:
    """Write all drawings."""
    for name, draw in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
