"""Siemens raw data: what twixtools gives, stood in for; no file of a scanner is here."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mri.formats import load_scan
from mri.formats.stored import ReadOptions
from mri.formats.twix import from_blocks, recognises
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from utils.errors import InputError


class Block:
    """A readout as twixtools has it."""

    def __init__(self, data, flag=None, **counters):
        self.data, self.flag = data, flag
        self.cPhs = self.cRep = self.cEco = self.cSet = self.cSlc = self.cPar = self.cLin = 0
        vars(self).update(counters)
        self.mdh = SimpleNamespace(CenterCol=64, CenterLin=32)

    def is_flag_set(self, flag):
        return flag == self.flag

    def is_image_scan(self):
        return self.flag is None


@pytest.fixture(scope="module")
def kspace():
    """(frames, coils, 64, 128)"""
    images = make_phantom(4, 64, 3)[:, None] * make_coil_maps(3, 64, 64)
    return fft2c(torch.nn.functional.pad(images, (32, 32)))


def test_readouts_become_kspace(tmp_path, kspace):
    path = tmp_path / "meas.dat"
    path.write_bytes(b"stands in")
    mask = make_mask("uniform", (4, 64, 64), 3, 8)[:, :, 0]
    noise = np.ones((3, 200), np.complex64)
    blocks = [Block(noise, "NOISEADJSCAN"), Block(noise, "RTFEEDBACK")]
    blocks += [Block(kspace[t, :, line].numpy(), cPhs=t, cLin=line) for t, line in mask.nonzero().tolist()]
    stored = from_blocks(path, blocks, ReadOptions())
    assert torch.equal(stored.data, torch.where(mask[:, None, :, None], kspace, 0)) and stored.oversampling == 2
    assert stored.noise is None and "not been tested on files from a scanner" in str(stored)
    assert "2 non-imaging readouts are left out" in str(stored)
    with pytest.raises(InputError, match="EPI"):
        reflected = Block(noise)
        reflected.is_flag_set = lambda flag: flag == "REFLECT"
        from_blocks(path, [*blocks, reflected], ReadOptions())
    with pytest.raises(InputError, match="no imaging readouts"):
        from_blocks(path, blocks[:2], ReadOptions())


def test_a_file_written_by_twixtools(tmp_path, kspace):
    twixtools = pytest.importorskip("twixtools")
    from twixtools.mdb import Mdb_local

    blocks = []
    for t, line in np.ndindex(4, 64):
        block = Mdb_local(kspace[t, :, line].numpy())
        block.mdh.CenterCol, block.mdh.CenterLin = 64, 32
        block.mdh.Counter.Phs, block.mdh.Counter.Lin = t, line
        blocks.append(block)
    blocks.append(Mdb_local())
    blocks[-1].add_flag("ACQEND")
    header = np.frombuffer(struct.pack("<II", 192, 0) + bytes(184), "S1")
    path = tmp_path / "meas.dat"
    twixtools.write_twix({"hdr_str": header, "mdb": blocks, "raidfile_hdr": _entry()}, str(path))
    assert recognises(path)
    stored = load_scan(path)
    assert torch.equal(stored.data, kspace) and "Siemens raw data" in str(stored)


def _entry():
    from twixtools.hdr_def import MultiRaidFileHeader

    return np.zeros(1, MultiRaidFileHeader)[0]["entry"][0]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_its_header_is_known(tmp_path):
    """Where twixtools fails it leaves the file open, which is what is not warned of here."""
    path = tmp_path / "meas.bin"
    path.write_bytes(struct.pack("<IIIIQQ", 0, 1, 12, 34, 10240, 1000) + bytes(11240))
    assert recognises(path)
    with pytest.raises(InputError, match="meas.bin"):
        load_scan(path)
    path.write_bytes(struct.pack("<II", 12000, 3) + b"Config" + bytes(20000))
    assert recognises(path)
    path.write_bytes(bytes(11240))
    assert not recognises(path)
