#!/usr/bin/python3
"""Stands in for the engine: says the events of ``earthgate adapt`` and copies an earlier map.

FAKE_RESULT is a result document of ``earthgate map``, FAKE_SECONDS how long a step takes, and
FAKE_ERROR what it says instead.
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


def adapt(words: tuple[str, ...]) -> None:
    document, options = (
        json.loads(Path(os.environ["FAKE_RESULT"]).read_text()),
        dict(pairwise(words)),
    )
    state = Path(options["--dst"]).with_name(f".{Path(options['--dst']).name}.earthgate")
    state.mkdir()
    Path(options["--out"]).touch()
    for stage in ("adapt", "map", "finish", "vectorize"):
        for done in range(STEPS + 1):
            say("progress", stage=stage, done=done, total=STEPS)
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    state.rmdir()
    earlier, dst = document["outputs"], options["--dst"]
    copies = {"map": dst, "vector": options["--vector"], "confidence": f"{dst[:-4]}_conf.tif"}
    for role, path in copies.items():
        shutil.copy(earlier[role], path)
    for ending in (".qml", ".tif.aux.xml"):
        shutil.copy(Path(earlier["map"]).with_suffix(ending), Path(dst).with_suffix(ending))
    made = {"adapter": options["--out"], "report": options["--report"]}
    for path in made.values():
        Path(path).touch()
    said = {"decision": "adapted", "sentence": "Adapted: 2 of 12 modules.", "words": words}
    say("result", **{**document, **said, "outputs": {**copies, **made}})


def main(verb: str, *words: str) -> int:
    if os.environ.get("FAKE_ERROR"):
        say("error", code=2, message=os.environ["FAKE_ERROR"])
        return 2
    if verb == "models":
        sys.stdout.write(json.dumps({"models": [MODEL], "unreadable": []}))
    elif verb == "doctor":
        check = {"name": "PROJ", "ok": False, "found": "no database", "fix": "unset PROJ_LIB"}
        about = {"healthy": False, "version": "0.1.0", "python": "3.11.2"}
        sys.stdout.write(json.dumps({**about, "checks": [check]}))
    else:
        adapt(words)
    return 0


sys.exit(main(*sys.argv[1:]))
