"""From a scan to the problem: what is decided, said and refused."""

import pytest
import torch

from mri.fourier import fft2c, ifft2c
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom, simulate_scan
from mri.scan import Reference, Scan
from mri.scenes import make_scene
from reconstruction.prepare import prepare
from reconstruction.settings import PrepareSettings
from utils.errors import InputError


def scan_of(coils=4, noise=0.01, frames=6, **more):
    found = simulate_scan("simple", frames, 64, 0, coils, noise)
    mask = make_mask("uniform", (frames, 64, 64), 3, 8)
    return Scan.from_arrays(found.kspace, mask, **{"noise_samples": found.noise, **more}), found


def test_one_coil_is_left_as_it_is():
    image, mask = make_phantom(6, 64, 0), make_mask("uniform", (6, 64, 64), 3, 8)
    problem = prepare(Scan.from_arrays(fft2c(image), mask))
    assert torch.equal(problem.model.maps, torch.ones(1, 64, 64, dtype=torch.complex64))
    assert torch.allclose(problem.measured[:, 0] * problem.scale, torch.where(mask, fft2c(image), 0), atol=1e-6)
    assert torch.equal(problem.reference_image(Reference(image=image)), image)
    assert len(problem.notes) == 1 and "estimated" in problem.notes[0]


def test_what_is_decided_is_said():
    scan, _ = scan_of()
    problem = prepare(scan)
    notes = "\n".join(problem.notes)
    for words in ("pre-whitened with 4096 noise samples", "virtual coils retaining", "root sum of squares", "Walsh",
                  "σ = 0.01 per complex k-space sample (from noise samples)", "SNR"):  # fmt: skip
        assert words in notes
    assert problem.noise_known and problem.snr == pytest.approx(problem.scale / 0.01, rel=0.05)
    assert prepare(Scan.from_arrays(scan.kspace, scan.mask), PrepareSettings(periodic=True)).periodic
    assert len(prepare(scan, PrepareSettings(virtual_coils=2)).matrix) == 2


def test_image_units_are_those_of_the_input():
    """|x| is the root of the sum of squares of the whitened coils times their mean noise, whatever scales the coils."""
    scan, found = scan_of(noise=0.002)
    gains = torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None, None]
    scaled = Scan.from_arrays(scan.kspace * gains, scan.mask, noise_samples=found.noise * gains[:, :, 0])
    level = (0.002**2 * gains.square().mean()).sqrt() / 0.002
    settings = PrepareSettings(virtual_coils=4)
    images = [prepare(one, settings) for one in (scan, scaled)]
    first, second = (problem.finished(problem.view_sharing()).abs() for problem in images)
    assert (second / level - first).norm() < 0.02 * first.norm()
    full = simulate_scan("simple", 6, 64, 0, 4, 0.002)
    reference = Reference(kspace=full.kspace)
    expected = ifft2c(full.kspace).abs().square().sum(1).sqrt()
    assert (images[0].reference_image(reference) - expected).norm() < 0.01 * expected.norm()


def test_a_dead_coil_is_left_out_and_named():
    scan, found = scan_of()
    kspace = scan.kspace.clone()
    kspace[:, 2] = 0
    problem = prepare(Scan.from_arrays(kspace, scan.mask, noise_samples=found.noise, coil_maps=found.maps))
    assert problem.notes[0] == "coil 2 (counting from 0) has no signal and is left out"
    assert problem.matrix.shape[1] == 4 and not problem.matrix[:, 2].any()
    full = Reference(kspace=found.kspace)  # scored like a scan of living coils
    assert problem.reference_image(full).shape == found.image.shape
    kspace[:, 0] = 0
    assert prepare(Scan.from_arrays(kspace, scan.mask)).notes[0].startswith("coils 0, 2 (counting from 0)")
    with pytest.raises(InputError, match="every measured sample of the scan is zero"):
        prepare(Scan.from_arrays(0 * kspace, scan.mask))


@pytest.mark.parametrize("coils", [1, 4])
def test_a_spike_is_named_and_replaced(coils):
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    found = simulate_scan("heart", 8, 64, 0, coils, 0.01)
    clean = prepare(Scan.from_arrays(found.kspace, mask))
    assert not any("spike" in note for note in clean.notes)
    kspace = found.kspace.clone()
    row = int(mask[5, :, 0].nonzero()[0])
    kspace[5, :, row, 50] = 300 * kspace[5, :, row].abs().max()
    problem = prepare(Scan.from_arrays(kspace, mask))
    assert any(f"frame 5, row {row}, column 50" in note for note in problem.notes)
    difference = problem.view_sharing() * problem.scale - clean.view_sharing() * clean.scale
    assert difference.abs().max() < 0.1 * clean.scale


def test_scenes_have_no_spikes():
    for seed in range(12):
        image, _ = make_scene(8, 64, 64, seed)
        mask = make_mask("random", (8, 64, 64), 4, 8)
        assert not any("spike" in note for note in prepare(Scan.from_arrays(fft2c(image), mask)).notes)


def test_a_coil_that_is_not_finite_is_named():
    scan, _ = scan_of()
    kspace = scan.kspace.clone()
    kspace[1, 3, 32, 5] = float("nan")
    with pytest.raises(InputError, match=r"a sample of coil 3 \(counting from 0\) is NaN"):
        Scan.from_arrays(kspace, scan.mask)


@pytest.mark.parametrize("factor", [1e-22, 1e-14, 1e20])
def test_samples_that_single_precision_cannot_square_are_refused(factor):
    scan, _ = scan_of(coils=1)
    with pytest.raises(InputError, match=r"the largest k-space sample is \d\.\de[+-]\d\d.*rescale"):
        Scan.from_arrays(factor * scan.kspace, scan.mask)
    prepare(Scan.from_arrays(1e-10 * scan.kspace, scan.mask))


