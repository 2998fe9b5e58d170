"""`accelerate launch -m hf_clip.training --recipe ...`: what `hf-clip train` does, as a module for launchers."""

import sys

from hf_clip_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
