"""The command line: mmkd embed | train | evaluate | recommend | neighbours | ls | cp | ..."""

from mmkd.cli.app import main

__all__ = ["main"]
