"""What papers report for the settings, as they print it. No torch.

Averages over settings are left out, and so are rows that a source mislabels or contradicts, or
that lie near chance and were put down to failed optimisation later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Rule = Literal["best on test", "last", "unknown"]
"""Which checkpoint was scored. "best on test" looked at the test labels to choose it."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A result that a paper reports for a setting."""

    method: str
    """Name of the method."""

    miou_percent: float
    """Mean IoU as printed; our own scores are shares, 0..1."""

    classes_percent: tuple[float, ...] | None = None
    """IoU by class, in the setting's order; None where it is not reported."""

    source: str
    """Paper and table."""

    trust: str
    """How the number came to us."""

    rule: Rule = "unknown"
    """Which checkpoint of the run it belongs to."""


@dataclass(frozen=True, kw_only=True)
class _Table:
    settings: tuple[str, ...]
    rows: Mapping[str, Sequence[float | None]]
    """Mean IoU in percent by method, of each setting; None where it is unknown or contradicted."""

    source: str
    trust: str
    rule: Rule = "unknown"


_PICTURE = "transcribed by eye from a picture of the table"
_NOTE = "from a third party's note on the paper; agrees with the averages of a second note"
_LOGS = "computed from the authors' training logs, one seed"
_OCR = "from the text of the paper as OCR reads it"

_CROSSEARTH = "CrossEarth, arXiv:2410.22629"
_ADAPTER = "Earth-Adapter, arXiv:2504.06220"
_GATE = "CrossEarth-Gate, arXiv:2511.20302"
_MFNET = "MFNet, arXiv:2410.11160 v2"

_ISPRS = ("dg-pi2v", "dg-v2pi", "dg-pr2pi", "dg-pi2pr", "dg-pr2v", "dg-v2pr")
_DA = ("da-p2v", "da-v2p", "da-r2u", "da-u2r")
_DG = ("dg-pr2v", "dg-v2pr", "dg-r2u", "dg-u2r")
_CASID = ("dg-sub2tem", "dg-sub2tms", "dg-sub2trf", "dg-tem2sub", "dg-tem2tms", "dg-tem2trf")

