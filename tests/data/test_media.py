"""What a command line names: files, folders, patterns and cameras."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_backbone.data.images.media import Medium, find_media, image_endings, is_hidden
from resnet_backbone.data.images.read import FORMATS, read_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "deep/er/c.tiff", "deep/clip.MP4", "notes.txt", "deep/a.json", "strange"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "in"


def names(words: list[str]) -> list[str]:
    return [str(medium.name) for medium in find_media(words).found]


def test_a_folder_is_searched_by_the_endings_and_the_rest_counted(folder):
    found, skipped = find_media([str(folder)])
    assert [(str(medium.name), medium.is_video) for medium in found] == [
        ("a.png", False),
        ("b.JPG", False),
        ("deep/clip.MP4", True),
        ("deep/er/c.tiff", False),
    ]
    assert found[0].source == folder / "a.png"
    assert skipped == 3


def test_a_file_that_is_named_is_taken_whatever_its_ending(folder):
    assert find_media([str(folder / "strange")]).found == [Medium(folder / "strange", Path("strange"))]


def test_patterns(folder, monkeypatch):
    assert names([str(folder / "*.JPG")]) == ["b.JPG"]
    assert names([str(folder / "**" / "*.*")]) == ["a.png", "b.JPG", "clip.MP4", "c.tiff"]
    monkeypatch.chdir(folder.parent)
    assert names(["in/[ab].*"]) == ["a.png", "b.JPG"]


def test_a_file_counts_once_and_one_with_the_letters_of_a_pattern_is_itself(folder):
    (folder / "x[1].png").write_bytes(b"")
    assert names([str(folder / "x[1].png")]) == ["x[1].png"]
    assert names([str(folder / "a.png"), str(folder / "deep" / ".." / "a.png"), str(folder)]).count("a.png") == 1


def test_a_number_is_a_camera_unless_a_file_has_that_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_media(["0"]).found == [Medium(0, Path("camera_0"))]
    (folder / "0").write_bytes(b"")
    assert find_media(["0"]).found == [Medium(Path("0"), Path("0"))]


@pytest.mark.parametrize("word", ["nowhere.jpg", "nowhere/*.jpg", "", "-1", "~nobody.knows/a.jpg"])
def test_what_names_nothing_is_an_error(folder, word):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_media([str(folder), word])


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no image and no video in .* \(1 other files\)"):
        find_media([str(tmp_path)])


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_of_every_format_is_found_by_its_ending_and_read(tmp_path, name):
    endings = [end for end, format_name in Image.registered_extensions().items() if format_name == name]
    if not endings or name not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {name}")
    path = tmp_path / f"a{endings[0].upper()}"
    Image.fromarray(np.full((32, 32, 3), 200, dtype=np.uint8)).save(path, format=name)
    assert endings[0] in image_endings()
    assert read_image(find_media([str(tmp_path)]).found[0].source).shape == (3, 32, 32)


HIDDEN = [".DS_Store", "._a.jpg", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "DESKTOP.INI"]


@pytest.mark.parametrize("name", HIDDEN)
def test_what_desktops_and_notebooks_leave_is_hidden(name):
    assert is_hidden(name)


@pytest.mark.parametrize("name", ["a.jpg", "macosx", "thumbs.db.png", "_a.jpg", "desktop", "a.DS_Store"])
def test_what_users_name_is_not(name):
    assert not is_hidden(name)


def test_hidden_files_are_taken_only_where_they_are_named(folder):
    for name in ("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "deep/__MACOSX/a.png", ".mine/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    assert names([str(folder)]) == ["a.png", "b.JPG", "deep/clip.MP4", "deep/er/c.tiff"]
    assert find_media([str(folder)]).skipped == 3 + 4
    assert names([str(folder / "**" / "*.png")]) == ["a.png"]
    assert names([str(folder / ".mine" / "*.png")]) == ["a.png"] == names([str(folder / ".mine")])
    assert names([str(folder / "._a.png")]) == ["._a.png"]
