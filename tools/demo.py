#!/usr/bin/env python
"""Detect objects in images and videos with a trained detector; save or show the pictures, or print what was found.

Examples:
    python tools/demo.py --run output/quickstart --input datasets/shapes/val
    python tools/demo.py --run output/bccd_r18 --input 'photos/*.jpg' clip.mp4 --output found --score 0.7
    python tools/demo.py --run output/bccd_r18 --input photo.jpg --json
    python tools/demo.py --run output/bccd_r18 --input 0 --show
    python tools/demo.py --weights torchvision://fasterrcnn_resnet50_fpn_v2/COCO_V1 --input photo.jpg
    python tools/demo.py --config-file configs/frcnn_r101.yaml --input photo.jpg -- MODEL.WEIGHTS model_final.pth

--run is the output folder of a training. The engine is the one that wrote its checkpoint, or the one that MODEL.WEIGHTS
names on the command line; the class names are in it. --weights is a detector that torchvision or Detectron2 publishes
(resnet_backbone/weights/detectors.yaml), on the torchvision engine; it is downloaded the first time, with its config at
hand.
A folder is searched with all that is below it. What cannot be read is reported and left out.

With --json, one line of JSON a file, and of a video one a frame, is all that is printed to standard output:
    file           as it was named
    frame          of a video, from 0
    height, width  of the image in pixels
    boxes          [[x0, y0, x1, y1], ...] in pixels of the image, best first
    labels         names of the classes
    scores         from 0 to 1
    masks          COCO's compressed RLE, where the detector gives masks
    picture        where it was saved
    error          why the file could not be read; only file is there beside it

Exit status: 0; 1 where a file could not be read, or nothing could be done; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from resnet_backbone.api import load_detector
from resnet_backbone.data.images.media import Medium, VideoReader, VideoWriter, find_media
from resnet_backbone.data.images.read import read_image
from resnet_backbone.engine.command_line import ENGINES, reports_errors, run_command_line
from resnet_backbone.metrics.drawing import draw_detections
from resnet_backbone.metrics.results import Detections, Predictor

PICTURES = (".jpg", ".jpeg", ".png")  # what keeps its name; other images are saved as PNG
WINDOW = "resnet_backbone: any key for the next, q to end"
PROBE = f"import cv2; cv2.namedWindow({WINDOW!r}); cv2.waitKey(1)"


@reports_errors(ValueError, TypeError, OSError, ImportError)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    media, skipped = find_media(args.input)
    targets = plan_targets(media, args)
    if args.show:
        check_display()
    detector = load_detector(
        args.run or args.weights, config_file=args.config_file, overrides=args.opts, engine=args.engine
    )
    predictor = detector.predictor
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it cannot read is said here, once
    failed = 0
    try:
        for medium, target in zip(media, targets, strict=True):
            failed += not detect_in(medium, target, predictor, args)
    except (KeyboardInterrupt, Stopped):
        print("stopped", file=sys.stderr)
        return 130
    print(
        f"{len(media) - failed} of {len(media)} read, {skipped_text(skipped)}"
        + (f"; saved: {args.output}" if args.output is not None and failed < len(media) else ""),
        file=sys.stderr,
    )
    return int(failed > 0)


def skipped_text(skipped: int) -> str:
    return f"{skipped} other {'file' if skipped == 1 else 'files'} skipped (not an image, or hidden)"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    detector = parser.add_mutually_exclusive_group(required=True)
    detector.add_argument("--run", type=Path, metavar="DIR", help="output folder of a training")
    detector.add_argument("--config-file", metavar="FILE", help="a config, with MODEL.WEIGHTS in it or as KEY VALUE")
    detector.add_argument("--weights", metavar="NAME", help="a published detector, torchvision:// or detectron2://")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="WHAT", help="files, folders, patterns, a camera's number"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR|FILE", help="for the pictures; a file for one input (default: DIR/demo)"
    )
    parser.add_argument("--show", action="store_true", help="in a window; saves only where --output is given, too")
    parser.add_argument("--score", type=float, default=0.5, help="leave out lower ones (default: %(default)s)")
    parser.add_argument("--max-size", type=int, metavar="PIXELS", help="limit the longer side of the pictures")
    parser.add_argument("--json", action="store_true", help="print what was found, see above")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="default: the one of the checkpoint")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override, after --")
    args = parser.parse_args(argv)
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    if not 0 <= args.score <= 1:
        parser.error(f"--score {args.score} must be from 0 to 1")
    if args.max_size is not None and args.max_size < 16:
        parser.error(f"--max-size {args.max_size} must be 16 pixels or more")
    if args.output is None and not args.show:
        args.output = (args.run or Path("output")) / "demo"
    return args


def plan_targets(media: Sequence[Medium], args: argparse.Namespace) -> list[Path | None]:
    """Return the file that each input is saved to, no two the same; None where nothing is saved.

    Raises:
        ValueError: --output is a file and cannot be, or an input itself.
    """
    output: Path | None = args.output
    if output is None:
        return [None] * len(media)
    if output.suffix.lower() in (*PICTURES, ".mp4") and not output.is_dir():
        if len(media) > 1:
            raise ValueError(f"--output {output} is one file, --input names {len(media)}; name a folder")
        if media[0].is_video != (output.suffix.lower() == ".mp4"):
            raise ValueError(f"--output {output}: a video is saved as .mp4, an image as one of {' '.join(PICTURES)}")
        targets = [output]
    else:
        if output.exists() and not output.is_dir():
            raise ValueError(f"--output {output} is a file; name a folder, or one of {' '.join(PICTURES)} .mp4")
        planned: dict[Path, None] = {}  # in their order, and found at once among many thousands
        for medium in media:
            planned[_free_name(output / _saved_name(medium), planned)] = None
        targets = list(planned)
    inputs = {medium.source.resolve() for medium in media if isinstance(medium.source, Path)}
    for target in targets:
        if target.resolve() in inputs:
            raise ValueError(f"--output {output} would write over the input {target}; name another folder")
    return list(targets)


def _saved_name(medium: Medium) -> Path:
    if medium.is_video:
        return medium.name.with_suffix(".mp4")
    if medium.name.suffix.lower() in PICTURES:
        return medium.name
    return medium.name.with_name(medium.name.name + ".png")


def _free_name(path: Path, taken: Container[Path]) -> Path:
    number, free = 2, path
    while free in taken:
        free, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
    return free


def detect_in(medium: Medium, target: Path | None, predictor: Predictor, args: argparse.Namespace) -> bool:
    """Detect in every frame of one input, and save, show and print; return whether it could be read whole."""
    source = str(medium.source)
    counts: Counter[str] = Counter()
    frames = 0
    with ExitStack() as stack:
        try:
            fps, images = _open(medium, stack)
        except (OSError, ValueError) as error:
            return report_unreadable(source, error, args)
        writer = None
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            writer = stack.enter_context(VideoWriter(target, fps)) if medium.is_video else None
        while True:
            try:
                image = next(images, None)
            except (OSError, ValueError) as error:
                return report_unreadable(source, error, args)
            if image is None:
                break
            found = predictor(image).scored(args.score)
            counts.update(predictor.class_names[label] for label in found.labels.tolist())
            if target is not None or args.show:
                picture = draw_detections(image, found, predictor.class_names, args.max_size)
                if writer is not None:
                    writer.write(np.asarray(picture))
                elif target is not None:
                    picture.save(target, quality=95)  # of JPEG; PNG loses nothing
                if args.show:
                    show(picture, wait=not medium.is_video)
            if args.json:
                frame = {"frame": frames} if medium.is_video else {}
                print_json(source, frame, image, found, predictor, target)
            frames += 1
    if not args.json:
        objects = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
        over = f" in {frames} frames" if medium.is_video else ""
        print(f"{source}: {objects}{over}{'' if target is None else f' -> {target}'}", flush=True)
    return True


def _open(medium: Medium, stack: ExitStack) -> tuple[float, Iterator[Tensor]]:
    """Return frames a second (of an image 0) and the frames."""
    if not medium.is_video:
        return 0.0, iter([read_image(str(medium.source))])
    reader = stack.enter_context(VideoReader(medium.source))
    bar = tqdm(reader, desc=str(medium.source), total=reader.frame_count, unit="frame", disable=None, leave=False)
    return reader.fps, iter(bar)


def report_unreadable(source: str, error: Exception, args: argparse.Namespace) -> bool:
    print(f"error: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps({"file": source, "error": str(error)}), flush=True)
    return False


def print_json(
    source: str, frame: dict[str, int], image: Tensor, found: Detections, predictor: Predictor, target: Path | None
) -> None:
    size = {"height": image.shape[-2], "width": image.shape[-1]}
    picture = {} if target is None else {"picture": str(target)}
    print(json.dumps({"file": source, **frame, **size, **found.to_dict(predictor.class_names), **picture}), flush=True)


class Stopped(Exception):
    """The user has closed the window, or pressed q or Esc."""


def show(picture: Image.Image, *, wait: bool) -> None:
    """Show a picture; with ``wait`` until a key is pressed.

    Raises:
        Stopped: there is nothing more to show.
    """
    cv2.imshow(WINDOW, np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))
    while True:
        key = cv2.waitKey(50 if wait else 1)
        if key in (27, ord("q")) or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
            raise Stopped
        if key >= 0 or not wait:
            return


def check_display() -> None:
    """Raise OSError where no window can be opened. OpenCV aborts its process there, so another one tries."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, errors="replace", timeout=60)
    if probe.returncode != 0:
        reason = next((line for line in probe.stderr.splitlines() if line.strip()), f"status {probe.returncode}")
        raise OSError(
            f"--show: no window can be opened here ({reason.strip()}); write --output DIR to save the pictures"
        )


if __name__ == "__main__":
    sys.exit(run_command_line(main))
