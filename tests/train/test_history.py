from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from histoseg.errors import OutputError
from histoseg_train.history import Epoch, draw_learning_curve, write_history
from histoseg_train.tensorboard import open_events


def make_epochs(count: int, *, sources: int = 2) -> list[Epoch]:
    return [
        Epoch(
            number=number,
            seconds=10.0 * number,
            learning_rate=0.01 / number,
            loss=1 / number,
            val_loss=1.2 / number,
            val_dice=1 - 1 / (number + 1),
            val_miou=math.nan if number == 1 else 0.5,
            per_source={f"s{index}": 0.5 for index in range(sources)},
            is_best=number < 3,
        )
        for number in range(1, count + 1)
    ]


def count_orange(path: Path) -> int:
    """Return the pixels of the held-out loss: its line, and a sample in the legend."""
    blue, green, red = np.moveaxis(cv2.imread(str(path)).astype(int), -1, 0)
    return int(((red > 200) & (green > 80) & (green < 180) & (blue < 80)).sum())


def test_one_epoch_is_seen(tmp_path: Path) -> None:
    (one,) = make_epochs(1)
    draw_learning_curve(tmp_path / "one.png", [one])
    draw_learning_curve(tmp_path / "none.png", [replace(one, val_loss=math.nan)])
    assert 0 < count_orange(tmp_path / "none.png") < count_orange(tmp_path / "one.png") - 10


def test_history_holds_every_epoch(tmp_path: Path) -> None:
    write_history(tmp_path / "h.csv", make_epochs(3))
    rows = list(csv.DictReader((tmp_path / "h.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["val_loss"]) for row in rows] == [1.2, 0.6, 0.4]
    assert rows[0]["val_miou"] == "nan"
    assert {"val_dice_s0", "val_dice_s1"} < rows[0].keys()


def test_tensorflow_reads_the_events(tmp_path: Path) -> None:
    """TensorFlow's own reader refuses a record whose checksum is wrong."""
    epochs = make_epochs(3, sources=1)
    with open_events(tmp_path / "new" / "folder") as add:
        for epoch in epochs:
            add(epoch)
    (path,) = (tmp_path / "new" / "folder").iterdir()
    records = [tf.compat.v1.Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    seen = {
        (value.tag, record.step): value.simple_value for record in records for value in record.summary.value
    }
    for epoch in epochs:
        assert seen["loss/held_out", epoch.number] == np.float32(epoch.val_loss)
        assert seen["dice_of_source/s0", epoch.number] == 0.5
        assert (("held_out/mean_iou", epoch.number) in seen) == math.isfinite(epoch.val_miou)


def test_events_need_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another"), open_events(tmp_path / "file"):
        pass
