"""One ugly data set through both engines: the networks see the same boxes, masks and pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.transforms import v2

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog  # noqa: E402
from detectron2.data import transforms as T  # noqa: E402
from detectron2.data.datasets import load_coco_json, register_coco_instances  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from fvcore.common.config import CfgNode  # noqa: E402
from torch import nn  # noqa: E402

from resnet_backbone.data.coco.dataset import CocoDataset  # noqa: E402
from resnet_backbone.data.images.read import read_image  # noqa: E402
from resnet_backbone.data.transforms import InputImage, train_transforms  # noqa: E402
from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.datasets import register_datasets  # noqa: E402
from resnet_backbone.detectron2_plugin.evaluation import CocoEvaluator, evaluate  # noqa: E402
from resnet_backbone.detectron2_plugin.mapper import ResumableLoader, TensorMapper, train_mapper  # noqa: E402
from resnet_backbone.detectron2_plugin.network_input import open_network_input  # noqa: E402
from resnet_backbone.torchvision_plugin.config import load_config as load_torchvision_config  # noqa: E402
from resnet_backbone.torchvision_plugin.datasets import open_train_set  # noqa: E402
from resnet_backbone.torchvision_plugin.network_input import open_network_input as open_torchvision_input  # noqa: E402

HEIGHT, WIDTH = 60, 91
# By file: id, what is written, and whether the annotations are in the frame of the stored pixels.
FILES = {
    "plain.jpg": (0, "RGB"),
    "bits.png": (2**60 + 1, "I;16"),
    "print.jpg": (-5, "CMYK"),
    "alpha.png": (3, "LA"),
    "palette.png": (12, "P"),
    "turned.jpg": (7, "displayed"),
    "turned_too.jpg": (11, "stored"),
    "nothing.png": (100, "RGB"),
}
KEPT_IN_TRAINING = 7
OPEN = (open_torchvision_input, open_network_input)
USUAL = [[3, 4, 20, 25], [10.25, 5.5, 1, 1], [70.1, 40.3, 30.7, 30], [0, 0, 17.3, 60]]  # the third reaches out
UGLY = [[50, 40, -20, -15], [50, 40, 20, -15], [10, 10, 0, 5], [200, 10, 5, 5], [-30, 4, 20, 9]]


def write_image(path: Path, mode: str) -> tuple[int, int]:
    """Return the height and width that the annotation file states."""
    coarse = np.random.default_rng(len(path.name)).integers(0, 256, (HEIGHT // 6, WIDTH // 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if mode in ("displayed", "stored"):
        exif[0x0112] = 6
        image.save(path, exif=exif, quality=95)
        return (WIDTH, HEIGHT) if mode == "displayed" else (HEIGHT, WIDTH)
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "P":
        image, options = image.quantize(64), {"transparency": 3}
    else:
        image = image.convert(mode)
    image.save(path, **options)
    return HEIGHT, WIDTH


def polygon(box: list[float]) -> list[list[float]]:
    """A triangle in the box, a second part, and one of two points, which is none."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h], [x + 1, y + 1.5, x + 9, y + 1, x + 5, y + 8.25]]


