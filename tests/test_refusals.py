"""One sentence for what cannot be used: arrays, masks, files, checkpoints, flags."""


import h5py
import numpy as np
import pytest
import scipy.io
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.checkpoint import save_model
from models.ncsnpp import NCSNpp
from models.prior import load_prior, shipped
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from mri.weighting import KspaceWeight
from op.dispatch import forced
from reconstruction.settings import MODELS
from tests.commands import array, assert_one_sentence, demo, names
from utils.errors import InputError


def _with(value):
    image = make_phantom(4, 64, 0)
    image[1, 2, 3] = value
    return image.numpy()


def _mask_file(tmp_path, mask):
    np.save(tmp_path / "mask.npy", mask.numpy())
    return ["--mask", "mask.npy"]


BAD_ARRAYS = {
    "nan": (lambda: _with(float("nan")), [], "scan.npy"),
    "infinite": (lambda: _with(float("inf")), [], "scan.npy"),
    "one frame": (lambda: array()[:1], [], "scan.npy"),
    "dc in the corner": (
        lambda: torch.fft.fft2(make_phantom(4, 64, 0)).numpy().astype(np.complex64),
        ["--key", "kspace"],
        "--dc corner",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case, tmp_path, context_priors):
    make, flags, words = BAD_ARRAYS[case]
    np.save(tmp_path / "scan.npy", make())
    done = demo("--data", "scan.npy", *flags, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["shape", "empty frame", "does not match"])
def test_bad_masks(case, tmp_path, context_priors):
    image = make_phantom(4, 64, 0)
    mask = make_mask("uniform", (4, 64, 64), 4, 8)
    np.save(tmp_path / "scan.npy", torch.where(mask, fft2c(image), 0).numpy())
    if case == "shape":
        flags = _mask_file(tmp_path, mask[:, :62])
    elif case == "empty frame":
        emptied = mask.clone()
        emptied[2] = False
        flags = _mask_file(tmp_path, emptied)
    else:
        flags = _mask_file(tmp_path, make_mask("uniform", (4, 64, 64), 4, 8, seed=1))
    data = ["--data", "scan.npy", "--key", "kspace", "--out", "out"]
    done = demo(*data, *flags, cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "mask.npy")
    assert not (tmp_path / "out").exists()


def _write_truncated(path):
    scipy.io.savemat(path, {"image": array()}, do_compression=True)
    path.write_bytes(path.read_bytes()[:3000])


def _write_h5_without_data(path):
    path.write_bytes(b"not an HDF5 file" * 100)


def _write_other_key(path):
    with h5py.File(path, "w") as file:
        file["picture"] = array()


BAD_FILES = {
    "mat without the key": ("scan.mat", lambda p: scipy.io.savemat(p, {"data": array()}), ["--key", "image"], "data"),
    "h5 without the key": ("scan.h5", _write_other_key, ["--key", "image"], "picture"),
    "not hdf5": ("scan.h5", _write_h5_without_data, [], "scan.h5"),
    "truncated": ("scan.mat", _write_truncated, [], "scan.mat"),
    "missing": ("scan.mat", lambda p: None, [], "scan.mat"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tmp_path, context_priors):
    name, write, flags, words = BAD_FILES[case]
    write(tmp_path / name)
    done = demo("--data", name, *flags, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, words)
    assert name in done.stderr and not (tmp_path / "out").exists()


def _four_channels(path, good):
    weight = KspaceWeight(1.0, 0.2, 0.5).to_dict()
    save_model(NCSNpp(image_size=64, num_channels=4, nf=8, ch_mult=(1, 2)), path, weight=weight)


def _other_weights(path, good):
    tensors = {"conv.weight": torch.zeros(3)}
    with safe_open(good, framework="pt") as file:
        save_file(tensors, path, metadata=file.metadata())


BAD_CHECKPOINTS = {
    "other channels": ("bad.safetensors", _four_channels),
    "other weights": ("bad.safetensors", _other_weights),
    "truncated": ("bad.safetensors", lambda path, good: path.write_bytes(good.read_bytes()[:2000])),
    "no weight": ("bad.safetensors", lambda path, good: save_model(NCSNpp(nf=8, ch_mult=(1, 2)), path)),
    "broken weight": ("bad.safetensors", lambda path, good: save_model(NCSNpp(nf=8, ch_mult=(1, 2)), path, weight={})),
    "not a checkpoint": ("bad.pth", lambda path, good: path.write_bytes(b"words")),
    "another suffix": ("bad.ckpt", lambda path, good: path.write_bytes(good.read_bytes())),
    "missing": ("bad.safetensors", lambda path, good: None),
}


@pytest.mark.parametrize(("form", "words"), [("cuda", "native or triton"), ("triton", "needs a GPU")])
def test_operations_that_cannot_run_are_refused_before_any_work(form, words, priors, monkeypatch):
    monkeypatch.setattr("op.dispatch._interpreted", False)
    with forced(form), pytest.raises(InputError, match=words):
        load_prior(priors[0])


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints(case, tmp_path, priors):
    name, write = BAD_CHECKPOINTS[case]
    write(tmp_path / name, priors[0])
    with pytest.raises(InputError, match=name):
        load_prior(tmp_path / name)


def test_checkpoint_of_another_architecture(tmp_path, context_priors, magnitude):
    _four_channels(tmp_path / "other.safetensors", context_priors[0])
    flags = ["--data", magnitude, "--out", "out", "--checkpoint_local", "other.safetensors"]
    done = demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "other.safetensors")
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten(tmp_path, context_priors, magnitude):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    flags = ["--data", magnitude, "--out", "out"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "--overwrite")
    assert names(tmp_path / "out") == {"mine.txt"}
    demo(*flags, "--overwrite", cwd=tmp_path, priors=context_priors)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("flag,value", [("--frames", 0), ("--size", -4), ("--seed", -1), ("--seed", 2**70)])
def test_numbers_out_of_range(flag, value, tmp_path, context_priors, magnitude):
    done = demo("--data", magnitude, flag, value, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr and flag.strip("-") in done.stderr
    assert not (tmp_path / "out").exists()


def test_reference_of_another_shape(tmp_path, context_priors, magnitude):
    np.save(tmp_path / "truth.npy", array()[:3])
    flags = ["--data", magnitude, "--frames", 4, "--reference", "truth.npy", "--out", "out"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "truth.npy")
    assert not (tmp_path / "out").exists()


def test_mask_flags_for_undersampled_kspace(tmp_path, context_priors):
    kspace = torch.where(make_mask("uniform", (4, 64, 64), 4, 8), fft2c(make_phantom(4, 64, 0)), 0)
    np.save(tmp_path / "scan.npy", kspace.numpy())
    flags = ["--data", "scan.npy", "--key", "kspace", "--acceleration", 8, "--out", "out"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "--acceleration")
    assert not (tmp_path / "out").exists()


def test_results_folder_that_is_a_file(tmp_path, context_priors, magnitude):
    (tmp_path / "out").write_text("words")
    flags = ["--data", magnitude, "--out", "out/here"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "is a file")


def test_removed_flags_and_renamed_fields(tmp_path, context_priors, magnitude):
    flags = ["--data", magnitude, "--out", "out"]
    done = demo(*flags, "--adapt", 5, cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "--adapt was removed: adapting the priors to one scan never improved")
    done = demo(*flags, "--config.ou.hard=True", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "config.ou.hard was removed")
    done = demo(*flags, "--config.data.scan_size=48", cwd=tmp_path, priors=context_priors)
    assert done.stderr.count("warning: --config.data.scan_size is now --config.data.size") == 1
    assert np.load(tmp_path / "out" / "reconstruction.npy").shape == (4, 48, 48)


def test_priors_of_the_other_kind_are_refused(tmp_path, priors, magnitude):
    done = demo("--data", magnitude, "--out", "no", cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "add --sampler published")
    demo("--data", magnitude, "--out", "yes", "--sampler", "published", cwd=tmp_path, priors=priors)


@pytest.mark.parametrize(
    "flags,words",
    [
        (["--mask", "mask.npy", "--acceleration", 8], "omit --acceleration"),
        (["--mask_key", "mask"], "without --mask"),
    ],
)
def test_flags_that_cannot_apply(flags, words, tmp_path, context_priors, magnitude):
    done = demo("--data", magnitude, *flags, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, words)


def test_global_and_local_model_are_not_exchanged(tmp_path, magnitude):
    exchanged = [shipped(name, "cascade") for name in reversed(MODELS)]
    flags = ["--data", magnitude, "--sampler", "cascade", "--out", "out"]
    done = demo(*flags, cwd=tmp_path, priors=exchanged, succeeds=False)
    assert_one_sentence(done, "is the local model but was given as the global one")
    assert not (tmp_path / "out").exists()
