"""The command line: `pyrovae fit|evaluate|check|sample|plot|list`.

Flags come from the signatures of what they call. Pairs, parts and objectives are a closed set of names; code of one's
own is given as `my_file.py:MyPair` on the command line each time, and never read from a run's files.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pyrovae import conditionals, models, nets, objectives, plots, priors, reports
from pyrovae.checks import check
from pyrovae.data import half, masked, match, one_of, pixels, rectangle
from pyrovae.data import load as load_data
from pyrovae.data.masks import Mask
from pyrovae.evaluation import generate
from pyrovae.evaluation.sites import observed_site
from pyrovae.flags import (
    SLOTS,
    ConfigFile,
    Parser,
    add_objective_arguments,
    add_pair_arguments,
    config_first,
    first_line,
    objective,
    objective_names,
    slot,
    written_out,
)
from pyrovae.models.base import as_pair, isolated_random_state
from pyrovae.models.rebuild import build, family, named, part
from pyrovae.training import pretraining
from pyrovae.training.checkpoint import latest, read
from pyrovae.training.fit import fit
from pyrovae.training.loop import Callback, Run
from pyrovae.training.runs import load as load_run

__all__ = ["main"]

BY_CODE: set[str | int] = {"pair", "data", "objective", "optimizer", "schedule", "validation", "callbacks"}
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SITE = "the observed site that checks, samples and pictures are of; x by default, or the only one."
MASKS: dict[str, Callable[[], Mask]] = {"pixels": pixels, "rectangle": rectangle, "half": half}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends with one line and exit status 2 for what the user can mend, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not given or given[0] in ("-h", "--help"):
            print(_usage())
            return
        COMMANDS[named(given[0], COMMANDS, "command")](given[1:])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print("; ".join(["pyrovae: interrupted", *filter(None, [str(stop)])]), file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("PYROVAE_TRACEBACK"):
            raise
        print(f"pyrovae: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _usage() -> str:
    lines = [f"  {name:<10}{first_line(command)}" for name, command in COMMANDS.items()]
    return "\n".join(["pyrovae COMMAND ...", "", *lines, "", "pyrovae COMMAND --help lists a command's flags."])


# fit --------------------------------------------------------------------------------------------------------------


def _fit(arguments: list[str]) -> None:
    """Fit a pair to data: `pyrovae fit vae --data digits --out runs/vae`."""
    if not arguments or arguments[0].startswith("-"):
        print(
            "pyrovae fit PAIR --data DATA --out FOLDER ...\n\nPAIR is one of", ", ".join(models.__all__).lower(), end=""
        )
        print(", or my_file.py:MyPair. `pyrovae fit PAIR --help` lists the flags of that pair.")
        if arguments and arguments[0] not in ("-h", "--help"):
            raise ValueError(f"the pair comes first, before {arguments[0]}")
        return
    name, *flags = arguments
    source = _own(name) if ":" in name else family(name)
    parser = Parser(prog=f"pyrovae fit {name}", description=first_line(source))
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of these flags; a run writes its own.")
    parser.add_argument(
        "--data", type=str, default="digits", help="a data set's name, an .npy or .npz file, or a folder."
    )
    parser.add_argument("--root", type=str | None, default=None, help="folder of torchvision's data sets.")
    parser.add_argument("--download", type=bool, default=False, help="let torchvision fetch what is missing.")
    parser.add_argument("--binarize", type=str | None, default="auto", help="auto, dynamic, static or null.")
    about = f"what hides values from a pair that takes a mask: {', '.join(MASKS)}, or several with commas between."
    parser.add_argument("--mask", type=str | None, default=None, help=about)
    flags = add_objective_arguments(parser, written_out(config_first(flags)), getattr(source, "trained_by", "ELBO"))
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples of the final log-likelihood.")
    parser.add_argument("--site", type=str | None, default=None, help=SITE)
    if start := getattr(source, "started_by", None):
        parser.add_argument("--pretraining", type=int, default=0, help=f"epochs of {start} before; 0 for none.")
    about = "fraction of the training rows to validate on instead of the data's own; false for no validation."
    parser.add_argument("--validation", type=bool | float, default=True, help=about)
    parser.add_function_arguments(fit, skip=BY_CODE, fail_untyped=False)
    add_pair_arguments(parser, source)
    config = parser.parse_args(flags)
    options = config.clone().as_dict()
    options.pop("config", None)
    if isinstance(source, type):
        options |= {name: slot(name, options[name]) for name in SLOTS if name in options}
    if options["num_samples"] < 1:  # said before training, not after
        raise ValueError(f"num_samples is {options['num_samples']}, at least 1 is wanted; pass --num_samples 1000, say")
    out = Path(options["out"] or Path("runs") / Path(name.split(":")[0]).stem)
    options["out"] = str(out)
    options["seed"] = _seed(options, out)

    data = load_data(options["data"], root=options["root"], download=options["download"], binarize=options["binarize"])
    with isolated_random_state(options["seed"]):
        pair = _construct(source, options, data)
        chosen = objective(options["objective"], pair=pair, data_size=len(data.train))
    data = _hiding(data, pair, options["mask"])
    record = Record(name, options, out / "config.yaml")
    callbacks: list[Callback] = [record, reports.LatentSpace(data, out / "pictures", site=options["site"])]
    of_fit = {key: options[key] for key in inspect.signature(fit).parameters if key in options and key not in BY_CODE}
    of_fit["validation"] = None if options["validation"] is True else options["validation"]
    run = _pretrained(pair, data, options, record) if options.get("pretraining") else None
    if run is None or not run.interrupted:
        of_fit |= {"out": out, "resume": options["resume"] and run is None}
        run = fit(pair, data, objective=chosen, callbacks=callbacks, **of_fit)
    if run.rank:
        return
    record.write()
    if run.interrupted:
        again = f"pyrovae fit {name} --config {out}/config.yaml --resume true"
        print(f"interrupted after step {run.step}; go on with: {again}")
        return
    try:
        _report(run, data, options, out)
    except KeyboardInterrupt:
        own = f" --pair {name}" if ":" in name else ""
        raise KeyboardInterrupt(f"the run is saved; go on with: pyrovae evaluate {out}{own}") from None
    except ValueError as error:
        if options["validation"] is not False:
            raise
        print(f"fitted in {run.seconds:.1f} s; no figures of held-out data: {error}")  # as of parameters of each row


def _report(run: Run, data: Any, options: dict[str, Any], out: Path) -> None:
    """Figures and pictures of a fitted pair."""
    on: dict[str, Any] = {"site": options["site"], "plate": run.known.plate}
    figures, checked = reports.evaluate(
        run.pair, data, num_samples=options["num_samples"], progress=sys.stderr.isatty(), **on
    )
    figures |= {"seed": run.seed, "epochs": run.epoch, "fit_seconds": run.seconds}
    reports.write_json(figures, out / "metrics.json")
    drawn, skipped = reports.pictures(run.pair, data, out / "pictures", history=run.history, checked=checked, **on)
    print(f"{reports.table(figures)}\n\nfitted in {run.seconds:.1f} s; {len(drawn)} pictures in {out / 'pictures'}")
    _say([], skipped, figures["checks"].get("left_out"))


def _seed(options: dict[str, Any], out: Path) -> int:
    """The one given, that of the run that is gone on with, or a new one."""
    seed = options["seed"]
    if seed is None and options["resume"]:
        path = latest(out / "checkpoints")  # none yet, while the start of the pair was under way
        seed = (_recorded(out / "config.yaml") if path is None else read(path).config).get("seed")
    if seed is None:
        seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(time.time_ns())))
    return seed


def _say(drawn: Sequence[Path], skipped: dict[str, str], unchecked: str | None = None) -> None:
    """Which pictures there are, and why others are not, or checks are not: one line for each reason."""
    for path in drawn:
        print(path)
    missing: dict[str, list[str]] = {} if unchecked is None else {unchecked: []}
    for picture, reason in skipped.items():
        missing.setdefault(reason, []).append(picture)
    for reason, names in missing.items():
        what = [f"picture of {', '.join(names)}"] if names else []
        print(f"no {' and no '.join(['predictive checks', *what] if reason == unchecked else what)}: {reason}")


class Record(Callback):
    """Writes the flags of a run to its folder as soon as there is something to go on with, however the run may end.

    Not before its first step: until then `fit` may refuse the folder, which can be another run's.

    Args:
        name: of the pair.
        options: the flags.
        path: of the file.
    """

    def __init__(self, name: str, options: dict[str, Any], path: Path):
        self.name, self.options, self.path = name, options, path
        self.written = False

    def on_step(self, run: Run) -> None:
        """Write, once.

        Raises:
            ValueError: for a `site` that the model does not observe, which only the end would find.
        """
        if not (self.written or run.rank):
            if self.options["site"] is not None:
                observed_site(run.known, self.options["site"])
            self.write()

    def write(self) -> None:
        """Write now."""
        kept = {key: value for key, value in self.options.items() if value is not None or key == "binarize"}
        kept.pop("resume", None)  # the file is a template for runs in other folders too
        text = f"# pyrovae fit {self.name} --config THIS\n{yaml.safe_dump(kept, sort_keys=False)}"
        reports.write_text(text, self.path)
        self.written = True


def _pretrained(pair: Any, data: Any, options: dict[str, Any], record: Record) -> Run | None:
    """The start of a pair that has one, in a folder of its own; None where the run itself is gone on with."""
    out = record.path.parent
    if options["resume"] and (out / "checkpoints").exists():
        return None
    folder = out / "pretraining"
    kept = {
        key: options[key] for key in ("batch_size", "lr", "accelerator", "precision", "compile", "seed", "progress")
    }
    resume = options["resume"] and (folder / "checkpoints").exists()
    start = getattr(pretraining, pair.started_by)
    return start(pair, data, max_epochs=options["pretraining"], out=folder, resume=resume, callbacks=[record], **kept)


def _construct(source: Any, options: dict[str, Any], data: Any) -> Any:
    """A pair from its class and the flags, or the object that a file holds."""
    if not isinstance(source, type):
        return as_pair(source)
    wanted = inspect.signature(source).parameters
    arguments = {name: options[name] for name in wanted if name in options}
    if "event_shape" in wanted:
        arguments["event_shape"] = data.event_shape
    lacking = [n for n, p in wanted.items() if p.default is p.empty and p.kind not in VARIADIC and n not in arguments]
    if lacking:
        raise ValueError(
            f"{source.__name__} takes {lacking[0]}, which no flag can give; make the pair in a Python file of your own "
            "and pass my_file.py:pair"
        )
    if source.__name__ in models.__all__ and source is getattr(models, source.__name__):
        return build({"name": source.__name__, "arguments": {k: v for k, v in arguments.items() if v is not None}})
    filled = {k: v if k not in SLOTS else part(k, v) for k, v in arguments.items() if k not in SLOTS or v is not None}
    return as_pair(source(**filled))


def _own(spelled: str) -> Any:
    """What `my_file.py:MyPair` names, from a file that the user gave on the command line."""
    file, _, name = spelled.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file!r}; pass file.py:Name with the path of your own Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file!r} is not a Python file; pass file.py:Name")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        named(name, public, f"pair in {file}")
    return getattr(module, name)


# Commands on a run ------------------------------------------------------------------------------------------------


def _run_parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"pyrovae {command}", description=description)
    parser.add_argument("run", type=str, help="the run's folder.")
    parser.add_argument("--pair", type=str | None, default=None, help="file.py:Name, for a pair of your own.")
    parser.add_argument("--data", type=str | None, default=None, help="other data than the run's.")
    parser.add_argument("--site", type=str | None, default=None, help=SITE.replace("x by", "the run's by"))
    parser.add_argument("--plate", type=str | None, default=None, help="name of the data plate; the run's by default.")
    parser.add_argument("--seed", type=int, default=0, help="of all draws.")
    return parser


def _opened(options: Any) -> tuple[Run, Any, Path, dict[str, Any]]:
    """The pair and the data of a run's folder, and on which site, plate and seed to work."""
    folder = Path(options.run)
    if latest(folder / "checkpoints") is None:  # said before any data are read
        raise FileNotFoundError(f"{str(folder)!r} has no complete checkpoint; pass the folder given to fit as --out")
    config = _recorded(folder / "config.yaml")
    if options.data is None and "data" not in config:
        raise ValueError(
            f"{str(folder)!r} does not say which data its run is of, its config.yaml is "
            f"{'without data' if config else 'missing'}; pass --data with the data that it was fitted to"
        )
    keys = ("root", "download", "binarize") if options.data is None else ()
    data = load_data(options.data or config["data"], **{k: config[k] for k in keys if k in config})
    pair = None if options.pair is None else _construct(_own(options.pair), config, data)
    run = load_run(folder, pair)
    on = {"site": options.site or config.get("site"), "plate": options.plate or run.known.plate, "seed": options.seed}
    return run, _hiding(data, run.pair, config.get("mask")), folder, on


