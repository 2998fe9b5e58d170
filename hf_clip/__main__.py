"""`torchrun -m hf_clip train ...`: the command `hf-clip` as a module, for launchers."""

import sys

from hf_clip_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
