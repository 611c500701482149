"""``python -m topk_np``."""

from topk_np.cli import main

raise SystemExit(main())
