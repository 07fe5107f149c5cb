"""A thread beside the service's loop, for one piece of work on cases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_a_thread(act: Callable[[], Result]) -> Future[Result]:
    """Do `act` in a thread of its own, for which the end of the process doesn't wait."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="datasites-cases", daemon=True).start()
    return future
