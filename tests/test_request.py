from pathlib import Path

import pytest
from rasters import write_raster

from earthgate_geo.errors import InputError
from earthgate_geo.recipe import Dacs, Recipe, Selection
from earthgate_geo.request import AdaptRequest, MapRequest, TrainRequest


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


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InputError) as refusal:
        AdaptRequest(src="s.tif", policy="magic").check()

    assert str(refusal.value) == (
        "the policy 'magic'; expected gate, all, spatial, semantic, frequency, rein, head-only, "
        "full, random-k, fixed-k, grad-norm-k, matched-all."
    )


def test_a_training_is_as_the_papers_have_it_unless_told() -> None:
    alone = TrainRequest(data=Path("d"), out=Path("m.safetensors"))
    with_target = TrainRequest(data=Path("d"), out=Path("m.safetensors"), target=Path("t"))
    told = TrainRequest(
        data=Path("d"), out=Path("m.safetensors"), batch=3, interval=7, modules=0.5, steps=9
    )

    assert alone.recipe() == Recipe()
    assert with_target.recipe() == Recipe(
        batch=2, target_batch=2, selection=Selection(interval=50), dacs=Dacs()
    )
    assert told.recipe() == Recipe(batch=3, steps=9, selection=Selection(interval=7, share=0.5))
