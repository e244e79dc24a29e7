"""Packaging. Exact versions for development and CI are in constraints.txt; the ranges here are what the code needs."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = runpy.run_path(str(ROOT / "resnet_backbone" / "version.py"))["__version__"]

TOP = ("configs", "tools", "datasets")
EXPORT = ["onnx", "onnxscript", "onnxruntime"]
TIMM = ["timm>=1.0.15"]
COMPLETION = ["argcomplete>=3"]
RESULTS = ["supervision", "pandas"]
TEST = ["pytest>=8", "hypothesis", "pytest-xdist", "build", "setuptools>=68", *EXPORT, *TIMM, *COMPLETION, *RESULTS]

setup(
    name="resnet_backbone",
    version=VERSION,
    description="ImageNet classifiers (ResNet, VGG) as detection backbones for Detectron2 and torchvision",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=[
        *find_packages(include=["resnet_backbone", "resnet_backbone.*"]),
        *(f"resnet_backbone.{name}" for name in TOP),
    ],
    # They stand at the top, where a reader looks for them, and are installed inside the package.
    package_dir={f"resnet_backbone.{name}": name for name in TOP},
    entry_points={"console_scripts": ["resnet-backbone = resnet_backbone.command:main"]},
    package_data={
        "resnet_backbone.configs": ["*.yaml", "**/*.yaml"],
        "resnet_backbone.compare": ["*.j2"],
        "resnet_backbone.data.coco": ["*.yaml"],
        "resnet_backbone.doctor": ["*.j2"],
        "resnet_backbone.metrics": ["*.css", "*.yaml"],
        "resnet_backbone.reproduce": ["*.yaml"],
        "resnet_backbone.weights": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "filelock",
        "fvcore",
        "pycocotools>=2.0.8",
        "faster-coco-eval>=1.8",
        "opencv-python",
        "accelerate>=1.0",
        "psutil",
        "safetensors",
        "tensorboard",
        "matplotlib",
        "jinja2",
        "tqdm",
        "numpy",
        "pillow>=10.1",  # ImageFont.load_default(size=...)
        "pyyaml",
        "shapely>=2",  # fvcore cuts polygons with it
        "tabulate",
    ],
    extras_require={
        # Not on PyPI. Its model zoo imports pkg_resources, which newer setuptools no longer bring.
        "detectron2": ["detectron2 @ git+https://github.com/facebookresearch/detectron2.git", "setuptools<81"],
        "timm": TIMM,  # ARCH timm/NAME, weights timm:// and hf-hub:
        "export": EXPORT,  # tools/export.py to ONNX
        "completion": COMPLETION,  # of words of the command resnet-backbone, in a shell
        "results": RESULTS,  # that predictions convert to
        "test": TEST,
        "fuzz": ["atheris"],  # make fuzz; Linux and macOS
        "dev": [*TEST, "ruff==0.17.6", "mypy==2.4.1"],
    },
)
