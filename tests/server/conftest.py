"""One real server for all tests of this folder, with the shipped model."""

import socket
import threading

import httpx
import pytest
import uvicorn

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.server.app import AppOptions, make_app
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.connections import PromptProtocol
from minivllm.server.metrics import EngineCollector
from minivllm.server.served_model import ServedModel
from minivllm.trace.engine_counts import EngineCounts
from tests import patience

MAX_BODY = 200_000


class RunningServer:
    """A server in a thread of its own, and the engine behind it."""

    def __init__(self, options=None, live=None, spans=None, model_path=MODEL_PATH):
        counts = EngineCounts(spans.note if spans else None)
        args = EngineArgs(
            model_path,
            tokenizer=str(MODEL_PATH),
            attention_backend="torch",
            enforce_eager=True,
            num_gpu_blocks_override=256,
            max_model_len=512,
            prefix_cache="hash",
        )
        self.engine = create_engine(args, sinks=[counts, *([live] if live else [])])
        self.llm = AsyncLLM(self.engine)
        self.model = ServedModel(self.llm, ["tiny", "minivllm-tiny"], str(model_path), 512)
        self.model.metrics = EngineCollector(counts, self.engine, "tiny")
        if live:
            live.hop, self.model.live = self.llm.hop, live
        self.model.spans = spans
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        app = make_app(self.model, options or AppOptions(max_body_bytes=MAX_BODY))
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", http=PromptProtocol)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()

    def server_loop_call(self, function, *args):
        """Call this in the event loop of the server."""
        self.llm._loop.call_soon_threadsafe(function, *args)

    def stop(self):
        self.server.should_exit = True
        patience.join(self.thread)
        self.llm.shutdown()


@pytest.fixture(scope="session")
def running():
    server = RunningServer()
    yield server
    server.stop()
    assert not server.engine.requests and server.engine.cache.pool.num_used_blocks == 0


@pytest.fixture(scope="module")
def http(running):
    """A client of the running server."""
    with httpx.Client(base_url=running.url, timeout=patience.SECONDS) as client:
        yield client
