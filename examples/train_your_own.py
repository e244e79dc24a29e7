"""Fine-tune a detector of Detectron2 on images of your own, with COCO's JSON: python train_your_own.py --help"""

import argparse
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator

from resnet_backbone.config import find_config_file, fit_input, required_by_source
from resnet_backbone.detectron2_plugin import add_resnet_backbone_config


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR, "inference")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="the folder that the JSON files' names are relative to")
    parser.add_argument("--train", required=True, help="JSON to train on")
    parser.add_argument("--val", required=True, help="JSON to evaluate on")
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--weights", default="imagenet://resnet34/IMAGENET1K_V1", help="of ARCH; '' for none")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE ..., after the rest")
    args = parser.parse_args()

    for name, path in (("my_train", args.train), ("my_val", args.val)):
        register_coco_instances(name, {}, path, args.images)
        DatasetCatalog.get(name)  # reads the classes

    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    cfg.merge_from_file(find_config_file("Base-RCNN-FPN.yaml"))
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.RESNET_BACKBONE.ARCH = args.arch
    cfg.MODEL.WEIGHTS = args.weights
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get("my_train").thing_classes)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("my_train",), ("my_val",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 4, 0.005
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 3000, (2000, 2700)
    cfg.merge_from_list(args.overrides)
    # Colour order, mean, std and the place of the stride, as the weights were trained.
    fit_input(cfg, required_by_source(cfg.MODEL.WEIGHTS, cfg.MODEL.RESNET_BACKBONE.ARCH), cfg.MODEL.WEIGHTS)

    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


if __name__ == "__main__":
    main()
