"""The version that the stand-in reports."""

import os

VERSION = os.environ.get("FAKE_TRT", "8.6.0")
