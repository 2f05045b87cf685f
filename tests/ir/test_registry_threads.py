"""The registry fills itself when it is first asked, whichever threads ask at once."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
sys.setswitchinterval(1e-6)
from graphc.ir import registry
start, failed = threading.Barrier(4), []
def ask():
    start.wait()
    try:
        registry.lookup("mul")
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=ask) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
sys.exit(repr(failed) if failed else 0)
"""


def test_threads_that_ask_first_all_get_an_answer() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
