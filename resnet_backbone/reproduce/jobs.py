"""The commands of a table: each training and each evaluation once, in an order in which each finds its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode

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
    config: str
    overrides: tuple[str, ...]  # KEY VALUE words, without OUTPUT_DIR
    training: Training
    seed: int
    evaluates: bool  # an evaluation alone
    gpus: int
    engine: str
    schedule: Schedule
    own_schedule: Schedule  # the config's, before scaling
    cfg: CfgNode  # as the command's config will be, before the run completes it

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
        for seed in self.seeds:
            for row in table.rows:
                if not row.is_ensemble:
                    self._rows[row.key].append(self._row_job(row, seed))
        for row in table.rows:
            if row.is_ensemble:
                self._rows[row.key].append(self._row_job(row, ENSEMBLE_SEEDS[0]))

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def of_row(self, key: str) -> list[Job]:
        """Return the jobs whose evaluations are a row's figures, one a seed; one alone for an ensemble."""
        return self._rows[key]

    def _row_job(self, row: Row, seed: int) -> Job:
        trained = self._training_job(row.training, seed)
        if not row.evaluation_name:
            return trained
        overrides = ["MODEL.WEIGHTS", _weights(trained), *row.test]
        if row.is_ensemble:
            others = row.members or [(row.training, other) for other in ENSEMBLE_SEEDS[1:]]
            members = [self._training_job(training, other).folder.as_posix() for training, other in others]
            overrides += ["TEST.ENSEMBLE", str(members)]
        name = f"{trained.name}_{row.evaluation_name}"
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
            name,
            self.setting.output / name,
            training.config,
            overrides,
            training,
            seed,
            evaluates,
            self.setting.gpus,
            self.setting.engine,
            schedule,
            own_schedule,
            cfg,
        )
        return self._jobs[name]


def _weights(job: Job) -> str:
    return (job.folder / "model_final.pth").as_posix()
