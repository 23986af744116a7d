"""The entry point of ``efcn-sparse``: finds the subcommand, and turns what the user got wrong into one line."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

COMMANDS = {
    "relax": "train CNNs, embed them, train on: the relax protocol",
    "report": "figures and one HTML page of a run directory",
    "landscape": "losses and curvature between the nets of a run",
    "doctor": "what embedding a model would store, without building it",
    "bench": "the rates of the kernels on this machine",
    "tune": "time tiles of the GPU kernels and write the best to a tuning file",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"efcn-sparse: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``efcn-sparse`` with ``arguments`` (None: those of the process) and return its exit status.

    0 is success, 2 a wrong argument or input (told in one line on stderr), 130 an interruption. ``--traceback``
    before the command shows where an error came from.

    Example:
        >>> main(["relax", "--preset", "digits", "--lr", "-1"])
        2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = _parser(arguments).parse_args(arguments)
    except SystemExit as leaving:  # argparse has said what there is to say
        return leaving.code if isinstance(leaving.code, int) else 2
    if parsed.traceback:
        return int(parsed.func(parsed))
    try:
        return int(parsed.func(parsed))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"efcn-sparse: error: {' '.join(_in_options(str(error), parsed.spelt).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("efcn-sparse: interrupted", file=sys.stderr)
        return 130


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the named command; the others are only listed, so that their modules stay unloaded."""
    parser = _Parser(prog="efcn-sparse", description="CNNs as block-sparse fully-connected nets that train.")
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    for command, summary in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=summary)
        if command == named:
            importlib.import_module(f"efcn_sparse.cli.{command}").set_up(subparser)
            subparser.set_defaults(
                spelt={one.dest: (*one.option_strings, one.metavar)[0] for one in subparser._actions}
            )
    return parser


def _in_options(message: str, spelt: Mapping[str, str]) -> str:
    """What the library says of its arguments, with the names that these have on the command line.

    A name of one word is known as such where the message begins with it, one of several words by its underscores. What
    came, and what a function of the user's raised, stays as it is.
    """
    if "layers" in spelt:
        message = re.sub(r"layers=\{('[^']*'): None\}", rf"{spelt['layers']} \1", message)
    own = re.search(" got | raised ", message)
    message, rest = (message[: own.start()], message[own.start() :]) if own else (message, "")
    at_start = re.match("(each of )?([a-z_]+) (?=must|is|[(/])", message)
    if at_start and at_start[2] in spelt:
        message = (at_start[1] or "") + spelt[at_start[2]] + message[at_start.end(2) :]
    message = re.sub(
        r"(?<![\w/.])([a-z]+_[a-z_]+)(=True)?(?![\w/.])",
        lambda found: spelt[found[1]] if found[1] in spelt else found[0], message,
    )  # fmt: skip
    return message + rest


def _version() -> str:
    from efcn_sparse import __version__

    return f"efcn-sparse {__version__}"


if __name__ == "__main__":
    sys.exit(main())
