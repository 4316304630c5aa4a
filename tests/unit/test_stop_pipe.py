from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flts_ray.local.stop_pipe import ask_to_stop

LISTENER = """
import sys, time
from pathlib import Path
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.local.stop_pipe import stop_when_asked
interrupt_on_sigterm()
try:
    stop_when_asked(Path(sys.argv[1]))
    print("listening", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("unwound", flush=True)
"""


def test_a_request_reaches_the_process_that_listens_and_nobody_after_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    assert not ask_to_stop(pipe)
    for _ in range(2):  # the second one finds the pipe of the first
        listener = subprocess.Popen(
            [sys.executable, "-c", LISTENER, str(pipe)], stdout=subprocess.PIPE, text=True
        )
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        assert ask_to_stop(pipe)
        assert listener.communicate(timeout=30)[0] == "unwound\n"
        assert not ask_to_stop(pipe)
    pipe.unlink()
    pipe.write_text("a file of somebody else")
    ask_to_stop(pipe)
    assert pipe.is_file()
