"""Many scans by many processes: each takes the next scan that nobody works on, and a run goes on where it stopped.

The processes (of `torchrun`, or started by hand on any machine that sees the folders) share nothing but locks on
files: the operating system frees them when a process ends, however it ends, so a killed run leaves no claim behind.
"""

import csv
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_collections

from datasets import Acquisition, acquisition_from_file
from mri.io import sha256
from priors import Prior
from run_lib import MANY, reconstruct_scan, request
from utils.errors import InputError
from utils.files import UNFINISHED
from utils.processes import flat, meet
from utils.tables import markdown, write_csv, write_markdown

Check = Callable[[Acquisition], None]


def reconstruct_many(
    sources: list[Path],
    config: ml_collections.ConfigDict,
    priors: tuple[Prior, Prior],
    out: Path,
    seed: int,
    *,
    overwrite: bool = False,
    score: bool = True,
    check: Check = lambda scan: None,
) -> None:
    """Reconstruct scans into `out/<scan>/`, and score those that have a reference in `out/metrics.csv` and `.md`.

    A scan whose folder tells of the same file, mask, checkpoints, settings and seed is done. A scan that cannot be
    used is left out, the others go on.

    Parameters
    ----------
    overwrite
        reconstruct what is done, too.
    score
        against the fully sampled data, where a file holds them.
    check
        raises `InputError` for a scan that does not fit the command.

    Raises
    ------
    InputError
        at the end, for the scans that were left out.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out.mkdir(parents=True, exist_ok=True)
    # what is done does not show when all is done again: then the scans are dealt
    own = sources[rank::count] if overwrite else sources
    failures = []
    for source in own:
        with _claim(out, source.stem, wait=overwrite) as mine:
            if not mine:
                continue
            _remove_unfinished(out, source.stem)
            try:
                if not overwrite and is_done(out / source.stem, source, config, priors, seed):
                    print(f"{source.stem}: done before")
                    continue
                scan = acquisition_from_file(config, source)
                check(scan)
                print(f"{scan.name}: {scan}")
                reference = scan.reference if score else None
                reconstruct_scan(scan, config, priors, out / scan.name, seed, reference)
            except InputError as error:
                failures.append(str(error))
                print(f"left out: {error}", file=sys.stderr)
    meet()  # a process that fails ends the others of its torchrun
    for source in sources:  # and those that were started by hand
        with _claim(out, source.stem, wait=True):
            pass
    if rank == 0:
        try:
            done = [source for source in sources if is_done(out / source.stem, source, config, priors, seed)]
        except InputError:  # told above; scores of two requests belong in no one table
            print(f"a table in {out} stays as it is: not all scans there were reconstructed so")
        else:
            _write_table(out, done)
    if failures:
        raise InputError(f"{len(failures)} of {len(sources)} scans left out: " + " | ".join(failures))


def is_done(
    folder: Path, source: Path, config: ml_collections.ConfigDict, priors: tuple[Prior, Prior], seed: int
) -> bool:
    """Whether `folder` holds the reconstruction of just this.

    Raises
    ------
    InputError
        when it holds another one, naming the difference.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / "config.json").read_text())["request"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} holds no reconstruction of this version; give another --out, or --overwrite to replace it."
        ) from None
    found, wanted = flat(found), flat(request(sha256(source), config, priors, seed))
    differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if differing:
        raise InputError(
            f"{folder} holds a reconstruction of {source.name} with another {', '.join(differing)}; give another "
            "--out, or --overwrite to replace it."
        )
    return True


@contextmanager
def _claim(out: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """Whether this process may work on a scan: while it does, no other may. `wait` until nobody does."""
    path = out / f".{name}.lock"
    while True:
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            # who had it removed it: a lock on a file that is gone keeps nobody out
            if not (path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _remove_unfinished(out: Path, name: str) -> None:
    """Remove what a killed process left of a scan, which is claimed, so that nobody else is writing it."""
    left = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}{re.escape(UNFINISHED)}")
    for folder in out.glob(f".*{UNFINISHED}"):
        if left.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _write_table(out: Path, sources: list[Path]) -> None:
    """One table of the tables of all `sources` that have one."""
    rows = []
    for source in sources:
        tables = [out / source.stem / name for name in ("metrics.csv", "metrics_common_scale.csv")]
        if all(table.is_file() for table in tables):
            paper, common = (list(csv.DictReader(table.read_text().splitlines())) for table in tables)
            for row, more in zip(paper, common, strict=True):
                together = {"scan": source.stem, **row, **more}
                rows.append({name: together[name] for name in MANY})
    for name in ("metrics.csv", "metrics.md") if not rows else ():
        (out / name).unlink(missing_ok=True)
    if not rows:
        print(f"no scan has a reference, so nothing is scored; reconstructions are in {out}")
        return
    write_csv(out / "metrics.csv", rows, MANY)
    for row in rows:
        row.update({name: float(row[name]) for name in MANY if name not in ("scan", "method")})
    write_markdown(out / "metrics.md", rows, MANY)
    print(markdown(rows, MANY) + f"\n\n{out / 'metrics.csv'}\n{out / 'metrics.md'}")
