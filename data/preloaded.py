"""What workers have in memory when they are forked: imported once, beside the program's own start."""

import gc

gc.disable()  # as in data.build

import data.checking
import data.mapped
import data.write
from data.light import run_lightly

__all__ = ["data"]

run_lightly()
