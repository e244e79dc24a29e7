"""What a user gets from the wheel, the source archive and an editable install."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from resnet_backbone.version import __version__

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "output")


def run(*command, cwd):
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy, because building writes into the source folder."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("package") / "source", ignore=LEFT_OUT)


@pytest.fixture(scope="module")
def archives(source):
    """The source archive, and the wheel built from it and not from the folder."""
    run("-m", "build", "--no-isolation", "--outdir", "../dist", ".", cwd=source)
    (sdist,) = (source.parent / "dist").glob("*.tar.gz")
    (wheel,) = (source.parent / "dist").glob("*.whl")
    return sdist, wheel


def expected_modules():
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "resnet_backbone").rglob("*.py")}


def scripts():
    return {f"{p.parent.name}/{p.name}" for folder in ("tools", "datasets") for p in (ROOT / folder).glob("*.py")}


def expected_configs():
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}


def expected_templates():
    package = ROOT / "resnet_backbone"
    return {path.relative_to(ROOT).as_posix() for kind in ("*.j2", "*.css", "*.yaml") for path in package.rglob(kind)}


def test_the_wheel_holds_every_module_config_and_template_and_nothing_else(archives):
    _, wheel = archives
    assert wheel.name == f"resnet_backbone-{__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert expected_modules() and expected_configs() and expected_templates(), "there is something to look for"
    configs = {f"resnet_backbone/{name}" for name in expected_configs()}
    assert names == expected_modules() | expected_templates() | configs | {
        f"resnet_backbone/{name}" for name in scripts()
    }


def test_the_source_archive_is_complete(archives):
    sdist, _ = archives
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} | {"README.md", "MODEL_ZOO.md"}
    assert expected_modules() | expected_configs() | expected_templates() | scripts() | pages <= names
    assert pages != {"README.md", "MODEL_ZOO.md"}, "there is something to look for"
    assert {
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "tests/conftest.py",
        "tests/test_package.py",
    } <= names


def test_metadata(archives):
    _, wheel = archives
    text = zipfile.ZipFile(wheel).read(f"resnet_backbone-{__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    assert metadata["Name"] == "resnet_backbone" and metadata["Version"] == __version__
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    required = metadata.get_all("Requires-Dist")
    always = [line for line in required if "extra ==" not in line]
    assert not any("detectron2" in line for line in always), "Detectron2 is an extra, and never by name from an index"
    assert any(line.startswith("detectron2 @ git+https://github.com/facebookresearch/detectron2") for line in required)


RUN_COMMAND = """
from resnet_backbone.command import main
status = main()
print(sys.modules["resnet_backbone.datasets.prepare_shapes"].__file__)
sys.exit(status)
"""
FIND_CONFIG = """
import resnet_backbone.config
print(resnet_backbone.config.__file__)
print(resnet_backbone.config.find_config_file("frcnn_r101.yaml").read_text())
"""


def test_an_installed_wheel_finds_its_configs(archives, tmp_path):
    _, wheel = archives
    zipfile.ZipFile(wheel).extractall(tmp_path)
    printed = run("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{FIND_CONFIG}", cwd=tmp_path.parent)
    assert printed.startswith(str(tmp_path))
    assert (ROOT / "configs" / "frcnn_r101.yaml").read_text() in printed


def test_an_installed_wheel_has_the_console_command(archives, tmp_path):
    _, wheel = archives
    zipfile.ZipFile(wheel).extractall(tmp_path)
    entry = (tmp_path / f"resnet_backbone-{__version__}.dist-info" / "entry_points.txt").read_text()
    assert "resnet-backbone = resnet_backbone.command:main" in entry
    words = ["prepare", "shapes", "--output", str(tmp_path / "shapes"), "--train", "2", "--val", "2"]
    printed = run("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{RUN_COMMAND}", *words, cwd=tmp_path)
    assert f"{tmp_path}/resnet_backbone/datasets/prepare_shapes.py" in printed
    assert (tmp_path / "shapes" / "annotations" / "val.json").is_file()


def test_an_editable_install_finds_its_configs(source, tmp_path):
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--prefix", str(tmp_path)]
    run("-m", "pip", "install", *options, "--editable", str(source), cwd=tmp_path)
    (site,) = tmp_path.rglob("site-packages")
    # -S: this environment may hold an editable install of its own, which must not answer instead.
    paths = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({sysconfig.get_path('purelib')!r})"
    printed = run("-S", "-c", f"{paths}\n{FIND_CONFIG}", cwd=tmp_path)
    assert printed.startswith(str(source))
    assert (ROOT / "configs" / "frcnn_r101.yaml").read_text() in printed
