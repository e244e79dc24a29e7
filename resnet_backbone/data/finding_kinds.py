"""Every kind of finding: its name, what it means, what to do, and what training does. datasets/README.md lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Kind:
    """What all findings of a kind say."""

    title: str  # after "3 of 40"
    action: Literal["stop", "drop", "fix", "keep"]  # where it is used for training
    does: str  # what training does, in words
    means: str = ""
    todo: str = ""
    warns: bool = True  # False for what is usual in good data
    scored: str = ""  # what becomes of it where the set is evaluated, if that is something else


_STOPS = "training stops"
_AS_IS = "used as they are"
_NEVER_FOUND = "counted in the evaluation as objects that nothing can find"
_MASKS_ALONE = "not looked at where boxes are evaluated; where masks are, the evaluation refuses or miscounts them"

_FILE = {
    "unusable_file": Kind("files that are no COCO-format JSON", "stop", _STOPS, todo="Export the annotations anew."),
    "other_classes": Kind(
        "data sets of other classes than the first of training", "stop", _STOPS,
        "A label stands for another class there.", "Give all files the same list of categories.",
    ),
    "not_evaluable": Kind("files that cannot be evaluated", "stop", _STOPS, "The evaluation refuses the file."),
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
        "Whose annotations are they? It happens where files are joined.", "Number the images anew.",
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
        scored="evaluated: whatever is found on them is a false alarm",
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
        "categories whose name another category has", "keep", "trained as different classes; such a file cannot be "
        "evaluated", "The network has to tell apart what has one name.", "Join them under one id.",
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
        scored="the evaluation refuses the file",
    ),
    "empty_box": Kind(
        "boxes without area", "drop", "left out", todo="Draw them anew, or take them out.", scored=_NEVER_FOUND,
    ),
    "outside_box": Kind(
        "boxes wholly outside their image", "drop", "left out",
        "They belong to another image, or to another size of it.",
        "See whether height and width are the image's (--deep), draw them anew, or take them out.",
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
        "annotations whose id another annotation has", "keep", "used: training and evaluation number them anew",
        todo="Number the annotations from 1.",
    ),
    "missing_annotation_id": Kind(
        "annotations without an integer id", "keep", "used: training and evaluation number them anew",
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
        "It is no polygon in pixels near the image, or run lengths that do not fill the image.",
        "Export the masks anew; for boxes alone write MODEL.MASK_ON: False.",
        scored=_MASKS_ALONE,
    ),
    "run_lengths": Kind(
        "masks are given as run lengths, not as polygons", "stop", _STOPS,
        todo="write INPUT.MASK_FORMAT: bitmask",
    ),
    "no_polygon": Kind(
        "masks without a polygon of three points", "drop", "left out, with their boxes",
        "Two points or an odd number of values enclose nothing.", "Draw them anew.",
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
        "Look at the pairs; divide films and series as a whole.",
    ),
}  # fmt: skip

KINDS: dict[str, Kind] = {**_FILE, **_IMAGES, **_CATEGORIES, **_BOXES, **_MASKS, **_PAIRS}