_TABLES = (
    _Table(
        settings=_ISPRS,
        rows={
            "DAFormer": (54.4, 47.6, 72.1, 70.2, 32.6, 31.7),
            "HRDA": (54.7, 53.3, 69.5, 70.0, 33.4, 35.7),
            "MTP": (62.6, 48.3, 64.5, 71.0, 31.1, 48.6),
            "Rein": (60.3, 57.6, 76.3, 69.2, 56.1, 50.6),
            "CrossEarth": (67.5, 58.2, 77.8, 76.0, 61.9, 52.7),
        },
        source=f"{_CROSSEARTH}, Potsdam and Vaihingen",
        trust=f"{_PICTURE}; a later project prints the same",
    ),
    _Table(
        settings=("dg-u2r", "dg-r2u"),
        rows={
            "DAFormer": (40.8, 51.6),
            "HRDA": (42.1, 52.6),
            "MTP": (44.0, 54.5),
            "Rein": (45.6, 57.7),
            "CrossEarth": (46.6, 57.9),
        },
        source=f"{_CROSSEARTH}, LoveDA",
        trust="as the README of a later project, SSE, prints it",
    ),
    _Table(
        settings=("dg-pi2v", "dg-pr2v", "dg-v2pi", "dg-v2pr", "dg-u2r", "dg-r2u"),
        rows={
            "CDG": (68.1, 62.9, 59.4, 52.4, 46.1, 55.5),
            "SSE": (70.3, 68.1, 63.0, 60.5, 47.3, 58.3),
        },
        source="README of the project SSE, fangyiwei98/SSE",
        trust="its authors' own figures, not reviewed",
    ),
    _Table(
        settings=_CASID,
        rows={
            "Frozen": (43.1, 63.4, 58.8, 66.9, 64.8, 59.0),
            "CrossEarth-Gate": (50.1, 66.6, 65.2, 68.0, 67.0, 60.3),
        },
        source=f"{_GATE}, CASID",
        trust=_NOTE,
    ),
    _Table(
        settings=_CASID[:3],
        rows={
            "CrossEarth-Gate without spatial modules": (47.9, 60.3, 61.9),
            "CrossEarth-Gate without semantic modules": (51.3, 66.6, 60.2),
            "CrossEarth-Gate without frequency modules": (51.4, 57.6, 63.4),
            "CrossEarth-Gate without selection": (48.0, 61.8, 63.5),
        },
        source=f"{_GATE}, ablation of components",
        trust=_NOTE,
    ),
    _Table(
        settings=("dg-pr2res", "dg-pi2res"),
        rows={"CrossEarth-Gate": (60.1, 58.6)},
        source=f"{_GATE}, disaster scenes",
        trust="from a third party's note on the paper, whose other cells contradict each other",
    ),
    _Table(
        settings=_DA,
        rows={
            "Frozen": (66.1, 59.2, 54.9, 45.5),
            "Full tuning": (62.4, 59.6, 42.6, 35.8),
            "LoRA": (None, 62.4, None, None),
            "Earth-Adapter": (67.1, 61.6, 56.0, 47.5),
            "CrossEarth-Gate": (68.2, 62.4, 56.5, 49.1),
        },
        source=f"{_GATE}, domain adaptation",
        trust="from a third party's note on the paper; its averages are right",
    ),
    _Table(
        settings=_DA,
        rows={
            "DAFormer": (64.4, 54.8, 52.7, 42.5),
            "HRDA": (67.6, 58.6, 53.2, 35.3),
            "Adapter": (66.4, 59.3, 55.9, 46.2),
            "VPT": (66.2, 59.3, 55.3, 48.0),
            "Rein": (60.2, 60.9, 52.8, None),
        },
        source=f"{_ADAPTER}, domain adaptation",
        trust=_PICTURE,
    ),
    _Table(
        settings=_DG,
        rows={
            "DAFormer": (42.4, 41.4, 54.2, 39.9),
            "HRDA": (33.1, 31.1, 54.2, 39.8),
            "Frozen": (57.9, 49.4, 57.1, 42.7),
            "Adapter": (56.0, 47.4, 57.6, 41.8),
            "VPT": (59.2, 52.3, 57.4, 44.9),
            "Rein": (60.8, 52.5, 55.8, 43.4),
        },
        source=f"{_ADAPTER}, domain generalisation, all on 512 px patches",
        trust=_PICTURE,
    ),
    _Table(
        settings=(*_DA, *_DG),
        rows={"Earth-Adapter": (67.7, 62.2, 55.9, 50.0, 64.9, 55.1, 59.0, 45.7)},
        source=f"{_ADAPTER}, main results, all on 512 px patches",
        trust=f"{_PICTURE}; the authors' logs show the best of 10 evaluations on the test split",
        rule="best on test",
    ),
    _Table(
        settings=(*_DA, *_DG),
        rows={"Earth-Adapter": (66.5, 55.8, 55.6, 47.8, 59.7, 52.5, 57.7, 45.2)},
        source=f"{_ADAPTER}, training logs, all on 512 px patches",
        trust=_LOGS,
        rule="last",
    ),
    _Table(
        settings=("fuse-vaihingen", "fuse-potsdam", "fuse-hunan"),
        rows={
            "MFNet MMLoRA ViT-B": (82.09, 84.61, 46.54),
            "MFNet MMLoRA ViT-L": (83.96, 85.71, None),
            "MFNet MMLoRA ViT-H": (84.66, 86.34, 47.63),
            "MFNet MMAdapter ViT-B": (83.24, 85.14, 49.20),
            "MFNet MMAdapter ViT-L": (84.72, 86.37, 51.82),
            "MFNet MMAdapter ViT-H": (85.03, 86.69, 51.08),
        },
        source=f"{_MFNET}, comparison on the three datasets",
        trust=f"{_OCR}; the paper keeps the best of 50 evaluations on the test tiles",
        rule="best on test",
    ),
    _Table(
        settings=("fuse-vaihingen",),
        rows={
            "image alone, no tuning, ViT-L": (75.11,),
            "image alone, LoRA, ViT-L": (82.74,),
            "image alone, Adapter, ViT-L": (83.69,),
        },
        source=f"{_MFNET}, modalities and tuning",
        trust=f"{_OCR}; the paper keeps the best of 50 evaluations on the test tiles",
        rule="best on test",
    ),
    _Table(
        settings=("fuse-vaihingen", "fuse-potsdam", "fuse-hunan"),
        rows={
            "PSPNet": (76.96, 80.36, None),
            "MAResU-Net": (79.89, 83.61, None),
            "UNetFormer": (81.97, 85.05, None),
            "RS3Mamba": (82.78, 85.01, None),
            "TransUNet": (78.26, 83.74, None),
            "FuseNet": (78.71, 84.86, 42.30),
            "vFuseNet": (78.92, 84.26, None),
            "ESANet": (79.42, 84.15, None),
            "SA-GATE": (81.27, 82.53, None),
            "CMFNet": (81.44, 85.63, 46.52),
            "MFTransNet": (81.61, 84.04, 48.25),
            "CMGFNet": (82.26, 84.53, 49.44),
            "FTransDeepLab": (83.87, 85.62, 49.66),
            "FTransUNet": (84.23, 86.20, 48.78),
            "MultiSenseSeg": (84.53, 86.10, 50.76),
        },
        source=f"{_MFNET}, comparison on the three datasets",
        trust=_OCR,
    ),
)

