"""OME-XML: what a TIFF's channels and classes are called, and how large its pixels are.

Schema 2016-06, www.openmicroscopy.org/Schemas/Documentation/Generated/OME-2016-06/ome.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement, tostring

from histoseg.colors import parse_color

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
CLASS_NAMES, CLASS_COLORS = "histoseg:class-names", "histoseg:class-colors"
# What XML 1.0 cannot hold at all, or in an attribute only as "&#", which Bio-Formats takes for damage
UNWRITABLE = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class OmeImage:
    """A picture of uint8 channels, each in a directory of its own, in order."""

    name: str
    about: str
    """What pixel values mean, for a person."""
    m_size: tuple[int, int]
    """Width and height."""
    spacing_um_px: tuple[float, float]
    """um/px along x and y."""
    channels: Sequence[tuple[str, str | None]]
    """Name of each channel, and its `#rrggbb` if it has one."""
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Lists, by the name they are kept under; items are numbered from 0."""


def build_ome_xml(image: OmeImage) -> bytes:
    """Return the OME-XML of one picture, in UTF-8.

    Control characters of names become U+FFFD. The same picture gives the same bytes: neither time nor a
    random id is in it.
    """
    root = Element("OME", {
        "xmlns": NAMESPACE,
        "xmlns:xsi": INSTANCE,
        "xsi:schemaLocation": f"{NAMESPACE} {NAMESPACE}/ome.xsd",
        "Creator": "histoseg",
    })  # fmt: skip
    picture = _add(root, "Image", ID="Image:0", Name=image.name)
    _add(picture, "Description").text = image.about
    _add_pixels(picture, image)
    notes = {f"Annotation:{index}": note for index, note in enumerate(image.notes.items())}
    for key in notes:
        _add(picture, "AnnotationRef", ID=key)
    _add_notes(root, notes)
    text: str = tostring(root, encoding="unicode")
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()


def _add_pixels(picture: Element, image: OmeImage) -> None:
    (width, height), (x, y) = image.m_size, image.spacing_um_px
    sizes = {"SizeX": width, "SizeY": height, "SizeZ": 1, "SizeC": len(image.channels), "SizeT": 1}
    spacings = {"PhysicalSizeX": x, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": y, "PhysicalSizeYUnit": "µm"}
    values = {"ID": "Pixels:0", "DimensionOrder": "XYCZT", "Type": "uint8", **sizes, **spacings}
    pixels = _add(picture, "Pixels", **values)
    for index, (name, color) in enumerate(image.channels):
        tint = {} if color is None else {"Color": _pack_color(color)}
        _add(pixels, "Channel", ID=f"Channel:0:{index}", Name=name, SamplesPerPixel=1, **tint)
    for index in range(len(image.channels)):
        _add(pixels, "TiffData", FirstC=index, IFD=index, PlaneCount=1)


def _add_notes(root: Element, notes: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    parent = _add(root, "StructuredAnnotations") if notes else root
    for key, (name, items) in notes.items():
        value = _add(_add(parent, "MapAnnotation", ID=key, Namespace=name), "Value")
        for index, item in enumerate(items):
            _add(value, "M", K=index).text = _clean(item)


def _add(parent: Element, tag: str, **attributes: object) -> Element:
    return SubElement(parent, tag, {key: _clean(str(value)) for key, value in attributes.items()})


def _clean(text: str) -> str:
    return UNWRITABLE.sub("\ufffd", text)


def _pack_color(color: str) -> int:
    """Return a colour as OME writes it: red, green, blue and alpha in a signed number of 32 bits."""
    return int.from_bytes(bytes((*parse_color(color), 255)), "big", signed=True)