def run_lengths(box: list[float], size: tuple[int, int], *, compressed: bool) -> dict[str, Any]:
    mask = np.zeros(size, dtype=np.uint8, order="F")
    x, y, w, h = (round(value) for value in box)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    mask[::3, ::4] = 0
    if compressed:
        code = coco_mask.encode(mask)
        return {"size": list(size), "counts": code["counts"].decode()}
    flat = mask.reshape(-1, order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return {"size": list(size), "counts": counts if flat[0] == 0 else [0, *counts]}


def write_set(folder: Path, *, masks: str, ugly: bool) -> dict[str, str]:
    """Write a data set, and return its entry in DATASETS.OWN.

    Args:
        folder: gets the files.
        masks: "polygon", where run lengths are of crowds alone, or "bitmask", where they are a half of all.
        ugly: with boxes and polygons that only a training leaves out.
    """
    images, notes = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, (image_id, mode) in FILES.items():
        size = write_image(folder / "images" / name, mode)
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        for number, box in enumerate([] if name == "nothing.png" else [*USUAL, *(UGLY if ugly else [])]):
            segmentation: Any = polygon(box)
            if masks == "bitmask" and number % 2:
                segmentation = run_lengths(USUAL[number % 4], size, compressed=number % 4 == 1)
            elif ugly and number == 0:
                segmentation.append([box[0], box[1], box[0] + 1, box[1] + 1])
            notes.append({"image_id": image_id, "category_id": [9, 2][number % 2], "bbox": box, "iscrowd": 0})
            notes[-1] |= {"segmentation": segmentation, "area": 40.0}
        if name in ("alpha.png", "turned.jpg"):
            crowd = run_lengths(USUAL[0], size, compressed=False)
            notes.append({"image_id": image_id, "category_id": 2, "bbox": USUAL[0], "iscrowd": 1, "area": 40.0})
            notes[-1]["segmentation"] = crowd
    if ugly and masks == "bitmask":
        notes[-1] |= {"iscrowd": 0, "segmentation": [[1, 2, 3, 4]]}  # no polygon is left
    for number, note in enumerate(notes):
        note["id"] = number % 7  # repeated
    categories = [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}]
    data = {"images": images[::-1], "annotations": notes, "categories": categories}
    (folder / "set.json").write_text(json.dumps(data))
    return {"NAME": f"ugly_{folder.name}", "JSON": str(folder / "set.json"), "IMAGES": str(folder / "images")}


def configs(tmp_path: Path, *overrides: str) -> tuple[CfgNode, CfgNode]:
    """For torchvision and for Detectron2."""
    words = [
        *("MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.ARCH", "resnet18", "MODEL.DEVICE", "cpu", "SEED", "3"),
        *("MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0", "DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.IMS_PER_BATCH", "1", "INPUT.MIN_SIZE_TRAIN", "(77,)", "INPUT.MIN_SIZE_TEST", "47"),
        *("INPUT.RANDOM_FLIP", "none", "OUTPUT_DIR", str(tmp_path / "output"), *overrides),
    ]
    return load_torchvision_config("mask/r50_fpn.yaml", words), load_config("mask/r50_fpn.yaml", words)


def by_id(images: Iterator[InputImage], count: int) -> dict[Any, InputImage]:
    found: dict[Any, InputImage] = {}
    for image in images:
        found[image.image_id] = image
        if len(found) == count:
            break
    return found


def assert_same_input(cfgs: tuple[CfgNode, CfgNode], *, training: bool, count: int) -> None:
    inputs = [
        opened(cfg, training=training)
        for opened, cfg in zip((open_torchvision_input, open_network_input), cfgs, strict=True)
    ]
    assert inputs[0].class_names == inputs[1].class_names == ("two", "nine")
    ours, theirs = (by_id(one.images, count) for one in inputs)
    assert ours.keys() == theirs.keys() and len(ours) == count
    for image_id, one in ours.items():
        other = theirs[image_id]
        assert (one.name, one.size, one.original_size) == (other.name, other.size, other.original_size)
        assert one.annotated == other.annotated
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.labels, other.labels), one.name
        assert (one.pixels.int() - other.pixels.int()).abs().max() <= 1, one.name
        if training:
            assert torch.equal(one.masks, other.masks), one.name


@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
@pytest.mark.parametrize("min_size", ["(77,)", "(41,)", "(0,)"])
def test_training(masks, min_size, tmp_path):
    own = write_set(tmp_path / masks, masks=masks, ugly=True)
    words = ("INPUT.MASK_FORMAT", masks, "INPUT.MIN_SIZE_TRAIN", min_size)
    cfgs = configs(tmp_path, *words, "DATASETS.OWN", f"[{own}]", "DATASETS.TRAIN", f"('{own['NAME']}',)")
    assert_same_input(cfgs, training=True, count=KEPT_IN_TRAINING)


