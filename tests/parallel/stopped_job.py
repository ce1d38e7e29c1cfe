"""`python -m tests.parallel.stopped_job PROCESS STEP SIGNAL ARGS...`: train, with a signal to one process at a step."""

import os
import signal
import sys

from empathax import train
from empathax.training import loop

number, step, name = sys.argv[1:4]
push = loop._Recorder.push


def push_and_signal(self, now, metrics):
    push(self, now, metrics)
    if now == int(step) and os.environ["JAX_PROCESS_ID"] == number:
        os.kill(os.getpid(), getattr(signal, name))


loop._Recorder.push = push_and_signal
sys.exit(train.main(sys.argv[4:]))
