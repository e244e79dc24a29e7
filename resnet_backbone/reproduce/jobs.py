"""The jobs of a table, each training and each evaluation once, in order: schedule, command, and how far it has come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvcore.common.config import CfgNode

from resnet_backbone.config.merge import differences, read_run_config
from resnet_backbone.metrics.run_facts import FACTS_NAME, METRICS_NAME, RunFacts, read_facts, read_figures
from resnet_backbone.reproduce.tables import ENSEMBLE_SEEDS, Row, Table, Training

LoadConfig = Callable[[str, Sequence[str]], CfgNode]  # an engine's: config file, KEY VALUE words

_KEYS = {
    "images_per_step": "SOLVER.IMS_PER_BATCH",
    "base_lr": "SOLVER.BASE_LR",
    "max_iter": "SOLVER.MAX_ITER",
    "steps": "SOLVER.STEPS",
    "warmup_iters": "SOLVER.WARMUP_ITERS",
    "eval_period": "TEST.EVAL_PERIOD",
    "checkpoint_period": "SOLVER.CHECKPOINT_PERIOD",
}


@dataclass(frozen=True)
class Schedule:
    """What changes in SOLVER (and TEST) with the number of images a step; the fields are those of ``_KEYS``."""

    images_per_step: int
    base_lr: float
    max_iter: int
    steps: tuple[int, ...]
    warmup_iters: int
    eval_period: int
    checkpoint_period: int  # scaled, too: VGG-16's 128 checkpoints on one GPU would take 140 GB

    def overrides(self, cfg: CfgNode) -> tuple[str, ...]:
        """Return the ``KEY VALUE`` words that give ``cfg`` this schedule; none where it has it."""
        own = schedule_of(cfg)
        changed = {key: getattr(self, name) for name, key in _KEYS.items() if getattr(self, name) != getattr(own, name)}
        return tuple(word for key, value in changed.items() for word in (key, _word(value)))

    def text(self) -> str:
        """One line for people."""
        drops = f", x0.1 at {' and '.join(f'{step:,}' for step in self.steps)}" if self.steps else ""
        return (
            f"{self.max_iter:,} iterations of {self.images_per_step} images, learning rate {self.base_lr:g}"
            f"{drops}, warm-up {self.warmup_iters:,}"
        )


def schedule_of(cfg: CfgNode) -> Schedule:
    """Return the schedule that a config describes."""
    solver = cfg.SOLVER
    steps = tuple(solver.STEPS) if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" else ()
    return Schedule(
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.MAX_ITER,
        tuple(step for step in steps if step < solver.MAX_ITER),
        solver.WARMUP_ITERS,
        cfg.TEST.EVAL_PERIOD,
        solver.CHECKPOINT_PERIOD,
    )


def scale_schedule(cfg: CfgNode, images_per_step: int) -> Schedule:
    """Return the schedule of ``cfg`` for another number of images a step: the rate times k, the iterations through k.

    Source: Goyal et al., arXiv 1706.02677, section 2.1; the arithmetic is that of Detectron2's
    ``DefaultTrainer.auto_scale_workers``.

    Raises:
        ValueError: no images.
    """
    if images_per_step < 1:
        raise ValueError(f"a step needs one image or more, got {images_per_step}")
    own = schedule_of(cfg)
    factor = images_per_step / own.images_per_step
    if factor == 1:
        return own
    return Schedule(
        images_per_step,
        float(f"{own.base_lr * factor:.10g}"),  # as it is printed
        round(own.max_iter / factor),
        tuple(round(step / factor) for step in own.steps),
        round(own.warmup_iters / factor),
        round(own.eval_period / factor),
        max(1, round(own.checkpoint_period / factor)),
    )


def images_for(cfg: CfgNode, gpus: int, reference_gpus: int) -> int:
    """Return how many images a step has on ``gpus``, each with as many as where the config was made for.

    Raises:
        ValueError: a number of GPUs that the images cannot be shared among.
    """
    images = cfg.SOLVER.IMS_PER_BATCH * gpus
    if gpus < 1 or images % reference_gpus:
        raise ValueError(
            f"{cfg.SOLVER.IMS_PER_BATCH} images on {reference_gpus} GPUs do not scale to {gpus}: "
            f"give --images-per-step, a multiple of {gpus}"
        )
    return images // reference_gpus


def _word(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


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

    @property
    def text(self) -> str:
        """The status with its detail."""
        return f"{self.status} ({self.detail})" if self.detail else self.status


def read_state(job: Job) -> RunState:
    """Look into a job's folder; nothing is written.

    Raises:
        ValueError: a file there is not what tools/train_net.py writes.
    """
    config_path = job.folder / "config.yaml"
    if not config_path.is_file():
        return RunState(job, NOT_RUN)
    if others := differences(read_run_config(config_path), job.cfg, ("the folder", "the plan")):
        return RunState(job, OTHER, "; ".join(others))
    inference = job.folder / "inference"
    metrics = inference / METRICS_NAME
    evaluation = metrics if metrics.is_file() else inference / FACTS_NAME
    if _ended(job, evaluation):
        figures = read_figures(metrics) if metrics.is_file() else {}
        facts = read_facts(inference) if (inference / FACTS_NAME).is_file() else None
        return RunState(job, FINISHED, figures=figures, facts=facts)
    if job.evaluates:
        return RunState(job, NOT_RUN, _OLDER if evaluation.is_file() else "")
    return RunState(job, STARTED, f"iteration {_last_iteration(job.folder):,} of {job.schedule.max_iter:,}")


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


def _last_iteration(folder: Path) -> int:
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
