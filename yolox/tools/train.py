"""``python -m yolox.tools.train``: train YOLOX on a data set."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.config import Experiment, RecipeConfig, apply_fields
from yolox.cpu.garbage import set_up_without_collections
from yolox.cpu.threads import shorten_waits
from yolox.errors import UsageError
from yolox.experiments import published_name
from yolox.precision_names import canonical_precision
from yolox.temporary_folders import TemporaryFolder
from yolox.tools.arguments import (
    ToolParser,
    add_data_arguments,
    add_json,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    keep_stdout_for_json,
    positive_int,
    prepare_cpu,
    ranged,
    run_tool,
)
from yolox.tools.training import LOGGERS, STRATEGIES, add_recipe_arguments, build_trainer, recipe_fields

if TYPE_CHECKING:
    from yolox.data.datamodule import YoloxDataModule
    from yolox.recipe.module import YoloxModule
    from yolox.tools.start import RunState

BATCH_SIZE = 64
MIN_NORMALISED = 8  # images a process: 4 end 0.05 AP lower than one process (README), 8 within 0.03


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: run(build_parser().parse(argv), sys.argv[1:] if argv is None else argv))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("train", "Train YOLOX on ordinary CPUs.")
    add_model_arguments(parser, "weights to start from, by name and shape; with --resume the checkpoint to go on from")
    add_data_arguments(parser, BATCH_SIZE, auto=True)
    parser.set_defaults(batch_size=None)  # a resumed run keeps its own
    parser.add_argument("--resume", action="store_true", help="go on from -c, or from latest_ckpt.pth of this run")
    parser.add_argument(
        "-e", "--start_epoch", type=positive_int, help="with --resume: the epoch (1-based) to go on with"
    )
    parser.add_argument("--precision", type=canonical_precision, default="32", help="64, 32, 16 or bf16 (32)")
    parser.add_argument("--seed", type=int, help="fixes images, order and sizes of the whole run (0)")
    parser.add_argument("--output_dir", metavar="DIR", help="runs are written to DIR/NAME (./YOLOX_outputs)")
    parser.add_argument("--eval_interval", type=positive_int, metavar="N", help="evaluate every N epochs (10)")
    parser.add_argument(
        "--cache",
        nargs="?",
        const="ram",
        choices=("ram", "disk", "off"),
        help="keep resized images (bare: ram; default: ram where small)",
    )
    parser.add_argument("-l", "--logger", choices=LOGGERS, default="tensorboard", help="(%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="build everything, train nothing, write nothing")
    add_json(parser, "the outcome")
    add_recipe_arguments(parser)
    _add_trainer_arguments(parser)
    add_overrides(parser)
    return parser


def _add_trainer_arguments(parser: ToolParser) -> None:
    group = parser.add_argument_group("processes and precision")
    group.add_argument("--num_processes", type=positive_int, metavar="N", help="processes that share each batch (1)")
    group.add_argument("--strategy", choices=STRATEGIES, default="subprocess", help="how they start (%(default)s)")
    group.add_argument("--cluster", metavar="ADDRESS", help="of a running Ray or Spark cluster; default: this machine")
    group.add_argument("--process_group_backend", choices=("gloo", "ccl", "mpi"), help="how they talk (gloo)")
    group.add_argument("--cpu_for_each_process", metavar="IDS", help="hardware threads of each: '0-3;4-7'")
    group.add_argument("--sync_bn", action="store_true", help="BatchNorm over the batch of all processes")
    group.add_argument("--use_ipex", action="store_true", help="use Intel's extension, see 'make ipex'")
    group.add_argument("--strict", action="store_true", help="refuse what would otherwise go on with a note")
    group.add_argument("--fp32_modules", nargs="+", default=(), metavar="PATTERN", help="parts kept in fp32")
    group.add_argument("--hmp_bf16", metavar="FILE", help="file that lists operators to run in bf16")
    group.add_argument("--hmp_fp32", metavar="FILE", help="file that lists operators to run in fp32")
    group.add_argument(
        "--max_restarts",
        type=ranged("--max_restarts", int, 0),
        default=0,
        metavar="N",
        help="start again after a crash (0)",
    )
    group.add_argument("--profile", action="store_true", help="write a trace of a few steps, trace.json")
    group.add_argument("--accelerator", default="cpu", help="cpu, or cuda, xpu, hpu, npu where they exist (cpu)")


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Train what the options ask for and return the exit code; ``argv`` is for another interpreter, if it takes one."""
    if args.use_ipex and args.accelerator == "cpu":
        code = _find_ipex(args, argv)
        if code is not None:
            return code
    follower = _is_follower()
    with keep_stdout_for_json(args.json) as machines, Path(os.devnull).open("w", encoding="utf-8") as nothing:
        with redirect_stdout(nothing) if follower else nullcontext(), set_up_without_collections() as set_up:
            facts = _train(args, follower, set_up)
        if args.json and not follower:
            print(json.dumps(facts), file=machines)
    return 0


