"""A real relay in a network namespace."""

from pathlib import Path

from support.machines.namespaces import Namespace
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess


class NamespacedRelay(RelayProcess):
    """A relay that lives in a network namespace, as its supervisor and workers do."""

    def __init__(self, namespace: Namespace, directory: Path, mint: Mint, **environ: str) -> None:
        super().__init__(directory, mint, **environ)
        self._namespace = namespace

    def launch(self) -> None:
        with self._namespace.entered():
            super().launch()

    def get(self, path: str) -> tuple[int, bytes]:
        with self._namespace.entered():
            return super().get(path)

    def address(self, family: int) -> str:
        return next(text for text in self.udp if text.startswith("[") == (family == 6))
