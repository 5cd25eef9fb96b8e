"""torchrun as the pipeline starts it: its own launcher, without its traceback when a rank fails.

    python -m adg.pipeline.launch --nproc_per_node=2 -m generation.sample_answers configs/demo.yaml
"""

import logging
import signal
import sys

from adg.base.process import die_with_parent


def main() -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.disable(logging.WARNING)  # of its modules, some have a level of their own
    arguments = parse_args(sys.argv[1:])
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # whoever started this sends SIGTERM
        arguments.signals_to_handle = "SIGTERM,SIGHUP,SIGQUIT"
    try:
        run(arguments)
    except ChildFailedError as error:
        sys.exit(next((code for failure in error.failures.values()
                       if (code := failure.exitcode) > 0), 1))
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    die_with_parent()
    main()
