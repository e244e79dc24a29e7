"""The jobs of a table, each training and each evaluation once, in order: schedule, command, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvcore.common.config import CfgNode

from resnet_backbone.config.merge import differences, read_run_config
from resnet_backbone.metrics.run_facts import (
    FACTS_NAME,
    METRICS_NAME,
    RunFacts,
    read_facts,
    read_figures,
    read_training,
)
from resnet_backbone.reproduce.tables import Row, Table, Training

LoadConfig = Callable[[Training, Sequence[str]], CfgNode]  # the training's config as its tool reads it, KEY VALUE pairs

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
        """Return the ``KEY VALUE`` pairs that give ``cfg`` this schedule; none where it has it."""
        own = schedule_of(cfg)
        pairs: list[str] = []
        for name, key in _KEYS.items():
            value = getattr(self, name)
            if value != getattr(own, name):
                pairs += [key, str(list(value) if isinstance(value, tuple) else value)]
        return tuple(pairs)

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
    """
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


@dataclass(frozen=True)
class TableOptions:
    """What the person who runs a table decides."""

    output: Path  # gets a folder for every run, and the reports
    gpus: int = 1  # processes; 1 on a CPU
    engine: str = "auto"
    seeds: int | None = None  # how many, from 0; None: the table's own number
    images_per_step: int | None = None  # None: as many a GPU as where the config was made for


@dataclass(frozen=True)
class Job:
    """One command of a tool: a training with the evaluation that ends it, or an evaluation alone."""

    name: str  # of its folder
    folder: Path
    overrides: tuple[str, ...]  # KEY VALUE pairs, without OUTPUT_DIR
    training: Training
    seed: int
    eval_only: bool  # an evaluation alone
    options: TableOptions
    schedule: Schedule
    own_schedule: Schedule  # the config's, before scaling
    cfg: CfgNode  # as the command's config will be, before the run completes it

    needs: tuple[str, ...] = ()  # names of the jobs whose networks it starts from, or evaluates

    @property
    def final_weights(self) -> Path:
        """What its training ends with."""
        return self.folder / "model_final.pth"

    @property
    def starting_point(self) -> str:
        """MODEL.WEIGHTS of a training that starts from this one: of a classifier, its packaged file."""
        if self.training.weights:
            return self.training.weights
        return (self.folder / "weights.pth" if self.training.classifier else self.final_weights).as_posix()

    def command(self, tools: str, *, resume: bool = False) -> list[str]:
        """Return the arguments of ``python``, ``tools`` being the path of the folder of the tools."""
        arguments = [f"{tools}/{self.training.tool}", "--config-file", self.training.config]
        engine = "auto" if self.training.classifier else self.options.engine
        arguments += ["--engine", engine] if engine != "auto" else []
        arguments += ["--num-gpus", str(self.options.gpus)] if self.options.gpus > 1 else []
        arguments += ["--resume"] if resume else []
        arguments += ["--eval-only"] if self.eval_only else []
        return [*arguments, "OUTPUT_DIR", self.folder.as_posix(), *self.overrides]


