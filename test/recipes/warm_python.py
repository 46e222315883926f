"""A `python3` that starts at once: it forks off a process that has imported torch and ESPnet.

Recipes start a dozen interpreters, and each spends its first ten seconds on imports. Commands of
the form ``python3 -m espnet2...`` run in a fork of a warm server, with their own arguments,
environment, folder and standard streams; all others in the real interpreter.

    python warm_python.py SOCKET            the server; says "ready" when it is
    python warm_python.py SOCKET -m MODULE  run a module there, end with its status
"""

from __future__ import annotations

import array
import json
import os
import runpy
import signal
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

PRELOAD = (
    "torch",
    "scipy.signal",
    "soundfile",
    "espnet2.tasks.enh",
    "espnet2.bin.enh_inference",
    "espnet2_sepx.trainer",
    "espnet2_sepx.report.build",
    "espnet2_sepx.profiling.worker",
)
SHIM = """#!/bin/bash
if [ "$1" = -m ] && [[ "$2" == espnet2* ]]; then
    exec {python} -I -S {client} {socket} "$@"
fi
exec {python} "$@"
"""


def install(folder: Path) -> tuple[subprocess.Popen, Path]:
    """Start the server and put the interpreter into ``folder``, to be first on PATH."""
    path = folder / "socket"
    server = subprocess.Popen(
        [sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert "ready\n" in server.stdout, "the warm interpreter did not start"
    shim = folder / "bin" / "python3"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable, client=__file__, socket=path))
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    return server, shim.parent


def serve(path: str) -> None:
    import importlib

    for name in PRELOAD:
        importlib.import_module(name)
    sys.executable = str(Path(path).parent / "bin" / "python3")  # commands started by commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
                os._exit(0)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Receive a request, run it in a child, send its status."""
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    size = struct.unpack("q", head)[0]
    text = b""
    while len(text) < size:
        text += connection.recv(size - len(text))
    request = json.loads(text)
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        connection.close()
        os._exit(run(request))
    _, status = os.waitpid(child, 0)
    connection.sendall(struct.pack("q", os.waitstatus_to_exitcode(status)))


def run(request: dict) -> int:
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module, *arguments = request["words"]
    sys.argv = [module, *arguments]
    status: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)


def ask(path: str, words: list[str]) -> int:
    request = {"folder": os.getcwd(), "environment": dict(os.environ), "words": words}
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        descriptors = array.array("i", [0, 1, 2])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        connection.sendmsg([struct.pack("q", len(text))], ancillary)
        connection.sendall(text)
        return struct.unpack("q", connection.recv(8))[0]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[3:]))