def test_evaluation(tmp_path):
    own = write_set(tmp_path / "test", masks="bitmask", ugly=False)
    cfgs = configs(tmp_path, "DATASETS.OWN", f"[{own}]", "DATASETS.TEST", f"('{own['NAME']}',)")
    assert_same_input(cfgs, training=False, count=len(FILES))


class Recorder(nn.Module):
    """Finds nothing, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, torch.Tensor] = {}

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        self.seen |= {image["image_id"]: image["image"] for image in batch}
        sizes = [(image["height"], image["width"]) for image in batch]
        nothing = {"pred_boxes": Boxes(torch.zeros(0, 4)), "scores": torch.zeros(0), "pred_classes": torch.zeros(0)}
        return [{"instances": Instances(size, **nothing)} for size in sizes]


def test_the_evaluation_itself_reads_these_images(tmp_path):
    own = write_set(tmp_path / "scored", masks="bitmask", ugly=False)
    ours, cfg = configs(tmp_path, "DATASETS.OWN", f"[{own}]", "DATASETS.TEST", f"('{own['NAME']}',)")
    cfg.MODEL.MASK_ON = False
    register_datasets(cfg, training=False)
    model = Recorder()
    figures = evaluate(cfg, model, tmp_path / "inference", pictures=True)
    assert figures[own["NAME"]]["bbox"]["AP"] == 0
    for image_id, image in by_id(open_torchvision_input(ours, training=False).images, len(FILES)).items():
        seen = model.seen[image_id].flip(0) if cfg.INPUT.FORMAT == "BGR" else model.seen[image_id]
        assert (image.pixels[:, : image.size[0], : image.size[1]].int() - seen.int()).abs().max() <= 1


def test_what_cannot_be_evaluated_is_refused_by_both(tmp_path):
    own = write_set(tmp_path / "refused", masks="bitmask", ugly=True)
    for opened, cfg in zip(OPEN, configs(tmp_path), strict=True):
        cfg.DATASETS.OWN, cfg.DATASETS.TEST, cfg.MODEL.MASK_ON = [own], (own["NAME"],), False
        with pytest.raises(ValueError, match="negative width or height: the evaluation refuses the file"):
            opened(cfg, training=False)


def assert_same_sample(image: torch.Tensor, target: dict[str, Any], sample: dict[str, Any], levels: int = 1) -> None:
    """Compare what our transforms return, RGB, with what a mapper returns, whose pixels may differ by ``levels``."""
    instances = sample["instances"]
    assert image.shape == sample["image"].shape and (image.int() - sample["image"].int()).abs().max() <= levels
    assert torch.equal(target["boxes"].as_subclass(torch.Tensor), instances.gt_boxes.tensor)
    assert torch.equal(target["labels"], instances.gt_classes)
    if "masks" in target:
        assert torch.equal(target["masks"].as_subclass(torch.Tensor).bool(), instances.gt_masks.tensor)
    elif "polygons" in target:
        for one, other in zip(target["polygons"], instances.gt_masks.polygons, strict=True):
            assert all(map(np.array_equal, one, other)) and len(one) == len(other)


@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
@pytest.mark.parametrize("size", [33, 80])
def test_flipped_and_resized(masks, flip, size, tmp_path):
    own = write_set(tmp_path / "flip", masks=masks, ugly=True)
    transforms = train_transforms((size,), 100, flip=flip)
    (step,) = (t for t in transforms.transforms if isinstance(t, v2.RandomHorizontalFlip | v2.RandomVerticalFlip))
    step.p = 1.0
    dataset = CocoDataset(own["JSON"], own["IMAGES"], transforms, with_masks=True, mask_format=masks)
    cfg = configs(tmp_path, "INPUT.MASK_FORMAT", masks)[1]
    cfg.DATASETS.OWN, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [own], (own["NAME"],), ()
    register_datasets(cfg, training=True)
    records = DatasetCatalog.get(own["NAME"])
    flips = T.RandomFlip(1.0, horizontal=flip == "horizontal", vertical=flip == "vertical")
    augmentations = [T.ResizeShortestEdge(size, 100, "choice"), flips]
    options = {"image_format": "RGB", "use_instance_mask": True, "instance_mask_format": masks}
    mapper = TensorMapper(True, augmentations=augmentations, **options)
    theirs = DatasetMapper(True, augmentations=augmentations, **options)
    assert len(records) == len(dataset) == KEPT_IN_TRAINING
    for record, (image, target) in zip(records, dataset, strict=True):
        mapped = [mapper(record)]
        if record["file_name"].endswith("plain.jpg"):  # which Detectron2's own mapper reads as we do
            mapped.append(theirs(record))
        for sample in mapped:
            assert_same_sample(image, target, sample)
            assert len(sample["instances"]) >= 3


CROP = ("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE")
JITTER = ("INPUT.LARGE_SCALE_JITTER.ENABLED", "True", "INPUT.LARGE_SCALE_JITTER.SIZE", "64")
AUGMENTATIONS = {
    "relative": (*CROP, "relative", "INPUT.CROP.SIZE", "[0.5, 0.3]"),
    "relative_range": (*CROP, "relative_range", "INPUT.CROP.SIZE", "[0.1, 0.3]"),
    "absolute": (*CROP, "absolute", "INPUT.CROP.SIZE", "[100, 30]"),  # higher than the images are
    "absolute_range": (*CROP, "absolute_range", "INPUT.CROP.SIZE", "[5, 80]"),
    "large scale jitter": JITTER,
    "smaller": (*JITTER, "INPUT.LARGE_SCALE_JITTER.SCALE", "[0.1, 0.9]"),
    "larger": (*JITTER, "INPUT.LARGE_SCALE_JITTER.SCALE", "[2.0, 5.0]"),
}


def draw_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Detectron2's transforms draw what ours draw."""

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), dtype=torch.float64))

    def randint(low: int, high: int | None = None) -> int:
        return int(torch.randint(*((0, low) if high is None else (low, high)), ()))

    monkeypatch.setattr(np.random, "uniform", uniform)
    monkeypatch.setattr(np.random, "randint", randint)
    monkeypatch.setattr(np.random, "rand", lambda count: torch.rand(count, dtype=torch.float64).numpy())
    monkeypatch.setattr(np.random, "choice", lambda values: values[randint(len(values))])


