"""`histoseg-doctor`: what is installed, which provider really works, and how to repair the rest."""

from __future__ import annotations

import platform
from importlib import metadata

import click

import histoseg
from histoseg.command import run_command
from histoseg.errors import HistosegError
from histoseg.helppage import HelpPage

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "psutil",
)
# Of the extras: named where they are installed.
OPTIONAL_PACKAGES = ("pydicom", "highdicom", "distributed")
GUI_OPENCV = ("opencv-python", "opencv-contrib-python")
HEADLESS = "opencv-python-headless"
# sends tensors to a service instead of running them here
REMOTE = ("AzureExecutionProvider",)


@click.command(name="histoseg-doctor", cls=HelpPage, examples=["histoseg-doctor"])
@click.version_option(histoseg.__version__)
def command() -> int:
    """Print what is installed, and try it: read a slide, run a model on every provider.

    Exits 1 when nothing here can run a model or read a slide. Every fault comes with its repair.
    """
    click.echo(f"histoseg {histoseg.__version__}, Python {platform.python_version()}, {platform.platform()}")
    _list_packages()
    _describe_processor()
    healthy = [_check_opencv(), _check_openslide(), _check_providers()]
    click.echo("healthy" if all(healthy) else "NOT healthy: see FAILS above")
    return 0 if all(healthy) else 1


def _list_packages() -> None:
    from histoseg.providers import installed_wheels

    for name in (*PACKAGES, *filter(_is_installed, OPTIONAL_PACKAGES)):
        click.echo(f"  {name:24} {_version(name)}")
    for wheel, version in installed_wheels().items():
        click.echo(f"  {wheel:24} {version}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"not installed; repair with: pip install {package}"


def _describe_processor() -> None:
    from histoseg.cpu import count_cpus, explain_int8, read_int8_instructions

    click.echo(f"CPUs this process may use: {count_cpus()}")
    click.echo(f"int8 instructions: {explain_int8(read_int8_instructions())}")


def _check_opencv() -> bool:
    clashing = [name for name in GUI_OPENCV if _is_installed(name)]
    repair = f"repair with: pip uninstall -y {' '.join([*clashing, HEADLESS])} && pip install {HEADLESS}"
    if clashing:
        names = " and ".join(clashing)
        click.echo(f"OpenCV: {names} lies beside {HEADLESS}, with the same module, and needs libGL; {repair}")
    try:
        import cv2
    except ImportError as error:
        click.echo(f"OpenCV: FAILS: {error}; {repair}")
        return False
    click.echo(f"OpenCV {cv2.__version__}: works")
    return True


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _check_openslide() -> bool:
    from histoseg.probe import probe_openslide

    try:
        version = probe_openslide()
    except HistosegError as error:
        click.echo(f"OpenSlide: FAILS: {error}")
        return False
    click.echo(f"OpenSlide {version}: works, read a slide")
    return True


def _check_providers() -> bool:
    from histoseg.providers import AUTO_ORDER, PROVIDERS, find_install, find_key, import_onnxruntime

    try:
        offered = [find_key(name) for name in import_onnxruntime().get_available_providers()]
    except HistosegError as error:
        click.echo(f"onnxruntime: FAILS: {error}")
        return False
    working = [name for name in offered if name not in REMOTE and _check_provider(name)]
    for name in PROVIDERS:
        if name not in offered:
            click.echo(f"provider {name}: not in this onnxruntime; to have it: {find_install(name)}")
    best = [name for name in AUTO_ORDER if name in working]
    return bool(best) and _check_default_model(best[0])


def _check_provider(name: str) -> bool:
    from histoseg.probe import probe_provider

    try:
        probe_provider(name)
    except HistosegError as error:
        said = str(error).removeprefix(f"provider '{name}' ")
        click.echo(f"provider {name}: FAILS: {said}")
        return False
    click.echo(f"provider {name}: works, ran a convolution")
    return True


def _check_default_model(provider: str) -> bool:
    from histoseg.models import choose_default_model
    from histoseg.probe import time_model

    model = choose_default_model(provider)
    try:
        seconds, placement = time_model(model, provider)
    except HistosegError as error:
        click.echo(f"model {model.name} on {provider}: FAILS: {error}")
        return False
    nodes = ", ".join(f"{count} nodes on {key}" for key, count in placement.items()) or "nodes not counted"
    click.echo(f"model {model.name} on {provider}: works, {nodes}, {seconds:.2f} s for one tile")
    return True


def main() -> None:
    """Run `histoseg-doctor`."""
    run_command(command)
