"""Commands about the machine: ``native`` compiles an engine for it, ``doctor`` says what it can run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from crossforge.profiles import DeploymentProfile, InputError
from crossforge.runtime.cli_options import DebugOption, DeploymentOption, JsonOption, read_deployment
from crossforge.runtime.console import TerminalProgress, handles_errors, out, print_json

app = typer.Typer(add_completion=False)


@app.command()
@handles_errors
def native(
    compiler: Annotated[str, typer.Option(help="A C++17 compiler that takes GCC's options.")] = "g++",
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Compile the native engine for int8 on this machine's processor, into the user's cache folder."""
    from crossforge.runtime.machine import inspect_machine
    from crossforge.runtime.sessions.native.library import NATIVE_INSTRUCTION_SETS, build_library, kernels_here, load_library

    with TerminalProgress().stage("compile the native engine") as stage:
        library = build_library(compiler=compiler)
        stage.note = f"{library.stat().st_size / 1e3:.0f} kB"
    out.print(f"Wrote {escape(str(library))}", soft_wrap=True)
    kernels = kernels_here(load_library(library))
    out.print(f"Kernels that this processor runs, the fastest first: {', '.join(kernels)}")
    has = inspect_machine().instruction_sets
    if left_out := [name for name in NATIVE_INSTRUCTION_SETS if name in has and name not in kernels]:
        out.print(
            f"Left out: {', '.join(left_out)}. The processor has the instructions, but the compiler does not know them, the "
            "system does not lend them (AMX: Linux 5.16) or their sums were wrong. A newer compiler: --compiler."
        )


@app.command()
@handles_errors
def doctor(
    bundle: Annotated[str | None, typer.Argument(help="Also say what would run this bundle here, and why.")] = None,
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Show what this machine can run, and why not the rest."""
    from crossforge.runtime.bundle import Bundle
    from crossforge.runtime.decision import decide
    from crossforge.runtime.doctor import diagnose
    from crossforge.runtime.machine import inspect_machine
    from crossforge.runtime.precision import AUTO

    if deployment is not None and bundle is None:
        raise InputError(
            "--deployment says how a bundle is run, and there is none", allowed="doctor BUNDLE --deployment FILE"
        )
    machine = inspect_machine()
    diagnosis = diagnose(machine)
    profile = read_deployment(deployment) or DeploymentProfile()
    decision = None
    if bundle is not None:
        opened, precision = Bundle.open(bundle), profile.precision or AUTO
        decision = decide(opened, machine, precision=precision, order=profile.providers, gpu=profile.gpu).explain()
    if as_json:
        print_json({**vars(diagnosis), "decision": decision})
    else:
        cores = f"{machine.usable_cores} usable of {machine.total_cores} cores"
        out.print(f"[bold]processor[/]  {escape(machine.cpu)}, {cores}")
        out.print(f"[bold]vectors[/]    {', '.join(machine.instruction_sets) or 'unknown'}")
        out.print(f"[bold]GPUs[/]       {escape(', '.join(machine.gpus) or machine.gpu_reason)}")
        out.print(f"[bold]packages[/]   {', '.join(diagnosis.packages)}")
        for extra, command in diagnosis.missing_extras.items():
            out.print(f"[bold]not here[/]   extra {extra}: {escape(command)}")
        out.print()
        for state in diagnosis.providers:
            mark = "[green]✓[/]" if state.available else "[red]✗[/]"
            out.print(f"{mark} {state.name:<9} {escape(state.reason)}")
        out.print()
        if decision is not None:
            out.print(f"[bold]{escape(str(bundle))}[/] would run as {escape(decision)}")
            out.print()
        for problem in diagnosis.problems:
            out.print(f"[yellow]![/] {escape(problem)}")
        if not diagnosis.problems:
            out.print("No problems.")
    if not any(state.available for state in diagnosis.providers):
        raise typer.Exit(3)
