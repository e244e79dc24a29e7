"""What can be wrong or odd in a data set: every kind of finding, what it means, and what training does about it."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

logger = logging.getLogger(__name__)

# stop: training refuses to start; drop: left out; fix: used after a repair; keep: used as it is
Action = Literal["stop", "drop", "fix", "keep"]
ACTIONS: tuple[Action, ...] = ("stop", "drop", "fix", "keep")
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Kind:
    """What all findings of a kind say."""

    title: str  # after "3 of 40"
    action: Action  # where it is used for training
    does: str  # what training does, in words
    means: str = ""
    todo: str = ""
    warns: bool = True  # False for what is usual in good data
    scored: str = ""  # what becomes of it where the set is evaluated, if that is something else


_STOPS = "training stops"
_AS_IS = "used as they are"
_NEVER_FOUND = "counted in the evaluation as objects that nothing can find"
_MASKS_ALONE = "not looked at where boxes are evaluated; where masks are, the evaluation refuses the file"
_REFUSES = "the evaluation refuses the file"

_FILE = {
    "unusable_file": Kind("files that are no COCO-format JSON", "stop", _STOPS, todo="Export the annotations again."),
    "other_classes": Kind(
        "data sets of other classes than the first of training", "stop", _STOPS,
        "A label stands for another class there.", "Give all files the same list of categories.",
    ),
}  # fmt: skip
_IMAGES = {
    "malformed_image": Kind("images with a missing or wrong entry", "stop", _STOPS),
    "image_size": Kind(
        "images of an impossible size", "stop", _STOPS,
        "Boxes cannot be checked against it, or Pillow refuses to open an image that large.",
        "Write the height and width of the image file, in pixels.",
    ),
    "repeated_image_id": Kind(
        "images whose id another image has", "stop", _STOPS,
        "Whose annotations are they? It happens where files are joined.", "Renumber the images.",
    ),
    "repeated_file": Kind(
        "images whose file another image of the set has, too", "keep", _AS_IS,
        "The image is seen twice, each time with a part of its boxes: the others count as background.",
        "Join the annotations of both under one id.",
    ),
    "missing_image": Kind("images missing in the folder", "stop", _STOPS, todo="Copy them, or correct the file names."),
    "unlabelled_image": Kind(
        "images without a usable box", "drop", "not trained on", "They only count in the evaluation.",
        "Nothing, if there is nothing on them.", False,
        scored="evaluated: whatever is found on them is a false positive",
    ),
    "nothing_to_train_on": Kind("images have no usable box", "stop", _STOPS),
    "unreadable_image": Kind(
        "images that cannot be read", "stop", "training stops: at its start with DATASETS.CHECK_IMAGES: True, else at "
        "the image", "The file is damaged, cut short, or no image.", "Replace the files, or take the images out.",
        scored="evaluated",
    ),
    "other_size": Kind(
        "images of another size than the file says", "stop", "training stops: at its start with "
        "DATASETS.CHECK_IMAGES: True, else at the image", "The boxes belong to another version of the image.",
        "Correct height and width, or replace the image.",
    ),
    "turned_image": Kind(
        "images with an EXIF orientation", "fix", "turned upright where the file's height and width are those of the "
        "upright image, else left as stored", "Cameras store some photographs turned.",
        "Look at a picture with its boxes: they must fit.", False,
    ),
    "unusual_mode": Kind(
        "images that are neither RGB nor gray", "fix", "turned into RGB; transparency is dropped", warns=False,
    ),
    "repeated_content": Kind(
        "images with the pixels of another one of the set", "keep", _AS_IS,
        "The image is seen twice as often, or each time with a part of its boxes.", "Keep one of them.",
    ),
}  # fmt: skip
_CATEGORIES = {
    "malformed_category": Kind("categories with a missing or wrong entry", "stop", _STOPS),
    "repeated_category_id": Kind("categories whose id another category has", "stop", _STOPS),
    "repeated_category_name": Kind(
        "categories whose name another category has", "keep", "trained as different classes",
        "The network has to tell apart what has one name.", "Join them under one id.",
    ),
    "similar_category_name": Kind(
        "categories without a name, or with that of another one but for capitals and blanks", "keep",
        "trained as classes of their own", "The network has to tell apart what is mostly one class.",
        "Join them under one id, and name every category.",
    ),
    "unused_class": Kind(
        "classes without any object", "keep", "the network has an output for them that never learns",
        todo="Take the categories out, or annotate some.",
    ),
    "rare_class": Kind(
        "classes with fewer than 10 objects", "keep", _AS_IS, "They are hardly learned.", "Annotate more.", False,
    ),
    "unbalanced_classes": Kind(
        "classes more than 100 times rarer than the most frequent one", "keep", _AS_IS,
        todo="DATALOADER.SAMPLER_TRAIN: RepeatFactorTrainingSampler helps on Detectron2.", warns=False,
    ),
}  # fmt: skip
_BOXES = {
    "malformed_annotation": Kind("annotations with a missing or wrong entry", "stop", _STOPS),
    "malformed_box": Kind("annotations whose bbox is not four finite numbers", "stop", _STOPS),
    "orphan_annotation": Kind(
        "annotations of images that the file does not list", "stop", _STOPS,
        todo="List the images, or take the annotations out.",
    ),
    "unknown_category": Kind(
        "annotations of categories that the file does not list", "stop", _STOPS,
        todo="List the categories, or take the annotations out.",
    ),
    "corner_boxes": Kind(
        "boxes reach out of their image, and nearly all would fit as x1, y1, x2, y2", "stop", _STOPS,
        "COCO's bbox is x, y, width, height.", "Write [x1, y1, x2 - x1, y2 - y1].",
    ),
    "normalised_boxes": Kind(
        "boxes are given in shares of the image", "stop", _STOPS,
        "COCO's bbox is in pixels, and nearly all boxes here lie within the first pixel.",
        "Multiply x and width by the image's width, y and height by its height. "
        "YOLO's x and y are the center: subtract half of width and height, too.",
    ),
    "negative_box": Kind(
        "boxes of negative width or height", "drop", "left out",
        "The corners were taken in the wrong order.", "Write x and y of the upper left corner.",
    ),
    "empty_box": Kind(
        "boxes without area", "drop", "left out", todo="Draw them anew, or take them out.", scored=_NEVER_FOUND,
    ),
    "outside_box": Kind(
        "boxes wholly outside their image", "drop", "left out",
        "They belong to another image, or to another size of it.",
        "See whether height and width are the image's (--deep), draw them again, or take them out.",
        scored=_NEVER_FOUND,
    ),
    "clipped_box": Kind(
        "boxes that reach out of their image", "fix", "cut off at the border",
        todo="Nothing, where it is a few pixels.", warns=False,
        scored="compared as they are",
    ),
    "tiny_box": Kind(
        "boxes smaller than 8 x 8 pixels in area", "keep", _AS_IS, "They are hardly found.",
        "Larger images (INPUT.MIN_SIZE_TRAIN) or smaller anchors may help.", False,
    ),
    "doubtful_area": Kind(
        "objects whose area does not fit their box", "keep", "not used in training; the evaluation takes them as they "
        "are", "Some converters write 0, 1, or the area of the image.",
        'Write the pixels of the mask, width x height of the box without masks, or leave "area" out.',
    ),
    "malformed_area": Kind(
        "annotations whose area is no finite number", "keep", "not used in training",
        todo='Write the pixels of the mask, width x height of the box without masks, or leave "area" out.',
    ),
    "crowd": Kind(
        "annotations of crowds (iscrowd 1)", "drop", "not trained on; the evaluation ignores detections there",
        warns=False,
        scored="detections there are ignored",
    ),
    "repeated_annotation": Kind(
        "annotations with image, category and box of another one", "keep", _AS_IS,
        "The object counts twice, and in the evaluation it can be found but once.", "Keep one of them.",
    ),
    "repeated_annotation_id": Kind(
        "annotations whose id another annotation has", "keep", "used: training and evaluation renumber them",
        todo="Number the annotations from 1.",
    ),
    "missing_annotation_id": Kind(
        "annotations without an integer id", "keep", "used: training and evaluation renumber them",
        todo="Number the annotations from 1.", warns=False,
    ),
}  # fmt: skip
_MASKS = {
    "no_mask": Kind(
        "annotations without a segmentation", "stop", _STOPS,
        todo="For boxes alone write MODEL.MASK_ON: False.",
        scored=_MASKS_ALONE,
    ),
    "malformed_mask": Kind(
        "annotations with a broken segmentation", "stop", _STOPS,
        "It is no polygon in pixels near the image, or an RLE that does not fill the image.",
        "Export the masks again; for boxes alone write MODEL.MASK_ON: False.",
        scored=_MASKS_ALONE,
    ),
    "run_lengths": Kind(
        "masks are given as RLE, not as polygons", "stop", _STOPS,
        todo="write INPUT.MASK_FORMAT: bitmask",
    ),
    "no_polygon": Kind(
        "masks without a polygon of three points", "drop", "left out, with their boxes",
        "Two points or an odd number of values enclose nothing.", "Draw them again.",
        scored=_MASKS_ALONE,
    ),
    "broken_polygon": Kind(
        "masks of which some polygons have fewer than three points", "fix",
        "used without these polygons", todo="Take the broken polygons out.",
        scored=_MASKS_ALONE,
    ),
}  # fmt: skip
_PAIRS = {
    "shared_file": Kind(
        "images that are trained on and evaluated, too", "keep", _AS_IS,
        "The figures tell what was remembered, not what was learned.", "Take them out of one of the sets.",
    ),
    "shared_content": Kind(
        "images with the pixels of one that is trained on", "keep", _AS_IS,
        "The figures tell what was remembered, not what was learned.", "Take them out of one of the sets.",
    ),
    "looks_same": Kind(
        "images that look the same as one that is trained on", "keep", _AS_IS,
        "A copy of another size or quality, or the next frame of a film: the figures are too good.",
        "Look at the pairs; keep each film or series in one of the sets.",
    ),
}  # fmt: skip

KINDS: dict[str, Kind] = {**_FILE, **_IMAGES, **_CATEGORIES, **_BOXES, **_MASKS, **_PAIRS}

# What neither an evaluation by itself nor one at the end of a training goes on with.
REFUSED = {
    "malformed_image", "repeated_image_id", "malformed_category", "repeated_category_id", "repeated_category_name",
    "malformed_annotation", "malformed_box", "malformed_area", "orphan_annotation", "unknown_category", "negative_box",
    "no_mask", "malformed_mask", "no_polygon", "broken_polygon",
}  # fmt: skip

_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict = 3, 12, 4
_brief.maxstring = _brief.maxother = _brief.maxlong = 60


@dataclass(frozen=True)
class Example:
    """One place where something was found."""

    text: str  # the place in the file, and what is there
    image_id: int | None = None
    file_name: str | None = None  # below the image folder
    annotation_id: int | None = None
    box: tuple[float, float, float, float] | None = None  # as in the file, x y width height
    twin: Path | None = None  # another image that is meant, too

    def line(self) -> str:
        """Return the text with what it belongs to."""
        of = [
            f"{what} {value}"
            for what, value in (("image", self.image_id), ("annotation id", self.annotation_id))
            if value is not None
        ]
        if self.file_name is not None and self.file_name[:200] not in self.text:
            of.append(self.file_name if len(self.file_name) <= 200 else f"{self.file_name[:200]}...")
        return printable(f"{self.text} ({', '.join(of)})" if of else self.text)

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "image_id": self.image_id,
            "file_name": self.file_name,
            "annotation_id": self.annotation_id,
            "box": None if self.box is None else list(self.box),
            "twin": None if self.twin is None else str(self.twin),
        }


@dataclass(frozen=True)
class Finding:
    """All places of one kind in one data set, or in two that are compared."""

    key: str  # of KINDS
    count: int
    total: int  # of which ``count`` are meant
    examples: tuple[Example, ...]
    action: Action
    warns: bool  # False for what is usual in good data
    note: str = ""  # what is particular here
    scored: bool = False  # in a set that is evaluated

    @property
    def kind(self) -> Kind:
        return KINDS[self.key]

    def headline(self) -> str:
        """Return e.g. ``2 of 4888 boxes without area: left out``."""
        return f"{self.count} of {self.total} {self.kind.title}: {self.does()}"

    def summary(self) -> str:
        """Return the headline with the note."""
        return f"{self.headline()}; {self.note}" if self.note else self.headline()

    def does(self) -> str:
        """Return what training, or evaluation, does, in words."""
        if self.scored and self.action == "stop" and self.key in REFUSED:
            return _REFUSES
        if self.scored and self.kind.scored:
            return self.kind.scored
        return self.kind.does if self.action == self.kind.action else _OTHERWISE[self.action]

    def text(self) -> str:
        """Return several lines: the headline, the examples, what it means and what to do."""
        lines = [self.headline(), *(f"  {example.line()}" for example in self.examples)]
        if self.count > len(self.examples) > 0:
            lines.append(f"  and {self.count - len(self.examples)} more")
        return "\n".join([*lines, *(f"  {text}" for text in (self.note, self.kind.means, self.kind.todo) if text)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return {
            "kind": self.key,
            "count": self.count,
            "total": self.total,
            "what": self.kind.title,
            "action": self.action,
            "training": self.does(),
            "warning": self.warns,
            "note": self.note,
            "means": self.kind.means,
            "to_do": self.kind.todo,
            "examples": [example.to_dict() for example in self.examples],
        }


_OTHERWISE = {
    "stop": "training stops",
    "drop": "left out",
    "fix": "repaired",
    "keep": "not looked at: masks are not used",
}


def find(
    key: str,
    where: Sequence[Any] | np.ndarray,
    total: int,
    example: Callable[[Any], Example],
    *,
    action: Action | None = None,
    warns: bool | None = None,
    note: str = "",
) -> list[Finding]:
    """Return one finding for the places ``where``, none where there are none.

    Args:
        key: of KINDS.
        where: what ``example`` takes.
        total: of which these are some.
        example: describes one place; called for the first few.
        action: where it is not the kind's usual one.
        warns: where it is not the kind's usual one.
        note: what is particular here.
    """
    if len(where) == 0:
        return []
    kind = KINDS[key]
    examples = tuple(example(place) for place in where[:MAX_EXAMPLES])
    warned = kind.warns if warns is None else warns
    return [Finding(key, len(where), total, examples, action or kind.action, warned, note)]


def as_scored(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of a set that is evaluated, not trained on."""
    return [replace(found, scored=True, action=_scored_action(found)) for found in findings]


