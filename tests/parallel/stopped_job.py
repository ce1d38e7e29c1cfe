"""`python -m tests.parallel.stopped_job STOPS ARGS...`: train, with signals to processes at steps.

STOPS: PROCESS:STEP:SIGNAL,... The file WORKDIR.stops keeps what was sent: a job that is started again under the same
--workdir gets each of them once.
"""

import os
import signal
import sys
from pathlib import Path

from empathax import train
from empathax.training import loop

stops, arguments = sys.argv[1].split(","), sys.argv[2:]
workdir = next(text.removeprefix("--workdir=") for text in arguments if text.startswith("--workdir="))
done = Path(f"{workdir}.stops")
push = loop.Recorder.push


def push_and_signal(self, now, metrics):
    push(self, now, metrics)
    for stop in stops:
        process, step, name = stop.split(":")
        sent = done.read_text().split() if done.exists() else []
        if now == int(step) and os.environ["JAX_PROCESS_ID"] == process and stop not in sent:
            with done.open("a") as file:
                file.write(f"{stop}\n")
            os.kill(os.getpid(), getattr(signal, name))


loop.Recorder.push = push_and_signal
sys.exit(train.main(arguments))
