"""`minivllm doctor`: what this machine can do, and what to install so that it can do more.

A list of checks, each a small function that looks at one thing and never fails: what is missing becomes a
line with advice, and not an exception. Only what the demo cannot do without makes it a failure.

    ✔ fine        – missing, but only some extra is lost        ✘ the demo cannot run until this is fixed

Nothing is imported before it is looked for, and the module itself needs nothing but Python, so that
`python -m minivllm.console.doctor` still speaks where everything else is broken.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from minivllm.executor.cpu_hazards import usable_cores
from minivllm.executor.processor import cpu_flags, cpu_name
from minivllm.validation import error_words

SHARE_OF_MEMORY = 0.92
"""`gpu_memory_utilization`, as engines have it if nothing is said."""
OK, EXTRA, FAIL = "✔", "–", "✘"
PORT = 8501
SMALLEST_PYTHON = (3, 11)
NEEDED_PACKAGES = (
    "numpy",
    "safetensors",
    "tokenizers",
    "msgspec",
    "jinja2",
    "typer",
    "rich",
    "tqdm",
    "psutil",
)
MEMORY_MAPS = Path("/proc/self/maps")
CPU_FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX"}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `status` is `OK`, `EXTRA` or `FAIL`; `advice` is empty if all is well."""

    name: str
    status: str
    fact: str
    advice: str = ""


def run_checks() -> list[Check]:
    """Look at everything, in the order in which it is printed."""
    looks: tuple[Callable[[], Check], ...] = (
        check_python,
        check_packages,
        check_torch,
        check_gpu,
        check_numba,
        check_numba_cuda,
        check_cpu,
        check_memory,
        check_threads,
        check_openmp,
        check_compiled_code,
        check_quantized_weights,
        check_shipped_model,
        check_streamlit,
        check_port,
        check_folder,
        check_transformers,
        check_chromium,
    )
    return [_look(look) for look in looks]


def can_run_demo(checks: list[Check]) -> bool:
    return all(check.status != FAIL for check in checks)