def _recorded(path: Path) -> dict[str, Any]:
    """The flags of a run, of which a run of `fit` in Python has no file.

    Raises:
        ValueError: for a file that no run has written.
    """
    if not path.is_file():
        return {}
    fix = "restore it, or delete it and pass --data"
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}); {fix}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a run's configuration; {fix}")
    for key in ("data", "root", "binarize", "mask", "site"):
        if not isinstance(config.get(key, ""), str | None):
            raise ValueError(f"{path} has {key}: {config[key]!r}, a text is wanted; {fix}")
    return config


def _hiding(data: Any, pair: Any, kinds: str | None) -> Any:
    """The data with a mask, if the pair takes one and they have none, or one is asked for.

    Raises:
        ValueError: for an unknown kind of mask, or one that the pair does not take.
    """
    takes = "mask" in inspect.signature(pair.model).parameters
    if kinds is None and (not takes or "mask" in data.train.fields):
        return data
    if not takes:
        raise ValueError(f"--mask is {kinds!r}, but {type(pair).__name__} takes no mask; leave it out")
    default = ",".join(MASKS) if len(data.event_shape) > 1 else "pixels"
    chosen = [named(kind.strip(), MASKS, "mask") for kind in (kinds or default).split(",")]
    return masked(data, one_of(*(MASKS[kind]() for kind in chosen)))


