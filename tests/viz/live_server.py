"""A server whose engine was recorded: it tells the events of a trace as the test lets them happen."""

import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue

import msgspec

from minivllm.trace.events import StepFinished
from minivllm.trace.reader import read_trace
from minivllm.trace.replay import ReplayState
from minivllm.trace.snapshots import take_snapshot

encode = msgspec.json.encode


def steps_of(path):
    """The events of a trace, a list for each step."""
    trace = read_trace(path)
    steps = [trace.step_events(step) for step in range(trace.num_steps)]
    return trace.header, [step for step in steps if isinstance(step[-1], StepFinished)]


class RecordedServer:
    """Answers `/engine/events`. `tell` lets steps happen; `None` ends the stream."""

    def __init__(self, header, key=""):
        self.header, self.key = header, key
        self.streams = []
        self.state = ReplayState(header)
        self.status = 200
        self.raw = b""
        self.lock = threading.Lock()  # who comes while steps are told sees all of them, or none
        recorded = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                recorded.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler):
        wrong_key = self.key and handler.headers["Authorization"] != f"Bearer {self.key}"
        status = 401 if wrong_key else self.status if handler.path == "/engine/events" else 404
        handler.send_response(status)
        handler.end_headers()
        if status != 200:
            return
        if self.raw:
            handler.wfile.write(self.raw)
            return
        queue = SimpleQueue()
        with self.lock:
            snapshot = take_snapshot(self.state)
            self.streams.append(queue)
        self.send(handler, [self.header, snapshot])
        while (events := queue.get()) is not None:
            self.send(handler, events)

    def send(self, handler, events):
        lines = b"".join(b"data: " + encode(event) + b"\n" for event in events)
        with suppress(OSError):  # who watched has left
            handler.wfile.write(lines + b"\n")
            handler.wfile.flush()

    def tell(self, *steps):
        """These steps happen; None: the connection ends."""
        with self.lock:
            for step in steps:
                for event in step or ():
                    self.state.apply(event)
                for queue in self.streams:
                    queue.put(step)
                if step is None:
                    self.streams.clear()


@contextmanager
def recorded_server(header, key=""):
    """A server that ends with the block."""
    server = RecordedServer(header, key)
    try:
        yield server
    finally:
        server.tell(None)
        server.http.shutdown()
        server.http.server_close()