@pytest.mark.parametrize("masks", ["polygon", "bitmask", "none"])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_augmented_by_the_same_draws(augmentation, masks, tmp_path, monkeypatch):
    own = write_set(tmp_path / "set", masks="bitmask" if masks == "bitmask" else "polygon", ugly=True)
    words = ["INPUT.MASK_FORMAT", "bitmask" if masks == "bitmask" else "polygon", "MODEL.MASK_ON", str(masks != "none")]
    words += ["INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TRAIN", "(33, 77)", "INPUT.COLOR_JITTER", "[0.5, 0.5, 0.5, 0.1]"]
    words += ["DATASETS.OWN", f"[{own}]", "DATASETS.TRAIN", f"('{own['NAME']}',)", "DATASETS.TEST", "()"]
    ours, cfg = configs(tmp_path, *AUGMENTATIONS[augmentation], *words)
    dataset = open_train_set(ours).dataset
    register_datasets(cfg, training=True)
    mapper = train_mapper(cfg)
    stock = DatasetMapper(
        True,
        augmentations=mapper.augmentations.augs,
        image_format="BGR",
        use_instance_mask=cfg.MODEL.MASK_ON,
        instance_mask_format=cfg.INPUT.MASK_FORMAT,
        recompute_boxes=cfg.MODEL.MASK_ON,
    )
    pads_masks = "INPUT.LARGE_SCALE_JITTER.SIZE" in AUGMENTATIONS[augmentation] and masks == "bitmask"
    draw_from_torch(monkeypatch)
    sizes, counts = set(), set()
    for index, record in enumerate(DatasetCatalog.get(own["NAME"])):
        # Detectron2's own mapper reads this file as we do; masks given as RLE it pads with ones.
        also_stock = record["file_name"].endswith("plain.jpg") and not pads_masks
        for seed in range(6 if also_stock else 2):
            torch.manual_seed(seed)
            image, target = dataset[index]
            for one in (mapper, stock) if also_stock else (mapper,):
                torch.manual_seed(seed)
                sample = one(record)
                levels = 0 if one is mapper else 2  # of Pillow's resize
                assert_same_sample(image, target, {**sample, "image": sample["image"].flip(0)}, levels)
            sizes.add(tuple(image.shape[1:]))
            counts.add(len(target["labels"]))
    assert sizes == {(64, 64)} if augmentation in ("large scale jitter", "smaller", "larger") else len(sizes) > 1
    assert max(counts) >= 2 and len(counts) > 1


