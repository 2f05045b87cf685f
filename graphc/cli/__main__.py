"""`python -m graphc.cli` is `graphc`."""

from graphc.cli import main

raise SystemExit(main())
