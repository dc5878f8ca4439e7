"""``python -m mmkd.cli``, for launchers such as ``accelerate launch -m mmkd.cli train RECIPE``."""

from mmkd.cli import main

if __name__ == "__main__":
    main()
