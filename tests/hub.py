"""A hub of a few data sets on this machine, by the protocol that huggingface_hub and datasets speak.

Facts of a revision, paths by name and as a tree, and files by `resolve/`, each of which says its repository's commit;
what is not there is refused by the hub's own error codes.
"""

import contextlib
import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd
import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save(
    root: Path, repository: str, configs: dict[str, dict[str, str]], files: dict[str, list[dict[str, Any]]]
) -> None:
    """A data set's card, which says each configuration's splits and their files' pattern, and rows by path: Parquet or
    packed JSON lines."""
    listed = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for name, splits in configs.items()
    ]
    (root / repository).mkdir(parents=True)
    for name, rows in files.items():
        path = root / repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pd.DataFrame(rows).to_parquet(path)
        else:
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (root / repository / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n# A data set\n")


class Hub(ThreadingHTTPServer):
    """root: a folder a data set, OWNER/NAME/…; commits: by data set, COMMIT where it has none here. asked: the files
    whose content was sent, as OWNER/NAME/PATH."""

    daemon_threads = True

    def __init__(self, root: Path, commits: dict[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.root, self.commits = root, commits or {}
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(root: Path, commits: dict[str, str] | None = None) -> Iterator[Hub]:
    with Hub(root, commits) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match [unquote(part) for part in url.path.split("/") if part]:
            case []:
                self._send(b"a hub")
            case ["api", "datasets", owner, name]:
                self._facts(owner, name, self._commit(owner, name))
            case ["api", "datasets", owner, name, "revision", revision]:
                self._facts(owner, name, revision)
            case ["api", "datasets", owner, name, "paths-info", revision]:
                self._paths(owner, name, revision, _wanted(body))
            case ["api", "datasets", owner, name, "tree", revision, *folder]:
                self._tree(owner, name, revision, "/".join(folder), parse_qs(url.query))
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._file(owner, name, revision, "/".join(path))
            case _:
                self._refuse(404, "EntryNotFound")

    def _commit(self, owner: str, name: str) -> str:
        return self.server.commits.get(f"{owner}/{name}", COMMIT)

    def _repository(self, owner: str, name: str, revision: str) -> Path | None:
        """Its folder; None where that is refused."""
        folder = self.server.root / owner / name
        if not folder.is_dir():
            self._refuse(401, "RepoNotFound")
        elif revision not in ("main", self._commit(owner, name)):
            self._refuse(404, "RevisionNotFound")
        else:
            return folder
        return None

    def _facts(self, owner: str, name: str, revision: str) -> None:
        if folder := self._repository(owner, name, revision):
            files = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
            facts = {"_id": "0", "id": f"{owner}/{name}", "author": owner, "sha": self._commit(owner, name)}
            facts |= {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
            facts |= {"lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z"}
            self._json(facts | {"siblings": files})

    def _paths(self, owner: str, name: str, revision: str, wanted: list[str]) -> None:
        if folder := self._repository(owner, name, revision):
            self._json([_entry(folder, folder / path) for path in wanted if (folder / path).exists()])

    def _tree(self, owner: str, name: str, revision: str, path: str, query: dict[str, list[str]]) -> None:
        if folder := self._repository(owner, name, revision):
            if not (folder / path).is_dir():
                self._refuse(404, "EntryNotFound")
                return
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            found = (folder / path).rglob("*") if deep else (folder / path).iterdir()
            self._json([_entry(folder, one) for one in sorted(found)])

    def _file(self, owner: str, name: str, revision: str, path: str) -> None:
        if folder := self._repository(owner, name, revision):
            if not (folder / path).is_file():
                self._refuse(404, "EntryNotFound", {"X-Repo-Commit": self._commit(owner, name)})
                return
            if self.command == "GET":
                self.server.asked.append(f"{owner}/{name}/{path}")
            content = (folder / path).read_bytes()
            says = {"X-Repo-Commit": self._commit(owner, name), "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
            begin, end = _range(self.headers.get("Range"), len(content))
            if self.headers.get("Range"):
                says["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            self._send(content[begin:end], 206 if self.headers.get("Range") else 200, says)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(b"", status, {"X-Error-Code": code, "X-Error-Message": code} | (headers or {}))

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _range(asked: str | None, size: int) -> tuple[int, int]:
    """Begin and end of `bytes=3-7`, the last one included, or `bytes=3-`."""
    first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1, size) if last else size


def _wanted(body: bytes) -> list[str]:
    """Paths of a request, as JSON or as a form."""
    found = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
    return [found] if isinstance(found, str) else found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": _oid(name.encode()), "size": 0}
    content = path.read_bytes()
    return {"type": "file", "path": name, "oid": _oid(content), "size": len(content)}
