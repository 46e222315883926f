"""A Hugging Face Hub for one repository: creation, commits, and downloads, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "f" * 40


class Hub:
    """What a test can look at: files of the repository, commits as (added, deleted), requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commits: list[tuple[list[str], list[str]]] = []
        self.requests: list[str] = []
        self.refuse = False
        self.url = ""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def reply(self, body: object, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append(f"POST {path}")
            if hub.refuse:
                self.reply({"error": "Invalid username or password."}, 401)
            elif path == "/api/repos/create":
                self.reply({"url": f"{hub.url}/me/{json.loads(content)['name']}"})
            elif "/preupload/" in path:
                files = json.loads(content)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                self.reply({"files": modes})
            elif "/commit/" in path:
                self.commit([json.loads(line) for line in content.splitlines()])
            else:
                self.reply({})  # validation of the card

        def commit(self, operations: list[dict]) -> None:
            added, deleted = [], []
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                    added.append(value["path"])
                elif operation["key"] == "deletedFile":
                    del hub.files[value["path"]]
                    deleted.append(value["path"])
            hub.commits.append((sorted(added), sorted(deleted)))
            self.reply({"commitUrl": f"{hub.url}/me/tiny/commit/{SHA}", "commitOid": SHA})

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if hub.refuse:
                self.reply({"error": "Invalid username or password."}, 401)
            elif "/resolve/" in path:
                content = hub.files[path.split("/resolve/")[1].split("/", 1)[1]]
                etag = hashlib.sha1(content).hexdigest()
                self.reply(content, ETag=f'"{etag}"', X_Repo_Commit=SHA)
            elif "/tree/" in path:
                self.reply([self.entry(name) for name in sorted(hub.files)])
            else:
                siblings = [{"rfilename": name} for name in sorted(hub.files)]
                self.reply({"id": "me/tiny", "sha": SHA, "siblings": siblings})

        do_HEAD = do_GET

        @staticmethod
        def entry(name: str) -> dict:
            size = len(hub.files[name])
            return {"type": "file", "path": name, "size": size, "oid": "0" * 40}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
