"""A folder of images and labels as annotation tools export it, in any of their layouts, as COCO documents by split."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from resnet_backbone.data.coco.findings import refuse_findings
from resnet_backbone.data.coco.read import check_coco_json
from resnet_backbone.data.images.files import find_spellings
from resnet_backbone.data.images.media import image_endings, is_hidden
from resnet_backbone.data.prepare.labelme import labels_of, read_labelme
from resnet_backbone.data.prepare.voc_folder import VocFolder
from resnet_backbone.data.prepare.voc_xml import find_class_names, stems_to_coco
from resnet_backbone.data.prepare.yolo import CLASSES, read_yolo
from resnet_backbone.files.text import brief, read_json, read_yaml

COCO, VOC, YOLO, LABELME = "COCO JSON", "Pascal VOC XML", "YOLO text files", "labelme JSON"
_EXPECTED = f"""expected one of
  {COCO}: train/_annotations.coco.json beside its images, and valid/; annotations/instances_*.json and images/;
    result.json and images/; or one JSON file beside the images
  {VOC}: Annotations/ and JPEGImages/ (or images/), with lists in ImageSets/Main or without; or XML beside images
  {YOLO}: data.yaml with names, train and val; images/ and labels/
  {LABELME}: one file an image, beside it or not"""
_SPLITS = {"trainval": "train", "train": "train", "val": "val", "test": "test", "dev": "val"}
_SPLIT = re.compile(r"(?<![a-z])(trainval|train|val|test|dev)(?:ing|id|idation)?(?![a-z])")
SHARE, SEED = 0.2, 0  # of the images that are evaluated where the folder has no split, and how they are drawn
_SAMPLE = 200  # images by which their folder is found


class Part(NamedTuple):
    """One split."""

    document: dict[str, Any]  # COCO's, file names relative to the folder
    image_folder: Path
    source: Path  # what it was read from


@dataclass
class FolderData:
    """What a folder holds: ``train``, and ``val`` or ``test`` or both."""

    layout: str
    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)  # sentences on what was decided

    @property
    def evaluated(self) -> str:
        """The split that is evaluated: ``val`` where there is one, so that ``test`` stays unseen."""
        return "val" if "val" in self.parts else "test"


def read_folder(root: Path, group_by: str | None = None) -> FolderData:
    """Read a folder of annotated images; nothing is written, and images stay where they are.

    Args:
        root: of COCO's JSON (as of Roboflow, CVAT, Label Studio), Pascal VOC's XML, YOLO's text files or labelme's.
        group_by: where there is no split, a regular expression whose first group, in the name of an image, names what
            must not be in both parts, such as a patient or a video: ``"^([^_]+)_"``.

    Raises:
        FileNotFoundError: no such folder, images that are not there.
        ValueError: no annotations, those of several formats, two files of one split, or malformed ones.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: {'is a file; name its folder' if root.exists() else 'no such folder'}")
    found = _find(root)
    if len(found) != 1:
        raise ValueError(_not_one(root, found))
    ((layout, files),) = found.items()
    data = FolderData(layout, {})
    if layout == COCO:
        data.parts = _read_coco(root, files, data.notes)
    elif layout == VOC:
        data.parts = _read_voc(root, files, data.notes)
    elif layout == LABELME:
        data.parts = _read_labelme(root, files, data.notes)
    else:
        (source,) = _one("data.yaml", files)
        data.parts = {split: Part(*part, source) for split, part in read_yolo(source).items()}
    if len(data.parts) == 1:
        (part,) = data.parts.values()
        data.parts = _split(part, group_by, data.notes)
    elif group_by is not None:
        raise ValueError(f"{root}: has the splits {', '.join(data.parts)} already; leave --group-by out")
    if "train" not in data.parts:
        raise ValueError(f"{root}: has the splits {', '.join(data.parts)}, and none to train on; name one train")
    if set(data.parts) == {"train", "val", "test"}:
        data.notes.append("val is evaluated, test is left for the end: DATASETS.TEST \"['my_test']\"")
    return data


def _find(root: Path) -> dict[str, dict[Path, Any]]:
    """The files that tell each format that is there, and what the JSON files among them hold."""
    visible = (path for path in sorted((*root.glob("*"), *root.glob("*/*"))) if path.is_file())
    files = [path for path in visible if not any(map(is_hidden, path.relative_to(root).parts))]
    coco, labelme, broken = {}, {}, []
    for path in (path for path in files if path.suffix.lower() == ".json"):
        try:
            content = read_json(path)
        except ValueError as error:
            broken.append(error)
            continue
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            coco[path] = content
        elif isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys():
            labelme[path] = content
    named = {path.parent for path in coco if path.name.startswith("instances_")}  # beside captions, key points
    coco = {path: one for path, one in coco.items() if path.parent not in named or path.name.startswith("instances_")}
    yamls = [path for path in files if path.parent == root and path.suffix.lower() in (".yaml", ".yml")]
    yolo = [path for path in yamls if "names" in read_yaml(path, keys=(str, int))]
    if not yolo and (root / "labels").is_dir():
        yolo = [path for path in files if path == root / CLASSES]
    xml = [path for path in files if path.suffix.lower() == ".xml"]
    found: dict[str, dict[Path, Any]] = {COCO: coco, VOC: dict.fromkeys(xml), YOLO: dict.fromkeys(yolo)}
    found[LABELME] = labelme
    if broken and not any(found.values()):
        raise broken[0]
    return {layout: paths for layout, paths in found.items() if paths}


