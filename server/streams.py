"""The standard streams of a program that was started with some of them closed, as cron jobs and daemons are."""

from __future__ import annotations

import os
import sys


def have_streams() -> None:
    """Open the null device for closed standard streams: else the next file opened would become one.

    Programs that this one starts inherit these streams.
    """
    for number, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
        if getattr(sys, name) is None:
            place = os.open(os.devnull, os.O_RDWR)
            if place == number:
                os.set_inheritable(place, True)
            else:
                os.dup2(place, number)
                os.close(place)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
