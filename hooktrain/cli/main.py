"""The command line. Nothing heavy is imported before a command needs it: ``hooktrain --help`` answers at once."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from hooktrain.cli import trial as trial_runs
from hooktrain.cli.bench import bench
from hooktrain.cli.chat import chat
from hooktrain.cli.convert import convert, foreign_refused, read_own_or_translated
from hooktrain.cli.evaluate import evaluate
from hooktrain.cli.export import export
from hooktrain.cli.guide import guide
from hooktrain.cli.inspect import hooks, plan, plugins, schema
from hooktrain.cli.launcher import follow_launcher
from hooktrain.cli.lr_find import lr_find
from hooktrain.cli.new_plugin import new_plugin
from hooktrain.cli.options import as_json, from_dialect, plugin_switches, print_facts, recipe_options
from hooktrain.cli.runs import runs
from hooktrain.cli.startup import end, end_threads, leave, open_streams, provide_home
from hooktrain.cli.sweep import sweep
from hooktrain.cli.watch import watch
from hooktrain.errors import HooktrainError, described, did_you_mean, failure_of, show_warnings, text_of
from hooktrain.masking import forbid_others, mask_text
from hooktrain.plugin.commands import plugin_command, plugin_commands
from hooktrain.renamed import new_name
from hooktrain.training.rank_notes import has_launcher, note_end, note_failure, trace_of

__all__ = ["cli", "main"]


class _RunError(Exception):
    """Carries what a run has raised past click, which takes several exceptions for its own.

    BrokenPipeError and click's ``Exit`` would end the command without a word, and EOFError as an interrupt does.
    """


class _Group(click.Group):
    """The engine's commands and, by their metadata alone, those of installed plugins."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BaseException as problem:
            if failure_of(problem).where:
                raise _RunError from problem
            raise

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        return found or plugin_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(ctx, formatter)
        rows = [
            (each.name, f"of {each.owner}") for each in plugin_commands().values() if each.name not in self.commands
        ]
        if rows:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            known = sorted({*self.commands, *plugin_commands()})
            meant = new_name("command", args[0]) or did_you_mean(args[0], known)
            raise click.UsageError(f"no command is named '{args[0]}'{meant}; there are {', '.join(known)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hooktrain")
@click.option("--local_rank", "--local-rank", hidden=True, expose_value=False)  # DeepSpeed's launcher says it twice
def cli() -> None:
    """Post-training of language models, with every moving part a plugin."""


