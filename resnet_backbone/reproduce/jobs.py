"""The commands of a table, each training and each evaluation once, in order, and how far each of them has come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvcore.common.config import CfgNode

from resnet_backbone.config.differences import differences, read_settings
from resnet_backbone.files.checkpoints import LAST
from resnet_backbone.metrics.run_facts import FACTS_NAME, METRICS_NAME, RunFacts, read_facts, read_figures
from resnet_backbone.reproduce.estimate import Schedule, images_for, scale_schedule, schedule_of
from resnet_backbone.reproduce.tables import ENSEMBLE_SEEDS, Row, Table, Training

LoadConfig = Callable[[str, Sequence[str]], CfgNode]  # an engine's: config file, KEY VALUE words


@dataclass(frozen=True)
class Setting:
    """What the person who runs a table decides."""

    output: Path  # gets a folder for every run, and the reports
    gpus: int = 1  # processes; 1 on a CPU
    engine: str = "auto"
    seeds: int | None = None  # how many, from 0; None: the table's own number
    images_per_step: int | None = None  # None: as many a GPU as where the config was made for


@dataclass(frozen=True)
class Job:
    """One command of the table's tool: a training with the evaluation that ends it, or an evaluation alone."""

    name: str  # of its folder
    folder: Path
    overrides: tuple[str, ...]  # KEY VALUE words, without OUTPUT_DIR
    training: Training
    seed: int
    evaluates: bool  # an evaluation alone
    gpus: int
    engine: str
    schedule: Schedule
    own_schedule: Schedule  # the config's, before scaling
    cfg: CfgNode  # as the command's config will be, before the run completes it

    @property
    def config(self) -> str:
        """The config file of its training."""
        return self.training.config

    def command(self, script: str, *, resume: bool = False) -> list[str]:
        """Return the words after ``python``, ``script`` being the path of the table's tool."""
        words = [script, "--config-file", self.config]
        words += ["--engine", self.engine] if self.engine != "auto" else []
        words += ["--num-gpus", str(self.gpus)] if self.gpus > 1 else []
        words += ["--resume"] if resume else []
        words += ["--eval-only"] if self.evaluates else []
        return [*words, "OUTPUT_DIR", self.folder.as_posix(), *self.overrides]


class Jobs:
    """The jobs of one table in one setting.

    Raises:
        FileNotFoundError, ValueError: a config that is missing or that the engine does not obey, or a number of images
            that cannot be shared among the GPUs.
    """

    def __init__(self, table: Table, setting: Setting, load_config: LoadConfig) -> None:
        self.table = table
        self.setting = setting
        self.seeds = range(setting.seeds or table.seeds)
        self._load_config = load_config
        self._jobs: dict[str, Job] = {}
        self._rows: dict[str, list[Job]] = {row.key: [] for row in table.rows}
        single = [(row, seed) for seed in self.seeds for row in table.rows if not row.is_ensemble]
        ensembles = [(row, ENSEMBLE_SEEDS[0]) for row in table.rows if row.is_ensemble]
        for row, seed in single + ensembles:
            self._rows[row.key].append(self._row_job(row, seed))

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def of_row(self, key: str) -> list[Job]:
        """Return the jobs whose evaluations are a row's figures, one a seed; one alone for an ensemble."""
        return self._rows[key]

    def _row_job(self, row: Row, seed: int) -> Job:
        training = self._training_job(row.training, seed)
        if not row.evaluation_name:
            return training
        overrides = ["MODEL.WEIGHTS", _weights(training), *row.test]
        if row.is_ensemble:
            others = row.members or [(row.training, its_seed) for its_seed in ENSEMBLE_SEEDS[1:]]
            members = [self._training_job(other, its_seed).folder.as_posix() for other, its_seed in others]
            overrides += ["TEST.ENSEMBLE", str(members)]
        name = f"{training.name}_{row.evaluation_name}"
        return self._add(name, row.training, seed, tuple(overrides), evaluates=True)

    def _training_job(self, training: Training, seed: int) -> Job:
        overrides = ["SEED", str(seed)]
        if training.start_from is not None:
            overrides += ["MODEL.WEIGHTS", _weights(self._training_job(training.start_from, 0))]
        return self._add(f"{training.name}_s{seed}", training, seed, tuple(overrides), evaluates=False)

    def _add(self, name: str, training: Training, seed: int, overrides: tuple[str, ...], *, evaluates: bool) -> Job:
        if name in self._jobs:
            return self._jobs[name]
        cfg = self._load_config(training.config, overrides)
        schedule = own_schedule = schedule_of(cfg)
        if not evaluates:
            images = self.setting.images_per_step or images_for(cfg, self.setting.gpus, training.reference_gpus)
            if images % self.setting.gpus:
                raise ValueError(f"{images} images a step cannot be shared equally among {self.setting.gpus} GPUs")
            schedule = scale_schedule(cfg, images)
            overrides += schedule.overrides(cfg)
            cfg = self._load_config(training.config, overrides)
        self._jobs[name] = Job(
            name=name,
            folder=self.setting.output / name,
            overrides=overrides,
            training=training,
            seed=seed,
            evaluates=evaluates,
            gpus=self.setting.gpus,
            engine=self.setting.engine,
            schedule=schedule,
            own_schedule=own_schedule,
            cfg=cfg,
        )
        return self._jobs[name]


