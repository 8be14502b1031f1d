"""Random changes that a tissue model must not care about: place, turn, size, stain, focus, compression."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from histoseg_train.images import Sample
from histoseg_train.looks import DENSITY_OF_LEVEL, Look, Looks, change_look, to_levels

# Optical densities of haematoxylin, eosin and DAB in red, green and blue, one stain a row: Ruifrok and
# Johnston 2001, Anal. Quant. Cytol. Histol. 23, with the values of scikit-image's `rgb_from_hed`.
STAINS_OD = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

# Control points of a bent patch lie this many pixels apart, and are moved by this many, one standard
# deviation, at most: more would fold a patch over itself.
ELASTIC_GRAIN_PX, ELASTIC_SHIFT_PX = 32, 4.0

# Places that are looked at where there are several classes: of one that covers a percent, some are hit.
RARE_POINTS = 512


@dataclass(frozen=True)
class AugmentOptions:
    """How much training patches are changed; zero switches a change off."""

    turns: bool = True
    """Flips and quarter turns."""
    scale: float = 1.4
    """Patches are enlarged or shrunk by up to this factor; 1 switches it off."""
    elastic: float = 0.0
    """Share of patches that are bent as soft tissue is."""
    restain: float = 0.0
    """Share of patches that take on, in part, the colours of any image of the set."""
    stain: float = 0.3
    """Relative spread of the amount of each stain."""
    color: float = 1.0
    """Strength of the brightness, contrast, gamma, hue and saturation changes."""
    fold: float = 0.15
    """Share of patches with an area darkened as a fold or thick tissue is."""
    blur: float = 0.2
    """Share of patches that are put out of focus."""
    jpeg: float = 0.25
    """Share of patches that are compressed again."""

    def without_color(self) -> AugmentOptions:
        """Return the same geometry with the colours, the focus and the compression left alone."""
        return replace(self, restain=0, stain=0, color=0, fold=0, blur=0, jpeg=0)


def draw_patch(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size: int,
    foreground: float,
    options: AugmentOptions,
    looks: Looks = (),
) -> Sample:
    """Cut a random square patch out of a sample and change it.

    Args:
        sample: An image and its mask, of any size; what lies outside is mirrored.
        rng: Source of all randomness.
        size: Width and height of the patch.
        foreground: Share of patches whose centre is sought on a class other than the background.
        options: The changes.
        looks: Those to take on, of each source; none, and patches keep their image's.

    Returns:
        A patch `(size, size, 3)` and its mask `(size, size)`, changed alike, and its soft labels.
    """
    zoom = float(np.exp(rng.uniform(-1, 1) * np.log(options.scale)))
    center = _draw_center(sample.labels, rng, foreground=foreground)
    corner = _draw_corner(sample.labels, center, rng, extent=size / zoom)
    bend = None
    if options.elastic and rng.random() < options.elastic:
        bend = draw_bend(rng, size=size)
    patch = _cut(sample, np.round(corner) if zoom == 1 else corner, size=size, zoom=zoom, bend=bend)
    if options.turns:
        patch = turn(patch, quarter_turns=int(rng.integers(4)), mirrored=bool(rng.integers(2)))
    rgb = patch.rgb
    if looks and sample.look is not None and rng.random() < options.restain:
        rgb = take_on_look(rgb, sample.look, rng, looks=looks)
    return replace(patch, rgb=change_colors(rgb, rng, options=options))


def turn(sample: Sample, *, quarter_turns: int, mirrored: bool) -> Sample:
    """Return a sample turned counter-clockwise and, before that, mirrored left to right."""
    step = -1 if mirrored else 1

    def move(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(np.rot90(pixels[:, ::step], quarter_turns))

    soft = None if sample.soft_labels is None else np.stack([move(plane) for plane in sample.soft_labels])
    return Sample(move(sample.rgb), move(sample.labels), soft)


def take_on_look(
    rgb: NDArray[np.uint8], look: Look, rng: np.random.Generator, *, looks: Looks
) -> NDArray[np.uint8]:
    """Return `rgb` `(h, w, 3)`, cut from an image of a look, on the way to any look of any source.

    Sources are as likely as each other, however many images they have.
    """
    source = looks[int(rng.integers(len(looks)))]
    return change_look(rgb, look, source[int(rng.integers(len(source)))], share=rng.random())


def change_colors(
    rgb: NDArray[np.uint8], rng: np.random.Generator, *, options: AugmentOptions
) -> NDArray[np.uint8]:
    """Return `rgb` `(h, w, 3)` as another laboratory and scanner might have shown it."""
    if options.stain:
        rgb = jitter_stains(rgb, rng, spread=options.stain)
    if rng.random() < options.fold:
        rgb = fold_tissue(rgb, rng)
    if options.color:
        rgb = _jitter_levels(_jitter_hue(rgb, rng, options.color), rng, options.color)
    if rng.random() < options.blur:
        rgb = _blur(rgb, sigma=rng.uniform(0.3, 1.2))
    if rng.random() < options.jpeg:
        rgb = _compress(rgb, quality=int(rng.integers(30, 91)))
    return rgb


def jitter_stains(rgb: NDArray[np.uint8], rng: np.random.Generator, *, spread: float) -> NDArray[np.uint8]:
    """Change how much haematoxylin, eosin and residue there is, and a little what colour each has.

    Stain colour augmentation of Tellez et al. 2018, https://arxiv.org/abs/1808.05896: the patch is split into
    stains, each is multiplied and shifted at random, and they are put together again. All of that is one
    3x3 matrix on optical densities.

    Args:
        rgb: `uint8` `(h, w, 3)`.
        rng: Source of all randomness.
        spread: Relative spread of the factors; shifts are a tenth of it.

    Returns:
        `uint8`, the shape of `rgb`.
    """
    thickness = np.exp(rng.uniform(-spread, spread))
    factors = thickness * rng.uniform(1 - spread, 1 + spread, 3)
    shifts = rng.uniform(-spread, spread, 3) / 10
    mixed = STAINS_OD + rng.normal(0, spread / 6, (3, 3))
    matrix = (np.linalg.inv(STAINS_OD) * factors) @ mixed
    return to_levels(
        DENSITY_OF_LEVEL[rgb] @ matrix.astype(np.float32) + (shifts @ STAINS_OD).astype(np.float32)
    )


def fold_tissue(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Darken large areas with soft borders as if more tissue lay there; nuclei stay the darkest of each.

    Args:
        rgb: `uint8` `(h, w, 3)`.
        rng: Source of all randomness.

    Returns:
        `uint8`, the shape of `rgb`.
    """
    import cv2

    height, width = rgb.shape[:2]
    waves = rng.normal(size=(4, 4)).astype(np.float32)
    field = cv2.resize(waves, (width, height), interpolation=cv2.INTER_CUBIC)
    cover = 1 / (1 + np.exp(-12 * (field - rng.uniform(0.0, 0.8))))
    layers = 1 + rng.uniform(0.4, 1.6) * cover[..., None]
    return to_levels(DENSITY_OF_LEVEL[rgb] * layers)


