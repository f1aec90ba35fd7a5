"""What a core's multiplications cost at best: one large matrix product, timed in turns with what is measured."""

import torch

SIDE = 1024


class MatrixRate:
    """A product of two square matrices of float32."""

    def __init__(self, side: int = SIDE, times: int = 4) -> None:
        self.left, self.right = torch.randn(2, side, side).unbind()
        self.out = torch.empty(side, side)
        self.times = times
        self.flop = 2 * side**3 * times

    def run(self) -> None:
        """Multiply; this is what is timed."""
        for _ in range(self.times):
            torch.mm(self.left, self.right, out=self.out)

    def seconds_for(self, flop: float, seconds: float) -> float:
        """How long so many operations (a multiplication and an addition are two) take at the rate of a timed `run`."""
        return seconds * flop / self.flop
