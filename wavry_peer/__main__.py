"""``python -m wavry_peer``."""

from wavry_peer.cli.app import main

if __name__ == "__main__":
    main()
