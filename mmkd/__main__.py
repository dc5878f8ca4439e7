"""``python -m mmkd``, for launchers such as ``accelerate launch -m mmkd train RECIPE``."""

from mmkd.cli import main

if __name__ == "__main__":
    main()
