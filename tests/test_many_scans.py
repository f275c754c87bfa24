"""A folder of scans: shared by processes, gone on with, bad scans skipped."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import run_lib
from configs.ve import cpu_demo
from mri.fourier import fft2c
from mri.intake import scan_files
from mri.masks import make_mask
from mri.phantom import make_phantom
from report.results import METRICS
from tests.commands import ROOT, TINY, assert_one_sentence, begun, command, names
from utils.claims import claim
from utils.errors import InputError
from utils.files import atomic_folder

SAMPLER = ["--sampler", "published"]


def demo(*arguments, cwd, priors, succeeds=True, **environment):
    checkpoints = ["--checkpoint_global", priors[0], "--checkpoint_local", priors[1]]
    flags = [*TINY, *checkpoints, *arguments]
    return command("PCsampling_demo_svd.py", *flags, cwd=cwd, succeeds=succeeds, **environment)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def scans(tmp_path):
    """Three scans of images, and one of under-sampled k-space."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(3):
        np.save(folder / f"heart{seed}.npy", make_phantom(4, 64, seed).numpy())
    image = make_phantom(4, 64, 7)
    kspace = torch.where(make_mask("uniform", (4, 64, 64), 3, 8), fft2c(image), 0)
    np.savez(folder / "measured.npz", kspace=kspace.numpy())
    return folder


def times(out):
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/reconstruction.npy")}


def rows(out):
    return list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))


def test_a_folder_is_reconstructed_once_and_gone_on_with(scans, tmp_path, priors):
    run = ["--data", "scans", "--out", "out", *SAMPLER]
    demo(*run, cwd=tmp_path, priors=priors)
    out = tmp_path / "out"
    assert names(out) == {"heart0", "heart1", "heart2", "measured", "index.html", "metrics.csv", "metrics.md"}
    assert {row["scan"] for row in rows(out)} == {"heart0", "heart1", "heart2"}  # measured has no reference
    common = csv.DictReader((out / "heart1" / "metrics_common_scale.csv").read_text().splitlines())
    expected = [row["psnr_common"] for row in common]
    assert [row["psnr_common"] for row in rows(out) if row["scan"] == "heart1"] == expected
    alone = ["--data", "scans/heart1.npy", "--out", "alone", *SAMPLER]
    demo(*alone, cwd=tmp_path, priors=priors)
    one, other = (np.load(tmp_path / folder / "reconstruction.npy") for folder in ("alone", "out/heart1"))
    assert np.array_equal(one, other)

    before, table = times(out), (out / "metrics.csv").read_text()
    shutil.rmtree(out / "heart1")
    (out / "metrics.csv").unlink()
    done = demo(*run, cwd=tmp_path, priors=priors)
    assert done.stdout.count("already done") == 3
    after = times(out)
    later = demo(*run, "--write", "nifti", cwd=tmp_path, priors=priors)
    assert later.stdout.count("already done, nifti added") == 4 and times(out) == after
    for scan in ("heart0", "measured"):
        image = np.load(out / scan / "reconstruction.npy")
        written = nibabel.load(out / scan / "reconstruction.nii.gz").get_fdata()[:, :, 0]
        assert np.allclose(written.transpose(2, 1, 0), np.abs(image), atol=1e-4 * np.abs(image).max())
    assert {name for name in before if before[name] != after[name]} == {"heart1"}
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(text.splitlines())]
             for text in (table, (out / "metrics.csv").read_text())]  # fmt: skip
    assert strip[0] == strip[1]

    # another setting, another scan
    whole = (out / "metrics.csv").read_text()
    np.save(scans / "heart2.npy", make_phantom(4, 64, 9).numpy())
    done = demo(*run, "--config.sampling.num_scales=9", cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "4 of 4 scans skipped")
    assert "differs in sampling.num_scales;" in done.stderr
    assert "differs in sampling.num_scales, scan_sha256;" in done.stderr
    done = demo(*run, cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "1 of 4 scans skipped")
    assert times(out) == after
    assert (out / "metrics.csv").read_text() == whole  # no table of two requests
    assert "not updated: the table and index" in done.stdout
    demo(*run, "--overwrite", cwd=tmp_path, priors=priors)
    assert all(times(out)[name] > after[name] for name in after)


