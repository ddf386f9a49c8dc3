"""Small product pictures: shape by kind of product, fill by colour, overlay by pattern, backdrop by
department.
"""

from __future__ import annotations

import zlib

from PIL import Image, ImageDraw

SIDE = 32
RGB = {
    "black": (25, 25, 28), "white": (245, 245, 240), "grey": (128, 128, 132),
    "gray": (128, 128, 132), "navy": (24, 36, 92), "blue": (52, 120, 220), "green": (40, 150, 80),
    "olive": (110, 115, 45), "red": (205, 40, 45), "burgundy": (115, 20, 50),
    "pink": (240, 140, 175), "yellow": (235, 190, 45), "brown": (130, 85, 50),
    "silver": (192, 192, 198), "gold": (205, 165, 60), "orange": (240, 130, 35),
    "purple": (120, 60, 160), "beige": (222, 205, 170), "clear": (220, 235, 240),
    "multicolor": (150, 100, 200),
}  # fmt: skip
BACKDROPS = (
    (250, 250, 250), (238, 244, 250), (250, 244, 236), (240, 248, 240),
    (248, 240, 246), (244, 244, 236), (236, 246, 246), (246, 240, 238),
)  # fmt: skip
# corners of the shapes, in percent of the side
SHAPES = [
    [15, 15, 85, 15, 85, 85, 15, 85],
    [50, 10, 90, 88, 10, 88],
    [50, 8, 92, 50, 50, 92, 8, 50],
    [30, 12, 70, 12, 92, 50, 70, 88, 30, 88, 8, 50],
    [5, 25, 30, 12, 70, 12, 95, 25, 80, 45, 72, 38, 72, 90, 28, 90, 28, 38, 20, 45],
    [40, 5, 60, 5, 60, 30, 72, 42, 72, 93, 28, 93, 28, 42, 40, 30],
    [15, 10, 42, 10, 42, 60, 90, 72, 90, 90, 15, 90],
    [10, 35, 90, 35, 76, 90, 24, 90],
    [38, 8, 62, 8, 62, 38, 92, 38, 92, 62, 62, 62, 62, 92, 38, 92, 38, 62, 8, 62, 8, 38, 38, 38],
    [8, 40, 50, 10, 92, 40, 92, 90, 8, 90],
    [10, 10, 90, 10, 50, 50, 90, 90, 10, 90, 50, 50],
    [25, 10, 75, 10, 90, 90, 10, 90],
]


def colour_of(text: str) -> tuple[int, int, int]:
    """RGB of a colour's name; an unknown name gets a colour of its own."""
    words = text.lower().replace("/", " ").split()
    for word in words:
        if word in RGB:
            return RGB[word]
    code = zlib.crc32(text.lower().encode())
    return (64 + code % 160, 64 + (code >> 8) % 160, 64 + (code >> 16) % 160)


def outline(kind: int) -> list[tuple[float, float]]:
    """Corners, in pixels, of the shape of a kind of product: twelve shapes, each in four ways."""
    percent = SHAPES[kind % len(SHAPES)]
    narrow, flat = [(1.0, 1.0), (0.75, 1.0), (1.0, 0.75), (0.6, 0.85)][kind // len(SHAPES) % 4]
    side = SIDE - 1
    xy = zip(percent[::2], percent[1::2], strict=True)
    return [
        (side * (0.5 + (x / 100 - 0.5) * narrow), side * (0.5 + (y / 100 - 0.5) * flat))
        for x, y in xy
    ]


def render(kind: int, department: int, colour: str, pattern: str) -> Image.Image:
    """A 32 x 32 RGB picture; the same arguments give the same pixels.

    `kind` and `department` are row numbers, `colour` and `pattern` names of attribute values (""
    where unknown).
    """
    fill = colour_of(colour) if colour else (170, 170, 170)
    ink = tuple(int(0.45 * c) if sum(fill) > 330 else int(0.4 * c + 150) for c in fill)
    picture = Image.new("RGB", (SIDE, SIDE), BACKDROPS[department % len(BACKDROPS)])
    corners = outline(kind)
    cloth = Image.new("RGB", (SIDE, SIDE), fill)
    draw = ImageDraw.Draw(cloth)
    if pattern in ("striped", "checked"):
        for x in range(2, SIDE, 6):
            draw.line((x, 0, x, SIDE), fill=ink, width=2)
    if pattern == "checked":
        for y in range(2, SIDE, 6):
            draw.line((0, y, SIDE, y), fill=ink, width=2)
    if pattern in ("dotted", "floral"):
        radius = 1 if pattern == "dotted" else 2
        for x in range(4, SIDE, 7):
            for y in range(4, SIDE, 7):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
                if pattern == "floral":
                    draw.point((x, y), fill=fill)
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    picture.paste(cloth, (0, 0), mask)
    ImageDraw.Draw(picture).polygon(corners, outline=(60, 60, 60))
    return picture
