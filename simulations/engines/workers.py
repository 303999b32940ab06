"""Processes that answer the messages of many sites, each taking the next one when it is free."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from simulations.engines.calls import (
    APP_CRASHED,
    SiteAnswer,
    SiteCall,
    answer_by_reference,
    load_client_app,
)


class Worker:
    """One spawned process with the ClientApp imported.

    A pool of its own for each process tells exactly which message a dying process was working on;
    a shared pool would fail all the others with it.
    """

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._start()

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
        self._ready = self._pool.submit(_import_app, self._reference)

    def submit(self, call: SiteCall) -> Future[SiteAnswer]:
        """Begin to answer ``call``. Raises what the import of the ClientApp raised in the process."""
        self._ready.result()
        try:
            return self._pool.submit(answer_by_reference, self._reference, call)
        except BrokenProcessPool:  # it died while idle: no message was lost
            self.restart()
            self._ready.result()
            return self._pool.submit(answer_by_reference, self._reference, call)

    def restart(self) -> None:
        """Replace a process that died."""
        self.close()
        self._start()

    def close(self) -> None:
        """End the process once its present message is answered."""
        self._pool.shutdown(cancel_futures=True)


class Workers:
    """A fixed number of processes. The answers are those of one process, in the order of the calls."""

    def __init__(self, reference: str, processes: int) -> None:
        load_client_app(reference)  # a wrong name fails here, not in every process
        self._workers = tuple(Worker(reference) for _ in range(processes))

    def answer_all(self, calls: Iterable[SiteCall]) -> list[SiteAnswer]:
        """Answer calls to different sites; where a process dies, its site answers with Flower's code 8."""
        answers: dict[int, SiteAnswer] = {}
        waiting = enumerate(calls)
        idle = list(self._workers)
        running: dict[Future[SiteAnswer], tuple[Worker, int, SiteCall]] = {}
        while True:
            # zip asks for the worker first: no call is made before somebody is free to take it
            for worker, (position, call) in zip(tuple(idle), waiting, strict=False):
                idle.remove(worker)
                running[worker.submit(call)] = worker, position, call
            if not running:
                return [answers[position] for position in sorted(answers)]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, position, call = running.pop(future)
                try:
                    answers[position] = future.result()
                except BrokenProcessPool:
                    reply = call.error_reply(APP_CRASHED, "ClientApp stopped responding.")
                    answers[position] = SiteAnswer(reply, call.state)
                    worker.restart()
                idle.append(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()


def _import_app(reference: str) -> None:
    load_client_app(reference)