def render(checks: list[Check]) -> str:
    """One line a check, advice below it, and a last line that says what it all means."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status} {check.name.ljust(width)}  {check.fact}")
        if check.advice:
            lines.append(f"{' ' * (width + 4)}→ {check.advice}")
    failed = [check.name for check in checks if check.status == FAIL]
    if failed:
        lines.append(f"\nThe demo cannot run yet. To be fixed: {', '.join(failed)}.")
    else:
        lines.append("\nThe demo can run: minivllm demo")
    return "\n".join(lines)


def report(console: Any = None) -> int:
    """Print all checks, on a rich console if one is given. Returns 0 if the demo can run, otherwise 1."""
    checks = run_checks()
    if console is not None:
        console.print(render(checks), markup=False, highlight=False, soft_wrap=True)
    else:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without ✔ should not end in an exception
        print(render(checks))
    return 0 if can_run_demo(checks) else 1


def warm_up(say: Callable[[str], None]) -> int:
    """Compile all kernels for this processor, or find that they are. Returns 0, or 1 if some cannot be."""
    from minivllm.executor.warm_up import ALL_KINDS, compile_kind, warming_up

    failed = 0
    with warming_up(say) as folder:
        for kind in ALL_KINDS:
            began = perf_counter()
            try:
                compile_kind(folder, kind)
                say(f"{OK} {kind}: compiled, after {perf_counter() - began:.0f} s")
            except Exception as error:
                failed = 1
                say(f"{FAIL} {kind}: {error_words(error)}")
    return failed


# ---- Python and its packages ---------------------------------------------------------------------------


def check_python() -> Check:
    fact = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    if sys.version_info[:2] < SMALLEST_PYTHON:
        wanted = ".".join(map(str, SMALLEST_PYTHON))
        return Check("Python", FAIL, fact, f"install Python {wanted} or newer")
    return Check("Python", OK, fact)


def check_packages() -> Check:
    """The small libraries that the engine is built on."""
    missing = [name for name in NEEDED_PACKAGES if installed_version(name) is None]
    if missing:
        return Check("packages", FAIL, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", OK, f"all {len(NEEDED_PACKAGES)} small ones are installed")


def check_torch() -> Check:
    torch = _import("torch")
    if torch is None:
        return Check(
            "torch", FAIL, "not installed", "pip install torch (see pytorch.org for a build with CUDA)"
        )
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU only"
    return Check("torch", OK, f"{torch.__version__}, {build}, {torch.get_num_threads()} threads")


def check_gpu() -> Check:
    torch = _import("torch")
    if torch is None:
        return Check("GPU", EXTRA, "unknown without torch", "everything runs on a CPU too")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        more = f" (and {torch.cuda.device_count() - 1} more)" if torch.cuda.device_count() > 1 else ""
        capability = f"compute capability {properties.major}.{properties.minor}"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        return Check("GPU", OK, f"{properties.name}, {capability}, {memory}{more}")
    if shutil.which("nvidia-smi"):
        advice = "install a torch built for CUDA (pytorch.org), or check the driver with nvidia-smi"
        return Check("GPU", EXTRA, "nvidia-smi is here, but torch sees no GPU", advice)
    return Check("GPU", EXTRA, "none that torch can use", "nothing to do: everything runs on a CPU too")


def check_numba() -> Check:
    """What the kernels are written for, and the microscope reads; the engine itself runs on torch."""
    version = installed_version("numba")
    if version is None:
        return Check("numba", EXTRA, "not installed", "pip install numba, for the kernels and the microscope")
    if _import("numba") is None:
        advice = "install versions of numba and numpy that go together: pip install -U numba numpy"
        return Check("numba", EXTRA, f"{version}, but importing it fails", advice)
    return Check("numba", OK, version)


def check_numba_cuda() -> Check:
    version = installed_version("numba-cuda")
    if version is not None:
        return Check("numba-cuda", OK, version)
    advice = "only for our kernels on an NVIDIA GPU: pip install 'minivllm[cuda]'; elsewhere nothing to do"
    return Check("numba-cuda", EXTRA, "not installed", advice)


def check_transformers() -> Check:
    version = installed_version("transformers")
    if version is not None:
        return Check("transformers", OK, f"{version} (only for tests and `minivllm bench field`)")
    advice = "pip install 'transformers>=5,<6', to run the parity tests and `minivllm bench field`"
    return Check("transformers", EXTRA, "not installed; the engine does not need it", advice)


# ---- the machine ---------------------------------------------------------------------------------------


def check_cpu() -> Check:
    flags = cpu_flags()
    features = ", ".join(words for flag, words in CPU_FEATURES.items() if flag in flags)
    cores = f"{usable_cores()} of {os.cpu_count()} cores usable"
    return Check("CPU", OK, f"{cpu_name()}, {cores}; {features or 'features unknown'}")


def check_memory() -> Check:
    psutil = _import("psutil")
    if psutil is None:
        return Check("RAM", EXTRA, "unknown without psutil", "pip install psutil")
    memory = psutil.virtual_memory()
    fact = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
    if memory.available < 2**30:
        return Check("RAM", EXTRA, fact, "close other programs: the demo wants about 1 GiB")
    plain, copied = (parameters_that_fit(memory.available, width) / 1e9 for width in (2, 3))
    room = f"room for {plain:.1f} billion parameters in 16 bits, or {copied:.1f} with a copy of 8 bits beside"
    return Check("RAM", OK, f"{fact}: {room} (decode_weight_dtype)")


def parameters_that_fit(num_bytes: int, bytes_each: float) -> float:
    """Of a model, its KV cache aside: what an engine takes of the memory at most, in so many bytes each."""
    return SHARE_OF_MEMORY * num_bytes / bytes_each


def check_threads() -> Check:
    """More threads than cores stall each other; threads that spin while they wait stall all others."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    fact = ", ".join(f"{name}={os.environ.get(name) or '(not set)'}" for name in names)
    threads, cores = os.environ.get("OMP_NUM_THREADS"), usable_cores()
    if threads and threads.isdigit() and int(threads) > cores:
        return Check("threads", EXTRA, fact, f"set OMP_NUM_THREADS to at most {cores}, the number of cores")
    return Check("threads", OK, fact)