def test_bad_scans_are_left_out_and_told(scans, tmp_path, priors):
    (scans / "broken.mat").write_bytes(b"no scan")
    nan = make_phantom(4, 64, 1).numpy()
    nan[0, 0, 0] = np.nan
    np.save(scans / "heart0.npy", nan)
    run = ["--data", "scans/[bh]*", "--out", "out", *SAMPLER]
    done = demo(*run, cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "2 of 4 scans skipped")
    assert names(tmp_path / "out") == {"heart1", "heart2", "index.html", "metrics.csv", "metrics.md"}
    shutil.rmtree(tmp_path / "out" / "heart1")
    (tmp_path / "out" / "heart1").mkdir()
    (tmp_path / "out" / "heart1" / "notes.txt").write_text("mine")
    done = demo(*run, cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "heart1 holds no reconstruction")
    assert names(tmp_path / "out" / "heart1") == {"notes.txt"}


def test_a_fault_of_the_program_costs_one_scan_alone(tmp_path, monkeypatch, capsys):
    def broken(intake, source):
        raise RuntimeError("arange: bound")

    monkeypatch.setattr(run_lib, "acquire", broken)
    job = run_lib.Job.from_config(cpu_demo.get_config())
    with pytest.raises(InputError, match="2 of 2 scans skipped"):
        run_lib.reconstruct_folder([Path("a.npy"), Path("b.npy")], job, (None, None), tmp_path / "out")
    assert "unexpected RuntimeError: arange: bound; please report" in (tmp_path / "out" / "index.html").read_text()
    assert capsys.readouterr().err.count("Traceback") == 2


def test_slices_are_scans_of_their_own(tmp_path, monkeypatch, capsys):
    """Each with a row and a folder as of the file alone; the index does not lose them to a run with another seed."""
    (tmp_path / "scans").mkdir()
    image = make_phantom(4, 64, 0).abs()
    slices = torch.stack([image, 2 * image, 0 * image], 1).numpy().transpose(3, 2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(slices, np.eye(4)), tmp_path / "scans" / "two.nii.gz")
    np.save(tmp_path / "scans" / "one.npy", make_phantom(4, 64, 1).numpy())
    made = []

    def reconstruct_scan(scan, job, priors, out, reference):
        made.append(out.relative_to(tmp_path / "out").as_posix())
        with atomic_folder(out) as folder:
            np.save(folder / "reconstruction.npy", reference.image.numpy())
            record = {"request": job.request(scan.source.sha256, priors), "scan": "", "notes": [], "chi": 1, "snr": 9}
            (folder / "config.json").write_text(json.dumps(record))
            (folder / "report.html").write_text("")
            (folder / "metrics.csv").write_text(",".join(METRICS) + "\ngldm" + ",1" * (len(METRICS) - 1) + "\n")

    monkeypatch.setattr(run_lib, "reconstruct_scan", reconstruct_scan)
    job, out = run_lib.Job.from_config(cpu_demo.get_config()), tmp_path / "out"
    killed = out / "two" / ".slice_00-abcdefgh.unfinished"  # as a process that is killed leaves
    killed.mkdir(parents=True)

    def run(job):
        with pytest.raises(InputError) as caught:
            run_lib.reconstruct_folder(scan_files(tmp_path / "scans"), job, (), out)
        return str(caught.value)

    assert run(job).startswith("1 of 4 scans skipped") and not killed.exists()
    assert made == ["one", "two/slice_00", "two/slice_01"] and names(out / "two") == {"slice_00", "slice_01"}
    assert [row["scan"] for row in rows(out)] == made
    index = (out / "index.html").read_text()
    assert 'href="two/slice_01/report.html"' in index and "two/slice_02" in index.split("Skipped")[1]
    capsys.readouterr()
    assert run(job).startswith("1 of 4 scans skipped") and len(made) == 3
    assert "two/slice_01: already done" in capsys.readouterr().out
    assert run(replace(job, seed=3)).startswith("4 of 4 scans skipped") and len(made) == 3
    assert (out / "index.html").read_text() == index and "the table and index" in capsys.readouterr().out


def test_scans_of_one_name_get_folders_with_their_suffix(tmp_path, priors):
    (tmp_path / "scans").mkdir()
    np.save(tmp_path / "scans/a.npy", make_phantom(4, 64, 0).numpy())
    np.savez(tmp_path / "scans/a.npz", image=make_phantom(4, 64, 1).numpy())
    run = ["--data", "scans", "--out", "out", *SAMPLER]
    demo(*run, cwd=tmp_path, priors=priors)
    assert names(tmp_path / "out") == {"a_npy", "a_npz", "index.html", "metrics.csv", "metrics.md"}
    assert {row["scan"] for row in rows(tmp_path / "out")} == {"a_npy", "a_npz"}
    assert demo(*run, cwd=tmp_path, priors=priors).stdout.count("already done") == 2


