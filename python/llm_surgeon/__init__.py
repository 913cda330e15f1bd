"""Client of LLM Surgeon's coordinator. `Client` is all there is; messages are in `llm_surgeon.v1`."""

from llm_surgeon.client import Client, Event, SurgeonError, run_spec

__all__ = ["Client", "Event", "SurgeonError", "run_spec"]