def test_colors_are_those_of_the_other_engine(tmp_path):
    """From their own loaders: the jitter draws before everything else, and its numbers are torch's."""
    own = write_set(tmp_path / "colors", masks="polygon", ugly=True)
    words = (
        "DATASETS.OWN",
        f"[{own}]",
        "DATASETS.TRAIN",
        f"('{own['NAME']}',)",
        "INPUT.COLOR_JITTER",
        "[0.9, 0.9, 0, 0.5]",
    )
    for order in ("BGR", "RGB"):
        cfgs = configs(tmp_path, *words, "INPUT.FORMAT", order)
        assert_same_input(cfgs, training=True, count=KEPT_IN_TRAINING)
    plain = configs(tmp_path, *words, "INPUT.COLOR_JITTER", "[0.0, 0.0, 0.0, 0.0]")
    jittered, usual = (
        by_id(open_torchvision_input(cfg, training=True).images, KEPT_IN_TRAINING) for cfg in (cfgs[0], plain[0])
    )
    shifts = [(jittered[key].pixels.float() - usual[key].pixels.float()).mean().item() for key in usual]
    assert min(map(abs, shifts)) > 1 and np.std(shifts) > 5


@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
@pytest.mark.parametrize("augmentation", ["absolute", "smaller"])
def test_training_with_augmentation(augmentation, masks, tmp_path):
    """Where nothing is left to draw: from their own loaders, and so in pictures, boxes and masks are the same."""
    own = write_set(tmp_path / masks, masks=masks, ugly=True)
    words = [*AUGMENTATIONS[augmentation], "INPUT.MASK_FORMAT", masks, "DATASETS.OWN", f"[{own}]"]
    words += ["INPUT.LARGE_SCALE_JITTER.SCALE", "[0.7, 0.7]", "INPUT.CROP.SIZE", "[100, 100]"]
    cfgs = configs(tmp_path, *words, "DATASETS.TRAIN", f"('{own['NAME']}',)")
    assert_same_input(cfgs, training=True, count=KEPT_IN_TRAINING)


def test_a_resumed_run_draws_on(tmp_path):
    own = write_set(tmp_path / "resumed", masks="polygon", ugly=True)
    words = (*JITTER, "INPUT.COLOR_JITTER", "[0.4, 0.4, 0.4, 0.1]", "DATASETS.OWN", f"[{own}]", "DATASETS.TEST", "()")
    cfg = configs(tmp_path, *words, "DATASETS.TRAIN", f"('{own['NAME']}',)")[1]
    register_datasets(cfg, training=True)
    loaders = ResumableLoader(cfg), ResumableLoader(cfg)
    loaders[1].start = 3
    whole, later = (list(islice(loader, count)) for loader, count in zip(loaders, (6, 3), strict=True))
    for (one,), (other,) in zip(whole[3:], later, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)