def _not_one(root: Path, found: Mapping[str, Mapping[Path, Any]]) -> str:
    if found:
        shown = [f"  {layout}: {_listed(root, paths)}" for layout, paths in found.items()]
        return "\n".join(
            [f"{root}: holds annotations of {len(found)} formats; move those away that are not meant", *shown]
        )
    below = [path for path in sorted(root.glob("*")) if path.is_dir() and not is_hidden(path.name)]
    inside = next((folder for folder in below if _find(folder)), None)
    there = _listed(root, [path for path in sorted(root.glob("*")) if not is_hidden(path.name)])
    hint = f"\n{inside} holds some: is that the folder?" if inside else ""
    if not inside and any(root.glob("**/labels/**/*.txt")):
        hint = "\nlabels/ of YOLO is there, and no data.yaml: write one, names: [cat, dog], train: images/train, ..."
    return f"{root}: holds no annotations that are known, but {there or 'nothing'}; {_EXPECTED}{hint}"


def _listed(root: Path, paths: Sequence[Path] | Mapping[Path, Any]) -> str:
    names = [path.relative_to(root).as_posix() for path in paths]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _one(what: str, paths: Mapping[Path, Any]) -> list[Path]:
    if len(paths) > 1:
        raise ValueError(f"several files are the {what}: {', '.join(map(str, paths))}; keep the one that is meant")
    return list(paths)


def _split_named(path: Path, root: Path) -> str:
    """The split that the name of a file, or else of its folder, tells; "" for none."""
    for name in (path.stem, path.parent.name if path.parent != root else ""):
        if match := _SPLIT.search(name.lower()):
            return _SPLITS[match[1]]
    return ""


def _read_coco(root: Path, documents: Mapping[Path, Any], notes: list[str]) -> dict[str, Part]:
    by_split: dict[str, dict[Path, Any]] = defaultdict(dict)
    for path, document in documents.items():
        by_split[_split_named(path, root)][path] = document
    if "" in by_split and len(documents) > 1:
        raise ValueError(
            f"{root}: which split is {_listed(root, by_split[''])}? There are {_listed(root, documents)}; put train, "
            "val or test into each name, or keep one file"
        )
    for split, paths in by_split.items():
        _one(f"annotations of {split!r}", paths)
    for path in documents:
        is_trained_on = "" in by_split or len(by_split) == 1 or path in by_split["train"]
        refuse_findings(path, check_coco_json(path, training=is_trained_on, with_masks=False).findings)
    _leave_out_groups(list(documents.values()), notes)
    places = {split: next(iter(paths.items())) for split, paths in by_split.items() if paths}
    return {split: Part(one, _place_images(root, path, one), path) for split, (path, one) in places.items()}


def _leave_out_groups(documents: Sequence[dict[str, Any]], notes: list[str]) -> None:
    """Take out, in place, the category that Roboflow adds as the group of all others, and that no object has."""
    used = {annotation["category_id"] for document in documents for annotation in document["annotations"]}
    groups = [category.get("supercategory") for document in documents for category in document["categories"]]
    left_out = set()
    for document in documents:
        unused = (category for category in document["categories"] if category["id"] not in used)
        group = [one for one in unused if one.get("supercategory") == "none" and one["name"] in groups]
        document["categories"] = [category for category in document["categories"] if category not in group]
        left_out |= {category["name"] for category in group}
    notes += [f"the category {brief(name)} groups the others and has no object: left out" for name in sorted(left_out)]


