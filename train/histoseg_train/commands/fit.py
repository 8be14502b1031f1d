"""`histoseg-train fit`."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from rich.console import Console

from histoseg.errors import DataError, OptionError, OutputError
from histoseg.helppage import HelpPage
from histoseg.transform import Normalization
from histoseg_train.architectures import ARCHITECTURES, NetworkOptions, parse_architecture
from histoseg_train.commands.described import take_description, take_recipe
from histoseg_train.commands.options import (
    CLAHE,
    DATA,
    PATCHES,
    add_options,
    pick,
    read_augment,
    read_equalization,
)
from histoseg_train.commands.words import format_dice, import_keras
from histoseg_train.dataset import Dataset, find_dataset, release_held_out
from histoseg_train.images import count_pixels
from histoseg_train.job import (
    FitOptions,
    Job,
    OptimizerName,
    PatchOptions,
    Target,
    TeacherOptions,
    open_store,
)
from histoseg_train.losses import LOSSES, LossOptions, LossTerms, parse_loss
from histoseg_train.metadata import SUFFIXES
from histoseg_train.recipes import list_recipes
from histoseg_train.schedules import Monitor, ScheduleName

if TYPE_CHECKING:
    from histoseg_train.fit import Listener
    from histoseg_train.history import Epoch
    from histoseg_train.images import SampleStore

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(0, min_open=True)


def _parse_arch(context: click.Context, option: click.Parameter, value: str) -> NetworkOptions:
    try:
        return parse_architecture(value)
    except OptionError as error:
        raise click.UsageError(str(error), ctx=context) from error


def _parse_loss(context: click.Context, option: click.Parameter, value: str) -> LossTerms:
    try:
        return parse_loss(value)
    except OptionError as error:
        raise click.UsageError(str(error), ctx=context) from error


def _parse_class_weights(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[float, ...]:
    try:
        weights = tuple(float(number) for number in value.split(",")) if value else ()
    except ValueError:
        weights = (0.0,)
    if not all(0 < weight < math.inf for weight in weights):
        raise click.BadParameter(f"got '{value}', expected a number above 0 for each class, as in 1,4")
    return weights


SAMPLING_OPTIONS = (
    click.option(
        "--recipe",
        metavar="NAME|FILE",
        is_eager=True,
        callback=take_recipe,
        help="Options, and DATA where none is given, from a .toml file or one of "
        f"{', '.join(list_recipes())}.",
        show_default=False,
    ),
    click.option(
        "--validation",
        default=0.2,
        type=click.FloatRange(0, 0.9),
        help="Share of images held out when DATA names none.",
    ),
    click.option(
        "--all",
        "all_images",
        is_flag=True,
        help="Train on held-out images, too: nothing is scored, and the last epoch is saved.",
    ),
    click.option(
        "--normalize",
        "normalization",
        default="unit",
        type=click.Choice(get_args(Normalization)),
        help="What the pixels are normalised to.",
    ),
    click.option("--batch", default=8, type=click.IntRange(1), help="Patches in a step."),
    click.option("--steps", default=100, type=click.IntRange(1), help="Steps in an epoch."),
)
MODEL_OPTIONS = (
    click.option(
        "--arch",
        default="unet-w16-d4",
        callback=_parse_arch,
        help=f"One of {', '.join(ARCHITECTURES)}, with its options behind it.",
    ),
    click.option(
        "--weights", help="Of the encoder: imagenet, or an HDF5 file.  [default: random]", show_default=False
    ),
    click.option(
        "--smooth",
        "smooth_um",
        default=0.0,
        type=click.FloatRange(0),
        help="um of a Gaussian that becomes the network's first layer; 0: none.",
    ),
)
TEACHER_OPTIONS = (
    click.option(
        "--teacher",
        "teachers",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        multiple=True,
        help="A trained model to learn from, besides the masks and where there are none; may be repeated.",
    ),
    click.option(
        "--teacher-share",
        default=0.5,
        type=click.FloatRange(0, 1),
        help="How much teachers count where there is a mask.",
    ),
)
FIT_OPTIONS = (
    click.option("--epochs", default=60, type=click.IntRange(1), help="Epochs at most."),
    click.option(
        "--loss",
        "loss_terms",
        default="ce+dice",
        callback=_parse_loss,
        help=f"A sum of {', '.join(LOSSES)}, with weights as in ce+0.5*focal.",
    ),
    click.option(
        "--class-weights",
        callback=_parse_class_weights,
        help="What a pixel of each class counts in ce and focal, as in 1,4.  [default: all the same]",
        show_default=False,
    ),
    click.option("--optimizer", default="adamw", type=click.Choice(get_args(OptimizerName))),
    click.option(
        "--schedule",
        default="cosine",
        type=click.Choice(get_args(ScheduleName)),
        help="Of the learning rate: to zero along a cosine, lower where nothing gets better, or neither.",
    ),
    click.option("--learning-rate", default=2e-3, type=POSITIVE, help="At the end of the warm-up."),
    click.option("--weight-decay", default=1e-4, type=click.FloatRange(0), help="Of adamw and sgd."),
    click.option(
        "--plateau-patience",
        default=8,
        type=click.IntRange(1),
        help="Epochs without a gain after which the schedule plateau lowers the rate.",
    ),
    click.option(
        "--plateau-factor",
        default=0.5,
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="By what it multiplies the rate.",
    ),
    click.option(
        "--monitor",
        default="dice",
        type=click.Choice(get_args(Monitor)),
        help="What decides which epoch is the best, of the held-out images: Dice, mean IoU or loss.",
    ),
    click.option(
        "--patience",
        default=20,
        type=click.IntRange(1),
        help="Epochs without a better one before stopping.",
    ),
    click.option("--max-minutes", type=POSITIVE, help="Settle and stop by then, teachers aside."),
    click.option("--mixed-precision", is_flag=True, help="Compute in 16 bits; pays on GPUs alone."),
    click.option("--restart", is_flag=True, help="Begin afresh where a run was interrupted."),
    click.option("--tensorboard", type=PATH, help="Folder to write figures for TensorBoard into."),
    click.option("--seed", default=0, type=click.IntRange(0), help="Decides all that is random."),
)


EXAMPLES = (
    "histoseg-train fit DATA -o model.keras --spacing 0.5 --classes background,nucleus",
    "histoseg-train fit --recipe monuseg-unet --root DATA -o model.keras",
)
# Those that a person sets; the recipe or a good default sees to the others.
SECTIONS = {
    "Data": ("output", "recipe", "root", "classes", "spacing_um_px", "validation", "all_images"),
    "Network": ("arch", "size", "teachers"),
    "Training": ("epochs", "steps", "batch", "loss_terms", "learning_rate", "patience", "restart", "seed"),
    "Changes of patches": ("scale", "elastic", "restain", "stain", "color"),
    "Display": ("tensorboard",),
}


@click.command(
    cls=HelpPage,
    sections=SECTIONS,
    examples=EXAMPLES,
    short_help="Train a network on images and masks.",
    context_settings={"show_default": True, "max_content_width": 100},
)
@click.argument("data", type=PATH, required=False, is_eager=True, callback=take_description)
@click.option("-o", "--output", required=True, type=PATH, help="The model: a .keras or .h5 file.")
@add_options(DATA, SAMPLING_OPTIONS, CLAHE, MODEL_OPTIONS, TEACHER_OPTIONS, PATCHES, FIT_OPTIONS)
def fit(data: Path | None, output: Path, recipe: Path | None, **values: Any) -> None:
    """Train a network on DATA and save the model of its best epoch.

    DATA is a folder with images/ and masks/ (and val/ with the same inside), paired by name, or a .toml file
    that lists several sources. Class names, colours, um/px and normalisation travel inside the saved model.
    """
    data = data or recipe
    if data is None:
        raise click.UsageError("neither DATA nor --recipe is given, expected one of them")
    patches = _read_patches(values)
    _check_class_weights(values)
    if values["all_images"] and values["schedule"] == "plateau":
        raise click.UsageError("--schedule is plateau, which watches held-out images; --all leaves none")
    _check_output(output)
    if any(output.exists() and output.samefile(teacher) for teacher in values["teachers"]):
        raise click.UsageError(f"--teacher is '{output}', which --output would replace; give another name")
    job = _prepare(data, values, patches)
    import_keras()
    from histoseg_train.fit import fit_model

    with _reporting(job) as listener:
        best = fit_model(
            job, output, listener=listener, restart=values["restart"], tensorboard=values["tensorboard"]
        )
    scored = f"Dice {best.val_dice:.4f} of held-out images" if job.held_out.items else "nothing held out"
    click.echo(f"{output}: {scored}, epoch {best.number}")


def _read_patches(values: Mapping[str, Any]) -> PatchOptions:
    """Return patches that fit the network, or end with a usage error."""
    patches = replace(pick(PatchOptions, values), augment=read_augment(values))
    network = values["arch"]
    if patches.size % network.stride_multiple:
        raise click.UsageError(
            f"--patch is {patches.size}, expected a multiple of {network.stride_multiple}, "
            f"the stride of {network.name}"
        )
    return patches


def _check_class_weights(values: Mapping[str, Any]) -> None:
    names, weights = values["classes"][0], values["class_weights"]
    if weights and len(weights) != len(names):
        raise click.UsageError(
            f"--class-weights has {len(weights)} numbers, expected {len(names)}, for {', '.join(names)}"
        )


def _check_output(output: Path) -> None:
    if output.suffix not in SUFFIXES:
        raise click.UsageError(
            f"--output is '{output}', expected a name that ends in {' or '.join(SUFFIXES)}"
        )
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; create it first")


def _prepare(data: Path, values: Mapping[str, Any], patches: PatchOptions) -> Job:
    """Find, read and check the data; Keras is not needed yet, so a mistake shows at once."""
    dataset = find_dataset(
        data,
        root=values["root"],
        threshold=values["mask_threshold"],
        dilate_um=values["dilate_um"],
        validation=values["validation"],
        seed=values["seed"],
    )
    # it brings the runtime's engine, which --help can do without
    from histoseg_train.teachers import find_teachers

    names, colors = values["classes"]
    words = {"class_names": names, "class_colors": colors, "equalization": read_equalization(values)}
    target = pick(Target, {**values, **words})
    if values["all_images"]:
        dataset = release_held_out(dataset)
    teachers = find_teachers(values["teachers"], share=values["teacher_share"])
    _check_labelled(data, dataset, teachers)
    training, held_out = open_store(dataset.training, target), open_store(dataset.held_out, target)
    _check_masks(data, names, training, held_out)
    loss = LossOptions(values["loss_terms"], values["class_weights"])
    command = shlex.join(["histoseg-train", *sys.argv[1:]])
    network = {"network": values["arch"], "weights": values["weights"], "smooth_um": values["smooth_um"]}
    return Job(
        dataset, training, held_out, target, patches=patches, loss=loss,
        fit=pick(FitOptions, values),
        teachers=teachers, command=command, **network,
    )  # fmt: skip


def _check_labelled(data: Path, dataset: Dataset, teachers: TeacherOptions) -> None:
    bare = [item.source for item in dataset.drawn if item.mask is None]
    if bare and not teachers.teachers:
        raise DataError(
            f"{data}: {bare[0]} has no masks, expected some, or --teacher MODEL to do without, or weight = 0 "
            "to lend its colours alone"
        )


def _check_masks(data: Path, names: Sequence[str], training: SampleStore, held_out: SampleStore) -> None:
    """Read every image and mask, and refuse a class that none shows, unless some images have no mask."""
    pixels = count_pixels(training)
    count_pixels(held_out)
    absent = [name for index, name in enumerate(names) if index and not pixels[index]]
    told = all(item.mask is not None or not item.weight for item in training.items)
    if absent and told:
        raise DataError(
            f"{data}: no training mask holds a pixel of '{absent[0]}'; see --classes, --mask-threshold"
        )


@contextmanager
def _reporting(job: Job) -> Iterator[Listener]:
    """Show the epochs: one line each, and what is going on in between when a person watches."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{len(job.dataset.drawn)} images to train on, {len(job.held_out)} held out; {job.network.name}"
    )
    from histoseg_train.fit import Listener

    with console.status("training") as status:

        def report(epoch: Epoch) -> None:
            mark = "*" if epoch.is_best else " "
            console.print(
                f"epoch {epoch.number:3d}{mark} {epoch.seconds:6.0f} s  loss {epoch.loss:.4f}  "
                + (f"Dice {epoch.val_dice:.4f}  {format_dice(epoch.per_source)}" if epoch.per_source else "")
            )
            status.update(f"epoch {epoch.number + 1} of {job.fit.epochs}")

        yield Listener(report, tell=console.print)