def test_padding_is_of_no_object_and_ignored_by_labels(tmp_path):
    own = write_set(tmp_path / "padded", masks="bitmask", ugly=False)
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(tmp_path / "labels.png")
    words = (*AUGMENTATIONS["smaller"], "INPUT.MASK_FORMAT", "bitmask", "DATASETS.OWN", f"[{own}]")
    cfg = configs(tmp_path, *words, "DATASETS.TRAIN", f"('{own['NAME']}',)", "DATASETS.TEST", "()")[1]
    register_datasets(cfg, training=True)
    record = next(record for record in DatasetCatalog.get(own["NAME"]) if record["image_id"] == 0)
    sample = train_mapper(cfg)({**record, "sem_seg_file_name": str(tmp_path / "labels.png")})
    padded = sample["sem_seg"] == 255
    assert 0 < padded.sum() < 64 * 64 and (sample["sem_seg"][~padded] == 7).all()
    assert (sample["image"][:, padded] == 128).all()
    given_as_rle = sample["instances"].gt_masks.tensor[sample["instances"].gt_classes == 0]
    assert given_as_rle.any() and not (given_as_rle & padded).any()


@pytest.mark.parametrize("augmentation", ["relative", "large scale jitter"])
def test_augmented_images_without_a_box(augmentation, tmp_path):
    own = write_set(tmp_path / "empty", masks="polygon", ugly=True)
    words = (*AUGMENTATIONS[augmentation], "DATASETS.OWN", f"[{own}]", "DATASETS.TRAIN", f"('{own['NAME']}',)")
    cfg = configs(tmp_path, *words)[1]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    seen = by_id(open_network_input(cfg, training=True).images, len(FILES))
    assert len(seen[100].boxes) == 0 and sum(len(image.boxes) for image in seen.values()) > 4


def test_a_set_that_is_trained_on_and_evaluated(tmp_path):
    """The catalog has one entry for both: crowds and images without a box belong to the evaluation alone."""
    own = write_set(tmp_path / "both", masks="bitmask", ugly=False)
    cfgs = configs(tmp_path, "INPUT.MASK_FORMAT", "bitmask", "DATASETS.OWN", f"[{own}]")
    for cfg in cfgs:
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (own["NAME"],)
    register_datasets(cfgs[1], training=True)
    assert len(DatasetCatalog.get(own["NAME"])) == len(FILES)
    assert_same_input(cfgs, training=True, count=KEPT_IN_TRAINING)
    assert_same_input(cfgs, training=False, count=len(FILES))


def test_images_without_a_box_where_they_are_wanted(tmp_path):
    own = write_set(tmp_path / "empty", masks="polygon", ugly=True)
    cfg = configs(tmp_path, "DATASETS.OWN", f"[{own}]", "DATASETS.TRAIN", f"('{own['NAME']}',)")[1]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    seen = by_id(open_network_input(cfg, training=True).images, len(FILES))
    assert len(seen[100].boxes) == 0 and len(seen[0].boxes) == len(USUAL)


def test_data_sets_that_detectron2_registers_itself(tmp_path):
    """Names of users who call ``register_coco_instances``, and Detectron2's own, which it registers in this way."""
    own = write_set(tmp_path / "registered", masks="polygon", ugly=True)
    name = f"registered_{tmp_path.name}"
    register_coco_instances(name, {"thing_colors": [(1, 2, 3)] * 2}, own["JSON"], own["IMAGES"])
    cfgs = configs(tmp_path)
    cfgs[0].DATASETS.OWN, cfgs[0].DATASETS.TRAIN = [own], (own["NAME"],)
    cfgs[1].DATASETS.TRAIN = (name,)
    assert_same_input(cfgs, training=True, count=KEPT_IN_TRAINING)
    assert MetadataCatalog.get(name).thing_colors == [(1, 2, 3)] * 2
    boxes = DatasetCatalog.get(name)[1]["annotations"]
    assert len(boxes) == len(USUAL)
    data = json.loads(Path(own["JSON"]).read_text())
    data["categories"][0]["name"] = "ten"
    Path(own["JSON"]).write_text(json.dumps(data))
    with pytest.raises(ValueError, match="two, nine"):
        register_datasets(cfgs[1], training=True)


