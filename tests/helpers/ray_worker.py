"""What a Ray node of a test starts for a worker, in place of Ray's own `setup_worker.py`.

That one imports Ray, makes an environment of which there is none here, and starts Python and its imports once more.
"""

import runpy
import sys

# Ray's own script takes these.
SETTINGS = ("--language=", "--serialized-runtime-env-context=")

if __name__ == "__main__":
    sys.argv = [each for each in sys.argv[1:] if not each.startswith(SETTINGS)]
    runpy.run_path(sys.argv[0], run_name="__main__")
