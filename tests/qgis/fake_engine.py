#!/usr/bin/python3
"""Stands in for the engine: says the events of ``earthgate adapt`` and copies an earlier map.

FAKE_RESULT is a result document of ``earthgate map``, FAKE_SECONDS how long a step takes,
FAKE_ERROR what it says instead, and FAKE_DROP the key that its documents lack.
"""

import json
import os
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path

STEPS = 4
MODEL = {
    "name": "fake",
    "file": "fake.safetensors",
    "classes": ["building", "road", "bare ground", "vegetation", "water"],
    "bands": ["red", "green", "blue"],
}


def say(event: str, **facts: object) -> None:
    sys.stderr.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stderr.flush()


def without_a_key(document: dict) -> dict:
    return {key: value for key, value in document.items() if key != os.environ.get("FAKE_DROP")}


def publish(source: str | Path, target: str | Path) -> None:
    """Replace a file at once, and drop what SQLite keeps beside the old one, as the engine does."""
    shutil.copy(source, f"{target}.new")
    Path(f"{target}.new").replace(target)
    for ending in ("-journal", "-shm", "-wal"):
        Path(f"{target}{ending}").unlink(missing_ok=True)


def adapt(words: tuple[str, ...]) -> None:
    document, options = (
        json.loads(Path(os.environ["FAKE_RESULT"]).read_text()),
        dict(pairwise(words)),
    )
    state = Path(options["--dst"]).with_name(f".{Path(options['--dst']).name}.earthgate")
    state.mkdir()
    for stage in ("adapt", "map", "finish", "vectorize"):
        for done in range(STEPS + 1):
            say("progress", stage=stage, done=done, total=STEPS)
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    state.rmdir()
    earlier, dst = document["outputs"], options["--dst"]
    copies = {"map": dst, "vector": options["--vector"], "confidence": f"{dst[:-4]}_conf.tif"}
    for role, path in copies.items():
        publish(earlier[role], path)
    for ending in (".qml", ".tif.aux.xml"):
        publish(Path(earlier["map"]).with_suffix(ending), Path(dst).with_suffix(ending))
    made = {"adapter": options["--out"], "report": options["--report"]}
    for path in made.values():
        Path(path).touch()
    said = {"decision": "adapted", "sentence": "Adapted: 2 of 12 modules.", "words": words}
    say("result", **without_a_key({**document, **said, "outputs": {**copies, **made}}))


def main(verb: str, *words: str) -> int:
    if os.environ.get("FAKE_ERROR"):
        say("error", code=2, message=os.environ["FAKE_ERROR"])
        return 2
    if verb == "models":
        sys.stdout.write(json.dumps(without_a_key({"models": [MODEL], "unreadable": []})))
    elif verb == "doctor":
        check = {"name": "PROJ", "ok": False, "found": "no database", "fix": "unset PROJ_LIB"}
        about = {"healthy": False, "version": "0.1.0", "python": "3.11.2"}
        sys.stdout.write(json.dumps(without_a_key({**about, "checks": [check]})))
    else:
        adapt(words)
    return 0


sys.exit(main(*sys.argv[1:]))
