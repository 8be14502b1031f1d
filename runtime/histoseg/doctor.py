"""`histoseg-doctor`: what is installed, which provider really works, and how to repair the rest."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import click
import numpy as np

import histoseg
from histoseg.command import run_command
from histoseg.errors import HistosegError

PACKAGES = ("numpy", "opencv-python-headless", "openslide-python", "openslide-bin", "tifffile")


@click.command(name="histoseg-doctor")
@click.version_option(histoseg.__version__)
def command() -> int:
    """Print what is installed and try the default model on every provider that onnxruntime offers.

    Exits 1 when nothing here can run a model or read a slide.
    """
    from histoseg.session import count_cpus

    click.echo(f"histoseg {histoseg.__version__}, Python {platform.python_version()}, {platform.platform()}")
    click.echo(f"CPUs this process may use: {count_cpus()}")
    for name in PACKAGES:
        click.echo(f"  {name:24} {_version(name)}")
    healthy = [_check_openslide(), _check_providers()]
    return 0 if all(healthy) else 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"not installed; repair with: pip install {package}"


def _check_openslide() -> bool:
    try:
        import openslide
    except (ImportError, OSError) as error:
        click.echo(f"OpenSlide: FAILS ({error}); repair with: pip install --force-reinstall openslide-bin")
        return False
    click.echo(f"OpenSlide {openslide.__library_version__}: works")
    return True


def _check_providers() -> bool:
    from histoseg.session import installed_wheels

    for wheel, version in installed_wheels().items():
        click.echo(f"  {wheel:24} {version}")
    try:
        answers = list(_try_providers())
    except HistosegError as error:
        click.echo(f"onnxruntime: FAILS: {error}")
        return False
    for name, answer in answers:
        click.echo(f"provider {name}: {answer or 'works'}")
    return any(answer is None for _, answer in answers)


def _try_providers() -> Iterator[tuple[str, str | None]]:
    """Yield each provider with `None` when it ran the default model, or the reason why it did not."""
    from histoseg.models import default_model
    from histoseg.session import PROVIDERS, choose_providers, open_session

    choose_providers("auto")  # raises when onnxruntime itself is missing or doubled
    for name in PROVIDERS:
        try:
            with open_session(default_model(), provider=name) as session:
                width, height = session.card.patch_size_pixels
                session.run(np.full((session.batch_size or 1, height, width, 3), 255, np.uint8))
        except HistosegError as error:
            yield name, f"no: {error}"
        else:
            yield name, None


def main() -> None:
    """Run `histoseg-doctor`."""
    run_command(command)
