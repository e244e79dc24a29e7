"""Videos against OpenCV's own reader and writer."""

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from resnet_backbone.data.images.media import VideoReader, VideoWriter


def write_clip(path: Path, frames: int = 7, size: tuple[int, int] = (48, 64), fps: float = 12.5) -> list[np.ndarray]:
    """By OpenCV alone: a red field on the left that fades from frame to frame; returned as RGB."""
    codec = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size[::-1])
    pictures = []
    for number in range(frames):
        picture = np.full((*size, 3), 40, dtype=np.uint8)
        picture[:, : size[1] // 2] = (250 - 20 * (number % 10), 30, 10)
        writer.write(picture[:, :, ::-1].copy())
        pictures.append(picture)
    writer.release()
    return pictures


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_frames_come_in_order_as_rgb(tmp_path, name):
    pictures = write_clip(tmp_path / name)
    with VideoReader(tmp_path / name) as reader:
        assert reader.fps == pytest.approx(12.5)
        assert reader.frame_count == 7
        frames = [frame.permute(1, 2, 0).numpy() for frame in reader]
    assert len(frames) == 7
    for frame, picture in zip(frames, pictures, strict=True):
        assert frame.dtype == np.uint8 and frame.shape == picture.shape
        inside = (slice(8, 40), slice(8, 24))  # away from the edge, which the codec smears
        assert abs(frame[inside].mean((0, 1)) - picture[inside].mean((0, 1))).max() < 12


@pytest.mark.parametrize("size", [(48, 64), (49, 65), (33, 48)])
def test_what_is_written_is_read_back_with_nothing_cut_off(tmp_path, size):
    path = tmp_path / "out.mp4"
    pictures = [np.full((*size, 3), 30 * number, dtype=np.uint8) for number in range(5)]
    with VideoWriter(path, 7.5) as writer:
        for picture in pictures:
            picture[:, :, 0] = 200
            writer.write(picture)
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(7.5)
    for picture in pictures:
        there, frame = capture.read()
        assert there and frame.shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert abs(frame[:, :, ::-1].mean((0, 1)) - picture.mean((0, 1))).max() < 6
    assert not capture.read()[0]


def test_no_frame_no_file_and_only_mp4(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", 25):
        pass
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(ValueError, match="written to an .mp4 file, not to .*out.gif"):
        VideoWriter(tmp_path / "out.gif", 25)


def test_what_cannot_be_written_is_an_error(tmp_path):
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="cannot be written"), VideoWriter(tmp_path / "no" / "out.mp4", 25) as writer:
        writer.write(picture)
    other = r"frames are \(32, 32\), got one of \(32, 40\)"
    with pytest.raises(ValueError, match=other), VideoWriter(tmp_path / "out.mp4", 25) as writer:
        writer.write(picture)
        writer.write(np.zeros((32, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100], ids=["empty", "text"])
def test_what_is_no_video_is_an_error(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(OSError, match="clip.mp4: cannot be read as a video"):
        VideoReader(tmp_path / "clip.mp4")
    with pytest.raises(FileNotFoundError, match="no such video file"):
        VideoReader(tmp_path / "nowhere.mp4")


def test_a_video_that_ends_early_is_a_warning(tmp_path, caplog):
    write_clip(tmp_path / "whole.avi", frames=40)
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(content[: len(content) // 2])
    with VideoReader(tmp_path / "half.avi") as reader, caplog.at_level(logging.WARNING):
        frames = sum(1 for _ in reader)
    assert 0 < frames < 40
    assert f"{frames} of 40 frames could be read" in caplog.text


def test_names_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.mp4")
    path.write_bytes(b"")
    for open_video in (lambda: VideoReader(path), lambda: VideoWriter(path, 25)):
        with pytest.raises(OSError, match=r"udcff\.mp4': the name of a video must be text in UTF-8"):
            open_video()
