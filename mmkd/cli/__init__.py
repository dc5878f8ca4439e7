"""The command line: mmkd embed | train | evaluate | recommend | neighbours | ls | cp | ..."""

from mmkd.interruption import end_early

STOPPED = "stopped; the same command starts again"


def main() -> None:
    """Run the command line; SIGTERM ends it with a message from the first moment on."""
    import sys

    end_early()
    try:
        from mmkd.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print(f"mmkd: {STOPPED}", file=sys.stderr)
        sys.exit(2)


__all__ = ["STOPPED", "main"]
