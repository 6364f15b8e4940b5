"""The dashboard file for Grafana: `python -m viz.grafana > monitoring/grafana/dashboards/minivllm.json`.

The panels are those of `panels.py`; here is what Grafana wants to know besides: an id and a place for each, a
unit, a look. Two variables are the user's: `DS_PROMETHEUS` (which Prometheus) and `model_name` (which model).
A test holds the file to this program, and asks a real Prometheus all of its queries.

Source: Grafana's "Dashboard JSON model", schema version 39 (Grafana 10.4 and later read it).
Read next: `docs/monitoring.md`, which says how to start everything.
"""

from __future__ import annotations

import json
from typing import Any

from viz.panels import PANELS, Panel

SCHEMA_VERSION = 39
DATA_SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
COLUMNS, WIDTH, HEIGHT = 2, 12, 8
"""Grafana's grid is 24 wide."""


def dashboard() -> dict[str, Any]:
    """The whole file, as data."""
    return {
        "annotations": {"list": [_annotations()]},
        "description": "A minivllm server, as its /metrics tells. The same panels as vLLM's own dashboard.",
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,  # one crosshair for all panels
        "id": None,
        "links": [],
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
        "refresh": "5s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["minivllm", "vllm"],
        "templating": {"list": [_data_source_variable(), _model_variable()]},
        "time": {"from": "now-15m", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": "minivllm",
        "uid": "minivllm",
        "version": 1,
        "weekStart": "",
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    look = _heatmap(panel) if panel.kind == "heatmap" else _lines(panel)
    return {
        "id": number + 1,
        "title": panel.title,
        "description": panel.words,
        "type": panel.kind,
        "datasource": DATA_SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": WIDTH * column, "y": HEIGHT * row},
        "targets": [_target(panel, index) for index in range(len(panel.queries))],
        **look,
    }


def _target(panel: Panel, index: int) -> dict[str, Any]:
    query = panel.queries[index]
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATA_SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        "instant": False,
        "range": True,
    }


def _lines(panel: Panel) -> dict[str, Any]:
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 10,
        "pointSize": 4,
        "showPoints": "auto",
        "spanNulls": False,
        "axisPlacement": "auto",
        "scaleDistribution": {"type": "linear"},
        "stacking": {"group": "A", "mode": "none"},
        "thresholdsStyle": {"mode": "off"},
    }
    defaults: dict[str, Any] = {
        "color": {"mode": "palette-classic"},
        "custom": custom,
        "mappings": [],
        "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}]},
        "unit": panel.unit,
        "min": 0,
    }
    if panel.unit == "percentunit":
        defaults["max"] = 1
    return {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _heatmap(panel: Panel) -> dict[str, Any]:
    return {
        "fieldConfig": {
            "defaults": {"custom": {"scaleDistribution": {"type": "linear"}}},
            "overrides": [],
        },
        "options": {
            "calculate": False,  # the buckets are Prometheus' own
            "cellGap": 1,
            "color": {
                "mode": "scheme",
                "scheme": "Spectral",
                "scale": "exponential",
                "exponent": 0.5,
                "fill": "dark-orange",
                "reverse": False,
                "steps": 64,
                "min": 0,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto", "value": "Requests"},
            "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
            "yAxis": {"axisLabel": "tokens", "axisPlacement": "left", "reverse": False, "unit": panel.unit},
        },
    }


def _data_source_variable() -> dict[str, Any]:
    return {
        "name": "DS_PROMETHEUS",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def _model_variable() -> dict[str, Any]:
    query = "label_values(vllm:num_requests_running, model_name)"
    return {
        "name": "model_name",
        "label": "Model",
        "type": "query",
        "datasource": DATA_SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 2,  # whenever the time range changes
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }


def _annotations() -> dict[str, Any]:
    return {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }


def text() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
