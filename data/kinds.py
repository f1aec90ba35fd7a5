"""What a command line's options take: each function reads one kind of value.

Raises argparse.ArgumentTypeError or ValueError, with which argparse ends the program and names the option.
"""

import argparse
import codecs

from data.failures import failure_classes
from data.parts import Part


def encoding(text: str) -> str:
    """A text encoding, by the name that decoding goes by."""
    try:
        "".encode(text)
    except LookupError as error:
        raise argparse.ArgumentTypeError(f"{error}; Python's names are taken, such as cp1252 or gb18030") from error
    name = codecs.lookup(text).name
    return "utf-8-sig" if name == "utf-8" else name  # with which a mark in front is none of the first column's name


def classes(text: str) -> frozenset[str]:
    """Classes of failure, "dns,429"."""
    try:
        return failure_classes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def seconds(text: str) -> float:
    """A number from 0 up."""
    if not 0 <= float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return float(text)


def share_of_machines(text: str) -> Part:
    """Which of several machines, "1/3"."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text} is not a share such as 1/3, 2/3 or 3/3")
    return Part(int(number), int(of))


def quality(text: str) -> int:
    """Of a JPEG, 1 to 100."""
    if not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number from 0 up."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)
