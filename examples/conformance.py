"""Keep docs/embedding.md with NumPy, onnxruntime and nothing of histoseg; check it against a bundle.

    histoseg-export model.keras --conformance bundle
    python examples/conformance.py bundle

Written to be read by whoever ports it to C++ or C#. Research use only.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def main(bundle: Path) -> int:
    """Run the model of a bundle in three steps, and compare each with what the bundle holds."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["histoseg"])
    expected = json.loads((bundle / "conformance.json").read_text())
    slide = equalize(read_png(bundle / "slide.png"), card["input"].get("equalization"))
    limits, passed = expected["tolerances"], True
    for tile in expected["tiles"]:
        rgb = cut_tile(slide, tile["x"], tile["y"], card["patch_size_pixels"])
        passed &= say("tile pixels differ", (rgb != read_png(bundle / tile["input"])).sum(), 0)
        off = np.abs(run_tile(session, card, rgb) - read_floats(bundle, tile["output"])).max()
        passed &= say("tile probability off by", off, limits["tile_probability"])
    stitched, labels = segment(session, card, slide)
    off = np.abs(stitched - read_floats(bundle, expected["stitched"]["probabilities"])).max()
    passed &= say("stitched probability off by", off, limits["stitched_probability"])
    truth = cv2.imread(str(bundle / expected["stitched"]["labels"]), cv2.IMREAD_UNCHANGED)
    wrong = np.mean(labels != truth)
    passed &= say("share of labels that differ", wrong, 1 - limits["labels_equal"])
    return 0 if passed else 1


def segment(session, card, slide):
    """Return stitched probabilities `(h, w, classes)` and labels `(h, w)` of a slide at the model's um/px."""
    height, width = slide.shape[:2]
    total = np.zeros((height, width, len(card["class_names"])))
    weight = np.zeros((height, width, 1))
    tile_width, tile_height = card["patch_size_pixels"]
    columns = lay_tiles(width, tile_width, card["tiling"])
    rows = lay_tiles(height, tile_height, card["tiling"])
    for y, (y0, y1), wy in rows:
        for x, (x0, x1), wx in columns:
            probabilities = run_tile(session, card, cut_tile(slide, x, y, card["patch_size_pixels"]))
            window = np.outer(wy, wx)[..., None]
            total[y0:y1, x0:x1] += window * probabilities[y0 - y : y1 - y, x0 - x : x1 - x]
            weight[y0:y1, x0:x1] += window
    mean = total / weight
    threshold = card["output"]["threshold"]
    return mean, mean.argmax(axis=-1) if threshold is None else mean[..., 1] >= threshold


def lay_tiles(length, tile, tiling):
    """Return start, write range and weights of each tile along one axis."""
    halo, stride = tiling["halo_px"], tiling["stride_multiple"]
    step = (tile - tiling["overlap_px"]) // stride * stride
    lead = -(-halo // stride) * stride
    count = 1 + max(0, -(-(length - (tile - lead - halo)) // step))
    fade = tile - 2 * halo - step
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / max(fade, 1))
    places = []
    for index in range(count):
        weights = np.ones(tile - 2 * halo)
        if index > 0:
            weights[:fade] = ramp
        if index < count - 1:
            weights[len(weights) - fade :] *= 1 - ramp
        start = index * step - lead
        begin, end = max(0, start + halo), min(length, start + tile - halo)
        places.append((start, (begin, end), weights[begin - start - halo : end - start - halo]))
    return places


def cut_tile(slide, x, y, size):
    """Return a tile; what lies outside the slide mirrors what lies inside."""
    rows = mirror(np.arange(y, y + size[1]), slide.shape[0])
    columns = mirror(np.arange(x, x + size[0]), slide.shape[1])
    return slide[rows][:, columns]


def mirror(places, length):
    """Return places inside `length`; the border pixel itself is not repeated."""
    period = max(2 * (length - 1), 1)
    places = np.abs(places) % period
    return np.minimum(places, period - places) if length > 1 else places * 0


def run_tile(session, card, rgb):
    """Return probabilities `(h, w, classes)` of uint8 RGB `(h, w, 3)`; one channel is that of class 1."""
    (values,) = session.run([card["output"]["name"]], {card["input"]["name"]: rgb[None]})
    values = values[0].astype(np.float64)
    return values if values.shape[-1] > 1 else np.concatenate([1 - values, values], axis=-1)


def equalize(slide, options):
    """Return a slide with its lightness equalised in cells from its corner."""
    if options is None:
        return slide
    cell, (height, width) = options["cell_px"], slide.shape[:2]
    lab = cv2.cvtColor(slide, cv2.COLOR_RGB2LAB)
    whole = cv2.copyMakeBorder(lab[..., 0], 0, -height % cell, 0, -width % cell, cv2.BORDER_REFLECT_101)
    cells = whole.shape[1] // cell, whole.shape[0] // cell
    lab[..., 0] = cv2.createCLAHE(options["clip_limit"], cells).apply(whole)[:height, :width]
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def read_png(path):
    """Return uint8 RGB."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def read_floats(bundle, entry):
    """Return what a raw file holds."""
    return np.fromfile(bundle / entry["file"], entry["dtype"]).reshape(entry["shape"])


def say(words, found, limit):
    """Print one comparison and return whether it holds."""
    print(f"{'ok  ' if found <= limit else 'FAIL'} {words} {found:.3g}, at most {limit:.3g}")
    return bool(found <= limit)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