class Jobs:
    """The jobs of one table with the options of one person.

    Raises:
        FileNotFoundError, ValueError: a config that is missing or that its tool does not obey, or a number of images
            that cannot be shared among the GPUs.
    """

    def __init__(self, table: Table, options: TableOptions, load_config: LoadConfig) -> None:
        self.table = table
        self.options = options
        self._load_config = load_config
        self._jobs: dict[str, Job] = {}
        self._rows: dict[str, list[Job]] = {row.key: [] for row in table.rows}
        seeds = range(options.seeds or table.seeds)
        single = [(row, seed) for seed in seeds for row in table.rows if not row.members]
        ensembles = [(row, 0) for row in table.rows if row.members]
        for row, seed in single + ensembles:
            self._rows[row.key].append(self._row_job(row, seed))

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def of_row(self, key: str) -> list[Job]:
        """Return the jobs whose evaluations are a row's figures, one a seed; one alone for an ensemble."""
        return self._rows[key]

    def classifier_of(self, key: str) -> Job | None:
        """Return the job of the classifier that the detectors of a row start from; None where the table has none."""
        start = self.table.row(key).training.start_from
        return self._training_job(start, 0) if start is not None and start.classifier else None

    def _row_job(self, row: Row, seed: int) -> Job:
        training = self._training_job(row.training, seed)
        if not row.evaluation_name:
            return training
        overrides = ["MODEL.WEIGHTS", training.final_weights.as_posix(), *row.test]
        members = [self._training_job(other, its_seed) for other, its_seed in row.members]
        if members:
            overrides += ["TEST.ENSEMBLE", str([member.folder.as_posix() for member in members])]
        name = f"{training.name}_{row.evaluation_name}"
        return self._add(name, row.training, seed, overrides, eval_only=True, needs=[training, *members])

    def _training_job(self, training: Training, seed: int) -> Job:
        if training.weights:
            return self._add(training.name, training, 0, ["MODEL.WEIGHTS", training.weights], eval_only=True)
        overrides = ["SEED", str(seed)]
        needs = []
        if training.start_from is not None:
            needs = [self._training_job(training.start_from, 0)]
            overrides += ["MODEL.WEIGHTS", needs[0].starting_point]
        return self._add(f"{training.name}_s{seed}", training, seed, overrides, eval_only=False, needs=needs)

    def _add(
        self,
        name: str,
        training: Training,
        seed: int,
        pairs: Sequence[str],
        *,
        eval_only: bool,
        needs: Sequence[Job] = (),
    ) -> Job:
        if name in self._jobs:
            return self._jobs[name]
        overrides = tuple(pairs)
        cfg = self._load_config(training, overrides)
        schedule = own_schedule = schedule_of(cfg)
        if not eval_only:
            schedule = scale_schedule(cfg, self._images_per_step(cfg, training.reference_gpus))
            overrides += schedule.overrides(cfg)
            cfg = self._load_config(training, overrides)
        self._jobs[name] = Job(
            name=name,
            folder=self.options.output / name,
            overrides=overrides,
            training=training,
            seed=seed,
            eval_only=eval_only,
            options=self.options,
            schedule=schedule,
            own_schedule=own_schedule,
            cfg=cfg,
            needs=tuple(job.name for job in needs),
        )
        return self._jobs[name]

    def _images_per_step(self, cfg: CfgNode, reference_gpus: int) -> int:
        """As asked for, or as many on each GPU as on those that the config was made for."""
        gpus = self.options.gpus
        images = self.options.images_per_step
        if images is None:
            images, rest = divmod(cfg.SOLVER.IMS_PER_BATCH * gpus, reference_gpus)
            if rest:
                raise ValueError(
                    f"{cfg.SOLVER.IMS_PER_BATCH} images on {reference_gpus} GPUs do not scale to {gpus}: "
                    f"give --images-per-step, a multiple of {gpus}"
                )
        if images % gpus:
            raise ValueError(f"{images} images a step cannot be shared equally among {gpus} GPUs")
        return images


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
        ValueError: a file there is not what the tools write.
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
    if job.eval_only:
        return RunState(job, NOT_RUN, _OLDER if evaluation.is_file() else "")
    training = read_training(job.folder / METRICS_NAME)
    done = training.iterations if training else 0
    return RunState(job, STARTED, f"iteration {done:,} of {job.schedule.max_iter:,}")


def _ended(job: Job, evaluation: Path) -> bool:
    """Whether the file of an evaluation is there and is that of the final detector, or detectors.

    A test set without annotations has facts and no figures.
    """
    if not evaluation.is_file():
        return False
    if job.eval_only:  # weights may have been deleted since; those of a later training are others
        members = (Path(folder) / "model_final.pth" for folder in job.cfg.TEST.ENSEMBLE)
        weights = [path for path in (Path(job.cfg.MODEL.WEIGHTS), *members) if path.is_file()]
    else:
        if not job.final_weights.is_file():
            return False
        weights = [job.final_weights] if job.cfg.TEST.EVAL_PERIOD else []
    return all(path.stat().st_mtime <= evaluation.stat().st_mtime for path in weights)
