"""The process group of a training: the processes of `torchrun`, or one."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from utils.errors import InputError
from utils.processes import process_group
from utils.settings import flat

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that shows progress and writes files."""
        return self.rank == 0

    def total(self, *numbers: float | torch.Tensor) -> list[float]:
        """Sums over all processes, in double precision."""
        sums = torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=self.device)
        if self.count > 1:
            dist.all_reduce(sums)
        return sums.tolist()

    def wait(self) -> None:
        """Until all are here."""
        self.total(0.0)

    def first_before_others(self, job: Callable[[], Result]) -> Result:
        """`job()` in the first process, then in the others, which find the files that the first one made."""
        if not self.first:
            self.wait()
        result = job()
        if self.first:
            self.wait()
        return result

    def refuse_differences(self, record: dict) -> None:
        """Raise `InputError` in every process when their settings differ, naming the fields."""
        if self.count == 1:
            return
        texts: list[str] = [""] * self.count
        dist.all_gather_object(texts, json.dumps(record))
        fields = [flat(json.loads(text)) for text in texts]
        names = sorted(set().union(*fields))
        differing = [name for name in names if any(other.get(name) != fields[0].get(name) for other in fields)]
        if differing:
            told = "; ".join(f"{name}: {', '.join(str(other.get(name)) for other in fields)}" for name in differing)
            raise InputError(f"the processes have different configurations ({told}); start them with the same command.")


ALONE = Processes(0, 1, torch.device("cpu"))


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes of `torchrun` (nccl with one GPU each, else gloo), or be the only one.

    Raises
    ------
    InputError
        when there are more processes on this machine than GPUs.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise InputError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', count)} processes, but {torch.cuda.device_count()} GPUs on this "
                f"machine; start torchrun with --nproc_per_node={torch.cuda.device_count()}."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if count == 1:
        yield Processes(0, 1, device)
        return
    with process_group("nccl" if device.type == "cuda" else "gloo"):
        yield Processes(rank, count, device)