def test_processes_of_torchrun_share_the_scans(scans, tmp_path, priors):
    (scans / "broken.mat").write_bytes(b"no scan")  # the process that meets it waits for the other
    checkpoints = ["--checkpoint_global", str(priors[0]), "--checkpoint_local", str(priors[1])]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}",
               str(ROOT / "PCsampling_demo_svd.py"), *TINY, *checkpoints, *SAMPLER]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def torchrun(*arguments):
        return subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = torchrun("--data", "scans", "--out", "out")
    assert done.returncode != 0 and "1 of 5 scans skipped" in done.stderr
    out = tmp_path / "out"
    assert names(out) == {"heart0", "heart1", "heart2", "measured", "index.html", "metrics.csv", "metrics.md"}
    assert {row["scan"] for row in rows(out)} == {"heart0", "heart1", "heart2"}
    index = (out / "index.html").read_text()
    for scan in ("heart0", "heart1", "heart2", "measured"):
        assert f'href="{scan}/report.html"' in index
        assert done.stdout.count(f"{scan}: ") - done.stdout.count(f"{scan}: already done") == 1
    assert "broken.mat" in index.split("Skipped")[1].split("</section>")[0]  # whichever process met it
    (scans / "broken.mat").unlink()
    assert torchrun("--data", "scans", "--out", "out").returncode == 0


@pytest.mark.parametrize("flags", [["--data", "scans"], ["--data", "scans/heart0.npy", "--out", "one"]])
def test_processes_of_torchrun_need_scans_to_share(flags, scans, tmp_path, priors):
    done = demo(*flags, cwd=tmp_path, priors=priors, succeeds=False, WORLD_SIZE="2")
    assert_one_sentence(done, "need --data with a folder")


def test_a_killed_process_leaves_no_claim_and_no_half_folder(scans, tmp_path, priors):
    checkpoints = ["--checkpoint_global", priors[0], "--checkpoint_local", priors[1]]
    arguments = [*TINY, *checkpoints, *SAMPLER, "--data", "scans", "--out", "out"]
    process = begun("PCsampling_demo_svd.py", *arguments, cwd=tmp_path, told=tmp_path)
    while not list((tmp_path / "out").glob("heart0")):
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    finished = times(tmp_path / "out")
    assert "heart0" in finished and len(finished) < 4
    (tmp_path / "out" / ".heart1-abcdefgh.unfinished").mkdir()  # as one that is killed while it writes leaves
    (tmp_path / "out" / ".heart1-of-another").mkdir()
    demo("--data", "scans", "--out", "out", *SAMPLER, cwd=tmp_path, priors=priors)
    after = times(tmp_path / "out")
    assert len(after) == 4 and all(after[name] == finished[name] for name in finished)
    assert [name for name in names(tmp_path / "out") if name.startswith(".")] == [".heart1-of-another"]
    record = json.loads((tmp_path / "out" / "measured" / "config.json").read_text())
    assert len(record["request"]["checkpoints_sha256"]) == 2


def test_a_claim_keeps_everybody_else_out(tmp_path):
    """Also who waited for a claim that was given back, whose file is another one since."""
    with claim(tmp_path, "heart") as first:
        waiting = threading.Thread(target=hold, args=(tmp_path, seen := [], release := threading.Event()))
        waiting.start()
        time.sleep(0.2)
        assert first and not seen
    while not seen:
        time.sleep(0.01)
    with claim(tmp_path, "heart") as other:
        assert not other
    release.set()
    waiting.join()
    with claim(tmp_path, "heart") as last:
        assert last
    assert not names(tmp_path)


def hold(folder, seen, release):
    with claim(folder, "heart", wait=True) as mine:
        seen.append(mine)
        release.wait(10)


def test_flags_for_one_scan(scans, tmp_path, priors):
    done = demo("--data", "scans", "--reference", "scans/heart0.npy", cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "needs a single scan")
    done = demo("--data", "none/*.mat", cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "none/*.mat holds no scan")


def test_patterns_of_scans(scans, tmp_path):
    assert [path.name for path in scan_files(scans / "heart[01]*")] == ["heart0.npy", "heart1.npy"]
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        shutil.copy(scans / "heart0.npy", tmp_path / place / "heart0.npy")
    with pytest.raises(InputError, match=r"share one folder of results"):
        scan_files(tmp_path / "*" / "heart0.npy")


def test_a_new_folder_appears_with_all_its_files(tmp_path):
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "new").exists()
    assert names(tmp_path / "new") == {"a"} and (tmp_path / "new").stat().st_mode & 0o500 == 0o500
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "other") as folder:
        raise RuntimeError
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "b").write_text("b")
    assert names(tmp_path / "new") == {"a", "b"} and names(tmp_path) == {"new"}