def test_maps_of_more_coils_than_there_are():
    scan, _ = scan_of(coils=1, coil_maps=torch.ones(2, 64, 64, dtype=torch.complex64))
    with pytest.raises(InputError, match="2 coil maps were given for k-space of one coil"):
        prepare(scan)


def test_maps_that_do_not_fit():
    scan, found = scan_of()
    wrong = (torch.roll(found.maps, 10, 2), found.maps.flip(1), found.maps.flip(0))
    refused = [(found.maps[:, :60], "the coil maps are"), (0 * found.maps, "zero everywhere")]
    for maps, words in [*refused, *((maps, "do not belong to this scan") for maps in wrong)]:
        with pytest.raises(InputError, match=words):
            prepare(Scan.from_arrays(scan.kspace, scan.mask, coil_maps=maps))
    notes = prepare(Scan.from_arrays(scan.kspace, scan.mask, coil_maps=torch.roll(found.maps, 3, 2))).notes
    assert any("warning: the coil maps fit this scan poorly" in note for note in notes)
    given = prepare(Scan.from_arrays(scan.kspace, scan.mask, coil_maps=3 * found.maps))
    assert "as given" in "\n".join(given.notes) and "warning" not in "\n".join(given.notes)
    norm = given.model.maps.abs().square().sum(0)
    assert torch.allclose(norm, torch.ones(64, 64), atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_maps_with_holes_are_completed(noise):
    """A support mask, or a hole inside the object, does not cut the image."""
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    found = simulate_scan("heart", 8, 64, 0, 4, noise)
    outside = found.image.abs().mean(0) < 0.02
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[28:36, 28:36] = True
    for where in (outside, hole):
        maps = torch.where(where, 0, found.maps)
        problem = prepare(Scan.from_arrays(found.kspace, mask, coil_maps=maps))
        assert "where they are zero" in "\n".join(problem.notes) and "warning" not in "\n".join(problem.notes)
        assert torch.allclose(problem.model.maps.abs().square().sum(0), torch.ones(64, 64), atol=1e-4)


def test_settings_that_do_not_fit():
    scan, found = scan_of()
    with pytest.raises(InputError, match="9 virtual coils are more than the 4 coils"):
        prepare(scan, PrepareSettings(virtual_coils=9))
    with pytest.raises(InputError, match="choose walsh, espirit or an existing file"):
        prepare(scan, PrepareSettings(maps="best"))
    with pytest.raises(InputError, match="the noise samples are of 3 coils and the scan has 4"):
        prepare(Scan.from_arrays(scan.kspace, scan.mask, noise_samples=found.noise[:3]))


def test_maps_where_the_mean_is_not_complete():
    """ESPIRiT on the complete centre, or what is used where that is too small."""
    pytest.importorskip("sigpy")
    found = simulate_scan("simple", 6, 64, 0, 4, 0.01)
    rows = (torch.arange(64) - 32).abs()
    for half, words in ((10, "ESPIRiT on the central 18 x 18"), (4, "Walsh's method")):
        mask = ((rows < half) | (torch.arange(64) % 4 == 0))[None, :, None].expand(6, 64, 64)
        scan = Scan.from_arrays(found.kspace, mask.contiguous())
        assert any(words in note for note in prepare(scan).notes), words
        notes = prepare(scan, PrepareSettings(maps="espirit")).notes
        assert any(("too small for ESPIRiT" if half == 4 else words) in note for note in notes)


def test_columns_are_turned_into_rows_and_back():
    found = simulate_scan("simple", 6, 64, 0, 3, 0.0)
    mask = make_mask("uniform", (6, 64, 64), 3, 8)
    maps = make_coil_maps(3, 64, 64)
    one = prepare(Scan.from_arrays(found.kspace, mask, coil_maps=maps))
    turned = prepare(Scan.from_arrays(found.kspace.mT, mask.mT, coil_maps=maps.mT))
    assert turned.turned and not one.turned
    assert torch.equal(turned.model.mask, one.model.mask)
    image = one.view_sharing()
    assert torch.allclose(turned.finished(turned.view_sharing()), one.finished(image).mT, atol=1e-4)
    assert torch.allclose(turned.finished_maps(), one.finished_maps().mT, atol=1e-4)


def test_what_is_unusual_is_said():
    """A frame of one line, lines of no frame, a peak off the centre, equal frames; nothing of an ordinary scan."""
    image, mask = make_phantom(8, 64, 0), make_mask("uniform", (8, 64, 64), 4, 8)
    kspace = fft2c(image)

    def said(kspace, mask):
        return "\n".join(prepare(Scan.from_arrays(kspace, mask)).notes)

    assert said(kspace, mask).startswith("noise")
    few = mask.clone()
    few[5] = False
    few[5, 32] = True
    assert "frame 5 (counting from 0) has only 1 sampled lines; the median" in said(kspace, few)
    assert "16 of 64 lines are sampled in no frame" in said(kspace, mask & (torch.arange(64) >= 16)[:, None])
    assert "at row 37, column 29" in said(torch.roll(kspace, (5, -3), (1, 2)), torch.roll(mask, 5, 1))
    still = kspace.clone()
    still[3], same = still[2], mask.clone()
    same[3] = same[2]
    assert "frames 2 and 3 (counting from 0) are identical" in said(still, same)
    noise = torch.randn(8, 64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert "the peak SNR is below 3" in said(kspace + noise, mask)
