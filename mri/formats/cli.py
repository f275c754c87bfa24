"""What is in a file and how it would be taken: `python -m mri.formats FILE`."""

import argparse
from pathlib import Path

import h5py

from mri.formats import cfl, mrd
from mri.formats.arrays import format_of, read_arrays
from mri.formats.detect import reader_of
from mri.formats.hdf5 import datasets, opened
from mri.formats.stored import TIMES, SeveralSlices
from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake
from utils import arguments as command_name
from utils.errors import exit_on_input_error


def contents(path: Path) -> list[str]:
    """A line for every variable of a file that has some: name, shape and type."""
    if path.is_file() and h5py.is_hdf5(path):
        with opened(path) as file:
            found, left_out = datasets(file)
            if format_of(path) == "MATLAB v7.3":  # groups are structures
                found = {name.replace("/", "."): dataset for name, dataset in found.items()}
            lines = [f"  {name} {dataset.shape} {_type(dataset)}" for name, dataset in found.items()]
            return [*lines, *(f"  {words}" for words in (*mrd.contents(file), *left_out))]
    if reader_of(path) is None:
        variables, _ = read_arrays(path, None, ())
        return [f"  {name} {value.shape} {value.dtype}" for name, value in variables.items()]
    files = cfl.files_of(path)
    if files is not None:
        return [f"  dimensions {' '.join(map(str, cfl.dimensions(files[1])))}"]
    if path.is_dir():
        return [f"  {sum(1 for _ in path.iterdir())} files"]
    return []


def _type(dataset: h5py.Dataset) -> str:
    return "complex, as pairs of real and imaginary parts" if dataset.dtype.names else str(dataset.dtype)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=command_name.installed or "python -m mri.formats",
        description="Print what a file contains and how it is interpreted.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="scan file, or folder of a DICOM series")
    parser.add_argument("--key", default="", help="variable in the file (for .npy: image or kspace; DICOM: series)")
    parser.add_argument("--kind", default="", choices=("image", "kspace"), help="what the variable holds")
    parser.add_argument("--dc", default="center", choices=("center", "corner"), help="where zero frequency lies")
    parser.add_argument("--time", default="", choices=TIMES, help="dimension or counter used as time")
    parser.add_argument("--frames_axis", type=int, help="axis of time, e.g. -1")
    parser.add_argument("--coils_axis", type=int, help="axis of the coils, e.g. 1")
    parser.add_argument("--slice", type=int, help="slice to use, counting from 0")
    parser.add_argument("--set", type=int, help="set to use, such as a velocity encoding")
    given = vars(parser.parse_args(arguments))
    path = given.pop("file")

    def job() -> None:
        lines = contents(path)
        if lines:
            print(f"{path} holds")
            print("\n".join(lines))
        try:
            scan, _ = scan_from_file(Intake(DataSettings(**given)), path)
        except SeveralSlices as several:
            print(f"{len(several.slices)} slices: each is reconstructed into its own folder; --slice selects one")
            scan, _ = scan_from_file(Intake(DataSettings(**given | {"slice": 0})), path)
            print("slice 0:")
        print(scan)

    exit_on_input_error(job)
