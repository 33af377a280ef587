"""What a look at a data set found: counts, histograms and defects, as numbers and in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sas.data.formats.codes import GLOSSARY, codes_table
from sas.data.formats.raw import Defect
from sas.masks import area
from sas.scene import Scene

CLEAN, FAULTY, UNREADABLE = 0, 1, 2
"""Exit status: no defect of severity error; at least one; the data set cannot be read at all."""


@dataclass
class Uses:
    """What objects with modal masks are good for. whole: seen whole, so that they can be cut out. completion: large enough for
    partial completion. against: regions that are not whole, by what speaks against it. rule: when an object counts as whole, in words."""

    whole: int = 0
    completion: int = 0
    against: Counter[str] = field(default_factory=Counter)
    rule: str = ""

    def add(self, other: Uses) -> None:
        self.whole += other.whole
        self.completion += other.completion
        self.against += other.against
        self.rule = other.rule or self.rule

    def __str__(self) -> str:
        """The counts on one line."""
        reasons = ", ".join(f"{count} {words}" for words, count in self.against.most_common())
        return f"modal whole={self.whole} completion={self.completion}; not whole: {reasons or 'none'}"


@dataclass
class Report:
    """What was found in a data set. Objects are counted as the reader gives them, without those it leaves out.

    listed: pictures of the set; pictures: those looked at; readable: those that were not refused; unordered: of these, those without
    any order. visible, ordered: objects in pictures
    with visible masks, with a known order. sizes: pictures by (height, width). layers: pictures by their number of layers. depths: objects by
    layer_index. rates: objects by occlusion rate, [0] none hidden, [k] more than (k - 1) * 10 and at most k * 10 percent.
    modal: what the objects are good for, where the masks are modal; None elsewhere.
    """

    data: str = ""
    listed: int = 0
    pictures: int = 0
    readable: int = 0
    unordered: int = 0
    objects: int = 0
    visible: int = 0
    ordered: int = 0
    repaired: int | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    layers: Counter[int] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)
    rates: list[int] = field(default_factory=lambda: [0] * 11)
    defects: list[Defect] = field(default_factory=list)
    modal: Uses | None = None

    @property
    def errors(self) -> int:
        return sum(defect.severity == "error" for defect in self.defects)

    @property
    def warnings(self) -> int:
        return len(self.defects) - self.errors

    @property
    def conflicts(self) -> int:
        """Pairs of objects whose order is told in two ways that disagree."""
        return sum(defect.code == "order-conflict" for defect in self.defects)

    @property
    def status(self) -> int:
        """Exit status."""
        return FAULTY if self.errors else CLEAN

    def __str__(self) -> str:
        """The counts on one line."""
        counts = f"pictures={self.pictures} objects={self.objects} errors={self.errors} warnings={self.warnings}"
        return counts if self.repaired is None else f"{counts} repaired={self.repaired}"

    def add(self, scene: Scene) -> None:
        """Count a scene that `mend` has been over."""
        self.readable += 1
        self.objects += len(scene)
        self.sizes[scene.height, scene.width] += 1
        if scene.visible_masks is not None:
            self.visible += len(scene)
        if scene.order_matrix is not None:
            self.ordered += len(scene)
            self.layers[int(scene.layer_index.max(initial=-1)) + 1] += 1
            self.depths.update(scene.layer_index.tolist())
        else:
            self.unordered += 1
        if scene.visible_masks is not None or scene.order_matrix is not None:
            full = area(scene.amodal_masks)
            hidden = full - area(scene.visible & scene.amodal_masks)
            for part, whole in zip(hidden.tolist(), full.tolist(), strict=True):
                self.rates[-(-10 * part // whole)] += 1  # whole numbers, so that 3 of 10 pixels are 30 percent exactly

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        names = ("data", "listed", "pictures", "readable", "unordered", "objects", "visible", "ordered", "repaired")
        return {
            "format_version": 1,
            **{name: getattr(self, name) for name in names},
            **({} if self.modal is None else {"modal": {**vars(self.modal), "against": dict(self.modal.against)}}),
            "errors": self.errors,
            "warnings": self.warnings,
            "order_conflicts": self.conflicts,
            "codes": dict(sorted(Counter(defect.code for defect in self.defects).items())),
            "sizes": [{"height": h, "width": w, "pictures": count} for (h, w), count in self.sizes.most_common()],
            "pictures_by_layers": {str(layers): count for layers, count in sorted(self.layers.items())},
            "objects_by_layer_index": {str(depth): count for depth, count in sorted(self.depths.items())},
            "objects_by_occlusion_rate": [
                {"above": max(0, k - 1) / 10 if k else None, "up_to": k / 10, "objects": count}
                for k, count in enumerate(self.rates)
            ],
            "defects": [asdict(defect) for defect in self.defects],
        }


def line(defect: Defect) -> str:
    """A defect on one line, whatever ids and messages hold."""
    return " ".join(str(defect).split())


def markdown(report: Report, *, sheet: bool) -> str:
    """The report in plain words. sheet: whether there is a sheet.png to point to."""
    looked = f"{report.pictures}" if report.pictures == report.listed else f"{report.pictures} of {report.listed}"
    parts = [
        f"# Data check{' of ' + report.data if report.data else ''}\n",
        _verdict(report),
        "## What it holds\n",
        _table(
            ("", "count"),
            [
                ("pictures looked at", looked),
                ("of these readable", report.readable),
                ("objects in them", report.objects),
                *_counts(report),
            ],
        ),
        _use(report),
        _bars("size (width x height)", "pictures", [(f"{w}x{h}", n) for (h, w), n in report.sizes.most_common(10)]),
        f"{len(report.sizes) - 10} more sizes are in report.json.\n" if len(report.sizes) > 10 else "",
        _bars("layers in a picture", "pictures", [(str(n), count) for n, count in sorted(report.layers.items())]),
        _bars("layer, 0 = nobody in front", "objects", [(str(n), count) for n, count in sorted(report.depths.items())]),
        _bars("hidden share of the object", "objects", list(zip(_rate_names(), report.rates, strict=True))),
        _found(report),
        _todo(report),
        "## Pictures\n\n![Pictures with their layers](sheet.png)\n\n"
        f"Those with the most defects first, then some from all over the set. {_LEGEND[report.modal is not None]}\n"
        if sheet
        else "",
        f"## Words\n\n{GLOSSARY}",
    ]
    return "\n".join(part for part in parts if part)


_LEGEND = (
    "Nearest layers are warm, farthest cool; each object is tinted where it is seen, and outlined with its hidden part.",
    "Each object is tinted and outlined where its modal mask lies; the colours only tell objects apart.",
)


def _counts(report: Report) -> list[tuple[str, int]]:
    if report.modal is not None:
        return [("objects seen whole", report.modal.whole), ("objects to complete", report.modal.completion)]
    return [("objects with a visible mask", report.visible), ("objects whose order is known", report.ordered)]


def _use(report: Report) -> str:
    """What the data serve, where that is not all."""
    if report.modal is not None:
        reasons = _bars("why a region is not whole", "regions", report.modal.against.most_common())
        return (
            f"Objects seen whole are cut out by `sas compose --from-modal`: {report.modal.rule}. Objects to complete are those that training "
            f"with `data.format: modal` is about; it needs two.\n\n{reasons}"
        )
    if report.ordered < report.objects:
        return "Without an order there are no layers: pictures whose order is unknown serve scores that need none, not training.\n"
    return ""


def _verdict(report: Report) -> str:
    if not report.defects:
        return "Nothing is wrong with it.\n"
    words = f"{_many(report.errors, 'error')} and {_many(report.warnings, 'warning')}."
    if report.errors:
        words += " What an error names is lost or doubtful unless it is mended."
    return f"{words} A warning names something that was repaired, left out or only noticed: training works without mending it.\n"


def _found(report: Report) -> str:
    if not report.defects:
        return ""
    counts = Counter((defect.severity, defect.code) for defect in report.defects)
    places: dict[tuple[str, str], list[str]] = {}
    for defect in report.defects:
        few = places.setdefault((defect.severity, defect.code), [])
        if len(few) < 3 and (name := _cell(defect.image)) and name not in few:
            few.append(name)
    rows = [
        (*key, count, ", ".join(places[key]))
        for key, count in sorted(counts.items(), key=lambda kv: (kv[0][0], -kv[1]))
    ]
    codes = dict.fromkeys(code for _, code, _, _ in rows)
    conflicts = f"\nOrder conflicts: {report.conflicts}.\n" if report.conflicts else ""
    return (
        "## What was found\n\n"
        + _table(("severity", "code", "times", "first in pictures"), rows)
        + f"{conflicts}\nEvery single one stands in report.json.\n\n## What the codes mean\n\n{codes_table(codes)}"
    )


def _todo(report: Report) -> str:
    if report.repaired is not None:
        return f"## What to do\n\nA cleaned copy of {_many(report.repaired, 'picture')} was written; use that one.\n"
    if not report.defects:
        return "## What to do\n\nNothing.\n"
    first = (
        "1. Mend the errors at their source, by the table above, or let a cleaned copy leave them out: "
        "`sas data check PATH --format NAME --repair OUT` writes one in the project format (of modal masks, a COCO-style file) and never "
        "touches the original.\n"
        if report.errors
        else "1. Nothing has to be mended; `--repair OUT` writes a copy in which the warnings are settled.\n"
    )
    return f"## What to do\n\n{first}2. Look at the pictures: do the outlines fit what you see?\n"


def _rate_names() -> list[str]:
    return ["nothing", *(f"{low} to {low + 10} %" for low in range(0, 100, 10))]


def _bars(label: str, counted: str, rows: list[tuple[str, int]]) -> str:
    """A histogram as a table, or nothing if nothing was counted."""
    most = max((count for _, count in rows), default=0)
    return _table((label, counted, ""), [(name, n, "#" * -(-24 * n // most)) for name, n in rows]) if most else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, cells)) + " |\n" for cells in lines)


def _cell(text: str) -> str:
    """A text fit for a cell of a table."""
    return " ".join(text.replace("|", "/").split())


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
