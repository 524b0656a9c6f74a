"""`kara`: the cluster from a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kara_cache.attachment import Attachment
from kara_cache.cli.exit_code import ExitCode, exit_code
from kara_cache.cli.parser import make_parser
from kara_cache.cli.storage_place import store_options_of
from kara_cache.config import ClientConfig
from kara_cache.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["up"]:
        # The worker's side lives in its own package, which this one never imports. In place of this process:
        # a parent that gets Ctrl-C as well would kill the child before its workers are stopped.
        os.execv(sys.executable, [sys.executable, "-m", "kara_worker.up", *arguments[1:]])
    options = make_parser().parse_args(arguments)
    try:
        config = ClientConfig.load(
            file=options.config,
            cluster_name=options.cluster_name,
            etcd_hosts=options.etcd_hosts,
            worker_hosts=options.worker_hosts,
            token=_reference(options.token),
        )
        attachment = Attachment(config, stores=store_options_of(options.store_option))
        try:
            options.run(attachment, options)
            sys.stdout.flush()  # here a closed pipe is no error, at the interpreter's end it would be
        finally:
            attachment.close()
    except BrokenPipeError:  # `kara ls | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as exc:
        if os.environ.get("KARA_TRACEBACK"):
            raise
        print(f"kara: {_message(exc)}", file=sys.stderr)
        return exit_code(exc)
    return ExitCode.OK


def _message(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror}: {exc.filename}" if exc.filename else exc.strerror
    return str(exc) or type(exc).__name__


def _reference(token: str | None) -> str | None:
    """A token on a command line is visible to every user of the machine in `ps`."""
    if token is not None and not token.startswith(("env:", "file:")):
        raise ConfigError("--token: give env:NAME or file:/path, a literal would be visible in ps")
    return token


if __name__ == "__main__":
    sys.exit(main())