def _scored_action(found: Finding) -> Action:
    if found.action == found.kind.action and found.key in REFUSED:  # masks that are not used have another action
        return "stop"
    return "keep" if found.kind.scored and found.action != "stop" else found.action


def refuse_findings(source: object, findings: Sequence[Finding], what: str = "training") -> None:
    """Raise ValueError where there are findings that stop what is to be done; it tells all of them."""
    stops = [finding for finding in findings if finding.action == "stop"]
    if stops:
        kinds = "a mistake" if len(stops) == 1 else f"{len(stops)} kinds of mistakes"
        lines = [f"  {line}" for finding in stops for line in finding.text().splitlines()]
        raise ValueError("\n".join([f"{source}: {kinds} that {what} stops at", *lines]))


def report_findings(source: object, findings: Sequence[Finding]) -> None:
    """Log what a run goes on with; raise what it cannot go on with.

    Raises:
        ValueError: there are findings that stop a training; it tells all of them.
    """
    refuse_findings(source, findings)
    for finding in findings:
        example = f"; for example {finding.examples[0].line()}" if finding.examples and finding.warns else ""
        logger.log(logging.WARNING if finding.warns else logging.INFO, "%s: %s%s", source, finding.summary(), example)


def brief(value: Any) -> str:
    """Return ``repr(value)``, shortened where it is long, and of a few levels where it is deep."""
    return _brief.repr(value)


def printable(text: str) -> str:
    """Return text, names of files among it, without what could move a terminal's cursor or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
