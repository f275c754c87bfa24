"""Embedded phantoms: cines with a known truth that need no file, and simulated scans of them."""

from mri.phantom.coils import make_coil_maps
from mri.phantom.heart import make_heart
from mri.phantom.scan import PhantomScan, simulate_scan
from mri.phantom.simple import make_phantom

__all__ = ["PhantomScan", "make_coil_maps", "make_heart", "make_phantom", "simulate_scan"]