def _is_follower() -> bool:
    """Whether torchrun or srun has started this process as another rank than 0, which alone prints and writes."""
    from yolox.trainer.launchers.joined import joined_rank

    joined = joined_rank(os.environ)
    return joined is not None and joined.rank > 0


def _find_ipex(args: argparse.Namespace, argv: Sequence[str]) -> int | None:
    """Say where IPEX is; where only another Python has it, train there and return its exit code."""
    from yolox.cpu.ipex_location import locate_ipex
    from yolox.trainer.ipex import plan_ipex, run_again

    plan = plan_ipex(locate_ipex(), "yolox.tools.train", argv, strict=args.strict)
    if plan.command is None:
        return None  # the trainer says what that means
    print(plan.note)
    _resumed(args)  # the checks of a resumed file are for this PyTorch, which is newer
    with TemporaryFolder("weights") as folder:
        weights = _safe_start(args, folder)
        return run_again(replace(plan, command=(*plan.command, *weights)), replace=False)


def _safe_start(args: argparse.Namespace, folder: Path) -> tuple[str, ...]:
    """Return options that replace ``-c`` for an older PyTorch: it opens no file that it did not get from this one."""
    if args.ckpt is None or args.resume:
        return ()
    from yolox.checkpoint import class_names_of, num_classes_of, own_experiment, read_checkpoint, weights_of
    from yolox.safe_weights import write_safetensors

    content = read_checkpoint(args.ckpt)
    weights = weights_of(content, args.ckpt)
    names = class_names_of(content, num_classes_of(weights), args.ckpt) if "class_names" in content else None
    target = folder / f"{Path(args.ckpt).stem}.safetensors"
    write_safetensors(target, weights, own_experiment(content, args.ckpt), names)
    return ("-c", str(target))


def _train(args: argparse.Namespace, follower: bool, set_up: Callable[[], None]) -> dict[str, Any]:
    """Train, after a call of ``set_up``, and return the facts of the run for ``--json``."""
    shorten_waits()  # before PyTorch is imported
    from yolox.data.datamodule import YoloxDataModule
    from yolox.data.sampling import describe_repeats
    from yolox.recipe.module import YoloxModule
    from yolox.recipe.run_folder import open_run_folder
    from yolox.recipe.schedule import final_phase_epoch, steps_of_epoch
    from yolox.tools.auto_batch import auto_batch
    from yolox.tools.start import StartWeights, fit_recipe, keep_choices

    state = _resumed(args)
    experiment, explicit_classes = _experiment(args, state)
    print(prepare_cpu())
    folder = Path(experiment.output_dir) / experiment.exp_name
    data = YoloxDataModule(
        experiment.data,
        batch_size=_batch_size(args, state),
        test_size=experiment.eval.test_size,
        seed=experiment.seed,
    )
    print(data.reason)
    report = data.report()
    print(report.summary())
    report.check()
    if experiment.data.repeat_threshold > 0:
        print(describe_repeats(data.train_set, experiment.data.repeat_threshold))
    experiment = _fit_classes(experiment, data, explicit_classes)
    if args.batch_size == "auto":
        data.batch_size = auto_batch(args, experiment, len(data.train_set))
    start = None if args.ckpt is None or args.resume else StartWeights(args.ckpt)
    experiment = keep_choices(experiment, state.experiment) if state else fit_recipe(experiment, data, start)
    data.final_phase_from_epoch = final_phase_epoch(experiment.recipe)
    start_epoch = None if args.start_epoch is None else args.start_epoch - 1
    steps = steps_of_epoch(data.batches_per_epoch, experiment.recipe)
    module = YoloxModule(experiment, data.class_names, data.batch_size, steps, start_epoch)
    if state is not None:
        state.compare(module)
    if start is not None:
        start.load_into_(module)
    trainer = build_trainer(experiment, folder, args)
    data.check(trainer.world_size)
    _describe(module, data, args)
    if args.dry_run:
        print(f"dry run: everything is built; nothing was trained and nothing written to {folder}")
        return {"folder": str(folder), "dry_run": True}
    resumed = None if state is None else state.path
    set_up()
    with nullcontext(resumed) if follower else open_run_folder(folder, resumed) as checkpoint:
        _fit(trainer, module, data, checkpoint)
    return {} if follower else _finish(folder, trainer)


