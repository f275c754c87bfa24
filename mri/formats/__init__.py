"""Files in and out: every reader returns the same `Stored` scan, and says what it found."""

from mri.formats.arrays import SUFFIXES
from mri.formats.checksum import sha256
from mri.formats.mask_file import load_mask
from mri.formats.read import load_scan
from mri.formats.stored import Stored
from mri.formats.write import save_array

__all__ = ["SUFFIXES", "Stored", "load_mask", "load_scan", "save_array", "sha256"]
