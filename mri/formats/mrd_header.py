"""The XML header of ISMRMRD files, as far as a 2-D Cartesian reconstruction needs it."""

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from utils.errors import InputError


@dataclass(frozen=True)
class Header:
    """What the header says; 0 or empty where it does not.

    Attributes
    ----------
    encoded_matrix, recon_matrix
        (x, y, z): readout, phase encoding, second phase encoding.
    encoded_fov_mm, recon_fov_mm
        the same axes.
    centers
        k-space centre by counter, such as `kspace_encoding_step_1`.
    repetition_time_ms
        TR, from one readout to the next.
    noise_bandwidth
        effective bandwidth of the receiver over the nominal one.
    """

    encoded_matrix: tuple[int, int, int] = (0, 0, 0)
    encoded_fov_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    recon_matrix: tuple[int, int, int] = (0, 0, 0)
    recon_fov_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    centers: dict[str, int] = field(default_factory=dict)
    trajectory: str = ""
    vendor: str = ""
    repetition_time_ms: float = 0.0
    noise_bandwidth: float = 1.0

    @property
    def oversampling(self) -> float:
        """Factor by which the readout is oversampled."""
        encoded, recon = self.encoded_fov_mm[0], self.recon_fov_mm[0]
        if not (encoded > 0 and recon > 0):
            encoded, recon = self.encoded_matrix[0], self.recon_matrix[0]
        return max(1.0, encoded / recon) if encoded > 0 and recon > 0 else 1.0

    @property
    def phase_oversampling(self) -> float:
        """Field of view along the phase encoding over the prescribed one."""
        encoded, recon = self.encoded_fov_mm[1], self.recon_fov_mm[1]
        return max(1.0, encoded / recon) if encoded > 0 and recon > 0 else 1.0

    @property
    def voxel_mm(self) -> tuple[float, float, float] | None:
        """Distance of rows, of columns, and the slice thickness."""
        if 0 in self.encoded_matrix or 0 in self.encoded_fov_mm:
            return None
        x, y, z = (fov / n for fov, n in zip(self.encoded_fov_mm, self.encoded_matrix, strict=True))
        return y, x, z


def parse(path: Path, text: str | bytes) -> Header:
    """The header of its XML.

    Raises
    ------
    InputError
        for text that is no XML, that declares entities (which may stand for other files), or without an encoding.
    """
    text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
    if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
        raise InputError(f"{path}: its XML header declares entities, which no MRI file needs; remove the declaration.")
    try:
        root = ElementTree.fromstring(text.strip("\0 \n\r\t"))
        return _header(root)
    except (ElementTree.ParseError, ValueError, OverflowError):
        raise InputError(f"{path}: its XML header is damaged; convert or download the file again.") from None


def _header(root: ElementTree.Element) -> Header:
    for element in root.iter():  # names without their namespace
        element.tag = element.tag.split("}")[-1]
    encoding = root.find("encoding")
    if encoding is None:
        return Header()
    centers = {}
    for counter in encoding.find("encodingLimits") or ():
        centers[counter.tag] = int(counter.findtext("center", "0"))
    return Header(
        encoded_matrix=_whole(encoding, "encodedSpace/matrixSize"),
        encoded_fov_mm=_three(encoding, "encodedSpace/fieldOfView_mm"),
        recon_matrix=_whole(encoding, "reconSpace/matrixSize"),
        recon_fov_mm=_three(encoding, "reconSpace/fieldOfView_mm"),
        centers=centers,
        trajectory=encoding.findtext("trajectory", "").strip().lower(),
        vendor=root.findtext("acquisitionSystemInformation/systemVendor", "").strip().lower(),
        repetition_time_ms=float(root.findtext("sequenceParameters/TR", "0")),
        noise_bandwidth=float(root.findtext("acquisitionSystemInformation/relativeReceiverNoiseBandwidth", "1")),
    )


def _three(element: ElementTree.Element, place: str) -> tuple[float, float, float]:
    x, y, z = (float(element.findtext(f"{place}/{axis}", "0")) for axis in "xyz")
    return x, y, z


def _whole(element: ElementTree.Element, place: str) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in _three(element, place))
    return x, y, z
