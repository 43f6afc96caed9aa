from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rasterio.enums import ColorInterp
from rasters import RasterSpec, write_raster
from safetensors.torch import save_file
from workplace import files

from earthgate_geo import __version__
from earthgate_geo.data.style import StatisticsStyle, build_bank
from earthgate_geo.data.style_networks import _Predictor, _Transformer
from earthgate_geo.errors import CancelledError, DataError, InputError, OutputError
from earthgate_geo.jobs.inventory import describe
from earthgate_geo.jobs.styles import plan_styles, run_styles
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.style_file import load_bank
from earthgate_geo.styles_request import StylesRequest

REQUEST = StylesRequest(data=Path("images"), out=Path("styles.safetensors"))


class Watch(SilentMonitor):
    """Remembers what it was told, and cancels after a part."""

    def __init__(self, *, last=None) -> None:
        self.last, self.done, self.warnings, self.stages = last, [], [], []

    def stage(self, name, total) -> None:
        self.stages.append((name, total))

    def update(self, done) -> None:
        self.done.append(done)
        if done == self.last:
            raise CancelledError

    def warn(self, message) -> None:
        self.warnings.append(message)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder with images of three sizes, in several folders."""
    monkeypatch.chdir(tmp_path)
    Path("images/deep/er").mkdir(parents=True)
    for index, (name, side_px) in enumerate({"a": 64, "deep/b": 40, "deep/er/c": 600}.items()):
        spec = RasterSpec(rows=side_px, cols=side_px, seed=index)
        write_raster(Path(f"images/{name}.tif"), spec)
    return tmp_path


def test_a_bank_holds_the_styles_of_all_images_and_folders_below(place):
    watch = Watch()

    document = run_styles(REQUEST, watch)

    bank = load_bank(Path("styles.safetensors"))
    assert bank.count == document["styles"] == document["parts"] == 6
    assert (document["files"], document["unusable"]) == (3, {})
    assert document["outputs"] == {"styles": "styles.safetensors"}
    assert watch.stages == [("styles", 6)]
    assert watch.done == [1, 2, 3, 4, 5, 6]
    assert watch.warnings == []
    assert files(place) - {"styles.safetensors"} == {
        str(Path("images", name))
        for name in (".", "a.tif", "deep", "deep/b.tif", "deep/er", "deep/er/c.tif")
    }


def test_images_are_scaled_by_their_own_percentiles_as_in_training(place):
    grey = np.random.default_rng(0).integers(2000, 3000, (1, 64, 64)).astype(np.uint16)
    for name in ("x", "y"):
        write_raster(Path(f"{name}.tif"), RasterSpec(bands=1), values=grey)
    Path("grey").mkdir()
    for name in ("x", "y"):
        Path(f"{name}.tif").rename(f"grey/{name}.tif")

    run_styles(replace(REQUEST, data=Path("grey")), SilentMonitor())

    low, high = np.percentile(grey, (1, 99))
    scaled = ((grey - low) / (high - low)).clip(0, 1).repeat(3, 0).astype(np.float32)
    wanted = build_bank(StatisticsStyle(), [torch.from_numpy(scaled)] * 2)
    torch.testing.assert_close(load_bank(REQUEST.out).mean, wanted.mean, atol=1e-4, rtol=0)


def test_a_limit_takes_from_every_image_before_it_takes_more_of_one(place):
    documents = [plan_styles(replace(REQUEST, limit=limit), SilentMonitor()) for limit in (2, 3, 4)]

    assert [document["parts"] for document in documents] == [2, 3, 4]
    assert [document["files"] for document in documents] == [2, 3, 3]


def test_a_bank_repeats_with_its_seed_and_another_seed_looks_elsewhere(place):
    digests = [
        run_styles(replace(REQUEST, limit=4, seed=seed, overwrite=True), SilentMonitor())["digest"]
        for seed in (0, 0, 1)
    ]

    assert digests[0] == digests[1] != digests[2]


def test_files_that_cannot_be_used_are_named_in_one_warning(place):
    Path("images/d.tif").write_bytes(b"no raster")
    write_raster(Path("images/e.tif"), RasterSpec(rows=20))
    write_raster(
        Path("images/f.tif"), RasterSpec(bands=4, interpretation=[ColorInterp.undefined] * 4)
    )
    write_raster(Path("images/g.tif"), RasterSpec(nodata=0), values=np.zeros((3, 64, 64), np.uint8))
    watch = Watch()

    document = run_styles(REQUEST, watch)

    bad = Path("images/d.tif")
    assert watch.warnings == [
        (
            f"4 of the files cannot be used: d.tif, e.tif, f.tif and 1 more. {bad} cannot be "
            "opened as a raster; expected a file that GDAL reads, such as GeoTIFF, VRT or JPEG "
            f"2000. See what gdalinfo says about it: gdalinfo {bad}."
        )
    ]
    names = [Path(path).name for path in document["unusable"]]
    assert names == ["d.tif", "e.tif", "f.tif", "g.tif"]
    assert (document["files"], document["styles"]) == (3, 6)


def test_the_published_networks_pass_over_images_that_only_statistics_can_read(place):
    torch.save(_Predictor().state_dict(), "predictor.pth")
    torch.save(_Transformer().state_dict(), "transformer.pth")
    Path("images/deep/er/c.tif").unlink()
    for name, side_px in {"d": 75, "e": 80}.items():
        write_raster(Path(f"images/{name}.tif"), RasterSpec(rows=side_px, cols=side_px))
    request = replace(REQUEST, predictor=Path("predictor.pth"), transformer=Path("transformer.pth"))

    document = run_styles(request, SilentMonitor())

    a, b = Path("images/a.tif"), Path("images/deep/b.tif")
    assert (document["style"], document["styles"]) == ("published", 2)
    assert document["unusable"] == {
        str(a): f"{a} is 64 x 64 px; expected 75 px or more.",
        str(b): f"{b} is 40 x 40 px; expected 75 px or more.",
    }


def test_a_bank_says_what_made_it_and_of_which_images_but_not_where_they_lie(place):
    digest = run_styles(replace(REQUEST, data=Path("images").resolve(), seed=3), SilentMonitor())[
        "digest"
    ]

    assert describe("styles.safetensors") == {
        "what": "styles",
        "file": "styles.safetensors",
        "digest": digest,
        "style": "statistics",
        "bands": 3,
        "images": 6,
        "provenance": {
            "earthgate": __version__,
            "data": "images",
            "files": 3,
            "part_px": 512,
            "seed": 3,
        },
    }


def test_a_bank_that_cannot_be_used_is_refused_as_a_bank(place):
    save_file({"mean": torch.zeros(1)}, "odd.safetensors", {"earthgate-styles": '{"version": 9}'})

    with pytest.raises(DataError) as refused:
        describe("odd.safetensors")

    assert str(refused.value) == (
        "odd.safetensors has format version 9; expected version 1. Build it again."
    )


def test_labels_companions_maps_and_hidden_files_are_no_images(place):
    Path("images/labels").mkdir()
    Path("images/.hidden").mkdir()
    for name in ("labels/a", "a_labels", "a_truth", "a_DSM", ".hidden/a"):
        write_raster(Path(f"images/{name}.tif"), RasterSpec(bands=1))
    tags = {"EARTHGATE_CLASSES": "[]"}
    write_raster(Path("images/map.tif"), RasterSpec(bands=1, tags=tags))
    Path("images/readme.txt").write_text("no image")
    watch = Watch()

    document = plan_styles(REQUEST, watch)

    assert (document["files"], document["unusable"], watch.warnings) == (3, {}, [])


def test_parts_with_gaps_are_left_out_and_small_gaps_take_the_mean_colour(place):
    values = np.random.default_rng(0).integers(1, 255, (3, 64, 64)).astype(np.uint8)
    for share, name in ((0.5, "half"), (0.05, "dots")):
        holes = np.random.default_rng(1).random((64, 64)) < share
        write_raster(
            Path(f"images/{name}.tif"), RasterSpec(nodata=0), values=np.where(holes, 0, values)
        )

    document = run_styles(REQUEST, SilentMonitor())

    assert (document["files"], document["parts"], document["styles"]) == (5, 8, 7)
    assert load_bank(REQUEST.out).mean.isfinite().all()


def test_a_plan_writes_nothing(place):
    before = files(place)

    document = plan_styles(REQUEST, SilentMonitor())

    assert (document["style"], document["part_px"], document["parts"]) == ("statistics", 512, 6)
    assert files(place) == before


def test_a_cancelled_run_leaves_nothing_behind(place):
    before = files(place)

    with pytest.raises(CancelledError):
        run_styles(REQUEST, Watch(last=2))

    assert files(place) == before


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"data": Path("none")}, InputError, "none is not a folder; expected a folder of images."),
        (
            {"predictor": Path("p.pth")},
            InputError,
            (
                "one of --predictor and --transformer; expected both, or neither for styles "
                "without networks."
            ),
        ),
        (
            {"out": Path("styles.pth")},
            OutputError,
            "styles.pth for the styles; expected a name ending in .safetensors.",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(place, changes, kind, sentence):
    with pytest.raises(kind) as refused:
        run_styles(replace(REQUEST, **changes), SilentMonitor())

    assert str(refused.value) == sentence


def test_a_folder_without_images_is_refused_with_the_first_reason(place):
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/a.tif").write_bytes(b"")
    expected = "rasters that GDAL reads, with red, green and blue or one grey band"
    sentences = []

    for folder in ("empty", "bad"):
        with pytest.raises(DataError) as refused:
            plan_styles(replace(REQUEST, data=Path(folder)), SilentMonitor())
        sentences.append(str(refused.value))

    reason = f"{Path('bad/a.tif')} is empty (0 bytes); expected a raster file. Copy it again"
    assert sentences == [
        f"empty holds no image that can be used; expected {expected}.",
        f"bad holds no image that can be used ({reason}); expected {expected}.",
    ]
