"""Everything that decides what a training run gives, in plain values; importing it loads no Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from histoseg.transform import Normalization
from histoseg_train.architectures import NetworkOptions, UnetOptions
from histoseg_train.augment import AugmentOptions
from histoseg_train.dataset import Dataset, Item
from histoseg_train.images import SampleStore


@dataclass(frozen=True)
class Target:
    """What the model is to tell apart, and at which um/px."""

    class_names: tuple[str, ...]
    """The background first."""
    class_colors: tuple[str, ...]
    spacing_um_px: float = 0.5
    normalization: Normalization = "unit"


@dataclass(frozen=True)
class PatchOptions:
    """What patches look like and how many make an epoch."""

    size: int = 256
    batch: int = 8
    steps: int = 100
    """Batches in an epoch."""
    foreground: float = 0.5
    """Share of patches centred near a class other than the background."""
    augment: AugmentOptions = field(default_factory=AugmentOptions)


@dataclass(frozen=True)
class FitOptions:
    """How long and how fast to train."""

    epochs: int = 60
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    patience: int = 20
    """Epochs without a better validation Dice after which training stops."""
    max_minutes: float | None = None
    """The learning rate reaches zero by then, and training stops; the result then depends on the machine."""
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One training run."""

    dataset: Dataset
    training: SampleStore
    held_out: SampleStore
    target: Target
    network: NetworkOptions = field(default_factory=UnetOptions)
    weights: str | None = None
    """Of the encoder, as for `build_architecture`."""
    patches: PatchOptions = field(default_factory=PatchOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    command: str = ""
    """The command line, for the card."""


def open_store(items: Sequence[Item], target: Target) -> SampleStore:
    """Return the images at the target's um/px."""
    return SampleStore(
        items,
        classes=len(target.class_names),
        spacing_um_px=target.spacing_um_px,
        colors=target.class_colors,
    )
