"""Importing a plugin is cheap and changes nothing: every listing of plugins does it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from hooktrain.testing.checks.kit import Broken, Kit
from hooktrain.testing.fork_server import real_starts

__all__ = ["check_import"]

_TRIES = 3
_PROGRAM = """
import json, logging, os, signal, sys, threading, time
sys.path[:] = json.loads(sys.argv[2])
import torch, hooktrain, hooktrain.plugins
from hooktrain.testing.checks.subject import Reference
events, reference = [], json.loads(sys.argv[1])
def hear(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and "__pycache__" not in str(path) and str(path) != os.devnull:
            events.append(f"opens {path} for writing")
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir"):
        if "__pycache__" not in str(arguments[0]):
            events.append(f"calls {event}({arguments[0]})")
    elif event in ("socket.connect", "socket.getaddrinfo"):
        events.append(f"uses the network: {event}{tuple(map(str, arguments))[-2:]}")
    elif event in ("subprocess.Popen", "os.system", "os.fork"):
        events.append(f"starts a process: {arguments[0] if arguments else event}")
def state():
    return {
        "signal handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment variables": dict(os.environ),
        "handlers of the root logger": [str(handler) for handler in logging.getLogger().handlers],
        "torch's random state": torch.get_rng_state().sum().item(),
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's grad mode": torch.is_grad_enabled(),
        "sys.excepthook": str(sys.excepthook),
    }
before, modules, threads = state(), set(sys.modules), set(threading.enumerate())
sys.addaudithook(hear)
wall, cpu = time.perf_counter(), time.process_time()
try:
    Reference(**reference)._module()
finally:
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
seen, after = list(events), state()
for name, value in before.items():
    if after[name] != value:
        if isinstance(value, dict):
            value = {key: None for key in after[name] if after[name][key] != value.get(key)}
            seen.append(f"changes {name}: {', '.join(value)}")
        else:
            seen.append(f"changes {name}")
seen += [f"leaves a thread: {thread.name}" for thread in set(threading.enumerate()) - threads]
if torch.cuda.is_initialized():
    seen.append("initialises CUDA")
new = sorted({name.partition(".")[0] for name in set(sys.modules) - modules})
print(json.dumps({"seen": list(dict.fromkeys(seen)), "wall": wall, "cpu": cpu, "new": new}))
"""


def check_import(kit: Kit) -> None:
    """Importing takes less than ``import_seconds`` of a processor, and leaves nothing behind."""
    limit, best, new = kit.options.import_seconds, float("inf"), ""
    for _ in range(_TRIES):  # a busy machine makes it look slow, and never quick
        found = _import(kit)
        if found["seen"]:
            raise Broken(
                "importing the plugin " + "; ".join(found["seen"][:5]),
                "every `hooktrain plugins` imports every plugin, on machines and in programs that never use it",
                "do this in the hook that needs it, such as on_train_start, and undo it in on_teardown",
            )
        if found["cpu"] < best:
            best = found["cpu"]
            kit.notes["import"] = f"{found['wall']:.3f} s ({best:.3f} s of a processor)"
            new = ", ".join(name for name in found["new"] if name not in sys.stdlib_module_names)
        if best <= limit:
            return
    raise Broken(
        f"importing the plugin takes {best:.2f} s of a processor, hooktrain and torch not counted, and at most"
        f" {limit:g} s is allowed; it brings in {new}",
        "every `hooktrain plugins` and every run imports every installed plugin",
        "import what takes long inside the functions that use it",
    )


def _import(kit: Kit) -> dict[str, Any]:
    reference = kit.reference
    given = {"name": reference.name, "module": reference.module, "file": reference.file}
    line = [sys.executable, "-c", _PROGRAM, json.dumps(given), json.dumps(sys.path)]
    with real_starts():
        done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=kit.options.timeout)
    if done.returncode != 0:
        text = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-8:])
        raise Broken(
            f"importing {reference.module} fails:\n{text}",
            "a plugin that cannot be imported takes no part in any run",
            "import optional dependencies inside the functions that use them, and list the others as dependencies",
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
