"""Search for the settings of a training with Optuna: ``python search_settings.py DATA WEIGHTS --trials 20``.

Every trial is a training in a folder of its own. The study is kept in a file, so a search that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna

from yolox import YOLOX


def main() -> None:
    """Search, and print the best settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of the data set")
    parser.add_argument("weights", help="checkpoint or published name to start from")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30, help="of each trial")
    parser.add_argument("--output_dir", default="search")
    parser.add_argument("--size", type=int, default=416, help="side of the input")
    args = parser.parse_args()

    def train(trial: optuna.Trial) -> float:
        settings = {
            "basic_lr_per_img": trial.suggest_float("basic_lr_per_img", 1e-6, 3e-4, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-3, log=True),
            "mosaic_prob": trial.suggest_float("mosaic_prob", 0.0, 1.0),
            "degrees": trial.suggest_float("degrees", 0.0, 20.0),
        }
        best = YOLOX(args.weights).train(
            args.data,
            args.epochs,
            experiment_name=f"trial-{trial.number}",
            output_dir=args.output_dir,
            input_size=args.size,
            test_size=args.size,
            **settings,
        )
        return best.val(args.data).metrics["AP"]

    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="settings",
        storage=f"sqlite:///{args.output_dir}/study.db",
        direction="maximize",
        load_if_exists=True,
    )
    study.optimize(train, n_trials=args.trials)
    print(f"best AP {study.best_value:.4f} in trial {study.best_trial.number}: {study.best_params}")


if __name__ == "__main__":
    main()
