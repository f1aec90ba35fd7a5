"""What is taken for a picture, what of it is written anew, and what for a copy; known without any decoder."""

from dataclasses import dataclass

MAX_PIXELS = 50_000_000
DISTANCE = 0.16
"""Of the contrast, the share that a near duplicate's greys may differ by once tones are fitted (data/near.py)."""
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """When a picture that stands upright is encoded anew all the same; without these its bytes stay as they are."""

    max_side: int | None = None
    """Pixels of the longer side; larger pictures are made smaller."""
    quality: int | None = None
    """Every JPEG is encoded anew with this quality."""


KEEP = Rewriting()
