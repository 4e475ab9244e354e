"""``python -m wavry_cp.gateway``."""

from .cli import main

if __name__ == "__main__":
    main()
