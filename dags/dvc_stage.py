"""Bring one stage of a workspace to its end with DVC, or all of them back from the cache.

Run:  python dags/dvc_stage.py --workspace DIR --stage tokenize@en --result result.json [--force]
      python dags/dvc_stage.py --workspace DIR --restore-all --result result.json

A program of its own, run as a child of an Airflow task, because DVC is not made to be imported into
Airflow's processes. It imports nothing of this project. First the ancestors of the stage are checked
out, in order, from the run cache (DVC's memory of which inputs, parameters and code gave which outputs);
an ancestor that is not there is an error, since its work belongs to another container. Then
the stage itself: from the run cache if it is there, else by running its command. `--restore-all` also
writes the merged dvc.lock. The result file says which it was: `{"state": "cached"}` or `{"state": "ran"}`.

On several nodes (PET_NODE_RANK, as Kubeflow Trainer sets it) only the first one does that. The others, in the
same workspace, join in if the stage trains (cslm.training.join).

Exit codes: 0 done, 1 the stage failed, 3 an ancestor or an input is missing, 75 the stage was told to end
(SIGTERM) or a server is away, and it goes on when it is tried again, 137 its command was killed (SIGKILL), 143
this program was told to end.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

EMBEDDED = "embedded"
REMOTE = "CSLM_DVC_REMOTE"
NODE = "PET_NODE_RANK"
FORCED = "CSLM_FORCED"
"""What tells a training that a finished one is none (components/checkpoints.py)."""
PR_SET_PDEATHSIG = 1
FIRST = 1
"""Process id in a container, which has no parent to die with."""
GRACE = "CSLM_GRACE_S"
"""Variable: seconds from SIGTERM to the end, which a pod has too (dags/runners/kubernetes.py)."""
DEFAULT_GRACE_S = "30"
SPARE_S = 5
"""What the stage itself has less of it, so that its end can be told."""
KILLED_S = 2.0
"""How long what is killed then may take to be gone."""
MISSING = 3
TRY_AGAIN = os.EX_TEMPFAIL
"""75: a stage was told to end, as in cslm.training.ranks, or a server is away (components.stage)."""
KILLED = 128 + signal.SIGKILL
"""137: most likely for its memory; an engine tells that only of a container's first process."""
ENDED = re.compile(r"exited with (-?\d+)$")
"""What DVC says of a command; a shell's own end by a signal is a negative number."""
ENDED_FOR_NOW = {TRY_AGAIN, 128 + signal.SIGTERM, -signal.SIGTERM}
"""Without a checkpoint, SIGTERM itself has ended it."""


class Missing(Exception):
    """Something that must be there before the stage can work is not."""


def main() -> int:
    arguments = _arguments()
    die_with_parent()
    os.chdir(arguments.workspace)
    if os.environ.get(NODE, "0") != "0":
        join = ["python", "-m", "cslm.training.join", str(arguments.result)]
        return subprocess.run(join, check=False).returncode
    return exit_code(lambda: _work(arguments), arguments.pull)


def _work(arguments: argparse.Namespace) -> None:
    from dvc.repo import Repo

    with Repo() as repo:
        if arguments.pull:
            repo.stage_cache.pull(None)
        if arguments.restore_all:
            state = restore_all(repo, arguments.pull)
        else:
            state = bring(repo, arguments.stage, arguments.force, arguments.pull)
    arguments.result.write_text(json.dumps({"state": state}), "utf-8")


def exit_code(work: Callable[[], None], pull: bool) -> int:
    """Do some work with DVC, and say in a line what went wrong; the exit code."""
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException

    try:
        work()
    except Missing as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return MISSING
    except (DvcException, OSError, BotoCoreError, ClientError) as error:
        chain = list(_chain(error))
        cause = ": ".join(dict.fromkeys(str(each) for each in chain[:3]))
        if pull and any(isinstance(e, BotoCoreError | ClientError | PermissionError) for e in chain):
            cause = (
                f"the store that machines share, {os.environ.get(REMOTE)} ({REMOTE}), does not do its work: "
                f"{cause}. Check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on "
                f"the bucket{_of_pod()}, then run this again: what is finished is kept"
            )
        print(f"error: {cause}", file=sys.stderr, flush=True)
        ended = {int(found[1]) for each in chain if (found := ENDED.search(str(each)))}
        if ended & {KILLED, -signal.SIGKILL}:
            return KILLED
        return TRY_AGAIN if ended & ENDED_FOR_NOW or any(map(_away, chain)) else 1
    return 0


