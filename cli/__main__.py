"""`python -m clsp.cli`, for `torchrun -m clsp.cli …` and `accelerate launch -m clsp.cli …`."""

from .main import main

main()
