"""nginx for live systems: their images, at URLs for a guest."""

from pathlib import Path

from real.servers import Nginx

from .liveroot import Live
from .machine import HOST


class LiveServer(Nginx):
    def __init__(self, live: Live) -> None:
        super().__init__(live.directory)
        self._live = live

    def iso(self) -> str:
        """The URL of the ISO image."""
        return self._url_of(self._live.iso)

    def squashfs(self) -> str:
        return self._url_of(self._live.squashfs)

    def _url_of(self, file: Path) -> str:
        return self.url(str(file.relative_to(self.root)), HOST)


class SecureLiveServer(LiveServer):
    """The same over HTTPS, with the certificate trusted by the initrd."""

    def url(self, name: str, host: str = "127.0.0.1") -> str:
        return super().url(name, host).replace("http:", "https:", 1)

    def configure(self, text: str) -> str:
        plain = f"listen 127.0.0.1:{self.port}"
        files = f"ssl_certificate {self._live.certificate}; ssl_certificate_key {self._live.key}"
        return super().configure(text.replace(plain, f"{plain} ssl; {files}"))
