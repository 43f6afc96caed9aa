from earthgate_geo.bench.document import markdown

RESULT = {
    "setting": {"title": "Here to there"},
    "policy": "gate",
    "seed": 3,
    "recipe": {"steps": 100},
    "model": {"name": "tiny"},
    "images": {"source": 10, "target": 20, "test": 30},
    "classes": [
        {"name": "building", "iou_last": 0.5, "iou_best_on_test": 0.625},
        {"name": "road", "iou_last": None, "iou_best_on_test": 0.25},
    ],
    "miou_last": 0.5,
    "miou_best_on_test": 0.4375,
    "mean_f1_last": 0.6,
    "mean_f1_best_on_test": 0.575,
    "accuracy_last": 0.75,
    "accuracy_best_on_test": None,
    "miou_before": 0.375,
    "step_of_best": 50,
    "trained_parameters": 1234567,
    "head_parameters": 2000,
    "peak_memory_mb": 1500,
    "seconds": {"train": 61.25, "select": 2.5, "step": 0.5875, "evaluate": 12.0},
    "published": [],
    "notes": [],
}


def test_the_page_tells_last_and_best_on_test_apart() -> None:
    assert markdown(RESULT) == (
        "# Here to there\n\n"
        "Policy gate, seed 3, 100 steps, model tiny; 10 source images, 20 unlabelled target "
        "images, 30 test images.\n\n"
        "| class | IoU last % | IoU best on test % |\n"
        "| --- | ---: | ---: |\n"
        "| building | 50.0 | 62.5 |\n"
        "| road | - | 25.0 |\n"
        "| **mean** | 50.0 | 43.8 |\n"
        "| mean F1 | 60.0 | 57.5 |\n"
        "| accuracy, all classes | 75.0 | - |\n"
        "| mean before training | 37.5 |  |\n\n"
        "Best on test is step 50, chosen by looking at the test labels.\n\n"
        "| cost | value |\n"
        "| --- | ---: |\n"
        "| trained parameters beside the head | 1,234,567 |\n"
        "| parameters of the head | 2,000 |\n"
        "| peak memory | 1,500 MB |\n"
        "| a step | 0.588 s |\n"
        "| training, of which choosing modules | 61.2 s, 2.5 s |\n"
        "| evaluation | 12.0 s |\n"
    )


def test_a_new_head_has_no_score_before_training() -> None:
    assert "before training" not in markdown(RESULT | {"miou_before": None})


def test_published_results_stand_in_a_table_of_their_own() -> None:
    published = [
        {
            "method": "Frozen",
            "miou_percent": 66.1,
            "rule": "unknown",
            "source": "Table 2",
            "trust": "read",
        }
    ]

    ours, theirs = markdown(RESULT | {"published": published}).split("## Published by others")

    assert "Frozen" not in ours
    assert theirs == (
        "\n\n| method | mIoU % | checkpoint | source | how we know |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| Frozen | 66.1 | unknown | Table 2 | read |\n"
    )


def test_notes_end_the_page() -> None:
    assert markdown(RESULT | {"notes": ["Ours.", "Assumed."]}).endswith("\n\n* Ours.\n* Assumed.\n")


def test_memory_that_nobody_can_tell_is_a_dash() -> None:
    assert "| peak memory | - |" in markdown(RESULT | {"peak_memory_mb": None})