def check_openmp() -> Check:
    """torch and numba may each bring an OpenMP runtime: two thread pools that compete for the same cores."""
    if not MEMORY_MAPS.is_file():
        return Check("OpenMP", EXTRA, "cannot be told on this system")
    _import("torch")
    _import("numba.np.ufunc.omppool")  # what numba loads with its first parallel kernel
    runtimes = sorted(set(loaded_openmp(MEMORY_MAPS.read_text(errors="replace"))))
    if len(runtimes) < 2:
        return Check("OpenMP", OK, f"runtimes loaded: {runtimes[0] if runtimes else 'none'}")
    waits_passively = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if waits_passively or os.environ.get("GOMP_SPINCOUNT"):
        return Check(
            "OpenMP", OK, f"{len(runtimes)} runtimes whose idle threads soon sleep: {', '.join(runtimes)}"
        )
    advice = "import minivllm before torch, or set GOMP_SPINCOUNT=1000: idle threads then sleep soon"
    return Check(
        "OpenMP", EXTRA, f"torch and numba load {len(runtimes)} runtimes: {', '.join(runtimes)}", advice
    )


def check_compiled_code() -> Check:
    """On which threads Numba's code runs, and whether it is kept."""
    if installed_version("numba") is None:
        return Check("compiled code", EXTRA, "none without numba", "pip install numba")
    try:
        folder = import_module("kernels_numba.cpu").FOLDER
        kinds = import_module("kernels_numba.kept_code").complete_kinds(folder)
    except Exception as error:
        return Check(
            "compiled code", EXTRA, f"numba cannot prepare it: {error}", "plain torch is used instead"
        )
    layers = [name for name in ("tbb", "omp") if _import(f"numba.np.ufunc.{name}pool") is not None]
    compiled = ", ".join(kinds) or "none yet (minivllm doctor --warm-up)"
    fact = f"kept in {folder}; compiled: {compiled}; threads: {layers[0] if layers else 'workqueue'}"
    if layers:
        return Check("compiled code", OK, fact)
    return Check("compiled code", EXTRA, fact, "engines in several threads take turns: pip install tbb")


def check_quantized_weights() -> Check:
    """How fast small numbers can be multiplied on this processor."""
    name = "quantised weights"
    if installed_version("numba") is None:
        return Check(name, EXTRA, "made floats by plain torch, some rows at a time", "pip install numba")
    try:
        tiles = import_module("kernels_numba.cpu.quantized_tile")
        integers = import_module("kernels_numba.cpu.integer_tile")
    except Exception as error:
        return Check(name, EXTRA, f"made floats by plain torch: kernels cannot be prepared ({error})")
    small = "looked up in a register" if tiles.HAS_LOOKUP else "shifted and converted"
    floats = "widened as 16-bit floats" if tiles.HAS_HALVES else "shifted and multiplied"
    instruction = "vpdpbusd (VNNI)" if integers.HAS_VNNI else "16-bit products (vpmaddwd)"
    return Check(
        name,
        OK,
        f"in the compiled step, and so is a second copy for decoding; 4 bits are {small}, FP8 {floats}, W8A8 "
        f"is multiplied by {instruction}; groups of an odd size by plain torch",
    )


