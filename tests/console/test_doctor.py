"""The doctor never falls ill itself: whatever is missing is a line with advice."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kernels_numba.cpu
from kernels_numba.kept_code import complete_kinds, mark_complete
from minivllm.console import doctor
from minivllm.console.doctor import EXTRA, FAIL, OK, Check
from minivllm.executor import processor, warm_up
from tests import patience


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let these packages be missing, both from the list of what is installed and for import."""
    installed, imported = doctor.installed_version, doctor._import
    monkeypatch.setattr(doctor, "installed_version", lambda p: None if p in packages else installed(p))
    monkeypatch.setattr(doctor, "_import", lambda n: None if n.split(".")[0] in packages else imported(n))


def test_every_check_is_a_line_and_the_verdict_follows_from_them() -> None:
    checks = doctor.run_checks()
    text = doctor.render(checks)
    assert len({check.name for check in checks}) == len(checks) == 18
    for check in checks:
        assert check.status in (OK, EXTRA, FAIL) and check.fact
        assert check.status == OK or check.advice or "cannot be told" in check.fact, check
        assert check.fact in text and check.advice in text
    assert ("cannot run" in text) == (not doctor.can_run_demo(checks))


@pytest.mark.parametrize(
    ("package", "look", "status"),
    [
        ("torch", doctor.check_torch, FAIL),
        ("torch", doctor.check_gpu, EXTRA),
        ("numba", doctor.check_numba, EXTRA),
        ("numba-cuda", doctor.check_numba_cuda, EXTRA),
        ("streamlit", doctor.check_streamlit, FAIL),
        ("transformers", doctor.check_transformers, EXTRA),
        ("psutil", doctor.check_memory, EXTRA),
        ("msgspec", doctor.check_packages, FAIL),
    ],
)
def test_a_missing_package_is_a_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, package: str, look: Callable[[], Check], status: str
) -> None:
    without(monkeypatch, package)
    check = look()
    assert check.status == status
    assert check.advice


def test_with_everything_missing_the_report_still_ends_with_a_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(doctor, "installed_version", lambda package: None)
    monkeypatch.setattr(doctor, "import_module", nothing)
    monkeypatch.setattr(processor, "CPU_INFO", Path("nowhere"))
    monkeypatch.setattr(doctor, "MEMORY_MAPS", Path("nowhere"))
    assert doctor.report() == 1
    printed = capsys.readouterr().out
    assert "The demo cannot run yet. To be fixed: packages, torch, shipped model, streamlit." in printed


def test_a_package_that_breaks_on_import_is_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("undefined symbol")

    monkeypatch.setattr(doctor, "import_module", broken)
    assert doctor.check_torch().status == FAIL
    assert doctor.check_gpu().status == EXTRA


def test_a_check_that_goes_wrong_is_reported_and_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check_port() -> Check:
        raise RuntimeError("no network at all")

    monkeypatch.setattr(doctor, "check_port", check_port)
    checks = {check.name: check for check in doctor.run_checks()}
    assert "no network at all" in checks["port"].fact
    assert checks["Python"].status == OK


def test_an_old_python_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 0))
    assert doctor.check_python().status == FAIL


def test_a_gpu_is_named_with_its_capability_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="Example GPU", major=9, minor=0, total_memory=141 * 2**30)
    cuda = SimpleNamespace(
        is_available=lambda: True, get_device_properties=lambda index: device, device_count=lambda: 1
    )
    monkeypatch.setattr(doctor, "_import", lambda name: SimpleNamespace(cuda=cuda))
    assert doctor.check_gpu().fact == "Example GPU, compute capability 9.0, 141 GiB"


def test_nobody_is_told_to_install_what_nothing_uses_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: None)
    assert "elsewhere nothing to do" in doctor.check_numba_cuda().advice


def test_a_port_in_use_is_no_failure_and_the_advice_names_another() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        check = doctor.check_port(port)
        assert check.status == EXTRA
        assert f"--port {port + 1}" in check.advice
    patience.until(lambda: doctor.check_port(port).status == OK)  # a stranger may have it for a moment


def test_a_folder_that_cannot_be_written_to_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = doctor.check_folder()
    assert check.status == FAIL and "Permission denied" in check.fact


def test_more_openmp_threads_than_cores_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert doctor.check_threads().status == EXTRA
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.check_threads().status == OK


@pytest.mark.parametrize(
    ("policy", "spin", "libraries", "status"),
    [
        ("", "", ["/torch/lib/libgomp-a34b.so.1"], OK),
        ("", "", ["/torch/lib/libgomp-a34b.so.1", "/usr/lib/libgomp.so.1.0.0"], EXTRA),
        ("PASSIVE", "", ["/torch/lib/libgomp-a34b.so.1", "/opt/libiomp5.so"], OK),
        ("", "1000", ["/torch/lib/libgomp-a34b.so.1", "/opt/libiomp5.so"], OK),
        ("", "", [], OK),
    ],
)
def test_two_openmp_runtimes_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, spin: str, libraries: list[str], status: str
) -> None:
    maps = tmp_path / "maps"
    lines = [f"7f00-7f01 r-xp 00000000 08:01 123   {path}" for path in libraries for _ in range(3)]
    maps.write_text("\n".join([*lines, "7f02-7f03 rw-p 00000000 00:00 0", "7f 0 /usr/lib/libc.so.6"]))
    monkeypatch.setattr(doctor, "MEMORY_MAPS", maps)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setenv("GOMP_SPINCOUNT", spin)
    check = doctor.check_openmp()
    assert check.status == status
    assert all(Path(path).name in check.fact for path in libraries)


def test_cpu_features_are_read_from_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Example CPU\nflags\t\t: fpu avx2 avx512f amx_tile\n")
    monkeypatch.setattr(processor, "CPU_INFO", cpuinfo)
    fact = doctor.check_cpu().fact
    assert fact.startswith("Example CPU,") and fact.endswith("AVX2, AVX-512, AMX")


def test_a_damaged_shipped_model_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.import_module

    def import_module(name: str) -> Any:
        return SimpleNamespace(MODEL_PATH=tmp_path) if name == "minivllm.model.tiny" else real(name)

    monkeypatch.setattr(doctor, "import_module", import_module)
    check = doctor.check_shipped_model()
    assert check.status == FAIL and check.fact.startswith("does not load:")


def test_chromium_is_found_where_playwright_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    assert doctor.check_chromium().status == EXTRA
    (tmp_path / "chromium-1200").mkdir()
    assert doctor.check_chromium().status == OK


def test_warming_up_compiles_every_kind_and_says_what_failed(monkeypatch, tmp_path):
    def make_runner(kind):
        if kind == "bfloat16-step":
            raise RuntimeError("no compiler")
        mark_complete(tmp_path, kind, [])

    monkeypatch.setattr(kernels_numba.cpu, "FOLDER", tmp_path)
    monkeypatch.setattr(warm_up, "make_runner", make_runner)
    said = []
    assert doctor.warm_up(said.append) == 1
    assert [line.split(":")[0] for line in said] == [
        f"{FAIL if kind == 'bfloat16-step' else OK} {kind}" for kind in warm_up.ALL_KINDS
    ]
    assert complete_kinds(tmp_path) == sorted(set(warm_up.ALL_KINDS) - {"bfloat16-step"})
    monkeypatch.setattr(warm_up, "make_runner", lambda kind: mark_complete(tmp_path, kind, []))
    assert doctor.warm_up(said.append) == 0 and not list(tmp_path.glob("*.attempts"))
    assert "bfloat16-step" in doctor.check_compiled_code().fact
