"""Servers on this machine that hold shard sets: an S3 server of its own process, and a web server with faults."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACCESS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


class S3Server:
    """moto's S3 in a process, with its log of requests."""

    def __init__(self, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        self.environment = {**ACCESS, "AWS_ENDPOINT_URL": self.url}
        command = [Path(sys.executable).parent / "moto_server", "-p", str(port)]
        with log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                command, stderr=file, stdout=file, env={**os.environ, **ACCESS}
            )
        for _ in range(200):
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise RuntimeError(log.read_text(encoding="utf-8"))

    def requests(self, method: str, folder: str) -> list[str]:
        """The names inside `bucket/folder` that were asked for with this method, in order."""
        return re.findall(rf'"{method} /{folder}/(\S+?)(?:\?\S*)? HTTP', self.log.read_text())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


class WebServer:
    """A folder over HTTP; `faults` maps a name to what goes wrong with its next answers: cut, short, flip or error."""

    def __init__(self, root: Path):
        self.faults: dict[str, list[str]] = {}
        self.served: list[str] = []
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(_Handler, self, directory=str(root))
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, web: WebServer, *args, **kwargs):
        self.web = web
        super().__init__(*args, **kwargs)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        faults = self.web.faults.get(name)
        fault = faults.pop(0) if faults else None
        path = Path(self.translate_path(self.path))
        if fault == "error" or not path.is_file():
            return self.send_error(503 if fault else 404)
        self.web.served.append(name)
        content = path.read_bytes()
        declared = len(content)
        if fault == "flip":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault in ("cut", "short"):
            content = content[: declared // 2]  # cut: less than declared; short: less than there is
        if fault == "long":
            content += b"x" * 100
        self.send_response(200)
        self.send_header("Content-Length", str(declared if fault == "cut" else len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True
