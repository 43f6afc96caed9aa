import threading

import pytest

from earthgate_geo.errors import CancelledError
from earthgate_geo.jobs.together import AT_ONCE, done_together
from earthgate_geo.monitor import SilentMonitor


class Diary(SilentMonitor):
    """Writes down what it is told; may cancel once some scenes are done."""

    def __init__(self, *, cancel_at: int | None = None) -> None:
        self.told: list[object] = []
        self._cancel_at = cancel_at

    def stage(self, name: str, total: int) -> None:
        self.told.append((name, total))

    def update(self, done: int) -> None:
        self.told.append(done)
        if done == self._cancel_at:
            raise CancelledError

    def warn(self, message: str) -> None:
        self.told.append(message)


def test_all_scenes_are_done_and_counted_and_their_words_come_through() -> None:
    diary = Diary()

    def work(scene, monitor):
        monitor.stage("map", 99)
        monitor.update(1)
        monitor.warn(f"look at {scene}")
        return -scene

    found = list(done_together(range(10), work, monitor=diary))

    assert sorted(found) == list(range(-9, 1))
    assert [entry for entry in diary.told if not isinstance(entry, str)] == [
        ("map", 10),
        *range(1, 11),
    ]
    assert sorted(entry for entry in diary.told if isinstance(entry, str)) == [
        f"look at {scene}" for scene in range(10)
    ]


def test_several_scenes_are_worked_on_at_a_time() -> None:
    together = threading.Barrier(AT_ONCE)

    def work(scene, monitor):
        together.wait(timeout=30)  # none goes on before all have come
        return scene

    assert len(list(done_together(range(AT_ONCE), work, monitor=SilentMonitor()))) == AT_ONCE


@pytest.mark.parametrize("stop", ["error", "cancel"])
def test_after_a_stop_no_scene_is_begun_and_those_at_work_end(stop) -> None:
    begun, ended = [], []

    def work(scene, monitor):
        begun.append(scene)
        if scene == 0:
            if stop == "error":
                raise MemoryError
            return scene
        while True:  # until the monitor ends it
            try:
                monitor.update(1)
            except CancelledError:
                ended.append(scene)
                raise

    diary = Diary(cancel_at=1)
    with pytest.raises(MemoryError if stop == "error" else CancelledError):
        list(done_together(range(50), work, monitor=diary))

    assert len(begun) <= 2 * AT_ONCE
    assert sorted(ended) == sorted(set(begun) - {0})