def _batch_size(args: argparse.Namespace, state: RunState | None) -> int:
    """Return the total batch, so far as it is known: ``auto`` needs the data and the number of its classes."""
    kept = None if state is None else state.batch_size
    if args.batch_size == "auto" and kept is not None:
        print(f"-b auto: the run goes on with its batch of {kept}")
        args.batch_size = kept
    return BATCH_SIZE if args.batch_size == "auto" else args.batch_size or kept or BATCH_SIZE


def _resumed(args: argparse.Namespace) -> RunState | None:
    """Return the state of the run that ``--resume`` goes on with, or None where a run begins."""
    from yolox.tools.start import find_checkpoint, read_run_state

    asked = asked_experiment(args)
    named = None if asked is None else _with_options(asked, args)
    file = find_checkpoint(args, None if named is None else Path(named.output_dir) / named.exp_name)
    return None if file is None else read_run_state(file)


def _fit(trainer: Any, module: YoloxModule, data: YoloxDataModule, resume_from: Path | None) -> None:
    from yolox.recipe.callbacks import LATEST

    try:
        with warnings.catch_warnings():
            if module.experiment.recipe.freeze:  # it was asked for, so nobody needs to be warned of it
                warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
            trainer.fit(module, datamodule=data, ckpt_path=resume_from)
    except SystemExit as stop:
        if Path(trainer.default_root_dir, LATEST).exists():
            print(f"the last checkpoint is in {trainer.default_root_dir}; go on with --resume")
        if stop.code == 1 and trainer.interrupted:  # so Lightning leaves after a second Ctrl-C
            raise KeyboardInterrupt from stop
        raise


def _experiment(args: argparse.Namespace, state: RunState | None) -> tuple[Experiment, bool]:
    """Return the experiment asked for, and whether it names its number of classes.

    A resumed run keeps the settings it had, unless they are given again; an experiment file gives all of them.
    """
    experiment = asked_experiment(args)
    explicit = experiment is not None and experiment.model.num_classes != Experiment("").model.num_classes
    if state is not None and args.exp_file is None:
        if experiment is None:
            experiment = state.in_its_place()
        else:
            experiment = replace(state.experiment, exp_name=experiment.exp_name, model=experiment.model)
    elif experiment is None and args.ckpt is not None:
        from yolox.checkpoint import load_model

        experiment = load_model(args.ckpt).experiment
        # the recipe that made these weights is not the one of a run that starts from them
        experiment = replace(
            experiment, exp_name=published_name(experiment.model), recipe=RecipeConfig(), given=frozenset()
        )
    if experiment is None:
        raise UsageError("no model given; expected -n NAME (for instance -n yolox_nano), -f FILE or -c CHECKPOINT.")
    experiment = _with_options(experiment, args)
    return experiment, explicit or any(word.split("=")[0].endswith("num_classes") for word in args.opts)