def _evaluate(arguments: list[str]) -> None:
    """Figures of a run on held-out data: ELBO and its parts, log-likelihood, active units, p-values."""
    parser = _run_parser("evaluate", first_line(_evaluate))
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples of the log-likelihood.")
    parser.add_argument("--bound", type=str | None, default=None, help="iwae:K, for --num_samples K.")
    parser.add_argument("--ais", action="store_true", help="the log-likelihood by annealed importance sampling too.")
    parser.add_argument("--surgery", action="store_true", help="the parts of the average KL too.")
    parser.add_argument("--gaps", action="store_true", help="approximation and amortisation gap too.")
    parser.add_argument("--num_replicates", type=int, default=200, help="replicated data sets of each check.")
    options = parser.parse_args(arguments)
    run, data, folder, on = _opened(options)
    figures, _ = reports.evaluate(
        run.pair,
        data,
        num_samples=options.num_samples if options.bound is None else _samples(options.bound),
        num_replicates=options.num_replicates,
        with_ais=options.ais,
        with_surgery=options.surgery,
        with_gaps=options.gaps,
        progress=sys.stderr.isatty(),
        **on,
    )
    figures |= {"seed": run.seed, "epochs": run.epoch, "fit_seconds": run.seconds}
    reports.write_json(figures, folder / "metrics.json")
    print(reports.table(figures))
    _say([], {}, figures["checks"].get("left_out"))


