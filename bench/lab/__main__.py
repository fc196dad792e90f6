import sys

from bench.lab.conv import main

sys.exit(main())