def test_classes_that_a_reader_names(tmp_path):
    """``load_coco_json`` puts them into the metadata when it is called; without a name of a data set, it does not."""
    own = write_set(tmp_path / "read", masks="polygon", ugly=False)
    paths = own["JSON"], own["IMAGES"]
    data = json.loads(Path(own["JSON"]).read_text())
    data["annotations"] = [note | {"id": number} for number, note in enumerate(data["annotations"])]
    Path(own["JSON"]).write_text(json.dumps(data))
    names = [f"{kind}_{tmp_path.name}" for kind in ("named", "nameless")]
    DatasetCatalog.register(names[0], lambda: load_coco_json(*paths, names[0]))
    DatasetCatalog.register(names[1], lambda: load_coco_json(*paths))
    cfg = configs(tmp_path, "DATASETS.TEST", "()")[1]
    cfg.DATASETS.TRAIN = (names[0],)
    assert register_datasets(cfg, training=True) == ["two", "nine"]
    for train in (names, names[::-1]):
        cfg.DATASETS.TRAIN = tuple(train)
        with pytest.raises(ValueError, match=f"'{names[1]}' does not name its classes"):
            register_datasets(cfg, training=True)


def test_keypoints_are_left_to_detectron2_but_not_its_boxes_of_negative_width(tmp_path):
    own = write_set(tmp_path / "keypoints", masks="polygon", ugly=True)
    data = json.loads(Path(own["JSON"]).read_text())
    for number, note in enumerate(data["annotations"]):
        note |= {"keypoints": [5, 6, 2], "num_keypoints": 1, "id": number + 1}
    Path(own["JSON"]).write_text(json.dumps(data))
    name = f"keypoints_{tmp_path.name}"
    register_coco_instances(name, {"keypoint_names": ["nose"], "keypoint_flip_map": []}, own["JSON"], own["IMAGES"])
    cfg = configs(tmp_path)[1]
    cfg.DATASETS.TRAIN, cfg.MODEL.KEYPOINT_ON, cfg.MODEL.MASK_ON, cfg.DATASETS.TEST = (name,), True, False, ()
    register_datasets(cfg, training=True)
    record = next(record for record in DatasetCatalog.get(name) if record["image_id"] == 0)
    instances = TensorMapper(cfg, is_train=True)(record)["instances"]
    assert len(instances) == len(USUAL) and instances.gt_keypoints.tensor.shape == (len(USUAL), 1, 3)


def test_pictures_have_the_boxes_of_the_file(tmp_path):
    own = write_set(tmp_path / "pictures", masks="bitmask", ugly=False)
    cfg = configs(tmp_path, "DATASETS.OWN", f"[{own}]", "DATASETS.TEST", f"('{own['NAME']}',)")[1]
    register_datasets(cfg, training=False)
    evaluator = CocoEvaluator(own["NAME"], tmp_path / "out", with_masks=True, pictures=True)
    assert evaluator.category_ids == [2, 9]
    dataset = CocoDataset(own["JSON"], own["IMAGES"], with_masks=True, training=False)
    for record, (image, target) in zip(DatasetCatalog.get(own["NAME"]), dataset, strict=True):
        boxes = [note["bbox"] for note in record["annotations"]]
        assert torch.equal(torch.tensor(boxes).reshape(-1, 4), target["boxes"].as_subclass(torch.Tensor))
        assert [note["iscrowd"] for note in record["annotations"]] == target["iscrowd"].int().tolist()
        pixels = read_image(record["file_name"], (record["height"], record["width"]))
        assert torch.equal(pixels, image.as_subclass(torch.Tensor))
