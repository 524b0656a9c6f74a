"""`python -m kara_worker` is `kara-worker`."""

import sys

from kara_worker.cli import main

sys.exit(main())
