"""A terminal for tests: what a program sends to it, and what stays on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def in_a_terminal(call: Sequence[str], lines: int = 30, status: int = 0) -> str:
    """Run a command in a pseudo-terminal of 100 columns; return all that it sent there."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 100, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    child = subprocess.Popen(call, cwd=ROOT, env=environment, stdin=end, stdout=end, stderr=end)
    os.close(end)
    sent = b""
    try:
        while data := os.read(terminal, 65536):
            sent += data
    except OSError:  # how a terminal says that the other end is gone
        os.close(terminal)
    assert child.wait() == status, sent.decode()
    return sent.decode()


def screen(sent: str) -> list[str]:
    """Return the lines that stay on a terminal that was sent this: cursor up, erase line, carriage return, text."""
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|([^\x1b])", sent):
        if code == "2K":
            lines[row] = ""
        elif code.endswith("A"):
            row -= int(code[:-1] or 1)
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def frames(sent: str) -> list[str]:
    """Return every line that was ever shown, without colours and movements."""
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", sent).splitlines()