@cli.command()
@recipe_options
@from_dialect
@click.option("--resume", type=click.Path(path_type=Path), metavar="CHECKPOINT", help="Go on from this checkpoint.")
@click.option("--nproc", type=click.IntRange(1), default=1, show_default=True, help="Processes to start on this host.")
@click.option("--profile-hooks", is_flag=True, help="Show time, device waits and memory of each plugin and hook.")
@click.option(
    "--overfit",
    type=click.IntRange(1),
    metavar="N",
    help="Train on N micro-batches only; say if their loss gets to zero.",
)
@click.option(
    "--fast-dev-run",
    "trial",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=2,
    metavar="[N]",
    help="Train, evaluate, save, resume and export with N steps (2) each; keep nothing.",
)
def train(
    recipe: Path,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    dialect: str | None,
    resume: Path | None,
    nproc: int,
    profile_hooks: bool,
    overfit: int | None,
    trial: int | None,
) -> None:
    """Run a recipe.

    Works unchanged under torchrun, deepspeed or a scheduler that sets RANK, WORLD_SIZE and LOCAL_RANK.
    """
    from hooktrain.cli.startup import Progress, collect_rarely, remember_run, sleep_while_waiting
    from hooktrain.recipe.yaml_reader import apply_overrides
    from hooktrain.runs.starting import mark_start

    sleep_while_waiting()
    if profile_hooks:
        overrides += ("profile_hooks=true",)
    raw = apply_overrides(read_own_or_translated(recipe, dialect, switches), overrides)
    if trial and (overfit or resume):
        raise click.UsageError("--fast-dev-run goes with neither --overfit nor --resume")
    if overfit:
        raw = trial_runs.overfit_recipe(raw, overfit, recipe.stem)
    progress = Progress(recipe, raw, switches)
    if not has_launcher():
        progress.say("loading plugins")
    with collect_rarely(), foreign_refused(recipe, dialect, switches):
        from hooktrain.training.load import load

        made, host = load(raw, switches=list(switches), source=str(recipe), name=recipe.stem)
    if nproc > 1 and "RANK" not in os.environ:  # what is wrong in the recipe has been said once, and not by each rank
        from hooktrain.cli.launcher import launch

        progress.say(f"starting {nproc} ranks")
        words = ["train", str(recipe), *(["--from", dialect] if dialect else [])]
        single = {"--resume": resume, "--overfit": overfit, "--fast-dev-run": trial}
        given = {flag: [str(value)] for flag, value in single.items() if value}
        for flag, values in {"-o": overrides, "-p": switches, **given}.items():
            for value in values:
                words += [flag, value]
        sys.exit(launch(words, nproc))
    if trial:
        return trial_runs.fast_dev_run(raw, trial, recipe, switches)
    progress.say_parts(made)
    if not overfit:
        progress.say_unsaved(made)
    folder = made.run_dir or Path("runs") / made.name
    with mark_start(folder) if progress.is_main else contextlib.nullcontext(), collect_rarely():
        from hooktrain.training.trainer import Trainer

        trainer = Trainer(made, host, resume_from=resume)
        remember_run(trainer)
        trainer.prepare()
    trainer.run()
    if overfit and trainer.world.is_main:
        click.echo(trial_runs.overfit_result(trainer))
    if trainer.exit_status:
        sys.exit(trainer.exit_status)


@cli.command(short_help="Prepare a recipe's data and count it.")
@recipe_options
@from_dialect
@click.option("--show", type=click.IntRange(0), default=0, metavar="N", help="Show the first N rows of each source.")
@click.option("--teacher", is_flag=True, help="Compute and keep what the teacher of `loss.top_k` says about the data.")
@as_json
def data(
    recipe: Path,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    dialect: str | None,
    show: int,
    teacher: bool,
    as_json: bool,
) -> None:
    """Prepare a recipe's data without training; show what became of it and which tokens are trained."""
    from hooktrain.cli.data import data_of, print_data
    from hooktrain.cli.startup import collect_rarely, say_on_terminal
    from hooktrain.training.load import load

    raw = read_own_or_translated(recipe, dialect, switches)
    say_on_terminal(recipe, "loading plugins")
    with collect_rarely():
        with foreign_refused(recipe, dialect, switches):
            made, host = load(
                raw, overrides=list(overrides), switches=list(switches), source=str(recipe), name=recipe.stem
            )
        say_on_terminal(recipe, "preparing data")
        facts = data_of(made, host, show, teacher)
    print_facts(facts, as_json, print_data)


@cli.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the demo's recipe.")
@plugin_switches
def demo(run_dir: Path, overrides: tuple[str, ...], switches: tuple[str, ...]) -> None:
    """Fine-tune SmolLM2-135M on real conversations."""
    from hooktrain.cli.demo import run_demo
    from hooktrain.cli.startup import sleep_while_waiting

    sleep_while_waiting()
    run_demo(run_dir, list(overrides), list(switches))


_SHOWING = (plan, convert, plugins, hooks, bench, schema, new_plugin, guide, runs, watch)
for _command in (*_SHOWING, lr_find, sweep, export, evaluate, chat):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; errors of hooktrain's own are one message and no traceback."""
    open_streams()
    provide_home()
    forbid_others()
    several = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    follow_launcher()
    show_warnings()
    if "SIGUSR1" in signal.Signals.__members__:  # which would end a process that has not come to its training yet
        signal.signal(
            signal.SIGUSR1, lambda number, frame: click.echo("hooktrain: SIGUSR1: nothing to save yet", err=True)
        )
    try:
        status = _status()
    except BaseException as problem:
        if not several and isinstance(problem, Exception):
            raise
        status = _failed(f"failed: {described(problem)}", problem, trace=True)
    if several:
        _leave(status)
    end(status)


