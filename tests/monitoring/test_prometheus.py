"""A real Prometheus watches a real server: it answers every query of the dashboard and of the alerts."""

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests import patience
from tests.server.conftest import RunningServer
from viz.panels import PANELS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "monitoring"
ALERTS = FOLDER / "alerts.yml"

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus") or not shutil.which("promtool"),
    reason="no Prometheus: apt-get install prometheus (or brew install prometheus)",
)


def promtool(*arguments):
    done = subprocess.run(
        ["promtool", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=patience.SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid_and_each_alert_fires_where_it_must_and_nowhere_else():
    assert "valid" in promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert "SUCCESS: 8 rules found" in promtool("check", "rules", str(ALERTS))
    assert "SUCCESS" in promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yml")))


@pytest.fixture(scope="module")
def server():
    found = RunningServer()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    """Our configuration, with another target and a shorter interval."""
    folder = tmp_path_factory.mktemp("prometheus")
    text = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    text = text.replace("localhost:8000", server.url.removeprefix("http://"))
    text = re.sub(r"(scrape|evaluation)_interval: \w+", r"\1_interval: 500ms", text)
    text = text.replace("alerts.yml", str(ALERTS))
    (folder / "prometheus.yml").write_text(text, encoding="utf-8")
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += ["--web.listen-address=127.0.0.1:0", "--log.level=info"]  # it says which port it has
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with patience.running(command, **pipes) as process:
        with patience.speaking(process):
            lines = (re.search(r"Listening on.* address=(127\S+)", line) for line in process.stderr)
            address = next(filter(None, lines))[1]
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or the pipe would be full
        with httpx.Client(base_url=f"http://{address}", timeout=patience.SECONDS) as client:
            patience.until(lambda: is_ready(client))
            yield client


def is_ready(client):
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def load(server, number):
    """A few requests that share a beginning; some have several outputs."""
    prompt = "A shared beginning, long enough to fill some blocks of the cache. " * 2 + str(number)
    body = {"prompt": prompt, "max_tokens": 6, "n": 1 + number % 2, "temperature": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=patience.SECONDS)
    assert answer.status_code == 200


def answers(client, expr):
    """The numbers that Prometheus answers, NaN left out."""
    answer = client.get("/api/v1/query", params={"query": expr}).json()
    assert answer["status"] == "success", (expr, answer)
    numbers = (float(sample["value"][1]) for sample in answer["data"]["result"])
    return [number for number in numbers if number == number]


def filled_in(expr):
    """As Grafana does it, when a user has chosen the model and a short time."""
    return expr.replace("$model_name", "tiny").replace("$__rate_interval", "1m")


def test_every_query_is_answered_with_numbers(server, prometheus):
    queries = {filled_in(query.expr) for panel in PANELS for query in panel.queries}
    queries |= set(alert_queries(prometheus))
    assert len(queries) > 40 and not any("$" in expr for expr in queries)
    unanswered, number = queries, 0
    deadline = time.monotonic() + patience.SECONDS
    while unanswered:  # two samples with load between them are enough for any rate
        assert time.monotonic() < deadline, unanswered
        for _ in range(3):
            load(server, number := number + 1)
        unanswered = {expr for expr in unanswered if not answers(prometheus, expr)}
    assert answers(prometheus, filled_in('sum(vllm:request_success_total{model_name="$model_name"})'))[0] > 0
    (models,) = [set(prometheus.get("/api/v1/label/model_name/values").json()["data"])]
    assert models == {"tiny"}, "what the dashboard's variable offers"


def alert_queries(client):
    """What the loaded rules ask, with a comparison that answers 0 or 1 where the rule's answers nothing."""
    patience.until(lambda: client.get("/api/v1/rules").json()["data"]["groups"])
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule["query"] for group in groups for rule in group["rules"]]
    assert len(rules) == 8
    return [re.sub(r" (==|>) ", r" \1 bool ", rule) for rule in rules]
