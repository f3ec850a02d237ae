"""Flags of the command line, read from the signatures of what they are for: pairs, their parts, objectives.

Names are a closed set; nothing that a flag or a configuration says is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from pyrovae import objectives
from pyrovae.models.rebuild import named, parts
from pyrovae.objectives import Objective, RatioObjective
from pyrovae.training import schedules

__all__ = [
    "LATENT_DIM",
    "SLOTS",
    "Parser",
    "add_objective_arguments",
    "add_pair_arguments",
    "config_first",
    "first_line",
    "objective",
    "objective_names",
    "slot",
    "written_out",
]

SLOTS = (
    "encoder",
    "decoder",
    "prior",
    "posterior",
    "likelihood",
    "coupling",
    "corruption",
    "covariance",
    "components",
    "codebook",
)
LATENT_DIM = 16  # where a pair wants a latent_dim and none is given
BY_CODE = ("plate", "data_size")  # of objectives: the first is found, the second the data's


class ConfigFile(jsonargparse.ActionConfigFile):
    """Says of what is wrong in a file that it is in that file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Take the file's flags, but for an objective or a part of another name than the command line gives."""
        try:
            super().__call__(parser, cfg, _not_replaced(values, parser.seen), option_string)
        except (ValueError, TypeError) as error:
            what = str(error).removeprefix('Parser key "config": ')
            raise ValueError(f"in {values}: {what}") from error


def _not_replaced(file: str, seen: argparse.Namespace) -> str:
    """The file; or as text the rest of it, where the command line names another objective or part."""
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # whose message is the parser's
        config = yaml.safe_load(Path(file).read_text())
        if isinstance(config, dict):
            kept = {key: value for key, value in config.items() if not _differ(value, getattr(seen, str(key), None))}
            return file if kept == config else yaml.safe_dump(kept)
    return file


