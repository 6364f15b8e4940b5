"""The dashboard file is what the program makes of the panels, and has what Grafana asks of such a file."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from minivllm.server.metrics import EngineCollector
from minivllm.trace.engine_counts import EngineCounts
from tests.engine.fakes import make_engine
from viz import grafana
from viz.panels import PANELS

FOLDER = Path(__file__).resolve().parents[2] / "monitoring"
FILE = FOLDER / "grafana" / "dashboards" / "minivllm.json"
UNITS = {"s", "none", "percentunit"}
"""Ids of units that Grafana knows."""


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(FILE.read_text(encoding="utf-8"))


def test_the_file_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == grafana.text(), "python -m viz.grafana > " + str(FILE)


def test_panels_have_ids_of_their_own_and_places_that_do_not_overlap(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(PANELS) > 15
    places = [panel["gridPos"] for panel in panels]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 and p["y"] >= 0 and p["h"] > 0 for p in places)
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart_x or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_it_can_be_imported_into_any_grafana(dashboard):
    assert dashboard["id"] is None and dashboard["uid"] and dashboard["schemaVersion"] >= 38
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["DS_PROMETHEUS"]["type"] == "datasource"
    assert variables["model_name"]["query"]["query"].startswith("label_values(vllm:")
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["description"].endswith(".")
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters)) and letters
        for part in (panel, *panel["targets"], variables["model_name"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
        if panel["type"] == "timeseries":
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        else:
            assert panel["type"] == "heatmap" and panel["targets"][0]["format"] == "heatmap"


def test_queries_name_metrics_that_the_server_has_and_the_users_variables():
    engine = make_engine(sinks=[counts := EngineCounts()])
    text = EngineCollector(counts, engine, "m").text().decode()
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE vllm:"))
    for panel in PANELS:
        for query in panel.queries:
            names = re.findall(r"(vllm:\w+|http_\w+)(?:\{([^}]*)\})?", query.expr)
            assert names, query
            for name, labels in names:
                if name.startswith("vllm:"):
                    base = re.sub(r"_(bucket|sum|count)$", "", name)
                    assert name in kinds or kinds[base] == "histogram", name
                    assert labels == 'model_name="$model_name"', query
            assert ("[$__rate_interval]" in query.expr) == (
                "rate(" in query.expr or "increase(" in query.expr
            )


def test_what_is_provisioned_fits_together():
    yaml = pytest.importorskip("yaml")
    provisioning = FOLDER / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    provider = yaml.safe_load((provisioning / "dashboards" / "minivllm.yml").read_text(encoding="utf-8"))
    scrape = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    compose = yaml.safe_load((FOLDER / "docker-compose.yml").read_text(encoding="utf-8"))
    (prometheus,) = source["datasources"]
    assert prometheus["type"] == "prometheus"
    assert prometheus["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    (path,) = [item["options"]["path"] for item in provider["providers"]]
    environment = compose["services"]["grafana"]["environment"]
    folder = environment[path.strip("${}")].removeprefix("/monitoring/")
    assert (FOLDER / folder / "minivllm.json").is_file()
    assert FOLDER / environment["GF_PATHS_PROVISIONING"].removeprefix("/monitoring/") == provisioning
