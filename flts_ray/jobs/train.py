"""Train from end to end: `python -m flts_ray.jobs.train --config configs/demo.yaml`.

What `ray job submit` runs and what `flts train` calls: open the services, run the pipeline,
report. Exit code 0 when the candidate was promoted or already is champion, 3 when the gate
refused it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from flts_ray.config import Config, load_config
from flts_ray.errors import FltsError, GateRefused
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.jobs.serve import tell_replicas
from flts_ray.jobs.session import open_session
from flts_ray.narrate import LogNarrator, set_up_logging
from flts_ray.pipeline import TrainReport, train
from flts_ray.services import Narrator


def run(
    config: Config, narrator: Narrator, *, resume: bool = False, force: bool = False
) -> TrainReport:
    """Open services, train, close them again."""
    with open_session(config, ray=True) as services:
        clock = partial(datetime.now, UTC)
        report = train(config, services, narrator, clock, resume=resume, force=force)
        if report.promoted:
            tell_replicas(config)
        return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the job; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flts_ray.jobs.train", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, for example configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted study")
    parser.add_argument("--force", action="store_true", help="prepare again")
    given = parser.parse_args(arguments)
    set_up_logging(json_lines=True)
    interrupt_on_sigterm()
    try:
        config = load_config(given.config, given.overrides)
        report = run(config, LogNarrator(), resume=given.resume, force=given.force)
    except FltsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    print(report.decision.reason)
    return 0 if report.promoted else GateRefused.exit_code


if __name__ == "__main__":
    sys.exit(main())
