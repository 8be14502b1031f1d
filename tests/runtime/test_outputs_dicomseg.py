from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.card import InputSpec, ModelCard, OutputSpec, Tiling
from histoseg.errors import OptionError, OutputError, SlideError
from histoseg.outputs.dicomseg import DicomSegmentation, Maker, check_dicom
from histoseg.outputs.dicomseg.codes import KNOWN, choose_concepts
from histoseg.outputs.dicomseg.frames import BitFrames, pack_tile
from histoseg.slide import ArraySlide, Scale, ScaledSlide, open_slide, plan_scale

COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00ff7f", "#102030")
NAMES = ("background", "nuclei", "Drüse", "tumour", "non-tumour nucleus")
MAKER = Maker("unet.onnx", "ab" * 32)
# rows run down the glass in the first, as scanners have it
ORIENTATIONS = (
    (0.0, -1.0, 0.0, -1.0, 0.0, 0.0),
    (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
)


def make_card(classes: int = 3, background: int = 0) -> ModelCard:
    return ModelCard(
        "unet",
        NAMES[:classes],
        COLORS[:classes],
        0.5,
        (64, 64),
        InputSpec("x", "NHWC", "uint8", "RGB", (None, 64, 64, 3)),
        OutputSpec("y", "NHWC", "softmax", classes),
        Tiling(8, 8, 16),
        "fp32",
        background_index=background,
    )


def blobs(size: tuple[int, int], classes: int = 3, seed: int = 0) -> np.ndarray:
    """Return labels with regions of some pixels."""
    width, height = size
    coarse = np.random.default_rng(seed).integers(0, classes, (height // 9 + 1, width // 9 + 1), np.uint8)
    return np.ascontiguousarray(coarse.repeat(9, axis=0).repeat(9, axis=1)[:height, :width])


def write(
    path: Path, source: Path, scale: Scale, labels: np.ndarray, card: ModelCard, cuts: tuple[int, ...] = ()
) -> Path:
    """Write labels in bands that end at `cuts`."""
    inside = sorted(set(cuts) & set(range(1, len(labels))))
    with open_slide(source) as slide, DicomSegmentation(path, slide, scale, card, MAKER) as sink:
        for top, bottom in zip([0, *inside], [*inside, len(labels)], strict=True):
            sink.add(top, labels[top:bottom])
        sink.close()
    return path


def plan(source: Path, spacing_um_px: float, **options: Any) -> Scale:
    with open_slide(source) as slide:
        return plan_scale(slide, spacing_um_px, tolerance=0.01, **options)


def read_classes(path: Path, card: ModelCard) -> np.ndarray:
    """Return the classes that another reader finds in a segmentation."""
    import highdicom

    found = highdicom.seg.segread(path)
    segments = [i for i in range(len(card.class_names)) if i != card.background_index]
    classes = np.array([card.background_index, *segments], np.uint8)
    return classes[found.get_total_pixel_matrix(combine_segments=True)]


def write_slide(path: Path, rgb: np.ndarray, spacing_mm: tuple[float, float], **elements: Any) -> Path:
    """Write a DICOM slide of one level; `spacing_mm` along x and y."""
    from pydicom import Dataset, FileMetaDataset, dcmwrite

    tile, (height, width) = 16, rgb.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    padded = np.pad(rgb, ((0, rows * tile - height), (0, columns * tile - width), (0, 0)))
    frames = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    origin, measures, groups, slide = Dataset(), Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "23.5", "25.25"
    measures.PixelSpacing = [spacing_mm[1], spacing_mm[0]]
    groups.PixelMeasuresSequence = [measures]
    given = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6",
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.2",
        "FrameOfReferenceUID": "1.2.3.3",
        "PositionReferenceIndicator": "SLIDE_CORNER",
        "Modality": "SM",
        "ContentDate": "20200102",
        "ContentTime": "030405",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "Rows": tile,
        "Columns": tile,
        "NumberOfFrames": rows * columns,
        "TotalPixelMatrixRows": height,
        "TotalPixelMatrixColumns": width,
        "TotalPixelMatrixOriginSequence": [origin],
        "ImageOrientationSlide": list(ORIENTATIONS[0]),
        "DimensionOrganizationType": "TILED_FULL",
        "ImagedVolumeDepth": 4.0,
        "SharedFunctionalGroupsSequence": [groups],
        "PixelData": frames.tobytes(),
    }
    for keyword, value in (given | elements).items():
        if value is not None:
            setattr(slide, keyword, value)
    slide.file_meta = FileMetaDataset()
    slide.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dcmwrite(path, slide, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn DICOM slide of 40 x 30 px at 0.5 x 0.25 um/px."""
    pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    return write_slide(tmp_path_factory.mktemp("small") / "small.dcm", rgb, (0.0005, 0.00025))


@pytest.fixture
def real(shared_data: Path) -> Path:
    """The folder of real slides."""
    pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    return shared_data / "slides"


@pytest.mark.parametrize(
    ("name", "spacing_um_px"),
    [("camelyon-jpeg", 28.97), ("camelyon-jpeg", 70.0), ("sm_image", 0.499), ("sm_image", 1.1)],
)
def test_other_readers_find_the_labels_of_a_real_slide(
    real: Path, tmp_path: Path, name: str, spacing_um_px: float
) -> None:
    import highdicom
    import pydicom

    source = real / f"{name}.dcm"
    scale = plan(source, spacing_um_px)
    labels = blobs(scale.m_size)
    path = write(tmp_path / "segmentation.dcm", source, scale, labels, make_card(), (100, 257))
    np.testing.assert_array_equal(read_classes(path, make_card()), labels)
    found, slide = pydicom.dcmread(path), pydicom.dcmread(source, stop_before_pixels=True)
    assert found.pixel_array.shape == (found.NumberOfFrames, 256, 256)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "ImageOrientationSlide"):
        assert found[keyword].value == slide[keyword].value
    assert found.SeriesInstanceUID != slide.SeriesInstanceUID
    assert highdicom.seg.segread(path).get_source_image_uids() == [
        (slide.StudyInstanceUID, slide.SeriesInstanceUID, slide.SOPInstanceUID)
    ]


@settings(max_examples=25)
@given(
    st.sampled_from([(1, 1), (3, 260), (256, 256), (257, 513), (600, 30), (512, 511)]),
    st.integers(2, 5),
    st.integers(0, 4),
    st.lists(st.integers(1, 520), max_size=5),
    st.integers(0, 9),
)
def test_labels_read_back_and_bytes_do_not_depend_on_the_bands(
    small: Path,
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int],
    classes: int,
    background: int,
    cuts: list[int],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("segmentation")
    card = make_card(classes, background % classes)
    scale = replace(plan(small, 0.5), m_size=size)
    labels = blobs(size, classes, seed)
    path = write(folder / "a.dcm", small, scale, labels, card, tuple(cuts))
    np.testing.assert_array_equal(read_classes(path, card), labels)
    assert path.read_bytes() == write(folder / "b.dcm", small, scale, labels, card).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["a.dcm", "b.dcm"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("spacing_um_px", "mpp"), [(0.5, None), (1.0, None), (1.7, None), (3.0, 1.5)])
def test_every_corner_of_a_pixel_lies_where_the_slide_has_it(
    tmp_path: Path, orientation: tuple[float, ...], spacing_um_px: float, mpp: float | None
) -> None:
    spatial = pytest.importorskip("highdicom", reason="needs histoseg[dicom]").spatial
    import pydicom

    rgb = np.zeros((70, 90, 3), np.uint8)
    source = write_slide(
        tmp_path / "slide.dcm", rgb, (0.0005, 0.00025), ImageOrientationSlide=list(orientation)
    )
    scale = plan(source, spacing_um_px, mpp=mpp)
    path = write(tmp_path / "segmentation.dcm", source, scale, blobs(scale.m_size), make_card())
    # image coordinates begin at the corner of the first pixel; DICOM's origin is its centre
    to_mm = [
        spatial.ImageToReferenceTransformer.for_image(pydicom.dcmread(p), for_total_pixel_matrix=True)
        for p in (source, path)
    ]
    m_corners = np.array([[0.0, 0.0], [1.0, 2.0], [7.5, 3.25], scale.m_size])
    expected, found = to_mm[0](m_corners * scale.l0_per_m), to_mm[1](m_corners)
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("spacing_um_px", [0.5, 1.0, 1.3])
def test_a_labelled_spot_is_where_the_slide_shows_it(tmp_path: Path, spacing_um_px: float) -> None:
    highdicom = pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    import pydicom

    rgb = np.full((240, 320, 3), 255, np.uint8)
    rgb[104:156, 208:260] = 0  # whole pixels at every um/px tried
    source = write_slide(tmp_path / "slide.dcm", rgb, (0.0005, 0.0005))
    scale = plan(source, spacing_um_px)
    with open_slide(source) as slide:
        seen = ScaledSlide(slide, scale).read(0, 0, *scale.m_size)
    labels = (seen[..., 0] < 128).astype(np.uint8)
    path = write(tmp_path / "segmentation.dcm", source, scale, labels, make_card())
    found = highdicom.seg.segread(path)
    spots = rgb[..., 0] == 0, found.get_total_pixel_matrix(combine_segments=True) == 1
    centres = [
        highdicom.spatial.PixelToReferenceTransformer.for_image(
            pydicom.dcmread(p), for_total_pixel_matrix=True
        )(np.argwhere(spot)[:, ::-1])
        for p, spot in zip((source, path), spots, strict=True)
    ]
    distance_mm = np.linalg.norm(centres[0].mean(axis=0) - centres[1].mean(axis=0))
    assert distance_mm < 0.25 * spacing_um_px / 1000


def test_the_finest_level_is_what_it_refers_to(small: Path, tmp_path: Path) -> None:
    import pydicom

    rgb = np.zeros((64, 80, 3), np.uint8)
    kinds = {
        "a_label": (rgb[:30, :30], "1.2.9", ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]),
        "b_coarse": (rgb[::4, ::4], "1.2.10", ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]),
        "c_fine": (rgb, "1.2.11", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
    }
    for name, (pixels, uid, kind) in kinds.items():
        step = 0.0005 * 64 / len(pixels)
        write_slide(tmp_path / f"{name}.dcm", pixels, (step, step), SOPInstanceUID=uid, ImageType=kind)
    (tmp_path / "b_damaged.dcm").write_bytes(small.read_bytes()[:140])
    write_slide(tmp_path / "b_stranger.dcm", rgb, (0.0005, 0.0005), SeriesInstanceUID="1.2.99")
    (tmp_path / "out").mkdir()
    scale = plan(tmp_path / "b_coarse.dcm", 1.0)
    assert scale.m_size == (40, 32)
    results = [
        write(tmp_path / "out" / name, tmp_path / name, scale, blobs((40, 32)), make_card())
        for name in ("b_coarse.dcm", "c_fine.dcm")
    ]
    assert pydicom.dcmread(results[0]).SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.11"
    assert results[0].read_bytes() == results[1].read_bytes()


def test_segments_say_what_they_are_and_who_made_them(small: Path, tmp_path: Path) -> None:
    import highdicom
    import pydicom

    card = make_card(5, background=1)
    card = replace(card, class_names=("a" * 70, "bg", "Drüse", "tumour", "x\\y"))
    scale = plan(small, 0.5)
    found = pydicom.dcmread(write(tmp_path / "s.dcm", small, scale, blobs(scale.m_size, 5), card))
    segments = found.SegmentSequence
    assert [(s.SegmentNumber, s.SegmentLabel) for s in segments] == [
        *((1, "a" * 64), (2, "Drüse"), (3, "tumour"), (4, "x/y"))
    ]
    assert segments[2].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert segments[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    for segment, color in zip(segments, (COLORS[0], *COLORS[2:]), strict=True):
        lab = highdicom.color.CIELabColor.from_dicom_value(list(segment.RecommendedDisplayCIELabValue))
        np.testing.assert_allclose(lab.to_rgb(), list(bytes.fromhex(color[1:])), atol=1)
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmName == MAKER.name
        assert MAKER.sha256 in algorithm.AlgorithmParameters
    assert "Research use only" in found.ContentDescription
    assert (found.SegmentationType, found.DimensionOrganizationType) == ("BINARY", "TILED_FULL")


def test_the_patient_and_the_dates_are_the_slides(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    import pydicom

    source = write_slide(
        tmp_path / "slide.dcm",
        np.zeros((20, 20, 3), np.uint8),
        (0.0005, 0.0005),
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Änne",
        PatientID="7",
    )
    scale = plan(source, 0.5)
    found = pydicom.dcmread(write(tmp_path / "s.dcm", source, scale, blobs((20, 20)), make_card()))
    assert (str(found.PatientName), found.PatientID) == ("Müller^Änne", "7")
    assert (found.ContentDate, found.ContentTime) == ("20200102", "030405")
    assert "InstanceCreationDate" not in found


def test_one_other_pixel_makes_another_instance(small: Path, tmp_path: Path) -> None:
    import pydicom

    scale, labels = plan(small, 0.5), blobs((40, 15))
    assert scale.m_size == (40, 15)
    other = labels.copy()
    other[-1, -1] ^= 1
    found = [
        pydicom.dcmread(write(tmp_path / f"{i}.dcm", small, scale, pixels, make_card()))
        for i, pixels in enumerate((labels, other))
    ]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert found[0][keyword].value != found[1][keyword].value
        assert pydicom.uid.UID(found[0][keyword].value).is_valid
    assert found[0].file_meta.MediaStorageSOPInstanceUID == found[0].SOPInstanceUID


def test_what_is_said_of_each_frame_is_not_read(small: Path, tmp_path: Path) -> None:
    import pydicom

    slide = pydicom.dcmread(small)
    slide.PerFrameFunctionalGroupsSequence = [pydicom.Dataset() for _ in range(slide.NumberOfFrames)]
    slide.save_as(tmp_path / "slide.dcm")
    scale = plan(tmp_path / "slide.dcm", 0.5)
    path = write(tmp_path / "s.dcm", tmp_path / "slide.dcm", scale, blobs(scale.m_size), make_card())
    assert (
        path.read_bytes()
        == write(tmp_path / "t.dcm", small, scale, blobs(scale.m_size), make_card()).read_bytes()
    )


def test_a_slide_without_origin_agrees_with_its_segmentation(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    import pydicom

    source = write_slide(
        tmp_path / "slide.dcm",
        np.zeros((40, 60, 3), np.uint8),
        (0.0005, 0.0005),
        TotalPixelMatrixOriginSequence=None,
    )
    scale = plan(source, 1.0)
    found = pydicom.dcmread(write(tmp_path / "s.dcm", source, scale, blobs(scale.m_size), make_card()))
    origin = found.TotalPixelMatrixOriginSequence[0]
    # half a pixel of the slide further in, down the glass
    assert float(origin.XOffsetInSlideCoordinateSystem) == pytest.approx(-0.00025)
    assert float(origin.YOffsetInSlideCoordinateSystem) == pytest.approx(-0.00025)


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "ImageOrientationSlide"])
def test_a_slide_that_does_not_say_where_it_lies_is_refused(tmp_path: Path, keyword: str) -> None:
    pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    missing: dict[str, Any] = {keyword: None}
    source = write_slide(tmp_path / "slide.dcm", np.zeros((20, 20, 3), np.uint8), (0.0005, 0.0005), **missing)
    with open_slide(source) as slide, pytest.raises(SlideError, match=f"no {keyword}.*leave out --dicom-seg"):
        DicomSegmentation(tmp_path / "s.dcm", slide, plan(source, 0.5), make_card(), MAKER)
    assert not (tmp_path / "s.dcm").exists()


def test_a_header_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    source = write_slide(
        tmp_path / "slide.dcm", np.zeros((20, 20, 3), np.uint8), (0.0005, 0.0005), PatientSex="MAYBE"
    )
    with open_slide(source) as slide, pytest.raises(SlideError, match="MAYBE") as caught:
        DicomSegmentation(tmp_path / "s.dcm", slide, plan(source, 0.5), make_card(), MAKER)
    assert "\n" not in str(caught.value)


def test_more_than_a_file_holds_is_refused_before_the_run(small: Path, tmp_path: Path) -> None:
    scale = replace(plan(small, 0.5), m_size=(200_000, 100_000))
    with open_slide(small) as slide, pytest.raises(OutputError, match=r"5\.0 GB.*at most 4\.2 GB"):
        DicomSegmentation(tmp_path / "s.dcm", slide, scale, make_card(), MAKER)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_an_output_error(small: Path, tmp_path: Path) -> None:
    (tmp_path / "s.dcm").mkdir()
    scale = plan(small, 0.5)
    with pytest.raises(OutputError, match=r"s\.dcm: cannot write the segmentation"):
        write(tmp_path / "s.dcm", small, scale, blobs(scale.m_size), make_card())


def test_a_slide_of_another_kind_is_refused(real_svs: Path) -> None:
    pytest.importorskip("highdicom", reason="needs histoseg[dicom]")
    with open_slide(real_svs) as slide, pytest.raises(SlideError, match=r"cmu-1.*is no DICOM file"):
        check_dicom(slide)
    with pytest.raises(SlideError, match="array: is no DICOM file"):
        check_dicom(ArraySlide(np.zeros((8, 8, 3), np.uint8), 0.5))


def test_a_missing_highdicom_is_named_with_its_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(OptionError, match=r"^--dicom-seg needs highdicom; pip install 'histoseg\[dicom\]'$"):
        check_dicom(ArraySlide(np.zeros((8, 8, 3), np.uint8), 0.5))


@pytest.mark.parametrize(("rows", "columns"), [(256, 256), (1, 256), (256, 1), (100, 77)])
def test_bits_begin_with_the_lowest(rows: int, columns: int) -> None:
    mask = np.random.default_rng(0).random((rows, columns)) < 0.5
    data = pack_tile(mask)
    assert len(data) == 256 * 256 // 8
    for y, x in np.ndindex(16, 16):
        bit = data[(y * 256 + x) // 8] >> (x % 8) & 1
        assert bit == (mask[y, x] if y < rows and x < columns else 0)


def test_frames_lie_segment_by_segment_and_empty_ones_take_no_space(tmp_path: Path) -> None:
    numbers = np.zeros(256, np.uint8)
    numbers[[1, 2]] = 1, 2
    frames = BitFrames(tmp_path, (600, 512), numbers)
    block = np.zeros((256, 600), np.uint8)
    block[:, 520:] = 2
    frames.put(np.zeros_like(block))
    frames.put(block)
    with (tmp_path / "out").open("wb") as file:
        frames.write(file)
    frames.drop()
    data = (tmp_path / "out").read_bytes()[12:]
    assert len(data) == frames.size == 2 * 6 * 8192
    filled = [i for i in range(12) if any(data[i * 8192 : (i + 1) * 8192])]
    assert filled == [11]


def test_known_names_have_codes_that_dicom_knows() -> None:
    pytest.importorskip("pydicom", reason="needs histoseg[dicom]")
    from pydicom.sr.codedict import codes

    def list_concepts(group: Any) -> set[tuple[str, str]]:
        found = (getattr(group, name) for name in group.dir())
        return {(code.value, code.meaning) for code in found}

    parts = {(code.value, code.meaning) for code in (codes.SCT.Nucleus, codes.SCT.Cell)}
    for names, category, kind in KNOWN:
        assert category in list_concepts(codes.cid7150)
        assert kind in list_concepts(codes.cid7191) | list_concepts(codes.cid7194) | parts
        assert all(choose_concepts(name.upper()) == (category, kind) for name in names)


@pytest.mark.parametrize("name", ["non-tumour", "tumour nucleus", "stroma", "", "no nuclei"])
def test_a_name_that_is_not_known_as_a_whole_is_tissue(name: str) -> None:
    assert choose_concepts(name)[1][1] == "Tissue"
