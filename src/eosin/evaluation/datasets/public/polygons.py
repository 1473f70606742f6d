"""Outlines in an Aperio annotation file as classes of pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.evaluation.datasets.masks import Classes
from eosin.evaluation.transform import BadImage, decode_raw


@dataclass(frozen=True)
class Outlines:
    """The regions of one annotation layer, vertices (x, y) in pixels of the image."""

    label: str
    regions: tuple[npt.NDArray[np.float64], ...]


def parse_outlines(data: bytes) -> list[Outlines]:
    """The layers of an annotation file, in order. Raises `BadImage`."""
    try:
        root = ElementTree.fromstring(data)
        return [_layer(layer) for layer in root.iter("Annotation")]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise BadImage(f"not an annotation file: {error}") from error


def _layer(layer: ElementTree.Element) -> Outlines:
    label = next((each.attrib.get("Name", "") for each in layer.findall("./Attributes/Attribute")), "")
    regions = (
        np.array([(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")])
        for region in layer.iter("Region")
    )
    return Outlines(label, tuple(region for region in regions if len(region) > 2))


def paint(layers: list[Outlines], image: bytes, class_of: Callable[[str], int]) -> Classes:
    """uint8 [h, w], the size of the encoded `image`: later regions over earlier ones, 0 elsewhere.

    Pixels that an outline runs through belong to its region. Raises `BadImage`.
    """
    width, height = _size(image)
    classes = np.zeros((height, width), dtype=np.uint8)
    for layer in layers:
        for region in layer.regions:
            cv2.fillPoly(classes, [np.round(region).astype(np.int32)], class_of(layer.label))
    return classes


def _size(image: bytes) -> tuple[int, int]:
    picture: Image.Image = decode_raw(image)
    return picture.size
