"""What is installed, and whether its parts belong together."""

from __future__ import annotations

import platform

import torch
import torchvision

from resnet_backbone.diagnosis.report import Section
from resnet_backbone.version import __version__

_FIRST_MINOR = 15  # torchvision 0.15 belongs to torch 2.0, 0.16 to 2.1, and so on


def check_versions(section: Section) -> None:
    """Enter the versions of Python, torch, torchvision and CUDA."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    section.facts |= {
        "resnet_backbone": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }
    section.ok(
        f"resnet_backbone {__version__}, Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, " + (f"CUDA {torch.version.cuda}, {', '.join(gpus)}" if gpus else "no GPU")
    )
    if not hasattr(torch.ops.torchvision, "nms"):
        section.wrong(
            f"torchvision {torchvision.__version__} has no compiled operators for torch {torch.__version__}; install "
            "both in one command and from one index"
        )
    elif problem := pair_problem(torch.__version__, torchvision.__version__):
        section.warning(problem)


def pair_problem(torch_version: str, torchvision_version: str) -> str:
    """Say what is wrong with a pair of versions such as ``"2.14.1+cpu"`` and ``"0.29.1"``; ``""`` for nothing."""
    wanted = torchvision_minor_of(torch_version)
    found = torchvision_version.split(".")[:2]
    if wanted is not None and found != ["0", str(wanted)]:
        return (
            f"torchvision {torchvision_version} is not of torch {torch_version}: that one's is 0.{wanted}; write "
            f"pip install 'torchvision==0.{wanted}.*'"
        )
    builds = [version.partition("+")[2] for version in (torch_version, torchvision_version)]
    if all(builds) and builds[0] != builds[1]:
        return f"torch is built for {builds[0]}, torchvision for {builds[1]}; install both from one index"
    return ""


def torchvision_minor_of(torch_version: str) -> int | None:
    """Return N of the torchvision 0.N that belongs to a torch 2.x; None for another torch."""
    major, minor, *_ = torch_version.split(".")
    return _FIRST_MINOR + int(minor) if major == "2" and minor.isdigit() else None
