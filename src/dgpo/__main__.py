"""`python -m dgpo`: the same as `dgpo`, with the interpreter given."""

from dgpo.cli.main import main

main()
