"""Result documents as lines for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]

_KINDS = ("spatial", "semantic", "frequency", "rein", "image", "height", "fusion")
"""Columns of the gate, in the order of ``toolbox.base.Kind``, which would load torch."""

_STATES = {"ok": "ok", "absent": "-", "warn": "warn", "broken": "FAIL"}
"""How a check of ``doctor`` begins."""


def plan_lines(document: Document) -> Iterator[str]:
    """Say what a run would do."""
    grid = document["grid"]
    yield f"scene    {document['scene']}: {_grid(grid)}"
    classes = ", ".join(entry["name"] for entry in document["classes"])
    yield f"model    {document['model']['name']}: {classes}"
    if "heights" in document:
        yield f"heights  {document['heights']['covered']:.0%} of the scene"
    if document["tiles"]:
        yield f"tiles    {_tiles(document)}"
    yield f"memory   about {document['memory_mb']} MB"
    yield f"disk     about {document['disk_mb']} MB, {document['disk_free_mb']} MB free"
    yield f"time     about {_duration(document['seconds'])}"
    yield f"outputs  {', '.join(document['outputs'].values())}"


def map_lines(document: Document) -> Iterator[str]:
    """Say what a map shows and where it is."""
    yield from document["remarks"]
    yield from _mapped_lines(document)


def _mapped_lines(document: Document) -> Iterator[str]:
    yield f"mapped {_tiles(document)}; {_duration(document['seconds']['total'])} in all"
    for entry in document["classes"]:
        yield f"  {entry['name']:<16}{entry['share']:>7.1%}{entry['hectares']:>12,.2f} ha"
    yield from _written(document)


def plan_batch_lines(document: Document) -> Iterator[str]:
    """Say what a batch would do, scene by scene and in all."""
    for entry in document["scenes"]:
        told = _tiles(entry) if entry["state"] == "planned" else entry["state"]
        yield f"{entry['src']}: {entry.get('error') or told}"
    left = sum(entry["state"] == "planned" for entry in document["scenes"])
    yield f"scenes   {left} of {len(document['scenes'])} to map"
    yield f"tiles    {document['tiles']}"
    yield f"memory   about {document['memory_mb']} MB"
    yield f"disk     about {document['disk_mb']} MB, {document['disk_free_mb']} MB free"
    yield f"time     about {_duration(document['seconds'])}"


def batch_lines(document: Document) -> Iterator[str]:
    """Say what came of the scenes: how many are mapped, which are not, and why."""
    entries = document["scenes"]
    done = [entry for entry in entries if entry["state"] == "done"]
    earlier = sum(entry["earlier"] for entry in done)
    told = f" ({earlier} by an earlier run)" if earlier else ""
    yield (
        f"mapped {len(done)} of {_counted(len(entries), 'scene')}{told}; "
        f"{_duration(document['seconds']['total'])} in all"
    )
    outside = sum(entry["state"] == "outside" for entry in entries)
    if outside:
        yield f"passed over {_counted(outside, 'scene')} outside the area"
    failed = [entry for entry in entries if entry["state"] == "failed"]
    for entry in failed:
        yield f"failed {entry['src']}: {entry['error']}"
    if any(entry["earlier"] for entry in failed):
        yield "map those that failed before again with --retry-failed"
    yield f"wrote {document['manifest']}"
    if "collection" in document:
        yield f"wrote {document['collection']}"


def adapt_lines(document: Document) -> Iterator[str]:
    """Say whether the scene was adapted to, why, what to do next, and what the map shows."""
    yield document["sentence"]
    yield from _compared(document)
    yield from document["remarks"]
    yield document["next"]
    if "scenes" in document:
        yield from _written(document)
        yield from batch_lines(document)
    elif document.get("tiles"):
        yield from _mapped_lines(document)
    else:
        yield from _written(document)


def _compared(document: Document) -> Iterator[str]:
    """Show what the guard saw of both models as a table; plain where nobody looks."""
    table = Table(box=None, pad_edge=False)
    table.add_column()
    table.add_column("before", justify="right")
    table.add_column("after" if document["decision"] == "adapted" else "refused", justify="right")
    for row in document["table"]:
        values = (_percent(row[key]) for key in ("before", "after"))
        table.add_row(Text(row["measure"]), *values)
    console = Console(highlight=False)
    with console.capture() as shown:
        console.print(table)
    yield from (line.rstrip() for line in shown.get().splitlines())


def vectorize_lines(document: Document) -> Iterator[str]:
    """Say how many polygons there are."""
    yield _counted(document["polygons"], "polygon")
    yield from _written(document)


def evaluate_lines(document: Document) -> Iterator[str]:
    """Say the scores per class and overall."""
    yield f"{'class':<16}{'IoU':>8}{'F1':>8}{'truth px':>12}{'map px':>12}"
    for entry in document["classes"]:
        scores = f"{_percent(entry['iou']):>8}{_percent(entry['f1']):>8}"
        yield f"{entry['name']:<16}{scores}{entry['truth_pixels']:>12}{entry['map_pixels']:>12}"
    yield f"{'mean':<16}{_percent(document['mean_iou']):>8}{_percent(document['mean_f1']):>8}"
    yield f"accuracy {_percent(document['accuracy'])} of {document['pixels']} known pixels"


def train_plan_lines(document: Document) -> Iterator[str]:
    """Say what a training would do."""
    recipe, start, parameters = document["recipe"], document["start"], document["parameters"]
    yield f"source      {_images(document['source'])}"
    if document["holdout"]:
        share = _percent(document["holdout"]["share"])
        yield f"held out    {_patches(document['holdout']['patches'])}, {share} of all"
        yield from _left_out("            ", document["holdout"])
    if document["target"]:
        yield f"target      {_images(document['target'])}"
    yield f"classes     {', '.join(document['classes'])}"
    head = f"{'new ' if start['head_is_new'] else ''}{start['head']} head"
    yield f"start       {start['name']}: {start['backbone']}, {head}"
    for line in start["weights"] or ():
        yield f"            {line}"
    yield f"policy      {document['policy']}, {_counted(document['modules'], 'module')}"
    counts = ", ".join(f"{n:,} in the {part}" for part, n in parameters.items() if n)
    yield f"parameters  {counts} may train"
    target = f" + {recipe['target_batch']}" if document["target"] else ""
    crops = f"{recipe['batch']}{target} crops of {recipe['crop_px']} px"
    yield f"steps       {recipe['steps']} of {crops}"
    yield f"scenes      {_range(document['gsd'])}"
    yield f"outputs     {', '.join(document['outputs'].values())}"


def train_lines(document: Document) -> Iterator[str]:
    """Say what was trained, for how long, and where the model is."""
    seconds, loss = document["seconds"], document["loss"]
    rate = document["steps"] / seconds["train"]
    yield (
        f"trained {_counted(document['steps'], 'step')} in {_duration(seconds['train'])}, "
        f"{rate:.2g} steps/s; loss {loss['first']:.3g} at first, {loss['last']:.3g} at last"
    )
    modules = ""
    if document["modules"]:
        modules = f"{len(document['slots'])} of {_counted(document['modules'], 'module')} used, "
    trained, head = document["trained_parameters"], document["parameters"]["head"]
    yield f"policy {document['policy']}: {modules}{trained:,} parameters, and {head:,} of the head"
    yield f"classes {', '.join(document['classes'])}; {_range(document['gsd'])}"
    if document["holdout"]:
        holdout, scores = document["holdout"], document["holdout"]["scores"]
        some = "" if holdout["scored"] == holdout["patches"] else f"{holdout['scored']} of "
        yield f"IoU on {some}{_patches(holdout['patches'])} held out:"
        for entry in scores["classes"]:
            iou = entry["iou"] if entry["truth_pixels"] else None  # the mean leaves it out
            yield f"  {entry['name']:<16}{_percent(iou):>7}"
        yield f"  {'mean':<16}{_percent(scores['mean_iou']):>7}"
        yield from _left_out("", holdout)
    yield from _written(document)


def styles_plan_lines(document: Document) -> Iterator[str]:
    """Say which images would be looked at."""
    yield f"images   {_counted(document['files'], 'file')} in {document['data']}"
    yield f"parts    {document['parts']} of at most {document['part_px']} px"
    yield f"style    {document['style']}"
    yield f"outputs  {', '.join(document['outputs'].values())}"


def styles_lines(document: Document) -> Iterator[str]:
    """Say how many styles there are and where they are."""
    seconds = _duration(document["seconds"]["total"])
    files = _counted(document["files"], "file")
    yield f"took {_counted(document['styles'], 'style')} from {files} in {seconds}"
    yield from _written(document)


def info_lines(document: Document) -> Iterator[str]:
    """Say every fact on a line of its own, then which modules trained, where some did."""
    facts = dict(document)
    if "card" in document:
        card = facts.pop("card")
        facts |= {k: v for k, v in card.items() if k not in {"card", "training", *document}}
        facts |= card.get("training", {})
    modules = {key: facts.pop(key) for key in ("slots", "scores") if key in facts}
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        yield f"{key.replace('_', ' '):<{width}}  {_plain(value)}"
    if modules:
        yield ""
        yield from _gate(facts["policy"], facts["trained_parameters"], **modules)


def _gate(
    policy: str, parameters: int, *, scores: Mapping[str, float], slots: Sequence[str]
) -> Iterator[str]:
    """Say what trained; as a table of layers and kinds where modules were chosen."""
    told = f"{parameters:,} parameters trained beside the head"
    places = [place.split(".") for place in scores or slots]
    kinds = sorted({kind for _, kind in places}, key=_KINDS.index)
    layers = range(1 + max((int(layer) for layer, _ in places), default=-1))
    if not scores and len(slots) == len(layers) * len(kinds):  # nothing was left out
        modules = f"{_counted(len(slots), 'module')}; " if slots else ""
        yield f"policy {policy}: {modules}{told}"
        return
    yield "layer" + "".join(f"{kind:>11} " for kind in kinds).rstrip()
    for layer in layers:
        names = [f"{layer}.{kind}" for kind in kinds]
        yield f"{layer:>5}" + "".join(_cell(scores.get(s), s in slots) for s in names).rstrip()
    of_all = f" of {len(scores)}" if scores else ""
    yield f"* trained and kept: {len(slots)}{of_all} modules; {told}"
    if scores:
        yield "%: share of the scores of its kind at the last choice"


def _cell(score: float | None, kept: bool) -> str:  # noqa: FBT001
    return f"{'' if score is None and kept else _percent(score):>11}{'*' if kept else ' '}"


def bench_lines(document: Document) -> Iterator[str]:
    """Say the scores per class and their mean, and what they cost."""
    yield f"{'class':<24}{'IoU last':>10}{'best on test':>14}"
    for entry in document["classes"]:
        scores = f"{_percent(entry['iou_last']):>10}{_percent(entry['iou_best_on_test']):>14}"
        yield f"{entry['name']:<24}{scores}"
    means = f"{_percent(document['miou_last']):>10}{_percent(document['miou_best_on_test']):>14}"
    yield f"{'mean':<24}{means}"
    if document["miou_before"] is not None:
        yield f"before   {_percent(document['miou_before'])}"
    yield f"trained  {document['trained_parameters']:,} parameters beside the head"
    yield f"time     {_duration(document['seconds']['train'])}"
    yield from _written(document)


def bench_summary_lines(document: Document) -> Iterator[str]:
    """Say our mean of every setting, row by row, beside the best published figure."""
    for row in document["rows"]:
        yield f"{row['name']}: policy {row['policy']}, {row['backbone']}, {row['head']} head"
        width = max(map(len, row["settings"]))
        for name, cell in row["settings"].items():
            last, best = cell["last"], cell["best_published"]
            spread = "" if last["spread"] is None else f" ± {last['spread']:.1%}"
            score = f"{_percent(last['mean'])}{spread} ({_counted(len(cell['seeds']), 'seed')})"
            published = f"{best['miou_percent']}% by {best['method']}" if best else "-"
            yield f"  {name:<{width}}  {score:<24}  published {published}"
    yield from _written(document)


def settings_lines(document: Document) -> Iterator[str]:
    """List the benchmark settings, one a line."""
    width = max(len(entry["name"]) for entry in document["settings"])
    for entry in document["settings"]:
        yield f"{entry['name']:<{width}}  {entry['title']} ({', '.join(entry['suites'])})"


def check_lines(document: Document) -> Iterator[str]:
    """Say of every setting whether its data is there, and what is missing first."""
    width = max(len(entry["name"]) for entry in document["settings"])
    for entry in document["settings"]:
        state = "complete" if entry["complete"] else "found" if entry["found"] else "missing"
        yield f"{entry['name']:<{width}}  {state}"
        for role, part in entry["parts"].items():
            if part["missing"]:
                more = f" and {part['missing_count'] - 1} more" if part["missing_count"] > 1 else ""
                yield f"  {role}: {part['missing'][0]}{more}"
            yield from (f"  {role}: {remark}" for remark in part["remarks"])


def models_lines(document: Document) -> Iterator[str]:
    """Say what each model is for, what may be done with it, and where it is."""
    for entry in document["models"]:
        yield f"{entry['name']}, {'packaged' if entry['packaged'] else 'yours'}"
        yield f"  classes  {', '.join(entry['classes'])}"
        heights = " with heights" if entry["heights"] else ""
        yield f"  input    {', '.join(entry['bands'])}{heights}, {_range(entry['gsd'])}"
        yield f"  licence  {entry['licence']}"
        yield f"  card     {_card(entry)}"
        yield f"  file     {entry['file']}"
        yield f"  sha256   {entry['digest']}"
    for sentence in document["unreadable"]:
        yield f"unreadable: {sentence}"
    if not document["models"]:
        yield "no models; see 'earthgate doctor'"
    if "outputs" in document:
        yield from _written(document)


def _card(entry: Document) -> str:
    if entry["card_file"]:
        return str(entry["card_file"])
    if entry["card"].keys() - {"name", "licence"}:
        return f"in the file: earthgate info '{entry['file']}'"
    return "none: data, scores and limits are not stated"


def import_lines(document: Document) -> Iterator[str]:
    """Say what the model is made of, what was left out, and where it is."""
    yield f"took {document['used']} tensors of the checkpoint; of the backbone:"
    for line in document["backbone"]:
        yield f"  {line}"
    if document["ignored"]:
        parts = ", ".join(f"{part} ({count})" for part, count in document["ignored"].items())
        yield f"left out {parts}"
    yield f"classes {', '.join(document['classes'])}; {_range(document['gsd'])}"
    yield f"tiles of {document['tile_px']} px of {', '.join(document['channels'])}"
    yield from _written(document)


def export_lines(document: Document) -> Iterator[str]:
    """Say what the file takes and gives, and how it was checked."""
    side, bands = document["tile_px"], ", ".join(document["bands"])
    yield f"{document['model']['name']} for {side} x {side} px of {bands}, any number at once"
    yield f"classes {', '.join(document['classes'])}; best at about {document['gsd']:.2g} m a pixel"
    yield f"probabilities in ONNX Runtime differ by {document['difference']:.1g} on average"
    yield from _written(document)


def doctor_lines(document: Document) -> Iterator[str]:
    """Say each check on a line, under it what to do where all is not well, and a verdict."""
    yield f"earthgate {document['version']}, Python {document['python']}, {document['platform']}"
    for check in document["checks"]:
        yield f"{_STATES[check['state']]:<6}{check['name']:<20}{check['found']}"
        if check["state"] != "ok":
            yield f"{'':<6}{'install' if check['state'] == 'absent' else 'fix'}: {check['fix']}"
    yield _verdict([check["state"] for check in document["checks"]])


def _verdict(states: Sequence[str]) -> str:
    broken, doubts = states.count("broken"), states.count("warn")
    if not broken and not doubts:
        return "everything works"
    failed = f"{_counted(broken, 'check')} failed" if broken else "nothing is broken"
    return failed + (f", {doubts} to look at" if doubts else "")


def _grid(grid: Document) -> str:
    size = f"{grid['cols']} x {grid['rows']} px"
    return f"{size}, {grid['gsd'][0]:.3g} x {grid['gsd'][1]:.3g} m, {grid['crs']}"


def _tiles(document: Document) -> str:
    tile = f"{document['tile_px']} px every {document['stride_px']} px"
    return f"{_counted(document['tiles'], 'tile')} of {tile} at {document['gsd']:.3g} m"


def _images(images: Document) -> str:
    return f"{_counted(images['images'], 'image')}, cut into {images['patches']}"


def _patches(count: int) -> str:
    return _counted(count, "patch", "patches")


def _left_out(margin: str, holdout: Document) -> Iterator[str]:
    """Say how much lies on both sides of the split, where something does."""
    if holdout["left_out"]:
        yield f"{margin}{_patches(holdout['left_out'])} on both sides neither train nor score"


def _range(gsd: Sequence[float]) -> str:
    return f"for scenes of {gsd[0]:.3g} to {gsd[1]:.3g} m a pixel"


def _counted(count: int, noun: str, nouns: str | None = None) -> str:
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def _written(document: Document) -> Iterator[str]:
    for path in document["outputs"].values():
        yield f"wrote {path}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{score:.1%}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(entry) for entry in value)
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
