"""`python -m mri.phantom`: write a phantom to a file."""

from mri.phantom.cli import main
from utils.errors import exit_on_input_error

if __name__ == "__main__":
    exit_on_input_error(main)
