"""Detectron2's own configs and models, small enough for one core, and ours in their place by config alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from resnet_backbone.config.reader import leaves, value_of
from resnet_backbone.models.registry import create_model
from resnet_backbone.weights.architecture import LAYOUTS
from tests import helpers

BUILDERS = {
    "build_resnet_backbone": "build_imagenet_backbone",
    "build_resnet_fpn_backbone": "build_imagenet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone": "build_imagenet_retinanet_fpn_backbone",
}
# What costs time and says nothing about a backbone; scores of random weights are low, and detections are wanted.
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.WEIGHTS", ""),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DETECTIONS_PER_IMAGE", "10", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "40"),
    *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", "0.0"),
]


@pytest.fixture(scope="session")
def stock_folder() -> Path:
    """The folder ``configs`` of Detectron2: of its checkout, or inside its wheel."""
    detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    package = Path(detectron2.__file__).parent
    for folder in (package.parent / "configs", package / "model_zoo" / "configs"):
        if (folder / "Base-RCNN-FPN.yaml").is_file():
            return folder
    pytest.skip(f"this Detectron2 came without its configs: looked beside and inside of {package}")


@pytest.fixture(scope="session")
def stock_config(stock_folder: Path) -> Callable[..., CfgNode]:
    """``stock_config("COCO-Detection/faster_rcnn_R_50_C4_1x", "KEY", "VALUE", ...)``, with our keys, made small."""
    from detectron2.config import get_cfg

    from resnet_backbone.detectron2_plugin import add_resnet_backbone_config

    def load(name: str, *overrides: str) -> CfgNode:
        cfg = get_cfg()
        add_resnet_backbone_config(cfg)
        cfg.merge_from_file(str(stock_folder / f"{name}.yaml"), allow_unsafe=True)  # RetinaNet's has a tag with code
        cfg.merge_from_list([*TINY, *overrides])
        return cfg

    return load


@pytest.fixture(scope="session")
def in_place() -> Callable[[CfgNode], CfgNode]:
    """Our builder in place of Detectron2's, and what MODEL.RESNETS says said to it."""

    from resnet_backbone.detectron2_plugin.config import resnets_keys

    def convert(cfg: CfgNode) -> CfgNode:
        cfg = cfg.clone()
        resnets, node = cfg.MODEL.RESNETS, cfg.MODEL.RESNET_BACKBONE
        cfg.MODEL.BACKBONE.NAME = BUILDERS[cfg.MODEL.BACKBONE.NAME]
        keys = {key: resnets[key] for key in ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP")}
        node.ARCH = next(arch for arch in LAYOUTS if resnets_keys(arch) == keys)
        for key in ("DEFORM_ON_PER_STAGE", "DEFORM_MODULATED", "DEFORM_NUM_GROUPS"):
            node[key] = resnets[key]
        node.OUT_FEATURES = resnets.OUT_FEATURES
        node.NORM = resnets.NORM
        node.RES5_DILATION = resnets.RES5_DILATION
        node.FOLD_NORMS, node.MEMORY_FORMAT = False, "contiguous"  # Detectron2's order of operations, to the bit
        return cfg

    return convert


@pytest.fixture(scope="session")
def randomised() -> Callable[..., nn.Module]:
    """Fill every tensor with values of its own, such that signals keep their size through a hundred layers."""

    def fill(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                value = torch.empty(tensor.shape)  # on the CPU, where the generator is
                if name.endswith("num_batches_tracked"):
                    value.fill_(seed + 3)
                elif name.endswith(("bias", "running_mean")):
                    value.uniform_(-0.1, 0.1, generator=generator)
                elif name.endswith("running_var"):
                    value.uniform_(0.8, 1.2, generator=generator)
                elif tensor.ndim == 1:
                    last = ".conv3.norm." in name  # of a bottleneck: 33 of them add up
                    value.uniform_(0.05 if last else 0.8, 0.15 if last else 1.2, generator=generator)
                else:
                    small = ("stem.conv1.weight", "cls_score.weight", "bbox_pred.weight", "anchor_deltas.weight")
                    gain = 0.02 if name.endswith(small) else 1.0  # pixels are large, logits and deltas are not
                    value.normal_(0, gain * (2 / value[0].numel()) ** 0.5, generator=generator)
                tensor.copy_(value)
        return model

    return fill


@pytest.fixture(scope="session")
def images() -> list[dict[str, Any]]:
    """Two images of odd and unequal sizes with all that a COCO detector of Detectron2 learns from."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.structures import BitMasks, Boxes, Instances

    generator = torch.Generator().manual_seed(1)
    batch = []
    for height, width in ((65, 99), (80, 70)):
        boxes = torch.tensor([[10.0, 12.0, 40.0, 50.0], [30.0, 5.0, 65.0, 40.0], [2.0, 30.0, 30.0, 60.0]])
        masks = torch.zeros(3, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0 : y1 - 5, x0 + 5 : x1] = True
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.tensor([3, 0, 17])
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8)
        sem_seg = torch.randint(0, 54, (height, width), generator=generator)
        sizes = {"height": height, "width": width}
        batch.append({"image": image, "instances": instances, "sem_seg": sem_seg, **sizes})
    return batch


@pytest.fixture(scope="session")
def same_tensors() -> Callable[[dict[str, Tensor], dict[str, Tensor]], None]:
    """Two state dicts, or feature maps, must have the same names and the same bits."""

    def check(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
        assert list(ours) == list(theirs) or set(ours) == set(theirs)
        different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
        assert not different

    return check


def _numbered(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The n-th tensor filled with n + 1; each takes the place of one number, in memory and in a file."""
    return {
        prefix + name: torch.full((), index + 1, dtype=tensor.dtype).expand(tensor.shape)
        for index, (name, tensor) in enumerate(model.state_dict().items())
    }


@pytest.fixture(scope="session")
def numbered() -> Callable[..., dict[str, Tensor]]:
    """``numbered("resnet50", prefix="", **options)``: a classifier of ours, every tensor told apart."""

    def make(arch: str, prefix: str = "", **options: Any) -> dict[str, Tensor]:
        with torch.device("meta"):
            model = create_model(arch, **options)
        return _numbered(model, prefix)

    return make


@pytest.fixture(scope="session")
def published() -> Callable[[str], dict[str, Tensor]]:
    """``published("resnet50")``: likewise in torchvision's names."""

    def make(arch: str) -> dict[str, Tensor]:
        with torch.device("meta"):
            model = getattr(torchvision.models, arch)(weights=None)
        return _numbered(model)

    return make


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[Path, dict[str, Tensor]], str]:
    """Writes tensors as a file that asks Detectron2 for its name matching, as our packages and its zoo do."""

    def write(path: Path, state_dict: dict[str, Tensor], **more: Any) -> str:
        torch.save({"model": state_dict, "matching_heuristics": True, **more}, path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def small_model() -> Callable[..., nn.Module]:
    """``small_model("resnet18", "KEY", "VALUE", device="meta")``: Faster R-CNN on a pyramid; MODEL.FPN for others."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from resnet_backbone.detectron2_plugin import add_resnet_backbone_config

    def make(arch: str, *overrides: Any, device: str = "meta") -> nn.Module:
        cfg = get_cfg()
        add_resnet_backbone_config(cfg)
        vgg = arch.startswith("vgg")
        features = ["conv2", "conv3", "conv4", "conv5"] if vgg else ["res2", "res3", "res4", "res5"]
        levels = [f"p{level - vgg}" for level in range(2, 7)]
        pyramid = [
            *("MODEL.BACKBONE.NAME", "build_imagenet_fpn_backbone", "MODEL.RESNET_BACKBONE.ARCH", arch),
            *("MODEL.RESNET_BACKBONE.OUT_FEATURES", features, "MODEL.FPN.IN_FEATURES", features),
            *("MODEL.RPN.IN_FEATURES", levels, "MODEL.ROI_HEADS.IN_FEATURES", levels[:4]),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
            *("MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
            *("MODEL.RESNET_BACKBONE.NORM", "" if arch in ("vgg16", "vgg19") else "FrozenBN"),
        ]
        cfg.merge_from_list([*TINY, *pyramid, "MODEL.DEVICE", device, *overrides])
        with torch.device(device):
            return build_model(cfg)

    return make


# Faster R-CNN of both engines, in seconds on one core: a pyramid, res5 as the head, and VGG's fc6 and fc7.
FASTER_RCNN = {
    "fpn": ("Base-RCNN-FPN.yaml", ["MODEL.FPN.OUT_CHANNELS", "16"]),
    "c4": ("Base-RCNN-C4.yaml", []),
    "vgg_c5": ("Base-RCNN-VGG-C5.yaml", ["MODEL.RESNET_BACKBONE.ARCH", "vgg16", "MODEL.RESNET_BACKBONE.NORM", ""]),
}
FASTER_RCNN_KEYS = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.ARCH", "resnet18"),
    *("MODEL.RESNET_BACKBONE.NORM", "GN", "MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "15", "MODEL.RPN.POST_NMS_TOPK_TEST", "15", "MODEL.RPN.NMS_THRESH", "0.9"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.8"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"),
]


@pytest.fixture(scope="session")
def pixels() -> Callable[[int, int], Tensor]:
    """``pixels(height, width)``: the image that ``photograph`` writes, uint8 (3, height, width), RGB."""
    return helpers.photograph


@pytest.fixture
def photograph(tmp_path: Path) -> Callable[[int, int], dict[str, Any]]:
    """``photograph(height, width)``: what Detectron2 knows of an image in a file."""

    def write(height: int, width: int) -> dict[str, Any]:
        path = tmp_path / f"{height}x{width}.png"
        Image.fromarray(helpers.photograph(height, width).permute(1, 2, 0).numpy()).save(path)
        return {"file_name": str(path), "height": height, "width": width, "image_id": 1}

    return write


@pytest.fixture(scope="session")
def faster_rcnn() -> Callable[..., tuple[CfgNode, nn.Module]]:
    """``faster_rcnn("fpn", "KEY", "VALUE", ...)``: config and detector, whose random weights tell classes apart."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.structures import Boxes

    from resnet_backbone.detectron2_plugin.checkpoint import build_detector
    from resnet_backbone.detectron2_plugin.config import load_config
    from resnet_backbone.detectron2_plugin.roi_heads import region_vectors

    def make(kind: str, *overrides: str) -> tuple[CfgNode, nn.Module]:
        config, keys = FASTER_RCNN[kind]
        cfg = load_config(config, [*FASTER_RCNN_KEYS, *keys, *overrides])
        torch.manual_seed(1)
        model = build_detector(cfg).eval()
        with torch.inference_mode():
            images = model.preprocess_image([{"image": helpers.photograph(70, 101)}])
            features = model.backbone(images.tensor)
            corners = torch.rand(30, 2) * 40
            boxes = Boxes(torch.cat([corners, corners + 5 + torch.rand(30, 2) * 25], dim=1))
            _, vectors = region_vectors(model.roi_heads, features, [boxes], images.image_sizes)
            predictor = model.roi_heads.box_predictor
            for layer, spread in ((predictor.cls_score, 1.5), (predictor.bbox_pred, 0.7)):
                layer.weight.normal_()
                # Of differences between vectors, not of what they have in common, and as large as a trained layer's.
                layer.weight *= spread / (vectors @ layer.weight.T).std(dim=0).mean()
                layer.bias.copy_(-(vectors @ layer.weight.T).mean(dim=0))
        return cfg, model

    return make


@pytest.fixture(scope="session")
def as_torchvision() -> Callable[[CfgNode, nn.Module], nn.Module]:
    """The torchvision engine's detector of the same config with the weights of a ``faster_rcnn``."""

    def build(cfg: CfgNode, model: nn.Module) -> nn.Module:
        from resnet_backbone.torchvision_plugin.config import get_cfg
        from resnet_backbone.torchvision_plugin.detector import build_detector

        own = get_cfg()
        common = [key for key in leaves(own) if key in {*leaves(cfg)}]  # v0.6 lacks a few that no detector reads
        own.merge_from_list([word for key in common for word in (key, value_of(cfg, key))])
        detector = build_detector(own).eval()
        detector.load_state_dict({_in_torchvision(name): t for name, t in _background_first(model).items()})
        return detector

    return build


def _background_first(model: nn.Module) -> dict[str, Tensor]:
    """Detectron2's background is the last class, and has no box."""
    state = dict(model.state_dict())
    for kind in ("weight", "bias"):
        scores, boxes = (f"roi_heads.box_predictor.{name}.{kind}" for name in ("cls_score", "bbox_pred"))
        state[scores] = state[scores].roll(1, dims=0)
        state[boxes] = torch.cat([torch.zeros_like(state[boxes][:4]), state[boxes]])
    return state


def _in_torchvision(name: str) -> str:
    for pattern, ours in (
        (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
        (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
        (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
        (r"^roi_heads\.box_head\.fc1\.", "roi_heads.box_head.layers.1."),
        (r"^roi_heads\.box_head\.fc2\.", "roi_heads.box_head.layers.3."),
        (r"^roi_heads\.res5\.", "roi_heads.box_head.res5."),
    ):
        name = re.sub(pattern, ours, name)
    level = re.match(r"backbone\.fpn_(lateral|output)(\d)\.(.*)", name)
    if level:
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[level[1]]
        name = f"backbone.fpn.{blocks}.{int(level[2]) - 2}.0.{level[3]}"
    return name