def _samples(bound: str) -> int:
    """K of iwae:K."""
    name, _, number = bound.partition(":")
    if name.lower() != "iwae" or not number.isdigit() or int(number) < 1:
        raise ValueError(f"--bound is {bound!r}; pass iwae:5000, say, and --ais for annealed importance sampling")
    return int(number)


def _check(arguments: list[str]) -> None:
    """Predictive checks of a run: data that the model would make, beside the data."""
    parser = _run_parser("check", first_line(_check))
    parser.add_argument("--statistics", type=list[str] | None, default=None, help="names; all by default.")
    parser.add_argument("--num_replicates", type=int, default=200, help="replicated data sets.")
    options = parser.parse_args(arguments)
    run, data, folder, on = _opened(options)
    checked = check(run.pair, data, options.statistics, num_replicates=options.num_replicates, **on)
    print(f"{checked}\n")
    _say(*reports.draw_all([("predictive_checks", checked.plot)], folder / "pictures"))


def _sample(arguments: list[str]) -> None:
    """New data from a run's model, as a picture and as numbers."""
    parser = _run_parser("sample", first_line(_sample))
    parser.add_argument("--num_samples", type=int, default=64, help="how many.")
    parser.add_argument("--mean", type=bool, default=True, help="the mean of p(x | z) instead of a draw from it.")
    options = parser.parse_args(arguments)
    run, data, folder, on = _opened(options)
    like = next(match(data, run.pair.model).sequential(1))
    x = generate(run.pair, options.num_samples, like=like, sample=not options.mean, **on).cpu()
    np.save(folder / "samples.npy", x.numpy())
    print(folder / "samples.npy")
    _say(*reports.draw_all([("samples", lambda: plots.samples(x))], folder / "pictures"))


def _plot(arguments: list[str]) -> None:
    """Draw a run's pictures again."""
    options = _run_parser("plot", first_line(_plot)).parse_args(arguments)
    run, data, folder, on = _opened(options)
    drawn, skipped = reports.pictures(run.pair, data, folder / "pictures", history=run.history, **on)
    _say(drawn, skipped)


def _list(arguments: list[str]) -> None:
    """What there is: pairs, objectives, parts, data."""
    Parser(prog="pyrovae list", description=first_line(_list)).parse_args(arguments)
    groups: dict[str, tuple[Any, list[str]]] = {
        "pairs": (models, models.__all__),
        "objectives": (objectives, objective_names()),
        "priors": (priors, priors.__all__),
        "posteriors and likelihoods": (conditionals, conditionals.__all__),
        "networks": (nets, nets.__all__),
    }
    for title, (module, names) in groups.items():
        print(title)
        for name in names:
            if isinstance(getattr(module, name), type) and not inspect.isabstract(getattr(module, name)):
                print(f"  {name:<28}{first_line(getattr(module, name))}")
    print("data\n  digits, mnist, fashion-mnist, kmnist, omniglot, cifar10, sprites, 20newsgroups,")
    print("  file.npz, file.npy, folder of images or with train.npz and vocab.txt")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "fit": _fit,
    "evaluate": _evaluate,
    "check": _check,
    "sample": _sample,
    "plot": _plot,
    "list": _list,
}
