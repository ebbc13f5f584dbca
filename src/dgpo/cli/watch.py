"""`dgpo watch`: the report of a run that goes on, in a browser on this machine."""

from __future__ import annotations

import argparse

from dgpo.cli.errors import UserError, user_input
from dgpo.cli.own_objective import add_flag, import_named
from dgpo.cli.report import separated
from dgpo.report.watch import HOST, Pages, server

LEAST = 2.0
"""Seconds between two requests of a browser, at least: each may read a run anew."""


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo watch`."""
    made = argparse.ArgumentParser(
        prog="dgpo watch",
        description=(
            "Serve the page of `dgpo report` on this machine (127.0.0.1) during runs. It is written again when a run "
            "has logged, and the browser reloads it. Ctrl-C ends the command."
        ),
    )
    made.add_argument("runs", nargs="*", metavar="RUN", help="folders that runs are recorded to, or their logs")
    made.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    made.add_argument("--every", type=float, default=15.0, help="seconds after which the browser asks again")
    made.add_argument(
        "--eval", nargs="+", default=[], metavar="FOLDER", dest="evaluation", help="results of `dgpo eval` to show"
    )
    add_flag(made)
    return made


def run(argv: list[str]) -> int:
    """Run `dgpo watch argv`, until Ctrl-C."""
    arguments = parser().parse_args(argv)
    if not LEAST <= arguments.every < float("inf"):
        raise UserError(f"--every {arguments.every:g} is not allowed; expected a number of seconds >= {LEAST:g}")
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port {arguments.port} is not allowed; expected an integer in [0, 65535]")
    runs, evaluation = separated(arguments.runs, arguments.evaluation)
    with user_input():
        import_named(arguments.objective)
        listening = server(Pages(runs, evaluation), port=arguments.port, every=arguments.every)
    with listening:
        print(f"http://{HOST}:{listening.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
