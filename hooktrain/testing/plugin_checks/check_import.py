"""Checks that importing a plugin is cheap and changes nothing, as every listing of plugins imports all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from hooktrain.testing.fork_server import real_starts
from hooktrain.testing.plugin_checks.kit import Broken, Kit

__all__ = ["check_import"]

_TRIES = 3
_PROGRAM = """
import builtins, json, logging, os, signal, sys, threading, time
sys.path[:] = json.loads(sys.argv[2])
import hooktrain
from hooktrain.testing.plugin_checks.plugin_reference import Reference
events, reference, plain_import = [], json.loads(sys.argv[1]), builtins.__import__
engine = {"inside": False, "modules": set(), "wall": 0.0, "cpu": 0.0}  # modules and time of hooktrain and torch
def audit(event, arguments):
    if engine["inside"]:
        return
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
def import_of_the_engine(*arguments):
    before, wall, cpu = set(sys.modules), time.perf_counter(), time.process_time()
    engine["inside"] = True
    try:
        return plain_import(*arguments)
    finally:
        engine["inside"] = False
        engine["modules"] |= set(sys.modules) - before
        engine["wall"] += time.perf_counter() - wall
        engine["cpu"] += time.process_time() - cpu
        if "torch" in sys.modules and "random state" not in engine:
            engine["random state"] = sys.modules["torch"].get_rng_state()
def import_(name, globals=None, locals=None, fromlist=(), level=0):
    if not engine["inside"]:
        importer = str((globals or {}).get("__name__")).partition(".")[0]
        if importer == "hooktrain":
            return import_of_the_engine(name, globals, locals, fromlist, level)
        if level == 0 and name.partition(".")[0] == "torch" and "torch" not in sys.modules:
            import_of_the_engine("torch")  # without the parts of torch that are imported on demand
    return plain_import(name, globals, locals, fromlist, level)
def state():
    return {
        "signal handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment variables": dict(os.environ),
        "handlers of the root logger": [str(handler) for handler in logging.getLogger().handlers],
        "sys.excepthook": str(sys.excepthook),
    }
def of_torch():
    torch = sys.modules["torch"]
    if "random state" in engine and not torch.equal(torch.get_rng_state(), engine["random state"]):
        yield "changes torch's random state"
    if torch.get_default_dtype() != torch.float32:
        yield "changes torch's default dtype"
    if not torch.is_grad_enabled():
        yield "changes torch's grad mode"
    if torch.cuda.is_initialized():
        yield "initialises CUDA"
before, modules, threads = state(), set(sys.modules), set(threading.enumerate())
sys.addaudithook(audit)
wall, cpu, builtins.__import__ = time.perf_counter(), time.process_time(), import_
try:
    Reference(**reference).import_module()
finally:
    wall, cpu, builtins.__import__ = time.perf_counter() - wall, time.process_time() - cpu, plain_import
seen, after = list(events), state()
for name, value in before.items():
    if after[name] != value:
        if isinstance(value, dict):
            value = {key: None for key in after[name] if after[name][key] != value.get(key)}
            seen.append(f"changes {name}: {', '.join(value)}")
        else:
            seen.append(f"changes {name}")
seen += [f"leaves a thread: {thread.name}" for thread in set(threading.enumerate()) - threads]
seen += of_torch() if "torch" in sys.modules else ()
new = set(sys.modules) - modules - engine["modules"]
new = sorted(name for name in new if name.partition(".")[0] != "hooktrain")
found = {"seen": list(dict.fromkeys(seen)), "wall": wall - engine["wall"], "cpu": cpu - engine["cpu"], "new": new}
print(json.dumps(found))
"""


def check_import(kit: Kit) -> None:
    """Check that importing loads at most ``import_modules`` modules, and leaves nothing behind."""
    found = _import(kit)
    if found["seen"]:
        raise Broken(
            "importing the plugin " + "; ".join(found["seen"][:5]),
            "every `hooktrain plugins` imports every installed plugin, also on machines that never use it",
            "do this in the hook that needs it, such as on_train_start, and undo it in on_teardown",
        )
    new, limit = found["new"], kit.options.import_modules
    if len(new) > limit:
        raise _expensive(
            f"loads {len(new):,} modules, without those of hooktrain and torch, and at most {limit:,} are allowed; most"
            f" are of {_packages(new)}"
        )
    if kit.options.time:
        found = _check_time(kit, found)
    kit.notes["import"] = f"{len(new)} modules, {found['wall']:.3f} s ({found['cpu']:.3f} s of processor time)"


def _check_time(kit: Kit, found: dict[str, Any]) -> dict[str, Any]:
    """Check the time of the fastest of several imports, as a busy machine makes some of them slow."""
    limit = kit.options.import_seconds
    for _ in range(_TRIES - 1):
        if found["cpu"] > limit:
            found = min(found, _import(kit), key=lambda each: float(each["cpu"]))
    if found["cpu"] > limit:
        raise _expensive(
            f"takes {found['cpu']:.2f} s of processor time, without hooktrain and torch, and at most {limit:g} s is"
            f" allowed; it imports {_packages(found['new'])}"
        )
    return found


def _expensive(found: str) -> Broken:
    return Broken(
        f"importing the plugin {found}",
        "every `hooktrain plugins` and every run imports every installed plugin",
        "import slow libraries inside the functions that use them",
    )


def _packages(modules: list[str]) -> str:
    """Return the packages of modules, those with most modules first."""
    counts: dict[str, int] = {}
    for module in modules:
        package = module.partition(".")[0]
        counts[package] = counts.get(package, 0) + (package not in sys.stdlib_module_names)
    found = sorted((package for package in counts if counts[package]), key=lambda package: -counts[package])
    return ", ".join(found[:5]) or "the standard library"


def _import(kit: Kit) -> dict[str, Any]:
    """Import the plugin in a process that has imported nothing else."""
    reference = kit.reference
    arguments = {"name": reference.name, "module": reference.module, "file": reference.file}
    line = [sys.executable, "-c", _PROGRAM, json.dumps(arguments), json.dumps(sys.path)]
    with real_starts():
        done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=kit.options.timeout)
    if done.returncode != 0:
        text = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-8:])
        raise Broken(
            f"importing {reference.module} fails:\n{text}",
            "a plugin that cannot be imported is not active in any run",
            "import optional dependencies inside the functions that use them, and declare the others as dependencies",
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