def _away(error: BaseException) -> bool:
    """Whether a store does not answer, or says itself that it cannot work now (5xx); not that it refuses."""
    from botocore import exceptions as store

    if isinstance(error, store.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR
    silence = (store.EndpointConnectionError, store.ConnectTimeoutError, store.HTTPClientError)
    return isinstance(error, (*silence, ConnectionError, TimeoutError))


def _of_pod() -> str:
    """Whose keys they are, where it is not the environment or the connection of who reads this."""
    secret = os.environ.get("CSLM_KUBERNETES_SECRET") if os.getpid() == FIRST else None
    return f" (a pod has the keys of the Secret {secret} alone)" if secret else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def bring(repo: Repo, address: str, force: bool, pull: bool) -> str:
    """Do the work of one stage; `cached` or `ran`. With `pull` its outputs are in the store afterwards, too.

    So are those that an earlier try has made and could not bring there, and the data that the stage reads.
    """
    from dvc.repo import lock_repo
    from dvc.stage.cache import RunCacheNotFoundError

    *ancestors, stage = _ordered(repo, address)
    state = "ran"
    with _damage() as damaged, lock_repo(repo):
        for ancestor in ancestors:
            _restore(repo, ancestor, address, pull)
        if not force:
            try:
                repo.stage_cache.restore(stage, pull=pull)
                state = "cached"
            except RunCacheNotFoundError:
                print(f"{address} has not run yet with these inputs, parameters and code", flush=True)
        if state == "cached" and pull:
            _note(stage)
    if state == "ran":
        os.environ[FORCED] = "yes" if force else ""
        repo.reproduce(targets=[address], single_item=True, force=force)
    if pull:
        inputs = [each.addressing for each in repo.index.graph.successors(stage) if each.is_data_source]
        repo.push(targets=[address, *inputs], run_cache=True)
        _mend(repo, damaged)
    return state


def restore_all(repo: Repo, pull: bool) -> str:
    """Check out the outputs of every stage and write dvc.lock."""
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import plan_repro

    with _damage(), lock_repo(repo):
        graph = repo.index.graph
        for stage in plan_repro(graph):
            if stage.is_data_source and not graph.in_degree(stage):
                continue  # no stage reads it
            _restore(repo, stage, "the end of the run", pull)
            if not stage.is_data_source:
                _note(stage)
    return "cached"


def _note(stage: Stage) -> None:
    """Write into dvc.lock what was restored."""
    stage.save()
    stage.dump(update_pipeline=False)


@contextmanager
def _damage() -> Iterator[set[str]]:
    """Digests of what is not what its name says, told of as it is found: DVC drops it and says nothing."""
    found: set[str] = set()

    def look(record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("corrupted cache file") and isinstance(record.args, tuple):
            path = Path(str(record.args[0]))
            digest = path.parent.name + path.name
            found.add(digest)
            print(f"note: {digest} is damaged, and not used", flush=True)
        return record.levelno > logging.DEBUG

    logger = logging.getLogger("dvc_data.hashfile.db")
    logger.setLevel(logging.DEBUG)
    logger.addFilter(look)
    try:
        yield found
    finally:
        logger.removeFilter(look)
        logger.setLevel(logging.NOTSET)


def _mend(repo: Repo, damaged: set[str]) -> None:
    """Bring to the store what was damaged there and has been made again: a push takes it to be there."""
    cache, store = repo.cache.local, repo.cloud.get_remote_odb()
    for digest in damaged:
        if cache.exists(digest):
            store.add(cache.oid_to_path(digest), cache.fs, digest, check_exists=False, verify=False)


def _ordered(repo: Repo, address: str) -> list[Stage]:
    """The stage's ancestors, each after its own, and the stage itself."""
    from dvc.repo.reproduce import plan_repro

    return list(plan_repro(repo.index.graph, repo.stage.collect(address)))


def _restore(repo: Repo, stage: Stage, reader: str, pull: bool) -> None:
    from dvc.stage.cache import RunCacheNotFoundError

    if stage.is_data_source:
        if not stage.outs_cached():
            _pull_input(repo, stage, pull)
        stage.checkout()
        return
    try:
        repo.stage_cache.restore(stage, pull=pull)
    except RunCacheNotFoundError as error:
        raise Missing(
            f"{reader} needs the outputs of {stage.addressing}, and the cache has none for this commit's "
            f"inputs, parameters and code. Run {stage.addressing} first (in the Airflow page: clear it)"
        ) from error


def _pull_input(repo: Repo, stage: Stage, pull: bool) -> None:
    """From the embedded store, else from the one that machines share: an own corpus, a version's weights."""
    from dvc.exceptions import CollectCacheError

    stores: dict[str | None, str] = {EMBEDDED: "the embedded store"}
    if pull:
        stores[None] = f"{os.environ.get(REMOTE)} ({REMOTE})"
    for remote in stores:
        with suppress(CollectCacheError):  # the list of a folder's files is not there
            for files in stage.get_used_objs(remote=remote).values():
                repo.cloud.pull(files, remote=remote)
        if stage.outs_cached():
            return
    raise Missing(
        f"{stage.addressing}: its data is neither in the cache nor in {' nor in '.join(stores.values())}. For "
        "a corpus of your own: `dvc add` it again in the checkout; with CSLM_DVC_REMOTE, a run there brings it "
        "to other machines, as it does the weights of a version"
    )


def die_with_parent() -> None:
    """End the whole process group, the stage's command included, when the Airflow task ends in any way."""
    lead_group()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() == 1:
        sys.exit("the task that started this has ended")


def grace_s() -> int:
    """Seconds from SIGTERM to the end: CSLM_GRACE_S, or 30.

    Raises:
        ValueError: it is no number of seconds, or leaves a stage none.
    """
    given = os.environ.get(GRACE) or DEFAULT_GRACE_S
    if not given.isdecimal() or int(given) <= SPARE_S:
        raise ValueError(
            f"{GRACE}={given!r}: how many seconds a stage has to end, more than {SPARE_S}; such as 30 or 900"
        )
    return int(given)


def lead_group() -> None:
    """SIGTERM ends all that this process starts, after the time that a training needs for a checkpoint."""
    grace_s()  # a wrong one is told now, and not when it ends
    if os.getpid() != FIRST:  # which leads its group already
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, _end_group)


def _end_group(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + grace_s() - SPARE_S
    while (others := _others_in_group()) and time.monotonic() < deadline + KILLED_S:
        if time.monotonic() > deadline:
            for other in others:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
        time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)  # and not by a SIGKILL of its own: who waits for it must know why it ended


def _others_in_group() -> list[int]:
    group, found = os.getpgrp(), []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and int(status.parent.name) != os.getpid() and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="clone of the run's commit")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", help="DVC's name of the stage, such as tokenize@en")
    what.add_argument("--restore-all", action="store_true", help="check out everything and write dvc.lock")
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--force", action="store_true", help="run the stage even if it is cached")
    parser.add_argument("--pull", action="store_true", help="also use the default DVC remote")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