def _draw_center(
    labels: NDArray[np.uint8], rng: np.random.Generator, *, foreground: float
) -> NDArray[np.float64]:
    """Return `(y, x)`: anywhere, or with the chance `foreground` on a class other than the background.

    Of several such classes each is as likely as the others, however rare it is in the image.
    """
    points = _draw_points(labels, rng, 16)
    if rng.random() < foreground:
        if labels.max() > 1:
            points = _draw_points(labels, rng, RARE_POINTS)
        classes = labels[points[:, 0], points[:, 1]]
        wanted = np.unique(classes[classes > 0])
        if wanted.size:
            index = wanted[0] if wanted.size == 1 else rng.choice(wanted)
            return points[np.argmax(classes == index)] + 0.5
    return points[0] + 0.5


def _draw_points(labels: NDArray[np.uint8], rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    return (rng.random((count, 2)) * labels.shape).astype(int)


def _draw_corner(
    labels: NDArray[np.uint8], center: NDArray[np.float64], rng: np.random.Generator, *, extent: float
) -> NDArray[np.float64]:
    """Return `(y, x)` where a patch of `extent` image pixels begins that shows `center` somewhere.

    It stays inside the image where that is possible.
    """
    free = np.array(labels.shape) - extent
    corner = center - rng.random(2) * extent
    return np.where(free > 0, np.clip(corner, 0, np.maximum(free, 0)), free * rng.random(2))


def draw_bend(rng: np.random.Generator, *, size: int) -> NDArray[np.float32]:
    """Draw the elastic deformation of a patch: a smooth random field of shifts.

    Simard, Steinkraus and Platt 2003, https://doi.org/10.1109/ICDAR.2003.1227801, with control points and
    cubic interpolation between them instead of a field of noise and a Gaussian filter, which costs more.

    Args:
        rng: Source of all randomness.
        size: Width and height of the patch.

    Returns:
        `float32` `(size, size, 2)`: by how many pixels along x and y each pixel looks elsewhere.
    """
    import cv2

    points = 2 + -(-size // ELASTIC_GRAIN_PX)
    spread = rng.uniform(0.2, 1) * ELASTIC_SHIFT_PX
    shifts = rng.normal(0, spread, (points, points, 2)).clip(-2 * spread, 2 * spread).astype(np.float32)
    side = points * ELASTIC_GRAIN_PX
    smooth = cv2.resize(shifts, (side, side), interpolation=cv2.INTER_CUBIC)
    rim = (side - size) // 2  # where points are missing, the field is stiff
    return np.asarray(smooth[rim : rim + size, rim : rim + size], np.float32)


def _cut(
    sample: Sample,
    corner: NDArray[np.float64],
    *,
    size: int,
    zoom: float,
    bend: NDArray[np.float32] | None = None,
) -> Sample:
    """Return the patch that begins at `corner`; what lies outside the image is mirrored."""
    import cv2

    # pixel centres: destination d shows source (d + 0.5) / zoom + corner - 0.5
    (dy, dx) = corner + 0.5 / zoom - 0.5
    back = np.array([[1 / zoom, 0, dx], [0, 1 / zoom, dy]])
    maps = None if bend is None else _place_bend(bend, back)

    def warp(pixels: NDArray[np.uint8], filter_: int) -> NDArray[np.uint8]:
        border = cv2.BORDER_REFLECT_101
        if maps is not None:
            return np.asarray(cv2.remap(pixels, maps[0], maps[1], filter_, borderMode=border), np.uint8)
        flags = filter_ | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(pixels, back, (size, size), flags=flags, borderMode=border), np.uint8
        )

    soft = None
    if sample.soft_labels is not None:
        soft = np.stack([warp(plane, cv2.INTER_LINEAR) for plane in sample.soft_labels])
    return Sample(warp(sample.rgb, cv2.INTER_LINEAR), warp(sample.labels, cv2.INTER_NEAREST), soft)


def _place_bend(bend: NDArray[np.float32], back: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """Return x and y of the place in the image that each pixel of a bent patch shows."""
    steps = np.arange(len(bend), dtype=np.float32)
    axes = (steps[None, :], steps[:, None])
    return [
        ((bend[..., axis] + axes[axis]) * back[axis, axis] + back[axis, 2]).astype(np.float32)
        for axis in (0, 1)
    ]


def _jitter_hue(rgb: NDArray[np.uint8], rng: np.random.Generator, strength: float) -> NDArray[np.uint8]:
    import cv2

    hue, saturation, value = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))
    shift = round(rng.uniform(-8, 8) * strength)  # OpenCV counts hue in steps of two degrees
    hue = ((hue.astype(np.int16) + shift) % 180).astype(np.uint8)
    saturation = cv2.convertScaleAbs(saturation, alpha=float(np.exp(rng.uniform(-0.35, 0.35) * strength)))
    return np.asarray(cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB), np.uint8)


def _jitter_levels(rgb: NDArray[np.uint8], rng: np.random.Generator, strength: float) -> NDArray[np.uint8]:
    """Change contrast and brightness, the gamma, and the balance of the three colours.

    Contrast turns around the mean of the patch, and brightness multiplies: what is dim in a dark image of
    fluorescence does not fall below black.
    """
    contrast, gamma = np.exp(rng.uniform(-0.2, 0.2, 2) * strength)
    brightness = np.exp(rng.uniform(-0.12, 0.12) * strength)
    balance = 1 + rng.uniform(-0.06, 0.06, 3) * strength
    level = np.arange(256)[:, None] / 255.0
    levels = np.clip(level * balance, 0, 1) ** gamma * brightness
    shares = [np.bincount(rgb[..., channel].ravel(), minlength=256) for channel in range(3)]
    mean = np.sum(levels * np.transpose(shares)) / rgb.size
    table = np.clip(np.round(((levels - mean) * contrast + mean) * 255), 0, 255).astype(np.uint8)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=-1)


def _blur(rgb: NDArray[np.uint8], *, sigma: float) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma), np.uint8)


def _compress(rgb: NDArray[np.uint8], *, quality: int) -> NDArray[np.uint8]:
    import cv2

    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])
