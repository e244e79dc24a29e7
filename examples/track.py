"""Hand the records of a run, of any engine, to a tracker: python examples/track.py output/quickstart wandb

What accelerate knows will do: wandb, mlflow, comet_ml, clearml, ...; install it first. Each call makes a new run there.
Without a network: WANDB_MODE=offline, or MLFLOW_TRACKING_URI=sqlite:///runs.db.
"""

import argparse
import json
from pathlib import Path

import yaml
from accelerate import Accelerator


def read_records(path: Path) -> dict[int, dict[str, float]]:
    """Return the figures of ``metrics.json`` by iteration; what was done again replaces what had been done."""
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        number = record.pop("iteration")
        if "total_loss" in record:
            steps = {earlier: values for earlier, values in steps.items() if earlier <= number}
        steps.setdefault(number, {}).update(record)
    return dict(sorted(steps.items()))


def flat(values: dict, start: str = "") -> dict[str, str]:
    """Return a config with keys such as ``SOLVER.BASE_LR``."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{start}{key}.") if isinstance(value, dict) else {f"{start}{key}": str(value)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder")
    parser.add_argument("tracker")
    args = parser.parse_args()

    records = read_records(args.run / "metrics.json")
    accelerator = Accelerator(cpu=True, log_with=args.tracker, project_dir=args.run / args.tracker)
    if not accelerator.log_with:
        raise SystemExit(f"{args.tracker} is not installed: pip install {args.tracker}")
    config = yaml.safe_load((args.run / "config.yaml").read_text(encoding="utf-8"))
    accelerator.init_trackers(args.run.resolve().name, config=flat(config))
    for iteration, values in records.items():
        accelerator.log(values, step=iteration)
    accelerator.end_training()
    print(f"{len(records)} records of {args.run} are with {args.tracker}")


if __name__ == "__main__":
    main()
