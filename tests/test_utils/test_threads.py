"""Two jobs at once: results, errors, threads, and jobs that nobody waits for."""

import threading
import time

import pytest
import torch

from utils.threads import beside, leave_if_stopped

CPU = torch.device("cpu")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 4, "the threads were not given back"


def test_both_run_at_once_on_half_of_the_threads(four_threads):
    meeting = threading.Barrier(2, timeout=60)  # broken if one waits for the other to end

    def job():
        meeting.wait()
        return torch.get_num_threads(), threading.get_ident()

    with beside(job, CPU) as result:
        meeting.wait()
        assert torch.get_num_threads() == 2
        threads, thread = result()
    assert threads == 2
    assert thread != threading.get_ident()


@pytest.mark.parametrize(("threads", "device"), [(1, "cpu"), (4, "cuda")])
def test_nothing_to_share(request, threads, device):
    """The job runs when it is asked for, in the same thread, and not otherwise."""
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    torch.set_num_threads(threads)
    ran = []
    with beside(lambda: ran.append(threading.get_ident()), torch.device(device)) as result:
        assert not ran
        assert torch.get_num_threads() == threads
    assert not ran
    result()
    assert ran == [threading.get_ident()]


def test_error_of_the_job(four_threads):
    def job():
        raise ValueError("of the job")

    with pytest.raises(ValueError, match="of the job"), beside(job, CPU) as result:
        result()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_job_that_nobody_waits_for_is_stopped(four_threads, error):
    begun, ends = threading.Event(), []

    def job():
        begun.set()
        for _ in range(60_000):
            leave_if_stopped()
            time.sleep(0.001)
        ends.append("not stopped")

    def body():
        with beside(job, CPU):
            assert begun.wait(60)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            body()
    else:
        body()
    assert not ends
    leave_if_stopped()  # is for the threads of such jobs alone
