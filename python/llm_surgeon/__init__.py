"""Clients of LLM Surgeon's services. `Client` speaks with a coordinator; `Calibrator` and `Surgeon`, in
`llm_surgeon.curvature`, with workers that work alone (they need the extra `curvature`). Messages are in `llm_surgeon.v1`."""

from llm_surgeon.client import Client, Event, run_spec
from llm_surgeon.connection import SurgeonError

__all__ = ["Client", "Event", "SurgeonError", "run_spec"]