def _with_options(experiment: Experiment, args: argparse.Namespace) -> Experiment:
    given = {"seed": args.seed, "output_dir": args.output_dir, "eval_interval": args.eval_interval, "cache": args.cache}
    experiment = apply_arguments(experiment, args)
    given = {key: value for key, value in given.items() if value is not None}
    return apply_fields(experiment, {**given, **recipe_fields(args)})


def _fit_classes(experiment: Experiment, data: YoloxDataModule, explicit: bool) -> Experiment:
    """Return the experiment with as many classes as the data has."""
    if explicit and experiment.model.num_classes != data.num_classes:
        raise UsageError(
            f"num_classes is {experiment.model.num_classes}, the data set has {data.num_classes} classes "
            f"({', '.join(data.class_names[:5])}, ...). Leave num_classes out: the data decides."
        )
    return replace(experiment, model=replace(experiment.model, num_classes=data.num_classes))


def _describe(module: YoloxModule, data: YoloxDataModule, args: argparse.Namespace) -> None:
    from yolox.models.detector import summarize
    from yolox.recipe.schedule import final_phase_epoch

    experiment = module.experiment
    recipe = experiment.recipe
    print(f"model: {experiment.exp_name}; {summarize(experiment.model, experiment.data.input_size)}")
    print(
        f"run: {len(data.train_set)} images, {data.num_classes} classes, batch {module.batch_size}, "
        f"{module.steps_per_epoch} steps an epoch, {recipe.max_epoch} epochs, precision {args.precision}"
    )
    print(f"input sizes (height x width): {_sizes(experiment)}")
    final = final_phase_epoch(recipe)
    if recipe.scheduler == "yoloxwarmcos" and recipe.warmup_epochs >= final:
        print(
            f"note: warm-up ({recipe.warmup_epochs:g} epochs) and final phase (from epoch {final + 1}) leave no epoch "
            "in between; for short runs set 'warmup_epochs 1 no_aug_epochs 2' or the like"
        )
    processes = args.num_processes or 1
    if processes > 1 and module.batch_size // processes < MIN_NORMALISED and not args.sync_bn:
        print(
            f"note: BatchNorm sees the {module.batch_size // processes} images of each process, which costs accuracy; "
            "--sync_bn normalises over the whole batch"
        )


def _sizes(experiment: Experiment) -> str:
    from yolox.recipe.schedule import trained_sizes

    data, test = experiment.data, experiment.eval.test_size
    low, high = trained_sizes(data.input_size, data.size_range)
    trained = f"{low.height} x {low.width}" + ("" if low == high else f" to {high.height} x {high.width}")
    return f"trained at {trained}, evaluated at {test.height} x {test.width}"


def _finish(folder: Path, trainer: Any) -> dict[str, Any]:
    """Print what the run came to and return it."""
    from yolox.recipe.callbacks import BEST, LATEST, Evaluation
    from yolox.recipe.finite import FiniteValues
    from yolox.recipe.html_report import REPORT

    evaluation = next(item for item in trainer.callbacks if isinstance(item, Evaluation))
    finite = next(item for item in trainer.callbacks if isinstance(item, FiniteValues))
    facts: dict[str, Any] = {"folder": str(folder), "best_epoch": evaluation.best_epoch}
    facts.update(skipped_steps=finite.skipped, restored=finite.restored)
    if finite.skipped or finite.restored:
        print(f"not finite: {finite.skipped} steps skipped, {finite.restored} times back to a checkpoint")
    if evaluation.best_epoch is not None:
        best = next(row for row in evaluation.history if row["epoch"] == evaluation.best_epoch)
        which = f"epoch {evaluation.best_epoch}" if evaluation.best_epoch else "the weights of the start"
        print(f"best: {which}, AP {best['val/AP']:.4f}, AP50 {best['val/AP50']:.4f}")
        facts.update(AP=best["val/AP"], AP50=best["val/AP50"])
    names = (BEST, LATEST, "results.csv", "curves.png", "run.json", REPORT)
    facts["files"] = [name for name in names if (folder / name).exists()]
    print(f"written to {folder}: {', '.join(facts['files'])}")
    return facts


if __name__ == "__main__":
    sys.exit(main())