class Parser(jsonargparse.ArgumentParser):
    """Names the flags nearest to one that does not exist."""

    def parse_args(self, args: Sequence[str], **options: Any) -> Any:  # type: ignore[override]
        """Parse them, with a file that leaves out what they replace."""
        self.seen = _seen(args)
        return super().parse_args(args, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """One sentence; the caller prints it."""
        text = " ".join(message.split())
        unknown = [word for word in text.split() if word.startswith("--")]
        if "nrecognized" in text and unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            wrong = unknown[0].split("=")[0]
            near = [flag for flag in flags if flag.endswith(f".{wrong.removeprefix('--')}")]
            near = near or difflib.get_close_matches(wrong, flags, n=2, cutoff=0.5)
            guess = f"did you mean {' or '.join(near)}? " if near else ""
            text = f"there is no flag {unknown[0]}; {guess}see --help"
        if option := re.fullmatch(r"Option '(\w+)' is not accepted", text):
            near = difflib.get_close_matches(option[1], [action.dest for action in self._actions], n=2)
            guess = f"did you mean {' or '.join(near)}? " if near else ""
            text = f"there is no option {option[1]}; {guess}see --help"
        if "Expected a <class 'list'>" in text:
            text = re.sub(r"Expected a <class 'list'>. Got value: ([\w.,]+)", r"\1 is no list; write it as [\1]", text)
        if "required: " in text:
            text = text.replace("required: ", "required: --").replace(", ", ", --")
        raise ValueError(text) from ex


def first_line(thing: Any) -> str:
    """Of its docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def add_pair_arguments(parser: Parser, source: Any) -> None:
    """A flag for each argument of a pair's class that plain text can give; slots take names of the library's parts."""
    for parameter in inspect.signature(source).parameters.values() if isinstance(source, type) else ():
        name, default = parameter.name, parameter.default
        if name == "event_shape":
            continue
        if any(f"--{name}" in action.option_strings for action in parser._actions):
            raise ValueError(
                f"{source.__name__} takes {name}, but --{name} is a flag of pyrovae fit itself; rename the argument"
            )
        if name in SLOTS:
            default = default.__name__ if isinstance(default, type) else None
            help_ = f"one of {', '.join(parts(name))}; options of it: --{name}.OPTION VALUE, or '{{name: ..., ...}}'."
            parser.add_argument(f"--{name}", type=str | dict | None, default=default, help=help_)
        elif (kind := _plain_type(parameter)) is not None:
            if default is parameter.empty and name != "latent_dim":
                parser.add_argument(f"--{name}", type=kind, required=True)
            else:
                parser.add_argument(f"--{name}", type=kind, default=LATENT_DIM if name == "latent_dim" else default)


def config_first(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a `--config FILE` precedes all others, which overrule it wherever they stand.

    >>> config_first(["--latent_dim", "3", "--config", "run.yaml", "--lr", "0.1"])
    ['--config', 'run.yaml', '--latent_dim', '3', '--lr', '0.1']
    """
    files: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag in ("--config", "--confi", "--conf"):  # as argparse lets it be cut off
            files += [word.replace(flag, "--config", 1), *([] if equals else itertools.islice(words, 1))]
        else:
            others.append(word)
    return files + others


def written_out(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a slot's `--prior NAME` is `--prior.name NAME`, so that options of the part can follow.

    A part's own part, `--prior.covariance NAME`, and its options become one value, since flags go one level down.

    >>> written_out(["--prior", "VampPrior", "--prior.num_components", "50"])
    ['--prior.name', 'VampPrior', '--prior.num_components', '50']
    >>> written_out(["--prior.covariance", "FullCovariance", "--prior.covariance.min_scale=0.1"])
    ['--prior.covariance', '{"name": "FullCovariance", "min_scale": "0.1"}']
    """
    written: list[str] = []
    nested: dict[str, dict[str, str]] = {}
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        slots = flag.removeprefix("--").split(".") if flag.startswith("--") else [""]
        if not equals and slots[0] in SLOTS:
            value = next(words, "")
        if slots[0] not in SLOTS:
            written.append(word)
        elif value == "" or value.startswith(("{", "--")):
            written += [flag, value] if value else [word]
        elif len(slots) > 1 and slots[1] in SLOTS:
            nested.setdefault(".".join(slots[:2]), {})[".".join(slots[2:]) or "name"] = value
        elif len(slots) == 1 and value != "null":
            written += [f"{flag}.name", value]
        else:
            written += [flag, value]
    for name, options in nested.items():
        written += [f"--{name}", json.dumps(options)]
    return written


def slot(name: str, value: Any) -> Any:
    """A part's name, or its name and options, as `build` takes them, of what the flags of a slot hold.

    Args:
        name: of the slot.
        value: a part's name, `{"name": ..., options...}`, whose options may be text still, or None.

    Raises:
        ValueError: for options without a name, an unknown part, or one that lacks an option.

    >>> slot("prior", {"name": "VampPrior", "num_components": "50"})
    {'name': 'VampPrior', 'num_components': 50}
    """
    if value is None:
        return None
    options = dict(value) if isinstance(value, dict) else {"name": value}
    if options.get("name") is None:
        raise ValueError(
            f"--{name} has options and no name; pass --{name} NAME beside --{name}.{next(iter(options), '')}"
        )
    makers = parts(name)
    found = named(str(options.pop("name")), makers, name)
    wanted = inspect.signature(makers[found]).parameters
    nested = wanted.keys() & set(SLOTS)
    options = {option: slot(option, given) if option in nested else _read(given) for option, given in options.items()}
    for parameter in wanted.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
            continue
        if _plain_type(parameter) is None:
            raise ValueError(
                f"{found} needs {parameter.name}, which no text can give; pass "
                f"{name}=functools.partial({found}, {parameter.name}=...) to the pair in Python"
            )
        if parameter.name not in options:
            raise ValueError(f"{found} has no {parameter.name}; pass --{name}.{parameter.name}")
    return {"name": found, **options} if options else found


def _read(text: Any) -> Any:
    """The number, list or word that an option's text says."""
    if not isinstance(text, str):
        return text
    value = yaml.safe_load(text)
    with contextlib.suppress(ValueError):  # 1e-3, a word to YAML
        value = float(value) if isinstance(value, str) else value
    return value


def _plain_type(parameter: inspect.Parameter) -> Any:
    """The type of a parameter that a flag can hold; None for the rest, among them all classes and modules."""
    plain: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
    plain |= {f"{name} | None": kind | None for name, kind in plain.items()}
    plain |= {"Any": float | dict}  # a weight, which may be a schedule
    plain |= dict.fromkeys(("Sequence[int]", "tuple[int, ...]", "list[int]"), list[int])
    plain["int | Sequence[int]"] = int | list[int]
    plain["Sequence[int] | Sequence[Sequence[int]]"] = list[int] | list[list[int]]
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        annotation = inspect.formatannotation(annotation).replace("collections.abc.", "")
    if annotation in plain:
        return plain[annotation]
    return type(parameter.default) if isinstance(parameter.default, (bool, int, float, str)) else None


def add_objective_arguments(parser: Parser, arguments: Sequence[str], default: str = "ELBO") -> list[str]:
    """A flag for each argument that plain text can give of the objective that the command line or its file names.

    Args:
        parser: gets `--objective.name`, `--objective.gamma` and so on, so that a file has
            `objective: {name: Capacity, gamma: 1000.0, C: 25.0}`, as it has parts with their options.
        arguments: of the command line.
        default: the objective where neither names one.

    Returns:
        the arguments, in which `--objective NAME` is written out.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    short, full = "--objective", "--objective.name"
    given = [full + a.removeprefix(short) if a == short or a.startswith(f"{short}=") else a for a in arguments]
    name = named(_objective_name(given) or default, objective_names(), "objective")
    chosen = getattr(objectives, name)
    about = f"--objective NAME for short: one of {', '.join(objective_names())}; --help beside it has its arguments."
    parser.add_argument(full, type=str, default=name, help=about)
    for parameter in inspect.signature(chosen).parameters.values():
        if parameter.name in BY_CODE or (kind := _plain_type(parameter)) is None:
            continue
        required = parameter.default is parameter.empty
        otherwise = {"required": True} if required else {"default": parameter.default}
        about = "a number, or one that changes: '{name: Linear, start: 0, end: 1, epochs: 10}'."
        about = about if parameter.annotation == "Any" else f"of {name}."
        parser.add_argument(f"{short}.{parameter.name}", type=kind, help=about, **otherwise)
    if issubclass(chosen, RatioObjective):
        for parameter in inspect.signature(chosen.critic_for).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and (kind := _plain_type(parameter)) is not None:
                about = f"of the critic of {name}."
                flag = f"{short}.critic.{parameter.name}"
                parser.add_argument(flag, type=kind, help=about, default=parameter.default)
    return given


def _objective_name(arguments: Sequence[str]) -> str | None:
    """The name that the command line gives, or its configuration file; None if neither does."""
    seen = _seen(arguments)
    if seen.objective is not None or seen.config is None or not seen.config.is_file():
        return seen.objective
    with contextlib.suppress(yaml.YAMLError):  # whose message is the parser's
        config = yaml.safe_load(seen.config.read_text())
        chosen = config.get("objective", {}) if isinstance(config, dict) else {}
        if not isinstance(chosen, dict):
            raise ValueError(f"{seen.config} has objective: {chosen}; write objective: {{name: {chosen}}} there")
        return str(chosen["name"]) if "name" in chosen else None
    return None


def _seen(arguments: Sequence[str]) -> argparse.Namespace:
    """The file that the command line gives, and the names of objective and parts; None for what it does not."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    look.add_argument("--config", type=Path)
    for name in ("objective", *SLOTS):
        look.add_argument(f"--{name}.name", dest=name)
    try:
        return look.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error


def _differ(of_file: Any, name: Any) -> bool:
    """Whether a part as a file has it, a name or one with options, is another than that of this name."""
    found = of_file.get("name") if isinstance(of_file, dict) else of_file
    return isinstance(name, str) and found is not None and str(found).lower() != name.lower()


def objective_names() -> list[str]:
    """The library's objectives."""
    made = {name: getattr(objectives, name) for name in objectives.__all__}
    return [
        n for n, o in made.items() if isinstance(o, type) and issubclass(o, Objective) and not inspect.isabstract(o)
    ]


def objective(options: dict[str, Any], *, pair: Any = None, data_size: int) -> Objective:
    """The objective that `add_objective_arguments`' flags describe.

    Args:
        options: name and arguments; a schedule is `{"name": "Linear", "start": 0, ...}`, a weight for each site
            `{"z1": 0.5, "z2": ...}`; `critic` has the options of its critic.
        pair: for objectives with a critic, which `critic_for` makes.
        data_size: N, for objectives that have to know it.

    Raises:
        ValueError: for an unknown schedule or option of one.

    >>> objective({"name": "Capacity", "gamma": 100.0, "C": {"name": "Constant", "weight": 5}}, data_size=60_000)
    Capacity(gamma=100.0, C=Constant(5.0), num_particles=1, closed_form=True, plate=None)
    """
    arguments = {name: _scheduled(value) for name, value in options.items() if name not in ("name", "critic")}
    chosen = getattr(objectives, named(options["name"], objective_names(), "objective"))
    if issubclass(chosen, RatioObjective):
        arguments["critic"] = chosen.critic_for(pair, **options.get("critic", {}))
    if "data_size" in inspect.signature(chosen).parameters:
        arguments["data_size"] = data_size
    return chosen(**arguments)


def _scheduled(value: Any) -> Any:
    """A weight as flags hold it: a number, a schedule's name and options, or one of these for each site."""
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        return {site: _scheduled(weight) for site, weight in value.items()}
    name = named(str(value["name"]), [n for n in schedules.__all__ if n not in ("Schedule", "as_weight")], "schedule")
    options = {option: number for option, number in value.items() if option != "name"}
    wanted = inspect.signature(getattr(schedules, name)).parameters
    for option in options:
        named(option, wanted, f"option of {name}")
    if missing := [n for n, parameter in wanted.items() if parameter.default is parameter.empty and n not in options]:
        raise ValueError(f"schedule {name} has no {missing[0]}; pass '{{name: {name}, {missing[0]}: 1.0, ...}}', say")
    return getattr(schedules, name)(**options)
