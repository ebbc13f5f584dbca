"""`dgpo doctor`: whether the plug-in for an engine works where the engine runs, and why not."""

from __future__ import annotations

import argparse

from dgpo.cli.errors import UserError, user_input


def run(argv: list[str]) -> int:
    """Print one report per node; 0 if the plug-in works on all of them, otherwise 1."""
    parser = argparse.ArgumentParser(prog="dgpo doctor", description="Find out why a plug-in does not work.")
    parser.add_argument("--engine", choices=["verl"], required=True, help="the engine whose workers are asked")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="cluster to join; default: the one that Ray finds")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of ray_kwargs.ray_init.runtime_env.env_vars of your job; may be repeated",
    )
    arguments = parser.parse_args(argv)
    return _verl(arguments.ray_address, _variables(arguments.env))


def _variables(pairs: list[str]) -> dict[str, str]:
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UserError(f"--env {pair!r} is no NAME=VALUE")
        variables[name] = value
    return variables


def _verl(address: str | None, variables: dict[str, str]) -> int:
    from dgpo.engines.verl_doctor import inspect_workers

    with user_input((ConnectionError,)):
        workers = inspect_workers(address, variables)
    broken = 0
    for worker in workers:
        problems = worker.problems()
        broken += bool(problems)
        print(
            f"{'BROKEN' if problems else 'ok':<8}{worker.node}  verl {worker.verl}  dgpo {worker.dgpo}  {worker.python}"
        )
        for problem in problems:
            print("  - " + problem.replace("\n", "\n    "))
    print(f"{len(workers) - broken} of {len(workers)} nodes see the plug-in")
    return 1 if broken else 0
