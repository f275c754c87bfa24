"""Receive coils: noise whitening, compression to virtual coils, and sensitivity maps estimated from the scan.

Whitening: Pruessmann et al. 2001. Compression: Buehrer et al. 2007 (principal components). Maps: Walsh et al. 2000 on
the temporal mean, which time-interleaved sampling makes complete at full resolution; ESPIRiT (Uecker et al. 2014, by
SigPy) on its central block where it is not.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d, pad

from mri.fourier import ifft2c
from utils.errors import InputError

Tensor = torch.Tensor

ENERGY = 0.99  # of the signal, that the virtual coils hold
MOST_COILS = 16
WALSH_WINDOW = 5  # pixels
FIT_WINDOW = 11  # pixels, of the local linear fit
FIT_ROUNDS = 2
RIDGE = 1e-3  # of the slopes, relative to their spread in the window
PHASE_WINDOW = 15  # pixels; the phase reference of a pixel is averaged over its neighbourhood
SMALLEST_CENTRE = 12  # samples per side of a calibration region
ESPIRIT_REGION = 24


def whitening_matrix(noise: Tensor) -> tuple[Tensor, float]:
    """The matrix that makes the noise of all coils equal and independent, and the noise level that it has then.

    Parameters
    ----------
    noise
        complex `(coils, n)`, samples without signal.

    Returns
    -------
    σ̄ L⁻¹ with the covariance L Lᴴ, complex64 `(coils, coils)`, and σ̄, the root mean square noise of the coils: the
    units of the data stay.

    Raises
    ------
    InputError
        with too few samples, or for a coil without noise.
    """
    coils, count = noise.shape
    bad = (~noise.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"noise samples of coil {bad[0]} (counting from 0) are NaN or infinite; repair the noise scan or leave it "
            "out."
        )
    if count < 4 * coils:
        raise InputError(f"{count} noise samples of {coils} coils are too few to whiten; give at least {4 * coils}.")
    noise = noise.to(torch.complex128)
    covariance = noise @ noise.mH / count
    mean = covariance.diagonal().real.mean().sqrt().item()
    if mean == 0:  # a simulated scan without noise
        return torch.eye(coils, dtype=torch.complex64), 0.0
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if failed or lower.diagonal().real.min() < 1e-6 * mean:
        weakest = int(covariance.diagonal().real.argmin())
        raise InputError(
            f"the noise covariance is singular: coil {weakest} (counting from 0) has the lowest noise and may be "
            "disconnected, or two coils are copies; remove that coil, or give a noise scan of the same coils."
        )
    identity = torch.eye(coils, dtype=lower.dtype)
    return (mean * torch.linalg.solve_triangular(lower, identity, upper=False)).to(torch.complex64), mean


@dataclass(frozen=True)
class Compression:
    """Virtual coils."""

    matrix: Tensor  # complex64 (virtual coils, coils)
    energy: float  # share of the signal's energy that they hold


def compression(kspace: Tensor, mask: Tensor, noise_std: float, virtual_coils: int = 0) -> Compression:
    """Principal components of white k-space `(frames, coils, ky, kx)`.

    Parameters
    ----------
    noise_std
        σ, whose power is subtracted from the energies.
    virtual_coils
        how many; 0: the fewest that hold `ENERGY` of the signal, at most `MOST_COILS`.
    """
    samples = kspace.movedim(1, -1)[mask].to(torch.complex128)  # (samples, coils)
    covariance = samples.T @ samples.conj() / len(samples)
    power, vectors = torch.linalg.eigh(covariance)
    power, vectors = (power.flip(0) - noise_std**2).clamp(min=0), vectors.flip(1)
    share = power.cumsum(0) / power.sum().clamp(min=1e-300)
    count = virtual_coils or min(int((share < ENERGY).sum()) + 1, MOST_COILS)
    count = min(count, len(power))
    return Compression(vectors[:, :count].mH.contiguous().to(torch.complex64), share[count - 1].item())


def apply_matrix(matrix: Tensor, coils: Tensor, axis: int) -> Tensor:
    """Linear combinations along the coil axis."""
    return torch.tensordot(matrix.to(coils), coils, dims=([1], [axis])).movedim(0, axis)


def walsh_maps(coil_images: Tensor, window: int = WALSH_WINDOW) -> Tensor:
    """Sensitivities as the dominant eigenvector of the local covariance of the coils (Walsh et al. 2000).

    Parameters
    ----------
    coil_images
        complex `(coils, height, width)`, of white coils, the dominant virtual coil first.
    window
        side of the neighbourhood, pixels, odd.

    Returns
    -------
    complex64 `(coils, height, width)` with ΣS*S = 1 everywhere. There is no support mask: it would cut holes into
    lungs.
    """
    coils, height, width = coil_images.shape
    window = _odd_at_most(window, height, width)
    products = coil_images[:, None] * coil_images.conj()[None]  # (coils, coils, height, width)
    local = _box_mean(products.flatten(0, 1), window).reshape(coils, coils, height, width)
    vectors = torch.linalg.eigh(local.permute(2, 3, 0, 1)).eigenvectors[..., -1]  # (height, width, coils)
    return with_smooth_phase(vectors.permute(2, 0, 1), local.diagonal(dim1=0, dim2=1).sum(-1).real)


def refined_maps(coil_images: Tensor, maps: Tensor, window: int = FIT_WINDOW) -> Tensor:
    """Maps by a local linear fit of x_c = S_c x, starting from other maps.

    A local covariance is dominated by the brightest pixels of its window, which shifts the map towards their position.
    A fit with slopes, S_c(r) = a_c + b_c·(r − r₀), does not, so its window can be larger and the maps less noisy: on
    giraf with six coils the OU has 38.4 dB, with Walsh's maps 36.7 to 37.9 (windows 7 and 5), with the true maps 38.5.

    Parameters
    ----------
    coil_images
        complex `(coils, height, width)`.
    maps
        to begin from, ΣS*S = 1; same shape.
    window
        side of the neighbourhood, pixels, odd.
    """
    _, height, width = coil_images.shape
    window = _odd_at_most(window, height, width)
    images, maps = coil_images.to(torch.complex128), maps.to(torch.complex128)
    axes = [torch.arange(n, dtype=torch.float64, device=maps.device) / window for n in (height, width)]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    basis = torch.stack((torch.ones_like(rows), rows, columns))
    # from coordinates of the image to coordinates about each pixel
    local = torch.eye(3, dtype=torch.complex128, device=maps.device).repeat(height, width, 1, 1)
    local[..., 1, 0], local[..., 2, 0] = -rows.to(local), -columns.to(local)
    ridge = torch.diag(torch.tensor([0.0, RIDGE / 12, RIDGE / 12], dtype=torch.float64, device=maps.device))
    for _ in range(FIT_ROUNDS):
        combined = (maps.conj() * images).sum(dim=0)
        weight = combined.abs().square()
        moments = _box_mean((weight * basis[:, None] * basis).flatten(0, 1).to(images), window)
        moments = local @ moments.reshape(3, 3, height, width).permute(2, 3, 0, 1) @ local.mT
        products = images * combined.conj()
        sides = torch.stack([_box_mean(products * one, window) for one in basis])  # (3, coils, height, width)
        sides = local @ sides.permute(2, 3, 0, 1)
        power = moments[..., :1, :1]
        tiny = 1e-12 * power.abs().max()
        system = moments + ridge * power + tiny * torch.eye(3, device=maps.device)
        fitted = torch.linalg.solve(system, sides)[..., 0, :].permute(2, 0, 1)
        norm = fitted.abs().square().sum(dim=0).sqrt()
        maps = torch.where(norm > 0, fitted / norm.clamp(min=1e-300), maps)
    return with_smooth_phase(maps, coil_images.abs().square().sum(dim=0))


def with_smooth_phase(maps: Tensor, power: Tensor) -> Tensor:
    """Maps with a common phase per pixel, so that the image's phase is smooth.

    An eigenvector has an arbitrary phase. It is referred to the first coil; where that coil is dark its phase is
    undefined, and the neighbourhood decides, weighted by how bright the first coil is there.

    Parameters
    ----------
    maps
        complex `(coils, height, width)`.
    power
        real `(height, width)`, the object's power.
    """
    maps = maps * torch.polar(torch.ones_like(maps[0].real), -maps[0].angle())
    window = _odd_at_most(PHASE_WINDOW, *maps.shape[1:])
    for _ in range(3):
        bright = maps[0].abs().square() * power.sqrt()
        target = _box_mean(maps * bright, window)
        along = (target.conj() * maps).sum(dim=0)
        maps = maps * torch.polar(torch.ones_like(along.real), -along.angle())
    return maps.to(torch.complex64).contiguous()


def espirit_maps(kspace: Tensor, region: int = ESPIRIT_REGION) -> Tensor:
    """ESPIRiT maps of the central block of a k-space, by SigPy.

    Parameters
    ----------
    kspace
        complex `(coils, ky, kx)`.
    region
        samples per side of the calibration region.
    """
    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError:
        raise InputError("--maps espirit needs SigPy: pip install sigpy, or choose --maps walsh.") from None
    # no cropping: a pixel outside the support keeps its best guess
    maps = EspiritCalib(kspace.cpu().numpy(), calib_width=region, crop=0, show_pbar=False).run()
    maps = torch.from_numpy(maps).to(kspace)
    power = ifft2c(kspace).abs().square().sum(dim=0)
    return with_smooth_phase(normalised(maps), power)


def normalised(maps: Tensor) -> Tensor:
    """Maps with ΣS*S = 1 where they are not zero."""
    norm = maps.abs().square().sum(dim=0).sqrt()
    return torch.where(norm > 1e-6 * norm.max(), maps / norm.clamp(min=1e-30), 0).to(torch.complex64)


def calibration_region(measured: Tensor) -> int:
    """Side of the largest central square that is measured without gaps, boolean `(ky, kx)`; even."""
    height, width = measured.shape
    side = min(height, width)
    while side > 0:
        top, left = height // 2 - side // 2, width // 2 - side // 2
        if measured[top : top + side, left : left + side].all():
            break
        side -= 1
    return side // 2 * 2


def unexplained(maps: Tensor, coil_images: Tensor) -> float:
    """Share of coil images `(coils, height, width)` that no image times these maps explains: ‖c − S Sᴴ c‖ / ‖c‖."""
    combined = (maps.conj() * coil_images).sum(dim=0)
    return ((coil_images - maps * combined).norm() / coil_images.norm()).item()


def root_sum_of_squares(coil_images: Tensor) -> Tensor:
    """√Σ|x_c|² of `(frames, coils, height, width)`."""
    return coil_images.abs().square().sum(dim=1).sqrt()


def _odd_at_most(window: int, height: int, width: int) -> int:
    """The window, or the largest odd one that fits the image."""
    return min(window, 2 * ((min(height, width) - 1) // 2) + 1)


def _box_mean(values: Tensor, window: int) -> Tensor:
    """Mean over window × window pixels of complex `(n, height, width)`, which wraps around."""
    half = window // 2
    parts = torch.view_as_real(values.contiguous()).permute(3, 0, 1, 2)
    padded = pad(parts, (half, half, half, half), mode="circular")
    mean = avg_pool2d(padded.flatten(0, 1)[:, None], window, 1)[:, 0].reshape(parts.shape)
    return torch.complex(mean[0].contiguous(), mean[1].contiguous())
