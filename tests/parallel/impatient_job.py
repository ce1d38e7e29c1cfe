"""`python -m tests.parallel.impatient_job ARGS...`: train, but a file of another process has to be seen at once."""

import sys

from empathax import train
from empathax.parallel import agreement

agreement._VISIBLE_SECONDS = 0.5
sys.exit(train.main(sys.argv[1:]))
