"""`python -m cellburst`."""

from .cli import main

main()
