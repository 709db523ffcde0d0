"""Together: calls in processes of their own, several at once as torchrun starts them, or one that can be killed."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

_PRELOADED = [
    "headctssl.evaluation.evaluate",
    "headctssl.finetuning.finetune",
    "headctssl.reporting.report",
    "headctssl.training.pretrain",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
]
_SECONDS = 240


def together(function: Callable[..., Any], *arguments: Any, number: int = 2) -> list[Any]:
    """Call a function in several processes that know of each other as torchrun's do.

    Args:
        function: of a module, so that it can be pickled; it may join the others by `processes`.
        arguments: the same for all.
        number: processes.

    Returns:
        What each returned, in the order of the ranks.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started: list[ForkServerProcess] = []
    results: dict[int, Any] = {}
    listening: dict[Any, int] = {}
    try:
        for rank in range(number):
            receiver, sender = multiprocessing.Pipe(duplex=False)
            environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(_start(_answer, sender, environment, function, arguments))
            sender.close()
            listening[receiver] = rank
        while listening:
            ready = wait(list(listening), timeout=_SECONDS)
            assert ready, f"no answer of ranks {sorted(listening.values())}"
            for receiver in ready:
                rank = listening.pop(receiver)
                worked, results[rank] = receiver.recv()  # type: ignore[union-attr]  # a Connection
                assert worked, f"rank {rank}:\n{results[rank]}"
        for process in started:
            process.join(_SECONDS)
    finally:
        for process in started:
            process.kill()
    return [results[rank] for rank in range(number)]


def command(name: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Run a subcommand in this process; its exit code and what it wrote to stderr. For `together`."""
    from headctssl.cli.main import run_command

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = run_command(name, arguments)
    return code, errors.getvalue()


def start_command(name: str, arguments: Sequence[str], log: Path) -> ForkServerProcess:
    """Start a subcommand in a process of its own, which can be killed; what it prints is added to `log`."""
    return _start(_run_to_the_end, dict(os.environ), name, list(arguments), log)


def _start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process split off from one that has the heavy imports already and no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _enter(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)


def _answer(
    sender: Connection, environment: Mapping[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    _enter(environment)
    try:
        sender.send((True, function(*arguments)))
    except BaseException:
        sender.send((False, traceback.format_exc()))


def _run_to_the_end(environment: Mapping[str, str], name: str, arguments: Sequence[str], log: Path) -> None:
    _enter(environment)
    with open(log, "a", encoding="utf-8") as handle:
        for stream in (1, 2):
            os.dup2(handle.fileno(), stream)
    from headctssl.cli.main import run_command

    code = run_command(name, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
