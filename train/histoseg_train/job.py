"""Everything that decides what a training run gives, in plain values; importing it loads no Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from histoseg.equalize import Equalization
from histoseg.transform import Normalization
from histoseg_train.architectures import NetworkOptions, UnetOptions
from histoseg_train.augment import AugmentOptions
from histoseg_train.dataset import Dataset, Item
from histoseg_train.images import SampleStore
from histoseg_train.losses import LossOptions
from histoseg_train.schedules import Monitor, ScheduleName

OptimizerName = Literal["adamw", "adam", "sgd"]


@dataclass(frozen=True)
class Target:
    """What the model is to tell apart, and at which um/px."""

    class_names: tuple[str, ...]
    """The background first."""
    class_colors: tuple[str, ...]
    spacing_um_px: float = 0.5
    normalization: Normalization = "unit"
    equalization: Equalization | None = None
    """What is done to images at that um/px, in training and by the runtime."""


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
    optimizer: OptimizerName = "adamw"
    schedule: ScheduleName = "cosine"
    learning_rate: float = 2e-3
    """At the end of the warm-up."""
    weight_decay: float = 1e-4
    """Of `adamw` and `sgd`."""
    plateau_patience: int = 8
    """Epochs without a gain after which the schedule `plateau` lowers the rate."""
    plateau_factor: float = 0.5
    """By what it is multiplied then."""
    monitor: Monitor = "dice"
    """What decides which epoch is the best, of the held-out images: Dice, mean IoU or loss."""
    patience: int = 20
    """Epochs without a better one after which training stops."""
    max_minutes: float | None = None
    """The cosine ends by then, and training stops; the result then depends on the machine."""
    mixed_precision: bool = False
    """Compute in 16 bits and keep the weights in 32."""
    seed: int = 0


@dataclass(frozen=True)
class Teacher:
    """A trained model that says what images show; see `histoseg_train.teachers`."""

    path: Path
    """A `.keras`, `.h5` or `.onnx` file."""
    sha256: str
    """Of the file, and of weights in files beside it, as they were when training began."""


@dataclass(frozen=True)
class TeacherOptions:
    """Whom a network learns from."""

    teachers: tuple[Teacher, ...] = ()
    share: float = 0.5
    """How much they count where there is a mask, too; the rest is the mask's."""


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
    smooth_um: float = 0.0
    """Standard deviation of the Gaussian that the network smooths its image with first."""
    patches: PatchOptions = field(default_factory=PatchOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    teachers: TeacherOptions = field(default_factory=TeacherOptions)
    command: str = ""
    """The command line, for the card."""


def open_store(items: Sequence[Item], target: Target) -> SampleStore:
    """Return the images at the target's um/px."""
    return SampleStore(
        items,
        classes=len(target.class_names),
        spacing_um_px=target.spacing_um_px,
        colors=target.class_colors,
        equalization=target.equalization,
    )