def _status() -> int:
    """Run the command line; returns the status to end with."""
    try:
        found = cli.main(prog_name="hooktrain", standalone_mode=False)
        return found if isinstance(found, int) else 0
    except _RunError as carrier:
        assert carrier.__cause__ is not None, "it carries something"
        return _stopped_by(carrier.__cause__)
    except SystemExit as asked:
        if isinstance(asked.code, str):
            click.echo(asked.code, err=True)
        return asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except HooktrainError as problem:
        return _failed(text_of(problem), problem, trace=False)
    except (KeyboardInterrupt, click.Abort) as problem:
        return _interrupted(problem.__cause__ or problem.__context__ or problem)
    except Exception as problem:
        if _follows_interrupt(problem):
            return _interrupted(problem)
        if isinstance(problem, OSError) and problem.errno == errno.ENAMETOOLONG:
            named = str(problem.filename)
            return _failed(f"given '{named[:60]}...', which is too long for a path; correct it", problem, trace=False)
        raise


def _stopped_by(problem: BaseException) -> int:
    """Say what has stopped a run, and where; returns the status to end with, which is never 0."""
    failure = failure_of(problem)
    if isinstance(problem, HooktrainError):  # before the first step the message says where
        return _failed(text_of(problem) + (f" [{failure.where}]" if failure.step else ""), problem, trace=False)
    if isinstance(problem, SystemExit):
        return _quit(problem)
    if _follows_interrupt(problem):
        return _interrupted(problem)
    said = f"{type(problem).__name__}: {text_of(problem)}".removesuffix(": ")
    return _failed(f"failed in {failure.where}: {said}", problem, trace=True)


def _follows_interrupt(problem: BaseException | None) -> bool:
    """Whether an error was raised while an interrupt left a library's code, which often hides it."""
    while problem is not None and not isinstance(problem, KeyboardInterrupt):
        problem = problem.__cause__ or problem.__context__
    return problem is not None


def _interrupted(problem: BaseException) -> int:
    """Say where the user has ended the run and what it has saved; returns the status."""
    where, saved = failure_of(problem).where, failure_of(problem).saved
    so_far = f"the last save is {saved}" if saved else "this run has saved nothing"
    # outside of the run, as when it has ended and said so, nothing is known of what it has saved
    click.echo(f"hooktrain: interrupted{f' at {where}; {so_far}' if where else ''}", err=True)
    return 130


def _quit(asked: SystemExit) -> int:
    """A hook has ended the process before the run was over, which is a failure whatever status it gave."""
    status = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    said = f", saying: {asked.code}" if isinstance(asked.code, str) else ""
    early = "" if status else ", before the run was over"
    where = failure_of(asked).where
    _failed(f"{where}: ended the process with status {status}{said}{early}", asked, trace=True)
    return status & 0xFF or 1


def _failed(message: str, problem: BaseException, *, trace: bool) -> int:
    """Say why the command fails, or have the launcher of several ranks say it; returns the status."""
    if not note_failure(message, problem, trace=trace):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: the status says that it failed
            if trace:
                click.echo(trace_of(problem), err=True, nl=False)
            click.echo(mask_text(f"hooktrain: {message}"), err=True)
    return 1


def _leave(status: int) -> NoReturn:
    """End a rank before the interpreter takes itself down.

    Threads of a process group may outlive it, and one that frees a tensor while Python is shutting down ends the
    process with SIGABRT, so that a run that was well is reported as failed.
    """
    if status != 1:  # after an error the others wait for this rank's end
        end_threads(status)
    note_end()
    leave(status)
