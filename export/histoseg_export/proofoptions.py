"""What a caller asks of an export: which files, proven on what, how strictly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from histoseg.card import Precision
from histoseg.errors import OptionError
from histoseg_export.gates import Gates

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FLOAT_LAYERS = 8
"""The most layers that are left in float so that int8 holds its gate, unless the caller says otherwise."""


@dataclass(frozen=True)
class ProofOptions:
    """Which files to write, and what they must hold.

    Raises:
        OptionError: The options do not fit each other; the message names the flag.
    """

    precisions: tuple[Precision, ...] = ("fp32",)
    """Files to write. fp32 is proven in any case: the others are made of it."""
    gates: Gates = field(default_factory=Gates)
    tiles: Path | None = None
    """A slide, an image, a folder of images, or of `images/` and `masks/`, to prove on; `calibrate` when
    `None`, and without that the demo slide."""
    calibrate: Path | None = None
    """The same, to choose the steps of int8 by."""
    float_layers: int = FLOAT_LAYERS

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if not self.precisions:
            raise OptionError(f"--precision is empty, expected some of {', '.join(PRECISIONS)}")
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise OptionError(f"--precision has '{precision}', expected some of {', '.join(PRECISIONS)}")
        if "int8" in self.precisions and self.calibrate is None:
            raise OptionError(
                "--precision int8 needs real tissue to choose its steps by: "
                "name a slide or a folder of images with --calibrate"
            )

    @property
    def source(self) -> Path | None:
        """Return where the proof's tiles come from; `None` is the demo slide."""
        return self.tiles or self.calibrate

    def name_files(self, target: Path) -> dict[Precision, Path]:
        """Return `model.onnx`, `model.fp16.onnx` and `model.int8.onnx` for those of `precisions`."""
        return {
            precision: target if precision == "fp32" else target.with_suffix(f".{precision}.onnx")
            for precision in PRECISIONS
            if precision in self.precisions
        }
