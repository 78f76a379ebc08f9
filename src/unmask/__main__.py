"""`python -m unmask`, for `torchrun -m unmask` and `accelerate launch -m unmask`."""

import sys

from unmask.cli import main

sys.exit(main())
