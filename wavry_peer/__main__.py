"""``python -m wavry_peer``."""

from .cli import main

if __name__ == "__main__":
    main()