def _weights(job: Job) -> str:
    return (job.folder / "model_final.pth").as_posix()


FINISHED, STARTED, NOT_RUN, OTHER = "finished", "started", "not run", "other settings"

_OLDER = "its figures are older than the detector, which was trained again, or copied without its time: cp -p keeps it"


@dataclass(frozen=True)
class RunState:
    """What was found of one job."""

    job: Job
    status: str  # FINISHED, STARTED, NOT_RUN or OTHER
    detail: str = ""  # how far it got, or which settings are others
    figures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # percent
    facts: RunFacts | None = None


def read_state(job: Job) -> RunState:
    """Look into a job's folder; nothing is written.

    Raises:
        ValueError: a file there is not what tools/train_net.py writes.
    """
    config_path = job.folder / "config.yaml"
    if not config_path.is_file():
        return RunState(job, NOT_RUN)
    if others := list(differences(read_settings(config_path), job.cfg)):
        return RunState(job, OTHER, "; ".join(one.text("the folder", "the plan") for one in others))
    inference = job.folder / "inference"
    metrics = inference / METRICS_NAME
    evaluation = metrics if metrics.is_file() else inference / FACTS_NAME
    if _ended(job, evaluation):
        figures = read_figures(metrics) if metrics.is_file() else {}
        facts = read_facts(inference) if (inference / FACTS_NAME).is_file() else None
        return RunState(job, FINISHED, figures=figures, facts=facts)
    if job.evaluates:
        return RunState(job, NOT_RUN, _OLDER if evaluation.is_file() else "")
    return RunState(job, STARTED, f"iteration {last_iteration(job.folder):,} of {job.schedule.max_iter:,}")


def _ended(job: Job, evaluation: Path) -> bool:
    """Whether the file of an evaluation is there and is that of the final detector, or detectors.

    A test set without annotations has facts and no figures.
    """
    if not evaluation.is_file():
        return False
    if job.evaluates:  # weights may have been deleted since; those of a later training are others
        members = (Path(folder) / "model_final.pth" for folder in job.cfg.TEST.ENSEMBLE)
        weights = [path for path in (Path(job.cfg.MODEL.WEIGHTS), *members) if path.is_file()]
    else:
        final = job.folder / "model_final.pth"
        if not final.is_file():
            return False
        weights = [final] if job.cfg.TEST.EVAL_PERIOD else []
    return all(path.stat().st_mtime <= evaluation.stat().st_mtime for path in weights)


def can_resume(folder: Path) -> bool:
    """Return whether a run in this folder has a checkpoint to resume from."""
    return (folder / LAST).is_file()


def last_iteration(folder: Path) -> int:
    """Return how many iterations the records of a run tell of, 0 where there are none."""
    path = folder / METRICS_NAME
    last = 0
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                last = max(last, int(json.loads(line)["iteration"]) + 1)
            except (ValueError, KeyError, TypeError):
                continue  # the line that a killed run was writing, or one of another kind
    return last
