"""Starting a study's processes: torchrun on this machine, or tasks of a Ray cluster."""

import collections
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fvae.errors import UserError
from fvae.study.work import Asked, OnEvent, Stop, failure, work


def torchrun(
    job: dict, processes: int, log: Path, on_event: Callable[[dict], None], stop: Stop
) -> tuple[bool, list[str]]:
    """Run workers of :mod:`fvae.study.work` until they end; ``stop`` ends them early.

    Workers inherit their standard input from here and stop, with checkpoints, when it is closed:
    by a stop, or by the death of this process, however it comes.

    Args:
        job: what each worker does.
        processes: how many workers.
        log: file to which what they say on stderr is added.
        on_event: called with each line they print, from another thread.
        stop: the request to end.

    Returns:
        whether all workers came to their end, and the names of the runs whose worker died, for
        instance because memory ran out. When one dies, torchrun stops the others.

    Raises:
        UserError: a worker could not go on, for instance because the disk is full.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "fvae.study.work", json.dumps(job)]
    # Two processes of two threads on two cores slow each other tenfold: set before torch starts.
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
    errors: list[str] = []
    at_work: dict[int, str] = {}
    ended: set[int] = set()

    def listen(lines: IO[bytes]) -> None:
        for line in lines:
            try:
                event = json.loads(line)
                rank = event["rank"]
            except (ValueError, TypeError, KeyError):
                continue  # somebody else's print
            if event.get("phase") in ("done", "failed"):
                at_work.pop(rank, None)
            elif "run" in event:
                at_work[rank] = event["run"]
            if "error" in event:
                errors.append(event["error"])
            if "ended" in event or "stopping" in event:
                ended.add(rank)
            on_event(event)

    with log.open("ab") as log_file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log_file,
            env=environment, start_new_session=True,
        )  # fmt: skip
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None  # pipes, as asked for above
    listener = threading.Thread(target=listen, args=(stdout,))
    listener.start()
    try:
        while listener.is_alive():
            listener.join(0.1)
            if stop.number and not stdin.closed:
                stdin.close()
    finally:
        stdin.close()
        listener.join()
        status = process.wait()
        stdout.close()
    if errors:
        raise UserError(errors[0])
    if status == 0 or stop.number:
        return True, []
    return False, [run for rank, run in at_work.items() if rank not in ended]


def import_ray() -> Any:
    """Return the module ``ray``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--launcher ray: Ray is not installed; pip install 'fvae[ray]'") from None
    return ray


def ray_tasks(job: dict, devices: int, cuda: bool, on_event: OnEvent, stop: Stop) -> list[str]:
    """Run each group as a task of the Ray cluster (``RAY_ADDRESS``, or one started here).

    Args:
        job: runs, groups, asked, data, device, threads, as for torchrun's workers.
        devices: tasks at a time.
        cuda: whether each needs a GPU.
        on_event: called as runs begin and end.
        stop: the request to end.

    Returns:
        names of the runs whose task died.

    Raises:
        UserError: Ray is not installed, or a task could not go on.
    """
    ray = import_ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="warning", include_dashboard=False)
    try:
        _check_cluster(ray, {"CPU": job["threads"], "GPU": int(cuda)})
        task = ray.remote(num_cpus=job["threads"], num_gpus=int(cuda), max_retries=0)(_ray_task)
        groups = collections.deque(job["groups"])
        pending: dict = {}
        dead: list[str] = []
        cancelled = False
        while pending or (groups and not stop.number):
            while groups and len(pending) < devices and not stop.number:
                group = groups.popleft()
                pending[task.remote(job | {"groups": [group]})] = group
                for name in group:
                    on_event(name, "train", 0)
            if stop.number and not cancelled:
                cancelled = True
                for reference in pending:
                    ray.cancel(reference)
            for reference in ray.wait(list(pending), timeout=0.5)[0]:
                group = pending.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    if isinstance(error, ray.exceptions.RayTaskError) and not stop.number:
                        raise UserError(f"{group[0]}: {error.cause}") from error
                    dead += [] if stop.number else group
                    continue
                for name in group:
                    failed = failure(Path(job["runs"]) / name) is not None
                    on_event(name, "failed" if failed else "done", 0)
        return dead
    finally:
        if ours:
            ray.shutdown()


def _check_cluster(ray: Any, needed: dict[str, int]) -> None:
    """Refuse what no machine of the cluster can ever run; Ray would wait for one."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(m.get(name, 0) >= n for name, n in needed.items()) for m in machines):
        wanted = " and ".join(f"{n} {name}" for name, n in needed.items() if n)
        raise UserError(
            f"--launcher ray: no machine of the cluster has {wanted}; a larger --devices asks for"
            " fewer cores each"
        )


def _ray_task(job: dict) -> None:
    import torch

    from fvae import data
    from fvae.device import keep_freed_memory

    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    with Stop(forgiving=True) as stop:
        asked = Asked(*job["asked"]) if job["asked"] else None
    work(Path(job["runs"]), job["groups"], asked, data.load(**job["data"]), stop)
