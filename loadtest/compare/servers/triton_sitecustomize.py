"""Put into the environment of Triton as sitecustomize.py.

Its Python backend brings an interpreter of its own (3.11.2), which uses the standard library that it finds here. From
3.11.6 on that asks locks for a method which the older interpreter's lack; the library's own lock, in Python, has it.
"""

import _thread
import threading
from multiprocessing import resource_tracker

if not hasattr(_thread.RLock, "_recursion_count"):
    resource_tracker._resource_tracker._lock = threading._PyRLock()
