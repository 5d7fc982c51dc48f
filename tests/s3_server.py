"""An S3 server of one's own on loopback (moto's), at which some requests fail."""

import io
import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

SECRET = "a-secret-that-nobody-may-see"
REFUSALS = {
    "503 Slow Down": "<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message>"
                     "</Error>",
    "500 Internal Server Error": "<Error><Code>InternalError</Code><Message>Try again</Message>"
                                 "</Error>",
}


@dataclass
class Server:
    """A running server."""

    address: str
    failing: float = 0.0
    """Share of requests that fail."""
    failed: int = 0
    seen: list[str] = field(default_factory=list)
    """Method and path of each request."""

    @property
    def environment(self):
        """By which its clients find it, and what they say who they are."""
        return {"AWS_ENDPOINT_URL": self.address, "AWS_ACCESS_KEY_ID": "clsight",
                "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


class _Faulty:
    """The server's application, of which some requests fail before or after they were done."""

    def __init__(self, application, server):
        self._application, self._server = application, server
        self._random, self._lock = random.Random(7), threading.Lock()

    def __call__(self, environ, start_response):
        server = self._server
        with self._lock:
            server.seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            fails = self._random.random() < server.failing
            server.failed += fails
            status, late = self._random.choice([*REFUSALS]), self._random.random() < 0.5
        if not fails:
            return self._application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if late:  # the answer is lost, what was asked for is done
            again = {**environ, "wsgi.input": io.BytesIO(body)}
            list(self._application(again, lambda *_: None))
        text = REFUSALS[status].encode()
        start_response(status, [("Content-Type", "application/xml"),
                                ("Content-Length", str(len(text)))])
        return [text]


@contextmanager
def started(*buckets):
    """A server with these buckets."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_):
            pass

    server = Server("")
    application = _Faulty(DomainDispatcherApplication(create_backend_app), server)
    http = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    server.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    client = boto3.client("s3", endpoint_url=server.address, aws_access_key_id="clsight",
                          aws_secret_access_key=SECRET, region_name="us-east-1")
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