def loaded_openmp(maps: str) -> Iterator[str]:
    """Paths of the OpenMP runtimes in a `/proc/…/maps`."""
    for line in maps.splitlines():
        path = line[line.find("/") :]
        if re.match(r"lib(gomp|iomp5|omp)[-.]", path.rsplit("/", 1)[-1]):
            yield path


# ---- what the demo needs -------------------------------------------------------------------------------


def check_shipped_model() -> Check:
    """There, and loadable: it is small enough simply to be loaded."""
    name = "shipped model"
    try:
        path = Path(import_module("minivllm.model.tiny").MODEL_PATH)
    except (ImportError, AttributeError) as error:
        return Check(
            name, FAIL, f"not found ({error})", "reinstall minivllm: pip install --force-reinstall minivllm"
        )
    try:
        executor = import_module("minivllm.executor.torch_executor").TorchExecutor
        choose = import_module("minivllm.executor.attention.choose")
        plain = choose.backend_factory("torch")  # which compiles nothing
        shape = executor.from_folder(path, device="cpu", num_blocks=1, backend=plain).model_shape
        import_module("minivllm.model.tokenizer").Tokenizer.from_folder(path)
    except ImportError as error:
        return Check(name, FAIL, f"cannot be tried: {error}", "install the missing package, then look again")
    except Exception as error:  # whatever is wrong with the files, it is a line here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check(name, FAIL, f"does not load: {reason}", "reinstall minivllm, its files are damaged")
    return Check(
        name, OK, f"loads: {shape.num_parameters:,} parameters, {shape.num_layers} layers, {shape.dtype}"
    )


def check_streamlit() -> Check:
    version = installed_version("streamlit")
    if version is None:
        return Check(
            "streamlit", FAIL, "not installed", "pip install streamlit (the dashboard is written in it)"
        )
    return Check("streamlit", OK, version)


def check_port(port: int = PORT) -> Check:
    name = f"port {port}"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        if os.name == "posix":  # as servers do: a connection closed a moment ago is no obstacle
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError as error:
            advice = f"choose another: minivllm demo --port {port + 1}"
            return Check(name, EXTRA, f"not free ({error.strerror})", advice)
    return Check(name, OK, "free, the dashboard can use it")


def check_folder() -> Check:
    """The demo writes its trace below the current folder."""
    folder = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "change to a folder of your own, or give one: minivllm demo --out FOLDER"
        return Check("current folder", FAIL, f"{folder} cannot be written to ({error.strerror})", advice)
    return Check("current folder", OK, f"{folder} can be written to")


def check_chromium() -> Check:
    """Only the dashboard's own tests drive a browser."""
    found = next(find_chromium(), None)
    if found is not None:
        return Check("Chromium", OK, f"{found} (only for the dashboard's tests)")
    advice = "playwright install chromium, to run the dashboard's tests; any browser can show it"
    return Check("Chromium", EXTRA, "not found", advice)


def find_chromium() -> Iterator[str]:
    """Chromium as the system or playwright installed it."""
    yield from (path for path in map(shutil.which, CHROMIUM_NAMES) if path)
    own = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    caches = (".cache/ms-playwright", "Library/Caches/ms-playwright", "AppData/Local/ms-playwright")
    for folder in [Path(own)] if own else [Path(os.path.expanduser("~")) / cache for cache in caches]:
        yield from (str(path) for path in sorted(folder.glob("chromium*")))


# ---- helpers -------------------------------------------------------------------------------------------


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, without importing it; None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _look(look: Callable[[], Check]) -> Check:
    """The check, or the accident that happened to it, as a line."""
    try:
        return look()
    except Exception as error:
        name = look.__name__.removeprefix("check_").replace("_", " ")
        return Check(name, EXTRA, f"could not be looked at: {error_words(error)}")


def _import(name: str) -> Any:
    """The module, or None: not installed, or broken in one of the many ways in which binaries break."""
    try:
        return import_module(name)
    except Exception:
        return None


if __name__ == "__main__":
    sys.exit(report())
