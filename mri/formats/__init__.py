"""Files in and out: every reader returns the same `Stored` array, and says what it found."""

from mri.formats.arrays import SUFFIXES, sha256
from mri.formats.mask_file import load_mask
from mri.formats.stored import Stored, load_scan
from mri.formats.write import save_array

__all__ = ["SUFFIXES", "Stored", "load_mask", "load_scan", "save_array", "sha256"]
