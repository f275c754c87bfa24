"""Measurements of quality, speed and of what each stage pays; each file is a command with `--help`."""