_CLASSES: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("dg-pi2v", "CrossEarth"): (83.6, 91.7, 63.8, 70.2, 59.5, 36.3),
    ("dg-v2pi", "CrossEarth"): (77.1, 80.8, 61.3, 38.9, 82.9, 8.4),
    ("dg-pr2pi", "CrossEarth"): (86.1, 91.5, 73.8, 79.7, 91.9, 43.8),
    ("dg-pi2pr", "CrossEarth"): (86.3, 93.5, 73.8, 74.0, 91.2, 37.2),
    ("dg-pr2v", "CrossEarth"): (78.1, 89.3, 55.2, 72.5, 61.9, 14.5),
    ("dg-v2pr", "CrossEarth"): (72.5, 73.6, 58.7, 22.4, 81.1, 7.6),
    ("dg-pi2v", "Rein"): (79.4, 90.4, 54.0, 71.5, 53.6, 13.0),
    ("dg-v2pi", "Rein"): (75.9, 86.5, 60.6, 37.9, 80.6, 4.3),
    ("dg-pr2pi", "Rein"): (86.6, 93.4, 73.1, 77.7, 91.3, 35.8),
    ("dg-pi2pr", "Rein"): (82.2, 93.2, 58.5, 70.0, 87.8, 23.7),
    ("dg-pr2v", "Rein"): (79.1, 91.2, 37.0, 62.2, 61.1, 5.7),
    ("dg-v2pr", "Rein"): (70.4, 77.4, 58.6, 13.9, 78.5, 4.4),
    ("dg-u2r", "CrossEarth"): (57.5, 61.5, 48.5, 65.6, 9.6, 25.4, 58.2),
    ("dg-r2u", "CrossEarth"): (39.8, 63.3, 57.3, 75.9, 51.8, 55.0, 62.5),
}
"""IoU in percent by class of what CrossEarth's own tables report, by setting and method."""


def published(setting: str) -> tuple[Published, ...]:
    """Return what papers report for a setting, by its name, in the order of the tables."""
    return tuple(
        Published(
            method=method,
            miou_percent=miou,
            classes_percent=_CLASSES.get((setting, method))
            if table.source.startswith(_CROSSEARTH)
            else None,
            source=table.source,
            trust=table.trust,
            rule=table.rule,
        )
        for table in _TABLES
        if setting in table.settings
        for method, values in table.rows.items()
        if (miou := values[table.settings.index(setting)]) is not None
    )
