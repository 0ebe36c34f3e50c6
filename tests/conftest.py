"""What all tests share."""

import sys
from pathlib import Path

# the table of bad specs is asked by two judges, tests/unit and tests/contract
sys.path.insert(0, str(Path(__file__).parent))