def _place_images(root: Path, path: Path, document: dict[str, Any]) -> Path:
    """Return the folder in which most of the images are, with file names changed, in place, to what they are there."""
    images = document["images"]
    below = [folder for folder in sorted((*root.glob("*"), *root.glob("images/*"))) if folder.is_dir()]
    split = _split_named(path, root)
    own = [folder for folder in below if _split_named(folder / "name", root) == split]
    folders = list(dict.fromkeys([path.parent, path.parent / "images", *own, root, root / "images", *below]))
    sample = images[:: max(1, len(images) // _SAMPLE)]
    for spell in (str, _with_slashes, lambda name: _with_slashes(name).rpartition("/")[2]):
        counts = [sum((folder / spell(image["file_name"])).is_file() for image in sample) for folder in folders]
        if any(counts):
            for image in images:
                image["file_name"] = spell(image["file_name"])
            return folders[counts.index(max(counts))]
    hint = find_spellings(root, [image["file_name"] for image in sample])
    raise FileNotFoundError(
        f"{path}: names {len(images)} images, such as {brief(images[0]['file_name'])}, and none is in "
        f"{', '.join(str(folder) for folder in folders if folder.is_dir())}; put them there{hint and f'. {hint}'}"
    )


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _read_voc(root: Path, files: Mapping[Path, Any], notes: list[str]) -> dict[str, Part]:
    folders = sorted({path.parent for path in files})
    lists: list[tuple[str, VocFolder, str | None]] = []  # split, where it lies, and the list of its images
    if len(folders) == 1 and folders[0].name.lower() == "annotations":
        images = next((name for name in ("JPEGImages", "images", "Images") if (root / name).is_dir()), "JPEGImages")
        folder = VocFolder(root, parts=(folders[0].name, images, "ImageSets/Main"))
        there = [name for name in ("train", "val", "test", "trainval") if (folder.lists / f"{name}.txt").is_file()]
        if {"trainval", "test"} <= set(there):
            there = ["trainval", "test"]
        elif {"train", "val"} & set(there):
            there = [name for name in there if name != "trainval"]
        lists = [(_SPLITS[name], folder, name) for name in there] or [("", folder, None)]
        notes += [f"ImageSets/Main: {' and '.join(there)} are used"] if len(there) > 1 else []
    else:
        lists = [(split, VocFolder(folder), None) for split, folder in _folders_of_splits(root, folders, VOC).items()]
    places = {folder.annotations: folder for _, folder, _ in lists}.values()
    classes = sorted({name for folder in places for name in find_class_names(folder)})
    parts = {}
    for split, folder, name in lists:
        document, report, owners = stems_to_coco(folder, folder.stems(name), classes, f"{root.name} {split}".strip())
        if name is None:
            folder.warn_of_left_out(owners)
        for what, entries in (("left out", report.dropped), ("clipped", report.clipped)):
            notes += [f"{split or root.name}: {len(entries)} boxes {what}, such as {entries[0]}"] if entries else []
        parts[split] = Part(document, report.image_folder, folder.annotations)
    return parts


def _folders_of_splits(root: Path, folders: Sequence[Path], layout: str) -> dict[str, Path]:
    """The folder of each split; one folder alone may be of none, ""."""
    splits = [_split_named(folder / "name", root) for folder in folders]
    if len(set(splits)) < len(folders) or ("" in splits and len(folders) > 1):
        names = [f"{folder.relative_to(root)}/" for folder in folders]
        raise ValueError(f"{root}: holds {layout} in {', '.join(names)}; {_EXPECTED}")
    return dict(zip(splits, folders, strict=True))


def _read_labelme(root: Path, files: Mapping[Path, Any], notes: list[str]) -> dict[str, Part]:
    folders = _folders_of_splits(root, sorted({path.parent for path in files}), LABELME)
    names = sorted({label for path, content in files.items() for label in labels_of(path, content)})
    parts = {}
    for split, folder in folders.items():
        document, images = read_labelme({path: one for path, one in files.items() if path.parent == folder}, names)
        parts[split] = Part(document, images, folder)
        there = [image for image in images.glob("*") if image.suffix.lower() in image_endings()]
        if left_out := len(there) - len(document["images"]):
            notes.append(f"{images}: {left_out} of {len(there)} images have no file of labelme: left out")
    return parts


def _split(part: Part, group_by: str | None, notes: list[str]) -> dict[str, Part]:
    """Draw :data:`SHARE` of the images for ``val``, groups as a whole, by :data:`SEED` and the names of the images."""
    images = sorted(part.document["images"], key=lambda image: str(image["file_name"]))
    groups: dict[str, list[Any]] = defaultdict(list)
    for image in images:
        groups[_group(image["file_name"], group_by)].append(image["id"])
    if len(groups) < 2:
        what = "image" if group_by is None else f"group by --group-by {group_by!r}"
        raise ValueError(f"{part.source}: has {len(groups)} {what}; to train and to evaluate it takes two or more")
    order = list(groups)
    random.Random(SEED).shuffle(order)
    held_out: set[Any] = set()
    for name in order[:-1]:
        if len(held_out) >= SHARE * len(images):
            break
        held_out.update(groups[name])
    by_what = "" if group_by is None else f", {len(groups)} groups by {group_by!r} as a whole"
    how = f"no split was there: {len(held_out)} of {len(images)} images were drawn for val (seed {SEED}{by_what})"
    notes.append(how)
    parts = {}
    for split in ("train", "val"):
        chosen = {image["id"] for image in images if (image["id"] in held_out) == (split == "val")}
        document = {**part.document, "info": {"description": how}}
        for key, of in (("images", "id"), ("annotations", "image_id")):
            document[key] = [entry for entry in part.document[key] if entry[of] in chosen]
        parts[split] = part._replace(document=document)
    return parts


def _group(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        group = match[1] if (match := re.search(pattern, name)) else None
    except (re.error, IndexError) as error:
        raise ValueError(
            f"--group-by {pattern!r} is no regular expression with a group ({error}); write, such as, '^([^_]+)_'"
        ) from None
    if group is None:
        raise ValueError(f"--group-by {pattern!r} finds no group in {brief(name)}; every image needs one")
    return group
