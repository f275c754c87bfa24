"""Quality, speed and the contribution of each stage; each file is a command with `--help`."""
