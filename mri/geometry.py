"""Where the images of a scan lie in the patient, and when they were taken."""

from dataclasses import dataclass, replace

import numpy as np

REGULAR = 0.1  # largest deviation of a frame interval from their median that still counts as regular


@dataclass(frozen=True)
class Geometry:
    """Position and time of the images; every entry is None where the file does not say.

    Positions and directions are in DICOM's patient coordinates (LPS): x to the patient's left, y to the back, z to the
    head. Rows and columns are those of the images as the scan has them, `(height, width)`.

    Attributes
    ----------
    voxel_mm
        distance between rows, between columns, between slices; not necessarily equal.
    slice_thickness_mm
        excited thickness, which may differ from the distance between slices.
    orientation
        six direction cosines, as DICOM's ImageOrientationPatient: along a row (increasing column index), then along a
        column (increasing row index).
    position_mm
        centre of the first pixel, as DICOM's ImagePositionPatient, after readout oversampling is removed.
    frame_time_ms
        time from one frame to the next.
    frame_times_ms
        time of each frame (trigger time or time of acquisition).
    """

    voxel_mm: tuple[float, float, float] | None = None
    slice_thickness_mm: float | None = None
    orientation: tuple[float, ...] | None = None
    position_mm: tuple[float, float, float] | None = None
    frame_time_ms: float | None = None
    frame_times_ms: tuple[float, ...] | None = None

    @property
    def irregular(self) -> bool:
        """Whether the intervals between frames differ by more than a tenth of their median."""
        if self.frame_times_ms is None or len(self.frame_times_ms) < 3:
            return False
        steps = np.diff(self.frame_times_ms)
        return bool(np.abs(steps - np.median(steps)).max() > REGULAR * abs(np.median(steps)))

    def affine(self) -> np.ndarray | None:
        """From (column, row, slice) indices to mm in NIfTI's coordinates (RAS), 4 × 4; None where unknown."""
        if self.voxel_mm is None or self.orientation is None or self.position_mm is None:
            return None
        along_row, along_column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        affine = np.eye(4)
        affine[:3, 0] = along_row * self.voxel_mm[1]
        affine[:3, 1] = along_column * self.voxel_mm[0]
        affine[:3, 2] = np.cross(along_row, along_column) * self.voxel_mm[2]
        affine[:3, 3] = self.position_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    @classmethod
    def from_affine(cls, affine: np.ndarray, **more) -> "Geometry":
        """The geometry of an affine as `affine()` gives it; `more` are other attributes."""
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        columns, rows, slices = np.linalg.norm(lps[:3, :3], axis=0)
        directions = np.concatenate([lps[:3, 0] / (columns or 1), lps[:3, 1] / (rows or 1)])
        x, y, z = (float(value) for value in lps[:3, 3])
        return cls(
            voxel_mm=(float(rows), float(columns), float(slices)),
            orientation=tuple(map(float, directions)),
            position_mm=(x, y, z),
            **more,
        )

    def resampled(self, held: tuple[int, int], now: tuple[int, int]) -> "Geometry":
        """The geometry after `held` pixels (height, width) became `now` in the same field of view.

        Pixel n//2 of each axis, the centre of the Fourier transform, stays where it is.
        """
        if self.voxel_mm is None or held == now:
            return self
        rows, columns = (self.voxel_mm[i] * held[i] / now[i] for i in (0, 1))
        position = self.position_mm
        if position is not None and self.orientation is not None:
            by_column = held[1] // 2 * self.voxel_mm[1] - now[1] // 2 * columns
            by_row = held[0] // 2 * self.voxel_mm[0] - now[0] // 2 * rows
            along_row, along_column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
            moved = np.array(position) + by_column * along_row + by_row * along_column
            position = (float(moved[0]), float(moved[1]), float(moved[2]))
        return replace(self, voxel_mm=(rows, columns, self.voxel_mm[2]), position_mm=position)

    def cropped_rows(self, held: int, now: int) -> "Geometry":
        """The geometry of the central `now` of `held` rows, whose size stays; row n//2 stays where it is."""
        if self.position_mm is None or self.orientation is None or self.voxel_mm is None or held == now:
            return self
        moved = np.array(self.position_mm) + (held // 2 - now // 2) * self.voxel_mm[0] * np.array(self.orientation[3:])
        return replace(self, position_mm=(float(moved[0]), float(moved[1]), float(moved[2])))

    def first_frames(self, index: list[int]) -> "Geometry":
        """The geometry of the frames in `index`; times of frames that are repeated are not kept."""
        times = self.frame_times_ms
        if times is not None:
            times = tuple(times[i] for i in index) if len(set(index)) == len(index) else None
        return replace(self, frame_times_ms=times)

    def __str__(self) -> str:
        """In words, empty where nothing is known."""
        said = []
        if self.voxel_mm is not None:
            said.append("voxels of " + " × ".join(f"{size:.3g}" for size in self.voxel_mm) + " mm")
        if self.frame_time_ms is not None:
            said.append(f"{self.frame_time_ms:.4g} ms per frame{', irregular' if self.irregular else ''}")
        return ", ".join(said)
