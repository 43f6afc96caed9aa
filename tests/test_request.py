from pathlib import Path

import pytest
from rasters import write_raster

from earthgate_geo.request import AdaptRequest, MapRequest


def test_companions_are_named_after_the_map() -> None:
    request = MapRequest(src="s.tif", dst=Path("out/m.tif"), confidence=True, probs=True)

    assert request.outputs() == {
        "map": Path("out/m.tif"),
        "confidence": Path("out/m_conf.tif"),
        "probs": Path("out/m_probs.tif"),
    }


@pytest.mark.parametrize(
    ("dst", "out", "adapter"),
    [
        (None, None, "town.adapter.safetensors"),
        (Path("out/m.tif"), None, "out/town.adapter.safetensors"),
        (Path("out/m.tif"), Path("a.safetensors"), "a.safetensors"),
    ],
)
def test_the_adapter_file_lies_beside_the_map_unless_told(dst, out, adapter) -> None:
    request = AdaptRequest(src="data/town.tif", dst=dst, out=out)

    assert request.outputs()["adapter"] == Path(adapter)


def test_a_check_touches_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(Path("s.tif"))

    AdaptRequest(src="s.tif", dst=Path("m.tif"), report=Path("r.html")).check()

    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"]
