"""What is in a picture: the groups, lines and texts of an SVG, the colours of a PNG."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import PIL.Image

SVG = "{http://www.w3.org/2000/svg}"


class Svg:
    def __init__(self, path):
        self.root = ElementTree.parse(path).getroot()
        self.groups = {group.get("id"): group for group in self.root.iter(SVG + "g") if group.get("id")}
        self.texts = ["".join(text.itertext()).strip() for text in self.root.iter(SVG + "text")]

    @property
    def size(self):
        """Width and height in points, of which 72 are an inch."""
        return tuple(float(self.root.get(side).removesuffix("pt")) for side in ("width", "height"))

    def count(self, group, tag):
        """How many elements of a kind a group has; 0 where there is no such group."""
        return sum(1 for _ in self.groups[group].iter(SVG + tag)) if group in self.groups else 0

    def middles(self, group):
        """Where the marks of a group are, in points, (n, 2)."""
        uses = list(self.groups[group].iter(SVG + "use"))
        return np.array([[float(use.get("x")), float(use.get("y"))] for use in uses]).reshape(-1, 2)

    def points(self, group):
        """The points of each line of a group."""
        paths = [
            path for path in self.groups[group].iter(SVG + "path") if "fill: none" in path.get("style", "")
        ]  # not the shapes of marks
        words = [path.get("d").replace("M", " ").replace("L", " ").split() for path in paths]
        return [np.array(numbers, float).reshape(-1, 2) for numbers in words]


def pixels(path):
    """Of an image file, (height, width, 3) uint8."""
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def count_of(image, colour):
    """How many pixels are of exactly a colour, "#rrggbb"."""
    return int((image == rgb(colour)).all(-1).sum())
