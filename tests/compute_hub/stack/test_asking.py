"""A hub that is being started asks its API until it is ready, whatever answers meanwhile."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from compute_hub.stack.asking import StrangeAnswer, ask, nodes_up

ANSWERS: dict[str, tuple[int, bytes]] = {
    "/ready": (200, b'{"status": "ready"}'),
    "/page": (200, b"<html>\nA page of\n another program</html>"),
    "/error": (500, b"Internal Server Error"),
    "/problem": (503, b'{"code": "database_unreachable"}'),
    "/empty": (200, b""),
    "/list": (200, b"[1, 2]"),
    "/cluster": (200, b'{"nodes": [{"state": "up"}, {"state": "down"}, {"state": "up"}]}'),
}


class _Program(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = ANSWERS[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def program() -> Iterator[str]:
    """Another program, on a port that was chosen as free."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Program)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_ready_says_so_and_its_nodes_are_counted(program: str) -> None:
    assert ask(f"{program}/ready") == {"status": "ready"}
    assert nodes_up(f"{program}/cluster", {}) == 2


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/page", "answered 200: <html> A page of another program</html>; if that is not the hub's"),
        ("/error", "answered 500: Internal Server Error"),
        ("/problem", 'answered 503: {"code": "database_unreachable"}'),
        ("/empty", "answered 200: nothing"),
        ("/list", r"answered 200: \[1, 2\]"),
        ("/ready", "answered 200: {'status': 'ready'}"),
    ],
)
def test_an_answer_that_is_not_the_hubs_is_said_and_never_a_traceback(
    program: str, path: str, said: str
) -> None:
    with pytest.raises(StrangeAnswer, match=said):
        nodes_up(f"{program}{path}", {})
