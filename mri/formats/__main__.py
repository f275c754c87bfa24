"""`python -m mri.formats FILE`."""

from mri.formats.cli import main

main()
