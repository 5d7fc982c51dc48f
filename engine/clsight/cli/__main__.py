"""`python -m clsight.cli` is `clsight`."""

from clsight.cli import main

main()
